"""Files that we write, whole or not at all, and the identity of the weight files that we read.

A text goes to a new file of an unpredictable name beside the old one, which then takes its place. So a reader never
sees half a file, and nobody who may write to the same folder can point the writing somewhere else.

The identity of weights is a hash of tensor names, storage and contents. It does not depend on how tensors are spread
over files, on names of files or folders, or on their times: a checkpoint that was copied, sharded anew or linked to
is the same model. Up to ``WHOLE_BYTES`` every byte counts. Hashing more would take longer than people wait for a
plan, so of larger checkpoints names, number types, shapes and samples of every tensor count: that tells fine-tunes,
merges and edits of single layers apart, and misses a change of a few values between the samples. ``covers`` says
which of the two a row rests on.
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
SQLITE = b"SQLite format 3\0"  # how such a file begins (sqlite.org/fileformat.html)
MODE = 0o666  # less the umask, as any program's files
LONGEST_NAME = 180  # bytes of a name that a temporary one repeats: file systems take 255
LINKS = 40  # as many as the kernel follows

WHOLE_BYTES = GIB  # a second or two
SAMPLE_BYTES = 4096
SAMPLES, FEWEST = 16, 2  # of one tensor; its first and last bytes are always among them
ALL_SAMPLES = 2**14  # of one checkpoint, unless it has more tensors
CHUNK = 2**20
EVERY_BYTE, SAMPLED = "every byte", "samples of every tensor"


def write(path: Path, text: str) -> None:
    """Put ``text`` (as UTF-8) in place whole, for good. The mode of a file that is there already stays.

    A link to a file stays a link. A pipe, a device or ``/dev/stdout`` is written to as it is. Raises ProfileError; an
    old file is then as it was.
    """
    data = text.encode("utf-8", "backslashreplace")  # lone surrogates: names that are not UTF-8
    with _in_words(path):
        target = _end(path)
        if _is_plain(target):
            _refuse_database(path, target)
            _replace(target, data)
        else:
            _write_through(target, data)


def check(path: Path, others: Iterable[Path | None] = ()) -> None:
    """ProfileError if ``write`` would fail on ``path``: whoever measures for hours should know before.

    ``others``: files that the same command reads or writes, none of which ``path`` may be.
    """
    with _in_words(path):
        target = _end(path)
        if _is_plain(target):
            if any(other is not None and _is_same(path, other) for other in others):
                raise ProfileError(f"{printable(path)} is named twice, for two different files", "Name another file.")
            _refuse_database(path, target)
            file, part = _create(target)
            os.close(file)
            _remove_quietly(part)
        elif not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


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
    """Whether ``path`` is a plain file or none yet, so that others can lie beside it. Raises ProfileError."""
    with _in_words(path):
        return _is_plain(_end(path))


def make_folder(path: Path) -> None:
    """Make the folder, or take the one that is there unless another user's link leads to it. Raises ProfileError."""
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
            f"{name} cannot be written: there is no folder {printable(path.parent)}", "Make it first."
        )
    if error.errno == errno.ENXIO:
        return ProfileError(f"{name} cannot be written: it is a pipe that nobody reads")
    hints = {
        errno.ENOSPC: "Free some space, or name a file on another disk.",
        errno.EDQUOT: "Free some space, or name a file on another disk.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
        errno.EISDIR: "Name a file in it.",
        errno.EMFILE: "Raise the limit on open files: ulimit -n 1024.",
        errno.EPIPE: "Whoever read it has stopped.",
    }
    return ProfileError(
        f"{name} cannot be written: {printable(error.strerror or error)}",
        hints.get(error.errno or 0, "Name a file in a folder of yours."),
    )


def _end(path: Path) -> Path:
    """Where the links of ``path`` lead. Raises OSError for another user's link, who may have put it in our way."""
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
    """Whether it is one of our open files: its name may be gone, or be another file's by now."""
    return path.name.isdigit() and os.path.realpath(path.parent) == f"/proc/{os.getpid()}/fd"


def _is_plain(path: Path) -> bool:
    """Whether there is a plain file, or none yet. Raises OSError for a folder and for what may not be written."""
    if _is_open(path):
        return False
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):  # a new file could take its place all the same, but was it meant to?
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_ISREG(mode)


def _write_through(path: Path, data: bytes) -> None:
    if _is_open(path):
        file = os.dup(int(path.name))
    else:
        file = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # no wait for a pipe's reader
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
    with suppress(OSError):  # some file systems cannot; the file itself is there
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _create(target: Path) -> tuple[int, Path]:
    """A new file beside ``target``."""
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
    """Bytes of a file that belong together: a tensor, or a header."""

    label: str  # name, number type and shape
    path: Path
    begin: int
    nbytes: int
    whole: bool = False  # hashed in full whatever the size of the rest


def covers(nbytes: int) -> str:
    """What of a checkpoint of this size its identity is made of."""
    return EVERY_BYTE if nbytes <= WHOLE_BYTES else SAMPLED


def content_id(spans: Iterable[FileSpan]) -> str:
    """Hash of the spans in the order of their labels. Raises ProfileError for a file that cannot be read."""
    return _hashed(sorted(spans, key=lambda span: (str(span.path), span.begin)))


def _hashed(spans: Sequence[FileSpan]) -> str:
    whole = covers(sum(span.nbytes for span in spans)) == EVERY_BYTE
    samples = max(FEWEST, min(SAMPLES, ALL_SAMPLES // max(1, len(spans))))
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
    """Where reads of ``step`` bytes begin: all of them, or ``samples`` evenly spaced from the first to the last."""
    if samples is None or nbytes <= samples * step:
        return range(0, nbytes, step)
    last = nbytes - step
    return [last * index // (samples - 1) for index in range(samples)]


class _read_error:
    """Turns a file that went away or cannot be read into one line."""

    def __init__(self, spans: Sequence[FileSpan]) -> None:
        self._name = printable(spans[0].path.name) if spans else "the checkpoint"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise ProfileError(f"cannot read {self._name}: {printable(error.strerror or error)}") from None
