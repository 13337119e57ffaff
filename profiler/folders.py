"""The folders we use: the user's results and caches, and the folder of this package for child processes.

Libraries and compiled graphs in a cache are run, so a cache is used only if every folder from its top down belongs to
this user (or to root), is writable by nobody else and is no symbolic link. Otherwise a private folder that lives as
long as this process takes its place, and a line on stderr says so.

``python -m profiler`` finds the package in the current folder. Children are started with ``-P``, so that a stray file
of the current folder cannot stand in for a library, and then have to be told where the package is.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache as once
from pathlib import Path

from profiler.errors import ProfileError
from profiler.units import printable

CACHE = "PROFILER_CACHE"  # names the cache folder; workers get it from us
NAME = "profile"
COMPILERS = {  # caches of libraries that run what lies there, in places that others may write to
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "PYTORCH_KERNEL_CACHE_PATH": "torch",
}
NOWHERE = os.path.join(os.devnull, "none")  # no folder can ever be made there
PRIVATE = 0o700
OTHERS = stat.S_IWGRP | stat.S_IWOTH

ROOT = Path(__file__).resolve().parents[1]


def expanded(text: str) -> Path:
    """The path that a person typed, ``~`` and ``~user`` included. Raises ProfileError for an unknown home."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ProfileError(
            f"there is no home folder for {printable(text)}", "Set HOME, or give the path in full."
        ) from None
    if "\0" in text:
        raise ProfileError(f"{printable(text)} is not a path: it holds a NUL byte")
    return path


def data() -> Path:
    """``profile`` in the user data folder. Raises ProfileError if the user has no home."""
    from platformdirs import user_data_path

    return _known(lambda: user_data_path(NAME, appauthor=False), "PROFILER_STORE=FILE says where results are kept.")


def cache(name: str) -> Path:
    """The folder ``name`` of the cache, made if it is missing; it may be read-only.

    If it cannot be trusted or made, it lies in a private temporary folder. Raises OSError if there is none either.
    """
    try:
        top = _top()
        _make(top)
        _make_inside(top, name)
    except (ProfileError, OSError) as error:
        why = error.message if isinstance(error, ProfileError) else describe(error)
        return _instead(name, printable(why))
    return top / name


def place(name: str) -> Path | None:
    """Where ``cache`` looks first; nothing is made. None for a user without a home."""
    try:
        return _top() / name
    except ProfileError:
        return None


def scratch(name: str) -> Path:
    """Like ``cache``, for those who must be able to write."""
    folder = cache(name)
    if os.access(folder, os.W_OK):
        return folder
    return _instead(name, f"{printable(folder)} is not writable")


def compilers(environ: Mapping[str, str]) -> dict[str, str]:
    """Where libraries keep compiled code, and our own cache for a worker, by the variables that say so.

    A folder that the user has named stays, if nobody else can write to it.
    """
    found = {}
    for name, folder in COMPILERS.items():
        named = environ.get(name)
        if named and is_private(Path(named)):
            found[name] = named
            continue
        try:
            place = scratch(folder)
            found |= {name: str(place), CACHE: str(place.parent)}
        except OSError:  # nowhere to write; what needs a cache says so, and nothing is taken from a common place
            found[name] = NOWHERE
    return found


def is_private(path: Path) -> bool:
    """Whether this folder, which a person named, is one that ``cache`` would take. It is made if it is missing."""
    try:
        _make(Path(os.path.abspath(path)))
    except (ProfileError, OSError):
        return False
    return os.access(path, os.W_OK)


def distrust(path: Path, top: Path) -> str | None:
    """Why somebody else may have written ``path`` or put it where it is; ``None`` if nobody can have.

    ``top`` is a folder of ``cache``, which was checked already. Raises OSError if there is no such file.
    """
    for part in (*(parent for parent in reversed(path.parents) if parent.is_relative_to(top)), path):
        wrong = _wrong(os.lstat(part))
        if wrong is not None:
            return f"{printable(part)} {wrong}"
    return None


def describe(error: OSError) -> str:
    """What the system refused, with the path where it names one."""
    named = "" if error.filename is None else f"{printable(_text(error.filename))}: "
    return f"{named}{error.strerror or printable(error) or type(error).__name__}"


def _text(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, bytes) else str(path)


def _top() -> Path:
    named = os.environ.get(CACHE)
    if named:
        return Path(os.path.abspath(expanded(named)))
    from platformdirs import user_cache_path

    return _known(lambda: user_cache_path(NAME, appauthor=False), f"{CACHE}=FOLDER says where to keep caches.")


def _known(find: Callable[[], Path], hint: str) -> Path:
    """Older versions of platformdirs give a literal ``~`` where there is no home, newer ones raise."""
    try:
        path = find()
    except RuntimeError:
        path = Path("~")
    if not path.is_absolute():
        raise ProfileError("this user has no home folder", hint)
    return path


def _make(folder: Path) -> None:
    """Make the folder for this user alone, or check the one that is there.

    Raises ProfileError if it cannot be trusted, OSError if it cannot be made.
    """
    if not folder.parent.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(folder, PRIVATE)
        os.chmod(folder, PRIVATE)  # whatever the umask took away
    except FileExistsError:
        found = os.lstat(folder)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & OTHERS:
            os.chmod(folder, PRIVATE)  # ours, but made under a permissive umask; each file inside is still checked
            found = os.lstat(folder)
        wrong = "is not a folder" if stat.S_ISREG(found.st_mode) else _wrong(found)
        if wrong is not None:
            raise ProfileError(f"{printable(folder)} {wrong}") from None
    for parent in Path(os.path.realpath(folder.parent)).parents:
        mode = os.lstat(parent).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ProfileError(f"anybody may replace what is in {printable(parent)}")


def _make_inside(top: Path, name: str) -> None:
    """Like ``_make``. A folder that cannot be written is named by itself, so that it is said once for all in it."""
    try:
        _make(top / name)
    except PermissionError:
        raise ProfileError(f"{printable(top)} is not writable") from None


def _wrong(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return "is neither a file nor a folder"
    if found.st_uid not in (0, os.geteuid()):
        return "belongs to another user"
    return "may be written by other users" if found.st_mode & OTHERS else None


def _instead(name: str, why: str) -> Path:
    folder = _private(why) / name
    folder.mkdir(PRIVATE, exist_ok=True)
    return folder


@once
def _private(why: str) -> Path:
    """A folder of this process alone. Said once for each reason."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="profile-cache-"))  # 0700
    except FileNotFoundError as error:  # none of those that Python tries
        raise OSError(errno.EACCES, f"{why}, and no temporary folder (TMPDIR) can be written") from error
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    note(f"the cache is not used, because {why}; a private folder takes its place. {CACHE}=FOLDER names another one")
    return folder


_notes: list[str] = []


def note(text: str) -> None:
    """Something about the cache that a person should know: one line on stderr, and on the rows of a worker."""
    _notes.append(text)
    if sys.stderr is not None:
        print(f"warning: {text}", file=sys.stderr)


def notes() -> tuple[str, ...]:
    """What was noted in this process."""
    return tuple(_notes)


def child_environ(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a child that runs this same code needs beside ``inherited``: nothing where the package is installed."""
    if sys.flags.safe_path or not sys.path or Path(sys.path[0]).resolve() != ROOT:
        return {}
    others = inherited.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [others])])}
