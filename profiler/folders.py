"""The folders we use: the user's results and caches, and this package's folder for child processes.

Libraries and compiled graphs in a cache are executed. So a cache is used only if every folder in it belongs to this
user (or root), is not writable by others and is not a symbolic link. Otherwise a private folder that exists as long
as this process replaces it, and a line on stderr says so.

``python -m profiler`` finds the package in the current folder. Child processes are started with ``-P``, so that a
stray file in the current folder cannot shadow a library, and are then told where the package is.
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

CACHE = "PROFILER_CACHE"  # names the cache folder; we set it for workers
NAME = "profile"
COMPILERS = {  # caches of libraries that execute their contents, by default in folders that others may write to
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "PYTORCH_KERNEL_CACHE_PATH": "torch",
}
NOWHERE = os.path.join(os.devnull, "none")  # a folder that cannot be created
PRIVATE = 0o700
OTHERS = stat.S_IWGRP | stat.S_IWOTH

ROOT = Path(__file__).resolve().parents[1]


def expanded(text: str) -> Path:
    """The path for a typed text, with ``~`` and ``~user`` expanded. Raises ProfileError for an unknown home."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ProfileError(
            f"there is no home folder for {printable(text)}", "Set HOME, or pass the full path."
        ) from None
    if "\0" in text:
        raise ProfileError(f"{printable(text)} is not a path: it holds a NUL byte")
    return path


def data() -> Path:
    """``profile`` in the user data folder. Raises ProfileError if the user has no home."""
    from platformdirs import user_data_path

    return _known(lambda: user_data_path(NAME, appauthor=False), "Set PROFILER_STORE=FILE to choose the store.")


def config() -> Path:
    """``profile`` in the user's folder of settings."""
    from platformdirs import user_config_path

    return user_config_path(NAME, appauthor=False)


def cache(name: str) -> Path:
    """The folder ``name`` in the cache, created if it is missing; it may be read-only.

    If it cannot be trusted or created, a private temporary folder replaces it. Raises OSError if that fails too.
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
    """Where ``cache`` looks first, without creating anything. None for a user without a home."""
    try:
        return _top() / name
    except ProfileError:
        return None


def scratch(name: str) -> Path:
    """Like ``cache``, but always writable."""
    folder = cache(name)
    if os.access(folder, os.W_OK):
        return folder
    return _instead(name, f"{printable(folder)} is not writable")


def compilers(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of a worker: our cache folder, and those where libraries keep compiled code.

    A folder that the user has set is kept if nobody else can write to it.
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
        except OSError:  # nothing is writable; libraries that need a cache fail rather than use a shared folder
            found[name] = NOWHERE
    return found


def is_private(path: Path) -> bool:
    """Whether ``cache`` would accept this folder, which the user has set. It is created if it is missing."""
    try:
        _make(Path(os.path.abspath(path)))
    except (ProfileError, OSError):
        return False
    return os.access(path, os.W_OK)


def distrust(path: Path, top: Path) -> str | None:
    """Why another user may have written ``path`` or put it there; ``None`` if that is impossible.

    ``top`` is a folder returned by ``cache``, which is already checked. Raises OSError if there is no such file.
    """
    for part in (*(parent for parent in reversed(path.parents) if parent.is_relative_to(top)), path):
        wrong = _wrong(os.lstat(part))
        if wrong is not None:
            return f"{printable(part)} {wrong}"
    return None


def describe(error: OSError) -> str:
    """The message of a system error, with the path if it has one."""
    named = "" if error.filename is None else f"{printable(_text(error.filename))}: "
    return f"{named}{error.strerror or printable(error) or type(error).__name__}"


def _text(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, bytes) else str(path)


def _top() -> Path:
    named = os.environ.get(CACHE)
    if named:
        return Path(os.path.abspath(expanded(named)))
    from platformdirs import user_cache_path

    return _known(lambda: user_cache_path(NAME, appauthor=False), f"Set {CACHE}=FOLDER to choose the cache folder.")


def _known(find: Callable[[], Path], hint: str) -> Path:
    """Without a home, older versions of platformdirs return a literal ``~``, newer ones raise."""
    try:
        path = find()
    except RuntimeError:
        path = Path("~")
    if not path.is_absolute():
        raise ProfileError("this user has no home folder", hint)
    return path


def _make(folder: Path) -> None:
    """Create the folder for this user only, or check the existing one.

    Raises ProfileError if it cannot be trusted, OSError if it cannot be created.
    """
    if not folder.parent.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(folder, PRIVATE)
        os.chmod(folder, PRIVATE)  # regardless of the umask
    except FileExistsError:
        found = os.lstat(folder)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & OTHERS:
            os.chmod(folder, PRIVATE)  # ours, created under a permissive umask; the files inside are still checked
            found = os.lstat(folder)
        wrong = "is not a folder" if stat.S_ISREG(found.st_mode) else _wrong(found)
        if wrong is not None:
            raise ProfileError(f"{printable(folder)} {wrong}") from None
    for parent in Path(os.path.realpath(folder.parent)).parents:
        mode = os.lstat(parent).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ProfileError(f"any user may replace the contents of {printable(parent)}")


def _make_inside(top: Path, name: str) -> None:
    """Like ``_make``. If ``top`` is not writable, the error names ``top``, so that it is reported only once."""
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
    return "is writable by other users" if found.st_mode & OTHERS else None


def _instead(name: str, why: str) -> Path:
    folder = _private(why) / name
    folder.mkdir(PRIVATE, exist_ok=True)
    return folder


@once
def _private(why: str) -> Path:
    """A folder for this process only. Warns once for each reason."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="profile-cache-"))  # 0700
    except FileNotFoundError as error:  # Python found no temporary folder
        raise OSError(errno.EACCES, f"{why}, and no temporary folder (TMPDIR) is writable") from error
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    note(f"the cache is not used, because {why}; using a private folder. To choose another one, set {CACHE}=FOLDER")
    return folder


_notes: list[str] = []


def note(text: str) -> None:
    """Warn about the cache: one line on stderr, and a caution on the rows of a worker."""
    _notes.append(text)
    if sys.stderr is not None:
        print(f"warning: {text}", file=sys.stderr)


def notes() -> tuple[str, ...]:
    """The warnings of this process."""
    return tuple(_notes)


def child_environ(inherited: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that a child needs to run this code; none if the package is installed."""
    if sys.flags.safe_path or not sys.path or Path(sys.path[0]).resolve() != ROOT:
        return {}
    others = inherited.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [others])])}
