"""Reading a store that cannot be written: on a read-only file system, in a backup, in another user's folder.

SQLite needs to write beside a database in WAL mode even to read it: it makes the index of the write-ahead log
(``-shm``) anew. Where it cannot, a file without a log is opened as one that never changes, and a file with one is
copied together with it: the log may hold rows that the file itself does not have yet.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from urllib.parse import quote

from profiler.results.guard import Guarded

SIGNS = ("unable to open database file", "readonly")  # how SQLite says that it cannot write


def may_be(error: sqlite3.Error) -> bool:
    """Whether ``error`` may come from a file or folder that cannot be written."""
    return any(sign in str(error) for sign in SIGNS)


def connect(path: Path, timeout_s: float) -> Guarded:
    """A connection that only reads ``path`` as it is. Raises sqlite3.Error or OSError."""
    log = path.with_name(f"{path.name}-wal")
    # Beside a living writer ``ro`` works, because it has made the index. Where there is no log, ``ro`` would make one
    # and leave it there; ``rw`` removes what it made.
    for mode in ("ro",) if log.exists() else ("rw", "ro"):
        try:
            return _opened(path, f"mode={mode}", timeout_s)
        except sqlite3.OperationalError as error:
            if not may_be(error):
                raise
    if log.exists() and log.stat().st_size:
        return _copied(path, log, timeout_s)
    return _opened(path, "immutable=1", timeout_s)


def _opened(path: Path, how: str, timeout_s: float) -> Guarded:
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
        return _opened(copy, "mode=rw", timeout_s)
