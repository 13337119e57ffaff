"""References on disk: what is kept of a model's distributions over one window of text, in the user's cache.

A file is named by everything that determines its content (``key``), so that all quantizations and later sweeps use
the same one, whatever model or set it was made for. It is a line of JSON, then each array in little-endian order, and
is checked by its length and a checksum. The folder holds at most ``MAX_FOLDER_BYTES``; the files that were not used
for the longest time make room. It may be deleted at any time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler import folders
from profiler.case import digest
from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, json_value
from profiler.quality.definition import DEFINITION, SAMPLES, TOP
from profiler.units import bytes_text, printable

FOLDER = "quality"
MAX_FOLDER_BYTES = 4 << 30  # the references of about 130 models over the shipped texts
MIN_FREE_BYTES = 1 << 30  # of the disk, left to other programs
HEADER = Budget(nbytes=1 << 16, depth=3)
NAMES = ("ids", "logs", "rest_entropy", "sampled", "sampled_logs", "nll")  # the arrays, in order
INTEGERS = ("ids", "sampled")  # int32; the others are float32
OLD_PARTIAL_S = 24 * 3600.0  # a partial file of this age was left behind by a process that was killed


@dataclass(frozen=True, slots=True)
class ReferenceArrays:
    """The arrays of one window of ``positions`` scored tokens, each row by row as bytes.

    ``ids`` and ``logs`` ``[positions, top]``, ``sampled`` and ``sampled_logs`` ``[positions, samples]``, and
    ``rest_entropy`` and ``nll`` (−log p of the text's next token) ``[positions]``, as in ``definition.Reference``.
    """

    positions: int
    top: int
    samples: int
    arrays: Mapping[str, bytes]
    made: Mapping[str, Any]  # what computed it, for the row

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one array."""
        width = {"ids": self.top, "logs": self.top, "sampled": self.samples, "sampled_logs": self.samples}.get(name)
        return (self.positions,) if width is None else (self.positions, width)

    def nbytes(self, name: str) -> int:
        """The size of one array."""
        count = 4
        for size in self.shape(name):
            count *= size
        return count


def key(model_id: str, dtype: str, tokens: Sequence[int], unscored: int) -> str:
    """The name of the reference of a window: the weights and their dtype, the tokens, and this definition."""
    return digest([DEFINITION, TOP, SAMPLES, model_id, dtype, list(tokens), unscored])


def read(name: str) -> ReferenceArrays | None:
    """The stored reference of that name; None if there is none that is whole and can be trusted."""
    folder = folders.cache(FOLDER)
    path = folder / name
    try:
        if (wrong := folders.distrust(path, folder)) is not None:
            folders.note(f"{wrong}: the reference is computed again")
            return None
        with path.open("rb") as file:
            found = _parsed(file.readline(HEADER.nbytes), file.read())
    except OSError:
        return None
    if found is not None:
        with suppress(OSError):
            os.utime(path)  # the time of its last use, by which ``_make_room`` chooses
    return found


def _parsed(line: bytes, data: bytes) -> ReferenceArrays | None:
    try:
        header = json_value(line, HEADER)
        positions, top, samples = (int(header[name]) for name in ("positions", "top", "samples"))
        found = ReferenceArrays(positions, top, samples, {}, dict(header["made"]))
        sizes = [found.nbytes(name) for name in NAMES]
        if sum(sizes) != len(data) or zlib.crc32(data) != header["crc32"]:
            return None
    except (BadContent, KeyError, TypeError, ValueError):
        return None
    arrays, start, view = {}, 0, memoryview(data)
    for name, size in zip(NAMES, sizes, strict=True):
        arrays[name] = bytes(view[start : start + size])
        start += size
    return ReferenceArrays(positions, top, samples, arrays, found.made)


def write(name: str, content: ReferenceArrays) -> None:
    """Store a reference under its name, in one step. Raises ProfileError if the disk has no room for it."""
    folder = folders.scratch(FOLDER)
    data = b"".join(content.arrays[each] for each in NAMES)
    header = {
        "positions": content.positions,
        "top": content.top,
        "samples": content.samples,
        "made": dict(content.made),
        "crc32": zlib.crc32(data),
    }
    _make_room(folder, len(data))
    partial = folder / f"{name}.{os.urandom(6).hex()}.partial"
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as opened:
            opened.write(json.dumps(header, allow_nan=False).encode() + b"\n" + data)
        os.replace(partial, folder / name)
    except OSError as error:
        raise ProfileError(
            f"the reference cannot be stored in {printable(folder)}: {printable(error.strerror or error)}"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _make_room(folder: Path, needed: int) -> None:
    """Remove the references that were not used for the longest time, and what killed processes left behind."""
    entries, now = [], time.time()
    for path in folder.iterdir():
        with suppress(OSError):
            status = path.stat(follow_symlinks=False)
            if path.suffix == ".partial" and now - status.st_mtime < OLD_PARTIAL_S:
                continue  # another process may be writing it
            entries.append((path.suffix != ".partial", status.st_mtime, status.st_size, path))
    held = sum(size for *_, size, _ in entries)
    free = shutil.disk_usage(folder).free
    for _, _, size, path in sorted(entries, key=lambda entry: entry[:2]):
        if held + needed <= MAX_FOLDER_BYTES and free - needed >= MIN_FREE_BYTES and path.suffix != ".partial":
            break
        with suppress(OSError):
            path.unlink()
            held, free = held - size, free + size
    if free - needed < MIN_FREE_BYTES:
        raise ProfileError(
            f"the reference of one window takes {bytes_text(needed)}, and {printable(folder)} has"
            f" {bytes_text(free)} free, of which {bytes_text(MIN_FREE_BYTES)} are left to others",
            f"Set {folders.CACHE}=FOLDER to choose another disk.",
        )


def is_native() -> bool:
    """Whether arrays of this machine are in the order of the files."""
    return sys.byteorder == "little"
