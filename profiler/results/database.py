"""The store's SQLite file: opened safely, with the right schema and within limits; SQLite's errors become messages.

**Limits.** The file may come from anybody. A view in place of a table can run forever, a generated column can produce
gigabytes, and file pages can refer to each other so that 100 KiB yield endless rows. So the tables must be the ones
that we create, no value may be longer than a row can be, and a query's work is limited by the size of the file, in
SQLite VM steps and in bytes. Neither limit depends on how busy the computer is.

**Read-only.** A store may be on a read-only file system, in a backup or in another user's folder. In WAL mode SQLite
must write next to a database even to read it: it recreates the index of the write-ahead log (``-shm``). If it
cannot, a file without a log is opened as immutable, and a file with a log is copied together with it, because the log
may contain rows that are not yet in the file.
"""

from __future__ import annotations

import errno
import os
import resource
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

MAX_VALUE_BYTES = 32 * KIB**2  # of one text or blob: four million step times, twice what a worker may send
TICK = 50_000  # SQLite VM steps between two checks of the budget: a few milliseconds
STEPS = 10_000_000  # allowed for any query
STEPS_PER_BYTE = 1  # additional steps per byte of the file; a row takes a few thousand bytes and some hundred steps
BYTES = 64 * KIB**2  # allowed result of any query: runs share their environments
BYTES_PER_BYTE = 2  # additional bytes per byte of the file, which contains every row once
Tables = Mapping[str, tuple[str, str]]  # by name: table or index, and the normalized SQL that creates it

BESIDE = ("wal", "shm", "journal")  # endings of the names of the files that SQLite writes next to a store
MAX_COPIED_BYTES = 4 * GIB  # copied to a temporary folder
SIGNS = ("unable to open database file", "readonly")  # SQLite's messages if it cannot write
NO_INDEX = "SQLITE_IOERR_SHMSIZE"  # it cannot create the index of the log, which is 32 KiB
OTHER_LOG = "SQLITE_IOERR_SHORT_READ"  # the log lacks pages that the index says it has

BUSY_TIMEOUT_S = 30  # a commit takes milliseconds, or seconds on a busy disk
SWITCH_S = 5.0  # switching usually takes milliseconds
OWNER_ONLY = 0o600  # command lines and model names are private
DAMAGED = "It is damaged or malicious."
READ_ONLY = ("is read-only", "Choose another one: --store FILE, or PROFILER_STORE.")
SCHEMAS = (
    # Script i upgrades a file from schema i to i + 1; a new file starts at 0. Never change a released script.
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
    # The order of runs is the order in which they were stored: their ids depend on a clock that may go back.
    """
    CREATE TABLE run_order (number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL UNIQUE REFERENCES runs);
    INSERT INTO run_order (run) SELECT id FROM runs ORDER BY id;
    """,
    # What a run says about its models. It differs from what a reused row says, which another run has measured.
    """
    CREATE TABLE run_models (
        run TEXT NOT NULL REFERENCES runs, model_id TEXT NOT NULL, model TEXT NOT NULL, content TEXT NOT NULL,
        PRIMARY KEY (run, model_id)
    );
    """,
)
OLDEST_READ = 1  # schema: reading does not upgrade such a store, so the version that wrote it can still open it
APPLICATION_ID = 0x70726F66  # "prof": distinguishes our file from other SQLite files


class TooMuch(sqlite3.DataError):
    """A query returned more than its file can contain."""


class Guarded(sqlite3.Connection):
    """A connection with limited queries. Use it as ``factory`` of ``sqlite3.connect``, and then call ``limit``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.file: tuple[int, int] | None = None  # device and inode of the opened file
        self.ticks_left = self.ticks = STEPS // TICK
        self.most_bytes = BYTES
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        self.set_progress_handler(self._tick, TICK)
        for setting in ("trusted_schema = OFF", "cell_size_check = ON"):
            super().execute(f"PRAGMA {setting}")

    def limit(self, path: Path) -> None:
        """Set the limits for a file of the size of ``path`` and its log."""
        size = 0
        for part in (path, path.with_name(f"{path.name}-wal")):
            with suppress(OSError):
                size += part.stat().st_size
        self.ticks = (STEPS + STEPS_PER_BYTE * size) // TICK
        self.most_bytes = BYTES + BYTES_PER_BYTE * size

    def remember(self, path: Path) -> None:
        """Record which file ``path`` is now; ``moved`` compares with it."""
        found = path.stat()
        self.file = found.st_dev, found.st_ino

    def moved(self, path: Path) -> bool:
        """Whether ``path`` no longer names the open file. Whatever is written then is lost with that file, without an
        error from SQLite.
        """
        if self.file is None:
            return False
        try:
            found = path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self.file

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute a query; each one has the whole budget."""
        self.ticks_left = self.ticks
        return super().execute(*arguments)

    def read(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one at a time. Raises sqlite3.Error, including ``TooMuch``."""
        left = self.most_bytes
        for row in self.execute(query, values):
            for value in row:
                if isinstance(value, (str, bytes)):
                    left -= len(value)
            if left < 0:
                raise TooMuch("a query returned more than the file can contain")
            yield row

    def _tick(self) -> int:
        self.ticks_left -= 1
        return self.ticks_left < 0


def tables(connection: sqlite3.Connection) -> Tables:
    """Tables and indexes of a database and their SQL, without SQLite's internal ones."""
    found = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {str(name): (str(kind), _normalized(str(sql))) for kind, name, sql in found}


def check_tables(path: Path, found: Tables, ours: Tables) -> None:
    """Raise StoreError unless all of ``ours`` exist as we create them, and there are no triggers."""
    for name, how in ours.items():
        if name not in found:
            raise _strange(path, f"it has no {how[0]} {name}")
        if found[name] != how:
            kind = found[name][0]
            raise _strange(path, f"{name} is {'an' if kind == 'index' else 'a'} {kind} that profile did not create")
    trigger = next((name for name, (kind, _) in found.items() if kind == "trigger"), None)
    if trigger is not None:
        raise _strange(path, f"it has a trigger, {printable(trigger, 60)}")


def _strange(path: Path, why: str) -> StoreError:
    return StoreError(f"{printable(path)} is not a store of profile: {why}", "Choose another file with --store.")


def _normalized(sql: str) -> str:
    return " ".join(sql.replace('"', " ").split()).casefold()


def may_be(error: sqlite3.Error) -> bool:
    """Whether ``error`` may mean that a file or folder is not writable, or that files may not grow."""
    return any(sign in str(error) for sign in SIGNS) or _code(error) == NO_INDEX


def _code(error: Exception) -> str:
    """SQLite's name of an error, such as SQLITE_IOERR_WRITE; empty for errors of other origin."""
    return getattr(error, "sqlite_errorname", "")


def connect_read_only(path: Path, timeout_s: float) -> Guarded:
    """A connection that reads ``path`` without changing it. Raises sqlite3.Error or OSError."""
    log = path.with_name(f"{path.name}-wal")
    # While a writer is active ``ro`` works, because the writer has created the index. Without a log, ``ro`` would
    # create one and leave it there; ``rw`` removes what it creates.
    for mode in ("ro",) if log.exists() else ("rw", "ro"):
        try:
            return _opened_read_only(path, f"mode={mode}", timeout_s)
        except sqlite3.OperationalError as error:
            if not may_be(error):
                raise
    if log.exists() and log.stat().st_size:
        if path.stat().st_size + log.stat().st_size > MAX_COPIED_BYTES:
            raise OSError(errno.EFBIG, f"the store and its log are larger than {bytes_text(MAX_COPIED_BYTES)}")
        return _copied(path, log, timeout_s)
    return _opened_read_only(path, "immutable=1", timeout_s)


def _opened_read_only(path: Path, how: str, timeout_s: float) -> Guarded:
    address = f"file:{quote(os.fsencode(path.absolute()))}?{how}"
    connection = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None, factory=Guarded)
    connection.limit(path)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the first query opens the file
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _copied(path: Path, log: Path, timeout_s: float) -> Guarded:
    """A private copy of the store with its log. The files are deleted as soon as they are open."""
    with tempfile.TemporaryDirectory(prefix="profile-store-") as folder:
        copy = Path(folder) / "store.sqlite"
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
        return _opened_read_only(copy, "mode=rw", timeout_s)


def connect(path: Path, create: bool) -> Guarded:
    """A connection to the store at ``path``, with its schema upgraded. Raises StoreError.

    Without ``create`` the caller only reads, so a store that is not writable is opened as it is.
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
    """Retry, because SQLite does not wait while another process enables the write-ahead log of a new file."""
    deadline = time.monotonic() + SWITCH_S
    while True:
        try:
            return open_it()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(SWITCH_S / 500)


def connect_to_read(path: Path) -> Guarded:
    """A connection to the store at ``path`` that changes nothing: no schema, no journal. Raises StoreError."""
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
    # The path is absolute, because SQLite takes ``:memory:`` for an in-memory database.
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
    """Convert errors of SQLite and the file system into a StoreError that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(*_words(path, error)) from error
    except ValueError as error:  # NaN in a row
        raise StoreError(f"a row for the store {printable(path)} is not valid: {error}") from error


def _words(path: Path, error: Exception) -> tuple[str, str]:
    kept = "Rows stored earlier are safe."
    store, elsewhere = f"the store {printable(path)}", "choose another file with --store or PROFILER_STORE"
    otherwise = f"C{elsewhere[1:]}."
    text = (str(error.strerror) if isinstance(error, OSError) else str(error)) or type(error).__name__
    if "unable to open" in text and path.exists():  # SQLite gives no other reason
        if not os.access(path, os.R_OK):
            return f"{store} cannot be read by this user", f"Ask its owner for permission or {elsewhere}."
        if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            text = "readonly"
    code = _code(error)
    if code == OTHER_LOG:
        return (
            f"{store} was removed or replaced while another process was using it, whose -wal and -shm files are "
            "still there",
            f"Wait for that process or end it, then run the same command again; or {elsewhere}.",
        )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    is_write = code.startswith("SQLITE_IOERR") and not code.endswith("READ")
    if (is_write or getattr(error, "errno", None) == errno.EFBIG) and _reaches(path, limit):
        return (
            f"{store} needs larger files than this process may write: ulimit -f allows {bytes_text(limit)}",
            f"Raise the limit, as with ulimit -f unlimited, or {elsewhere}. {kept}",
        )
    if code == "SQLITE_IOERR_READ":
        return f"{store} cannot be read: the disk reports an error", f"Check the disk, or {elsewhere}."
    for sign, what, do in (
        ("disk is full", "has no space left on its disk", f"Free some space or {elsewhere}. {kept}"),
        ("disk I/O error", "cannot be written: the disk reports an error", f"Check the disk, or {elsewhere}. {kept}"),
        ("locked", f"was locked by another process for more than {BUSY_TIMEOUT_S} s", f"Wait for it or {elsewhere}."),
        ("readonly", *READ_ONLY),
        ("Read-only file system", *READ_ONLY),
        ("not a database", "is not a store of profile", otherwise),
        ("malformed", "is damaged", f"Try {command('sqlite3', str(path), '.recover')}, or {elsewhere}."),
        ("interrupted", "takes longer to read than a file of its size should", f"{DAMAGED} {otherwise}"),
        ("more than the file can", "returns more than a file of its size can contain", f"{DAMAGED} {otherwise}"),
        ("too big", f"contains a value of more than {bytes_text(MAX_VALUE_BYTES)}", f"{DAMAGED} {otherwise}"),
        ("FOREIGN KEY", "has no such run: another program may have removed it", "Run the same command again."),
    ):
        if sign in text:
            return f"{store} {what}", do
    return f"{store} cannot be used: {printable(text)}", otherwise


def _reaches(path: Path, limit: int) -> bool:
    """Whether the next row may make the store or a file beside it larger than ``limit`` bytes."""
    if limit == resource.RLIM_INFINITY:
        return False
    largest = 0
    for part in (path, *(path.with_name(f"{path.name}-{name}") for name in BESIDE)):
        with suppress(OSError):
            largest = max(largest, part.stat().st_size)
    return largest + MAX_VALUE_BYTES > limit


def sweep_into(path: Path) -> Command:
    """The command that creates the store at ``path``."""
    from profiler.results.store import default_path

    return command("profile", "sweep", () if path == default_path() else ("--store", str(path)))


def check_in_place(path: Path, connection: Guarded) -> None:
    """Raise StoreError if the store was removed, renamed or replaced since it was opened.

    SQLite would keep writing to the old file, which nobody can find any more, and report success.
    """
    if connection.moved(path):
        raise StoreError(
            f"the store {printable(path)} was removed, renamed or replaced while it was in use",
            "Rows stored before that are in the old file. Restore it if you can, and run the same command again.",
        )


def _claim(path: Path, create: bool) -> None:
    """Check that ``path`` is a plain file of ours; create it readable by its owner only."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not create:
            raise NoStore(
                f"there is no store at {printable(path)}", f"Measure something first: {sweep_into(path)}"
            ) from None
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process created it first, which is fine
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, OWNER_ONLY))
        mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        raise StoreError(
            f"the store {printable(path)} is {kind}", "Give the file itself with --store or PROFILER_STORE."
        )
    # SQLite opens these files itself: it would block on a pipe, and write through a link to its target.
    for beside in (path.with_name(f"{path.name}-{name}") for name in BESIDE):
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(beside.lstat().st_mode):
                raise StoreError(f"{printable(beside)}, next to the store, is not a plain file", "Remove it.")


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    """Upgrade the schema in one transaction, in whichever process comes first."""
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
    """Schema number of the file; 0 for an empty one. Raises StoreError for a newer one and for other files."""
    with _one_snapshot(connection):  # another process may be creating the file now
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        found = tables(connection)
    if application != APPLICATION_ID and (found or application or schema):
        raise StoreError(
            f"{printable(path)} is an SQLite file of another program", "Choose another file with --store."
        )
    if schema > len(SCHEMAS):
        raise StoreError(
            f"the store {printable(path)} has schema {schema}; this version of profile reads up to {len(SCHEMAS)}",
            "Update profile, or choose another file with --store.",
        )
    if not 0 <= schema <= len(SCHEMAS) or (schema == 0 and found):
        raise StoreError(
            f"{printable(path)} is not a store of profile: it has schema {schema}", "Choose another file."
        )
    check_tables(path, found, _ours(schema))
    return int(schema)


@contextmanager
def _one_snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All reads inside see the same snapshot."""
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
    """The tables of a store of this schema, from the scripts that create it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        for script in SCHEMAS[:schema]:
            made.executescript(script)
        return tables(made)
