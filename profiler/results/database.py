"""The store's SQLite file: opened safely, at the right schema, within limits, with SQLite's errors in words.

**Limits.** Anybody may have made the file. A view in place of a table can run without end, a generated column can
make gigabytes, and pages of the file can refer to each other so that 100 KiB hold more rows than anybody can read. So
the tables must be those that we make, no value may be longer than a row can be, and what a query reads is measured
against the size of the file, in steps of SQLite's machine and in bytes: neither depends on how busy the computer is.

**Read-only.** A store may lie on a read-only file system, in a backup or in another user's folder.
SQLite needs to write beside a database in WAL mode even to read it: it makes the index of the write-ahead log
(``-shm``) anew. Where it cannot, a file without a log is opened as one that never changes, and a file with one is
copied together with it: the log may hold rows that the file itself does not have yet.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from profiler.errors import NoStore, StoreError
from profiler.shell import Command, command
from profiler.units import GIB, KIB, bytes_text, printable

MAX_VALUE = 32 * KIB**2  # bytes of one text or blob: four million step times, twice what a worker may send
TICK = 50_000  # steps of SQLite's machine between two looks at the budget: a few milliseconds
STEPS = 10_000_000  # that any query may take
STEPS_PER_BYTE = 1  # and more for each byte of the file; a row takes a few thousand bytes and some hundred steps
BYTES = 64 * KIB**2  # that any query may give: runs share their environments
BYTES_PER_BYTE = 2  # and more for each byte of the file, which holds every row once
Tables = Mapping[str, tuple[str, str]]  # by name: table or index, and the SQL that makes it, normalized

MOST_COPIED = 4 * GIB  # bytes of a temporary folder
SIGNS = ("unable to open database file", "readonly")  # how SQLite says that it cannot write

BUSY_TIMEOUT_S = 30  # a commit takes milliseconds; a disk under load, seconds
SWITCH_S = 5.0  # it takes milliseconds
OWNER_ONLY = 0o600  # command lines and model names are the owner's business
DAMAGED = "It is damaged, or was made to do harm."
READ_ONLY = ("is read-only", "Give another one: --store FILE, or PROFILER_STORE.")
SCHEMAS = (
    # Script i brings a file of schema i to i + 1; a new file starts at 0. Never change one that was released.
    """
    CREATE TABLE environments (id TEXT PRIMARY KEY, key TEXT NOT NULL, content TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, started_at TEXT NOT NULL, finished_at TEXT, how TEXT, argv TEXT NOT NULL,
        environment TEXT NOT NULL REFERENCES environments
    ) WITHOUT ROWID;
    CREATE TABLE measurements (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL REFERENCES runs, key TEXT NOT NULL,
        model TEXT NOT NULL, outcome TEXT NOT NULL, environment TEXT NOT NULL REFERENCES environments,
        content TEXT NOT NULL, steps BLOB NOT NULL
    );
    CREATE INDEX measurements_by_key ON measurements (key, outcome);
    CREATE TABLE run_rows (
        run TEXT NOT NULL REFERENCES runs, measurement INTEGER NOT NULL REFERENCES measurements,
        UNIQUE (run, measurement)
    );
    """,
    """
    CREATE TABLE leases (
        key TEXT NOT NULL, environment TEXT NOT NULL, run TEXT NOT NULL REFERENCES runs, machine TEXT,
        pid INTEGER NOT NULL, started INTEGER, beat INTEGER NOT NULL, PRIMARY KEY (key, environment)
    ) WITHOUT ROWID;
    CREATE INDEX leases_by_run ON leases (run);
    """,
    # The order of runs is that in which they were stored: by their ids a clock that goes back would change it.
    """
    CREATE TABLE run_order (number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL UNIQUE REFERENCES runs);
    INSERT INTO run_order (run) SELECT id FROM runs ORDER BY id;
    """,
)
OLDEST_READ = 1  # schema: reading leaves such a store as it is, so that the version that wrote it still opens it
APPLICATION_ID = 0x70726F66  # "prof": tells our file from another SQLite file


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


def may_be(error: sqlite3.Error) -> bool:
    """Whether ``error`` may come from a file or folder that cannot be written."""
    return any(sign in str(error) for sign in SIGNS)


def connect_read_only(path: Path, timeout_s: float) -> Guarded:
    """A connection that only reads ``path`` as it is. Raises sqlite3.Error or OSError."""
    log = path.with_name(f"{path.name}-wal")
    # Beside a living writer ``ro`` works, because it has made the index. Where there is no log, ``ro`` would make one
    # and leave it there; ``rw`` removes what it made.
    for mode in ("ro",) if log.exists() else ("rw", "ro"):
        try:
            return _opened_read_only(path, f"mode={mode}", timeout_s)
        except sqlite3.OperationalError as error:
            if not may_be(error):
                raise
    if log.exists() and log.stat().st_size:
        if path.stat().st_size + log.stat().st_size > MOST_COPIED:
            raise OSError(errno.EFBIG, f"the store and its log are larger than {bytes_text(MOST_COPIED)}")
        return _copied(path, log, timeout_s)
    return _opened_read_only(path, "immutable=1", timeout_s)


def _opened_read_only(path: Path, how: str, timeout_s: float) -> Guarded:
    address = f"file:{quote(os.fsencode(path.absolute()))}?{how}"
    connection = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None, factory=Guarded)
    connection.limit(path)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # nothing is opened before this
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _copied(path: Path, log: Path, timeout_s: float) -> Guarded:
    """A private copy of the store with its log; its files go as soon as they are open."""
    with tempfile.TemporaryDirectory(prefix="profile-store-") as folder:
        copy = Path(folder) / "store.sqlite"
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
        return _opened_read_only(copy, "mode=rw", timeout_s)


def connect(path: Path, create: bool) -> Guarded:
    """A connection to the store at ``path``, its schema brought up to date. Raises StoreError.

    Without ``create`` the caller only reads, so a store that cannot be written is opened as it is.
    """
    with in_words(path):
        _claim(path, create)
        try:
            return _patiently(lambda: _opened(path, create))
        except sqlite3.OperationalError as error:
            if create or not may_be(error):
                raise
        return _to_read(path)


def _patiently(open_it: Callable[[], Guarded]) -> Guarded:
    """SQLite does not wait by itself while another process turns on the write-ahead log of a new file."""
    deadline = time.monotonic() + SWITCH_S
    while True:
        try:
            return open_it()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(SWITCH_S / 500)


def connect_to_read(path: Path) -> Guarded:
    """A connection to somebody's store at ``path`` that changes nothing: no schema, no journal. Raises StoreError."""
    with in_words(path):
        _claim(path, create=False)
        return _to_read(path)


def _to_read(path: Path) -> Guarded:
    connection = connect_read_only(path, BUSY_TIMEOUT_S)
    try:
        if not _schema(path, connection):
            raise StoreError(
                f"{printable(path)} is an empty database", f"Measure something first: {sweep_into(path)}"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _opened(path: Path, to_write: bool) -> Guarded:
    # In full: SQLite takes ``:memory:`` for no file at all.
    connection = sqlite3.connect(path.absolute(), timeout=BUSY_TIMEOUT_S, isolation_level=None, factory=Guarded)
    connection.limit(path)
    try:
        connection.remember(path)
        if to_write or _schema(path, connection) < OLDEST_READ:
            _migrate(path, connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into a StoreError that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(*_words(path, error)) from error
    except ValueError as error:  # NaN in a row
        raise StoreError(f"a row for the store {printable(path)} is not valid: {error}") from error


def _words(path: Path, error: Exception) -> tuple[str, str]:
    kept = "What was stored before is safe."
    store, elsewhere = f"the store {printable(path)}", "choose another file with --store or PROFILER_STORE"
    otherwise = f"C{elsewhere[1:]}."
    text = (str(error.strerror) if isinstance(error, OSError) else str(error)) or type(error).__name__
    if "unable to open" in text and path.exists():  # all that SQLite says, whatever the reason
        if not os.access(path, os.R_OK):
            return f"{store} cannot be read by this user", f"Ask its owner for permission or {elsewhere}."
        if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            text = "readonly"
    for sign, what, do in (
        ("disk is full", "has no space left on its disk", f"Free some space or {elsewhere}. {kept}"),
        ("disk I/O error", "cannot be written: the disk reports an error", f"Check the disk, or {elsewhere}. {kept}"),
        ("locked", f"is held by another process for more than {BUSY_TIMEOUT_S} s", f"Wait for it or {elsewhere}."),
        ("readonly", *READ_ONLY),
        ("Read-only file system", *READ_ONLY),
        ("not a database", "is not a store of profile", otherwise),
        ("malformed", "is damaged", f"Try {command('sqlite3', str(path), '.recover')}, or {elsewhere}."),
        ("interrupted", "takes longer to read than a file of its size can", f"{DAMAGED} {otherwise}"),
        ("more than the file can hold", "gives more than a file of its size can hold", f"{DAMAGED} {otherwise}"),
        ("too big", f"holds a value of more than {bytes_text(MAX_VALUE)}", f"{DAMAGED} {otherwise}"),
        ("FOREIGN KEY", "has no such run: another program may have removed it", "Run the same command again."),
    ):
        if sign in text:
            return f"{store} {what}", do
    return f"{store} cannot be used: {printable(text)}", otherwise


def sweep_into(path: Path) -> Command:
    """What makes the store at ``path``."""
    from profiler.results.store import default_path

    return command("profile", "sweep", () if path == default_path() else ("--store", str(path)))


def check_in_place(path: Path, connection: Guarded) -> None:
    """StoreError if the store was removed, renamed or replaced since it was opened.

    SQLite goes on writing to the file that nobody can find any more, and reports success.
    """
    if connection.moved(path):
        raise StoreError(
            f"the store {printable(path)} was removed, renamed or replaced while it was in use",
            "Rows stored before that are in the old file. Put it back if you can, and run the same command again.",
        )


def _claim(path: Path, create: bool) -> None:
    """Make sure that ``path`` is a plain file of ours, and create it for its owner alone."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not create:
            raise NoStore(
                f"there is no store at {printable(path)}", f"Measure something first: {sweep_into(path)}"
            ) from None
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process was first: as good
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, OWNER_ONLY))
        mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        raise StoreError(
            f"the store {printable(path)} is {kind}", "Name the file itself with --store or PROFILER_STORE."
        )
    # SQLite opens these by itself: it would wait for a pipe, and write through a link to whatever it names.
    for beside in (path.with_name(f"{path.name}-{name}") for name in ("wal", "shm", "journal")):
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(beside.lstat().st_mode):
                raise StoreError(f"{printable(beside)}, beside the store, is not a plain file", "Remove it.")


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    """Bring the schema up to date in one transaction, in whichever process is first."""
    newest = len(SCHEMAS)
    if _schema(path, connection) == newest:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in SCHEMAS[_schema(path, connection) :]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {newest}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _schema(path: Path, connection: sqlite3.Connection) -> int:
    """Schema number of the file; 0 for an empty one. Raises StoreError for a newer one and for another's file."""
    with _one_snapshot(connection):  # another process may be making the file at this moment
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        found = tables(connection)
    if application != APPLICATION_ID and (found or application or schema):
        raise StoreError(f"{printable(path)} is an SQLite file of another program", "Name another file with --store.")
    if schema > len(SCHEMAS):
        raise StoreError(
            f"the store {printable(path)} has schema {schema}; this version of profile reads up to {len(SCHEMAS)}",
            "Update profile, or name another file with --store.",
        )
    if not 0 <= schema <= len(SCHEMAS) or (schema == 0 and found):
        raise StoreError(f"{printable(path)} is not a store of profile: it has schema {schema}", "Name another file.")
    check_tables(path, found, _ours(schema))
    return int(schema)


@contextmanager
def _one_snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything that is read inside is of one moment."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@cache
def _ours(schema: int) -> Tables:
    """What a store of this schema holds: what its scripts make."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        for script in SCHEMAS[:schema]:
            made.executescript(script)
        return tables(made)
