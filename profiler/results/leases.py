"""Which running sweep is measuring which case, so that two sweeps of one store do not both measure it.

A lease is a row of the store that its holder renews while it measures. Other sweeps wait as long as the holder lives.
On the same machine they ask the kernel; for a holder on another machine, the lease's counter must advance. Clocks of
different machines are never compared, so a changed clock or another time zone neither ends a lease nor keeps a dead
one.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from profiler.case import digest
from profiler.results import database
from profiler.results.database import in_words

BEAT_S = 5.0  # between renewals; each writes a few hundred bytes without syncing
DEAD_S = 60.0  # without a renewal: longer than a living parent process ever pauses


@dataclass(frozen=True, slots=True)
class Holder:
    """The sweep that is measuring a case."""

    run: str
    machine: str | None  # as in ``this_machine``; None: unknown
    pid: int
    started: int | None  # start of the process, in clock ticks since its machine booted
    beat: int

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to have ended, which only its own machine can tell."""
        if self.machine is None or self.machine != this_machine():
            return False
        started = started_at(self.pid)
        if started == self.started:
            return False
        try:
            os.kill(self.pid, 0)
        except PermissionError:  # a process of another user; /proc may hide it
            return started is not None
        except (OSError, OverflowError):
            pass
        return True


class Leases:
    """The leases of one run, and its knowledge of other runs' leases. A context manager that releases its own.

    It uses its own connection, which does not sync the disk: a lease need not survive a power failure.
    """

    def __init__(self, path: Path, run: str, environment: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._run, self._environment, self._clock = path, run, environment, clock
        self._db = database.connect(path, create=False)
        self._seen: dict[str, tuple[Holder, float]] = {}  # by case: the holder, and when its counter last changed
        self._beat_at = clock()
        with in_words(path):
            self._db.execute("PRAGMA synchronous = NORMAL")

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(sqlite3.Error):  # other sweeps will see that this process has ended
            self._db.execute("DELETE FROM leases WHERE run = ?", (self._run,))
        self._db.close()

    def claim(self, key: str) -> Holder | None:
        """Take the lease of the case ``key``, or return the living sweep that has it. Raises StoreError."""
        with in_words(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                database.check_in_place(self._path, self._db)  # before measuring a case whose row would be lost
                holder = self._holder(key)
                if holder is None:
                    mine = (key, self._environment, self._run, this_machine(), os.getpid(), started_at(os.getpid()))
                    self._db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, 0)", mine)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        self._beat_at = self._clock()
        return holder

    def release(self, key: str) -> None:
        """Release the lease of a case that will not be measured; ``Store.append`` releases those of measured ones."""
        with in_words(self._path):
            self._db.execute("DELETE FROM leases WHERE key = ? AND run = ?", (key, self._run))

    def renew(self) -> None:
        """Show that this run lives, if it is time. Never waits: if the store is busy, it retries soon."""
        now = self._clock()
        if now - self._beat_at < BEAT_S:
            return
        with suppress(sqlite3.Error):  # problems with the store are reported when a row is stored
            self._db.execute("PRAGMA busy_timeout = 0")
            self._db.execute("UPDATE leases SET beat = beat + 1 WHERE run = ?", (self._run,))
            self._beat_at = now
        with suppress(sqlite3.Error):
            self._db.execute(f"PRAGMA busy_timeout = {database.BUSY_TIMEOUT_S * 1000:.0f}")

    def _holder(self, key: str) -> Holder | None:
        """The living sweep that holds the lease of a case."""
        found = self._db.execute(
            "SELECT run, machine, pid, started, beat FROM leases WHERE key = ? AND environment = ? AND run <> ?",
            (key, self._environment, self._run),
        ).fetchone()
        if found is None or (holder := Holder(*found)).is_gone:
            return None
        now = self._clock()
        known, since = self._seen.get(key, (None, now))
        if known != holder:
            self._seen[key] = holder, now
            return holder
        return None if now - since > DEAD_S else holder


@cache
def this_machine() -> str | None:
    """Identifies the machine, its boot and its PID namespace; None if one of them is not known.

    It is a digest, because stores are shared and a machine's name is private.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return digest([socket.gethostname(), boot, os.readlink("/proc/self/ns/pid")])
    except (OSError, ValueError):
        return None


def started_at(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None if it does not exist or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
