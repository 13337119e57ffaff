"""A store as a file that anybody may have made: what SQLite may spend on it, and what it may hold.

A view in place of a table can run without end, a generated column can make gigabytes, and pages of the file can refer
to each other so that 100 KiB hold more rows than anybody can read. So the tables must be those that we make, no value
may be longer than a row can be, and what a query reads is measured against the size of the file, in steps of SQLite's
machine and in bytes: neither depends on how busy the computer is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from profiler.errors import StoreError
from profiler.units import KIB, printable

MAX_VALUE = 32 * KIB**2  # bytes of one text or blob: four million step times, twice what a worker may send
TICK = 50_000  # steps of SQLite's machine between two looks at the budget: a few milliseconds
STEPS = 10_000_000  # that any query may take
STEPS_PER_BYTE = 1  # and more for each byte of the file; a row takes a few thousand bytes and some hundred steps
BYTES = 64 * KIB**2  # that any query may give: runs share their environments
BYTES_PER_BYTE = 2  # and more for each byte of the file, which holds every row once

Tables = Mapping[str, tuple[str, str]]  # by name: table or index, and the SQL that makes it, normalized


class TooMuch(sqlite3.DataError):
    """A query that gives more than its file can hold."""


class Guarded(sqlite3.Connection):
    """A connection whose queries end. Use as ``factory`` of ``sqlite3.connect``, and then call ``limit``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.file: tuple[int, int] | None = None  # device and inode of what was opened
        self.ticks_left = self.ticks = STEPS // TICK
        self.most_bytes = BYTES
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        self.set_progress_handler(self._tick, TICK)
        for setting in ("trusted_schema = OFF", "cell_size_check = ON"):
            super().execute(f"PRAGMA {setting}")

    def limit(self, path: Path) -> None:
        """Allow what a file of the size of ``path``, with its log, deserves."""
        size = 0
        for part in (path, path.with_name(f"{path.name}-wal")):
            with suppress(OSError):
                size += part.stat().st_size
        self.ticks = (STEPS + STEPS_PER_BYTE * size) // TICK
        self.most_bytes = BYTES + BYTES_PER_BYTE * size

    def remember(self, path: Path) -> None:
        """Note which file ``path`` is now; ``moved`` compares with it."""
        found = path.stat()
        self.file = found.st_dev, found.st_ino

    def moved(self, path: Path) -> bool:
        """Whether ``path`` no longer names the file that is open. What is written then is lost with that file, and
        SQLite says nothing.
        """
        if self.file is None:
            return False
        try:
            found = path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self.file

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """As of any connection; each query has the whole budget."""
        self.ticks_left = self.ticks
        return super().execute(*arguments)

    def read(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one after the other. Raises sqlite3.Error, ``TooMuch`` among them."""
        left = self.most_bytes
        for row in self.execute(query, values):
            for value in row:
                if isinstance(value, (str, bytes)):
                    left -= len(value)
            if left < 0:
                raise TooMuch("a query gives more than the file can hold")
            yield row

    def _tick(self) -> int:
        self.ticks_left -= 1
        return self.ticks_left < 0


def tables(connection: sqlite3.Connection) -> Tables:
    """Tables and indexes of a database that people or programs made, and their SQL."""
    found = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {str(name): (str(kind), _normalized(str(sql))) for kind, name, sql in found}


def check_tables(path: Path, found: Tables, ours: Tables) -> None:
    """StoreError unless all of ``ours`` are there as we make them, and nothing runs by itself."""
    for name, how in ours.items():
        if name not in found:
            raise _strange(path, f"it has no {how[0]} {name}")
        if found[name] != how:
            kind = found[name][0]
            raise _strange(path, f"{name} is {'an' if kind == 'index' else 'a'} {kind} that profile did not make")
    trigger = next((name for name, (kind, _) in found.items() if kind == "trigger"), None)
    if trigger is not None:
        raise _strange(path, f"it has a trigger, {printable(trigger, 60)}")


def _strange(path: Path, why: str) -> StoreError:
    return StoreError(f"{printable(path)} is not a store of profile: {why}", "Name another file with --store.")


def _normalized(sql: str) -> str:
    return " ".join(sql.replace('"', " ").split()).casefold()
