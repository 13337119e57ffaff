"""The result store: one SQLite file that keeps what was measured, whatever happens to the process that measured it.

    runs ──< run_rows >── measurements >── environments

A measurement is kept whole (``encoding``): raw samples, no statistics. Its environment is stored once for all rows
that share it. A run is a list of measurements: its own, and those it adopted from an earlier run instead of measuring
them again. WAL with ``synchronous=FULL``: what ``append`` has returned from survives SIGKILL and power loss. Nothing
that ``redact`` knows as a secret is written.
"""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import string
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiler import folders
from profiler.case import digest
from profiler.errors import NotFound, ProfileError, StoreError
from profiler.results.encoding import decode, dumps, encode
from profiler.results.environment import environment_key
from profiler.results.measurement import Measurement
from profiler.results.opening import connect, in_words
from profiler.results.redact import redact, redact_argv, redact_json
from profiler.shell import Command, command
from profiler.units import printable

TIME = "%Y-%m-%dT%H:%M:%SZ"
RUN_ID = "%y%m%d-%H%M%S"


@dataclass(frozen=True, slots=True)
class Run:
    """A stored run as listed: what was asked, when, how it ended, and its rows counted by outcome."""

    id: str
    started_at: str  # UTC, ISO 8601
    finished_at: str | None
    how: str | None  # the word of ``finish_run``; None: it is running, or it died
    argv: tuple[str, ...]
    environment: dict[str, Any]
    models: tuple[str, ...]
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A measurement and where it stands in the store."""

    id: int
    run: str  # the run that measured it
    measurement: Measurement


class Store:
    """An open store. Use as a context manager; two processes may each hold one on the same file.

    Every method raises StoreError when the file cannot be read or written.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection

    @classmethod
    def open(cls, path: Path | None = None, create: bool = True) -> Store:
        """Open the store at ``path``; None: ``$PROFILER_STORE``, else ``results.sqlite`` in the user data folder.

        Raises StoreError for a symlink, a file that is no store, a newer schema, and with ``create=False`` for none.
        """
        path = path or default_path()
        return cls(path, connect(path, create))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the last one to close it folds the write-ahead log into it."""
        self._db.close()

    def start_run(self, argv: Sequence[str], environment: dict[str, Any]) -> str:
        """Register a run and return its id: the time it started, ``261124-093015``, so ids sort by time."""
        now = datetime.now(UTC)
        with self._writing() as db:
            run = self._free_id(now.strftime(RUN_ID))
            db.execute(
                "INSERT INTO runs (id, started_at, argv, environment) VALUES (?, ?, ?, ?)",
                (run, now.strftime(TIME), dumps(redact_argv(argv)), self._environment(environment)),
            )
        return run

    def append(self, run: str, measurement: Measurement) -> int:
        """Store one row of ``run`` and return its id. It is durable when this returns."""
        for sample in measurement.samples:
            if not sample.seconds > 0 or sample.tokens < 1:
                raise StoreError(f"a {sample.phase} sample of {measurement.case.key} has no time or no tokens")
        case = measurement.case
        with self._writing() as db:
            row = db.execute(
                "INSERT INTO measurements (run, key, model, outcome, environment, content, steps)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run, case.key, redact(case.model), measurement.outcome,
                 self._environment(measurement.environment), *encode(measurement)),
            ).lastrowid  # fmt: skip
            assert row is not None  # sqlite3 gives one after every INSERT
            db.execute("INSERT INTO run_rows (run, measurement) VALUES (?, ?)", (run, row))
        return row

    def adopt(self, run: str, measurement_id: int) -> None:
        """Make a row kept from an earlier run belong to ``run`` as well; a second time changes nothing."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO run_rows (run, measurement) VALUES (?, ?)", (run, measurement_id))

    def finish_run(self, run: str, how: str) -> None:
        """Note that ``run`` came to its end, and how: ``finished``, ``interrupted``."""
        with self._writing() as db:
            db.execute(
                "UPDATE runs SET finished_at = ?, how = ? WHERE id = ?",
                (datetime.now(UTC).strftime(TIME), how, run),
            )

    def finished(self, key: str, environment_key: str) -> StoredRow | None:
        """The latest ``ok`` row of a case on a machine and software of equal speed, for ``--resume``."""
        found = self._read(
            "SELECT m.id, m.run, m.content, m.steps, e.content FROM measurements m JOIN environments e"
            " ON e.id = m.environment WHERE m.key = ? AND m.outcome = 'ok' AND e.key = ? ORDER BY m.id DESC LIMIT 1",
            (key, environment_key),
        )
        for row, run, content, steps, environment in found:
            return StoredRow(row, run, *self._measurements([(content, steps, json.loads(environment))]))
        return None

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        found = self._read(
            "SELECT r.id, r.started_at, r.finished_at, r.how, r.argv, e.content FROM runs r"
            " JOIN environments e ON e.id = r.environment ORDER BY r.id"
        )
        models: dict[str, list[str]] = {}
        outcomes: dict[str, dict[str, int]] = {}
        counted = self._read(
            "SELECT l.run, m.model, m.outcome, count(*) FROM run_rows l JOIN measurements m ON m.id = l.measurement"
            " GROUP BY l.run, m.model, m.outcome ORDER BY min(l.rowid)"
        )
        for run, model, outcome, count in counted:
            models.setdefault(run, []).append(model)
            counts = outcomes.setdefault(run, {})
            counts[outcome] = counts.get(outcome, 0) + count
        return [
            Run(run, started, finished, how, tuple(json.loads(argv)), json.loads(environment),
                tuple(dict.fromkeys(models.get(run, ()))), outcomes.get(run, {}))
            for run, started, finished, how, argv, environment in found
        ]  # fmt: skip

    def command(self, *words: str) -> Command:
        """A command that reads or writes this store, wherever it is."""
        named = () if self.path == default_path() else ("--store", str(self.path))
        return command("profile", words, named)

    def find_run(self, prefix: str | None = None) -> str:
        """Id of the latest run, or of the one run whose id starts with ``prefix``. Raises NotFound."""
        known: list[str] = [run for (run,) in self._read("SELECT id FROM runs ORDER BY id")]
        if not known:
            first = self.command("sweep")
            raise NotFound(f"no run is stored in {printable(self.path)}", f"Measure something first: {first}")
        matching = [run for run in known if prefix is None or run.startswith(prefix)]
        if prefix is None or prefix in matching:
            return prefix or matching[-1]
        if len(matching) != 1:
            what = f"{len(matching)} runs start with" if matching else "no run starts with"
            recent = ", ".join((matching or known)[-5:])
            every = self.command("runs")
            raise NotFound(f"{what} {printable(prefix)!r}", f"The latest: {recent}. All of them: {every}")
        return matching[0]

    def rows(self, run: str | None = None) -> list[Measurement]:
        """Rows of a run in the order it got them; ``run`` as for ``find_run``."""
        found = self._read(
            "SELECT m.content, m.steps, m.environment FROM run_rows l JOIN measurements m ON m.id = l.measurement"
            " WHERE l.run = ? ORDER BY l.rowid",
            (self.find_run(run),),
        )
        return self._with_environments(found)

    def newest(self) -> list[Measurement]:
        """The last ``ok`` row of every case, of all runs, oldest first."""
        found = self._read(
            "SELECT content, steps, environment FROM measurements WHERE id IN"
            " (SELECT MAX(id) FROM measurements WHERE outcome = 'ok' GROUP BY key) ORDER BY id"
        )
        return self._with_environments(found)

    def latest(self) -> list[Measurement]:
        """The last row of every case in every environment of equal speed, an ``ok`` one if there is; oldest first."""
        found = self._read(
            "SELECT content, steps, environment FROM measurements WHERE id IN"
            " (SELECT COALESCE(MAX(CASE WHEN m.outcome = 'ok' THEN m.id END), MAX(m.id)) FROM measurements m"
            " JOIN environments e ON e.id = m.environment GROUP BY m.key, e.key) ORDER BY id"
        )
        return self._with_environments(found)

    def _with_environments(self, rows: Iterable[tuple[str, bytes, str]]) -> list[Measurement]:
        environments = {name: json.loads(text) for name, text in self._read("SELECT id, content FROM environments")}
        return self._measurements([(content, steps, environments[name]) for content, steps, name in rows])

    def _measurements(self, rows: list[tuple[str, bytes, dict[str, Any]]]) -> list[Measurement]:
        try:
            with _collector_paused():
                return decode(rows)
        except (TypeError, KeyError, ValueError, struct.error) as error:
            raise StoreError(
                f"a row of {printable(self.path)} cannot be read: {printable(error)}",
                "A newer version of profile may have written it.",
            ) from error

    def _environment(self, content: dict[str, Any]) -> str:
        """Id of an environment, stored now if it is new."""
        content = redact_json(content)
        name = digest(content)
        self._db.execute(
            "INSERT OR IGNORE INTO environments (id, key, content) VALUES (?, ?, ?)",
            (name, environment_key(content), dumps(content)),
        )
        return name

    def _free_id(self, stamp: str) -> str:
        """``stamp``, or with the first free letter behind it when another run started in the same second."""
        taken = {run for (run,) in self._db.execute("SELECT id FROM runs WHERE id LIKE ?", (f"{stamp}%",))}
        free = (stamp + suffix for suffix in ("", *string.ascii_lowercase) if stamp + suffix not in taken)
        return next(free, f"{stamp}z{len(taken)}")

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with in_words(self.path):
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing. It takes the write lock at once, so it cannot fail half-way."""
        with in_words(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Rows hold no cycles, and having the collector walk all of them again and again is a third of reading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def existing(path: Path | None) -> Path | None:
    """``path``, or the default one, if there is a store to read; ``None`` too if this user has no place for one."""
    try:
        path = path or default_path()
        return path if path.exists() else None
    except ProfileError:
        return None
    except OSError:  # opening it will say why
        return path


def default_path() -> Path:
    """``$PROFILER_STORE``, else ``profile/results.sqlite`` in the user data folder.

    Raises ProfileError if there is neither.
    """
    named = os.environ.get("PROFILER_STORE")
    return folders.expanded(named) if named else folders.data() / "results.sqlite"
