"""Atomic writes of our own files, and the identity of weight files.

A text is written to a new file with an unpredictable name in the same folder, which then replaces the old file. So a
reader never sees a partial file, and another user with access to the folder cannot redirect the write.

The identity of weights is a hash of tensor names, storage types and contents. It does not depend on the distribution
of tensors over files, on file or folder names, or on file times: a checkpoint that was copied, resharded or linked is
the same model. Up to ``WHOLE_BYTES`` every byte counts. Hashing more would delay a plan too long, so the identity of
larger checkpoints covers names, types, shapes and samples of every tensor. This distinguishes fine-tunes, merges and
edits of single layers, but misses a change of a few values between the samples. ``covers`` says which of the two
applies.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from profiler.errors import ProfileError
from profiler.units import GIB, printable

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
SQLITE = b"SQLite format 3\0"  # the first bytes of such a file (sqlite.org/fileformat.html)
MODE = 0o666  # minus the umask, as for any program
LONGEST_NAME = 180  # bytes of a name that a temporary name repeats; file systems allow 255
LINKS = 40  # the kernel's limit on following links

WHOLE_BYTES = GIB  # a second or two
SAMPLE_BYTES = 4096
SAMPLES, MIN_SAMPLES = 16, 2  # per tensor, including its first and last bytes
ALL_SAMPLES = 2**14  # per checkpoint, unless it has more tensors
CHUNK = 2**20
EVERY_BYTE, SAMPLED = "every byte", "samples of every tensor"


def write(path: Path, text: str) -> None:
    """Replace the file with ``text`` (UTF-8) atomically and durably, keeping the mode of an existing file.

    A link to a file stays a link. Pipes, devices and ``/dev/stdout`` are written to directly. Raises ProfileError,
    and then leaves the old file unchanged.
    """
    data = text.encode("utf-8", "backslashreplace")  # for file names that are not UTF-8
    with _in_words(path):
        target = _end(path)
        if _is_plain(target):
            _refuse_database(path, target)
            _replace(target, data)
        else:
            _write_through(target, data)


def check(path: Path, others: Iterable[Path | None] = ()) -> None:
    """ProfileError if ``write`` would fail on ``path``, to be raised before hours of measuring.

    ``others``: files that the same command reads or writes, none of which ``path`` may be.
    """
    with _in_words(path):
        target = _end(path)
        if _is_plain(target):
            if any(other is not None and _is_same(path, other) for other in others):
                raise ProfileError(f"{printable(path)} is given for two different files", "Name another file.")
            _refuse_database(path, target)
            file, part = _create(target)
            os.close(file)
            _remove_quietly(part)
        elif not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class GrowingFile:
    """A new file, to which data is appended. Its methods raise ProfileError."""

    def __init__(self, folder: Path, stem: str, suffix: str) -> None:
        """``stem`` gets a number if there is such a file already."""
        number = 1
        while True:
            self.path = folder / f"{stem}{f'-{number}' if number > 1 else ''}{suffix}"
            try:
                with _in_words(self.path):
                    self._file = os.open(self.path, NEW, MODE)
                return
            except ProfileError:
                if not os.path.lexists(self.path):
                    raise
                number += 1

    def append(self, data: bytes) -> None:
        """Write all of ``data``."""
        with _in_words(self.path):
            _write_all(self._file, data)

    def close(self) -> None:
        """Nothing more is appended."""
        os.close(self._file)


def is_database(file: BinaryIO) -> bool:
    """Whether an open file begins as those of SQLite do, such as our stores."""
    return file.read(len(SQLITE)) == SQLITE


def _is_same(path: Path, other: Path) -> bool:
    with suppress(OSError):
        return path.samefile(other)
    return os.path.realpath(path) == os.path.realpath(other)


def _refuse_database(path: Path, target: Path) -> None:
    """A report must not take the place of a store: its rows would be lost."""
    with suppress(FileNotFoundError, PermissionError), target.open("rb") as file:
        if is_database(file):
            raise ProfileError(
                f"{printable(path)} is a database, such as a store of results, and would be lost",
                "Name another file.",
            )


def is_plain(path: Path) -> bool:
    """Whether ``path`` is a regular file or does not exist, so that files can be put next to it. Raises
    ProfileError.
    """
    with _in_words(path):
        return _is_plain(_end(path))


def make_folder(path: Path) -> None:
    """Make the folder, or accept an existing one unless another user's link leads to it. Raises ProfileError."""
    with _in_words(path):
        try:
            os.mkdir(path)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(_end(path)).st_mode):
                raise


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(path, error) from None
    except ValueError:
        raise ProfileError(f"{printable(path)} is not a path: it holds a NUL byte") from None


def _refused(path: Path, error: OSError) -> ProfileError:
    name = printable(path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return ProfileError(
            f"{name} cannot be written: there is no folder {printable(path.parent)}", "Create it first."
        )
    if error.errno == errno.ENXIO:
        return ProfileError(f"{name} cannot be written: it is a pipe without a reader")
    hints = {
        errno.ENOSPC: "Free some space, or write to another disk.",
        errno.EDQUOT: "Free some space, or write to another disk.",
        errno.EFBIG: "Raise the limit on the size of files: ulimit -f unlimited.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
        errno.EISDIR: "Name a file in it.",
        errno.EMFILE: "Raise the limit on open files: ulimit -n 1024.",
        errno.EPIPE: "The program that reads it has stopped.",
    }
    return ProfileError(
        f"{name} cannot be written: {printable(error.strerror or error)}",
        hints.get(error.errno or 0, "Choose a file in a folder that you can write to."),
    )


def _end(path: Path) -> Path:
    """The target of the links of ``path``. Raises OSError for another user's link, which may be an attack."""
    for _ in range(LINKS):
        if _is_open(path):
            return path
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(found.st_mode):
            return path
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EACCES, "it is another user's symbolic link")
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_open(path: Path) -> bool:
    """Whether ``path`` is one of our own file descriptors; its file may have no name any more, or another one."""
    return path.name.isdigit() and os.path.realpath(path.parent) == f"/proc/{os.getpid()}/fd"


def _is_plain(path: Path) -> bool:
    """Whether there is a regular file or nothing. Raises OSError for a folder and for a file that is not writable."""
    if _is_open(path):
        return False
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):  # a new file could replace it, but that is hardly intended
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_ISREG(mode)


def _write_through(path: Path, data: bytes) -> None:
    if _is_open(path):
        file = os.dup(int(path.name))
    else:
        file = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # fails without a reader
        os.set_blocking(file, True)
    try:
        _write_all(file, data)
    finally:
        os.close(file)


def _replace(target: Path, data: bytes) -> None:
    file, part = _create(target)
    try:
        try:
            with suppress(FileNotFoundError):
                os.fchmod(file, stat.S_IMODE(os.stat(target).st_mode) & 0o777)
            _write_all(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(part, target)
    except BaseException:
        _remove_quietly(part)
        raise
    with suppress(OSError):  # some file systems cannot sync a folder; the file itself is synced
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _create(target: Path) -> tuple[int, Path]:
    """Open a new file next to ``target``."""
    if len(os.fsencode(target.name)) > os.pathconf(target.parent, "PC_NAME_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    start = os.fsdecode(os.fsencode(target.name)[:LONGEST_NAME])
    part = target.with_name(f".{start}.{os.urandom(8).hex()}.part")
    return os.open(part, NEW, MODE), part


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _remove_quietly(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A contiguous part of a file: a tensor, or a header."""

    label: str  # name, number type and shape
    path: Path
    begin: int
    nbytes: int
    whole: bool = False  # always hashed in full


def covers(nbytes: int) -> str:
    """Which part of a checkpoint of this size its identity covers."""
    return EVERY_BYTE if nbytes <= WHOLE_BYTES else SAMPLED


def content_id(spans: Iterable[FileSpan]) -> str:
    """Hash of the spans, independent of their order. Raises ProfileError for a file that cannot be read."""
    return _hashed(sorted(spans, key=lambda span: (str(span.path), span.begin)))


def _hashed(spans: Sequence[FileSpan]) -> str:
    whole = covers(sum(span.nbytes for span in spans)) == EVERY_BYTE
    samples = max(MIN_SAMPLES, min(SAMPLES, ALL_SAMPLES // max(1, len(spans))))
    parts = []
    for path, group in groupby(spans, key=attrgetter("path")):
        with _read_error(spans), path.open("rb") as file:
            for span in group:
                digest = hashlib.sha256(f"{span.label} {span.nbytes}\n".encode("utf-8", "surrogatepass"))
                step = CHUNK if whole or span.whole else SAMPLE_BYTES
                for offset in _offsets(span.nbytes, step, None if step == CHUNK else samples):
                    file.seek(span.begin + offset)
                    digest.update(file.read(min(step, span.nbytes - offset)))
                parts.append((span.label, digest.digest()))
    together = hashlib.sha256()
    for _, part in sorted(parts):
        together.update(part)
    return together.hexdigest()[:16]


def _offsets(nbytes: int, step: int, samples: int | None) -> Iterable[int]:
    """Offsets of reads of ``step`` bytes: all, or ``samples`` of them, evenly spaced from the first to the last."""
    if samples is None or nbytes <= samples * step:
        return range(0, nbytes, step)
    last = nbytes - step
    return [last * index // (samples - 1) for index in range(samples)]


class _read_error:
    """Turns the OSError of an unreadable file into one line."""

    def __init__(self, spans: Sequence[FileSpan]) -> None:
        self._name = printable(spans[0].path.name) if spans else "the checkpoint"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise ProfileError(f"cannot read {self._name}: {printable(error.strerror or error)}") from None
