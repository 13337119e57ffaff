"""GGUF files of random weights, so that llama.cpp can be measured with a model before it is downloaded.

A file has the tensors that llama.cpp's converter and quantizer would give the model: names, shapes, types, sizes. The
codes of the weights are random, their scales are chosen so that weights are about as large as trained ones, and norms
are 1, so activations stay finite. Reading and multiplying them takes as long as the real ones: the values do not
matter, but how the page cache holds the file does (``PIECE_BYTES``).

Files lie in the user's cache under ``profile/gguf-synthetic``. Their names contain a hash of the header, so each
combination of config, quantization and seed has its own. They may be deleted at any time, and the least recently used
are removed when all of them together exceed ``PROFILER_SYNTHETIC_LIMIT``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from profiler import folders
from profiler.backends.base import Beat
from profiler.case import Source
from profiler.errors import ProfileError
from profiler.models import gguf, gguf_mix, gguf_tensors, gguf_write
from profiler.models.geometry import Geometry
from profiler.models.gguf_write import NewTensor
from profiler.units import GIB, bytes_text, parse_bytes, printable

FOLDER = "gguf-synthetic"
LIMIT = "PROFILER_SYNTHETIC_LIMIT"  # a size such as 100GiB
USUAL_LIMIT = 64 * GIB
SPARE = 64 * 1024**2  # bytes of the disk that are left free
RULES = 1  # of what is written: other rules make another file
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
PATTERN_BYTES = 2**22  # random bytes per type, which all tensors of that type repeat
STEP_BYTES = 2**26  # written between two signs of progress
# Pages that are written 2 MiB at a time are mapped as huge pages, which makes decode on a CPU faster. A file that was
# read from a disk has none. Linux joins the pages of one ``write`` (ext4 since 6.16, XFS since 6.6).
PIECE_BYTES = 2**16
# Offsets of the scales in a block (ggml-common.h), in fp16 unless said otherwise, and values that give weights a
# standard deviation of about 0.02. A second scale is that of the minimum, chosen so that the mean is about 0.
SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "q4_0": ((0, 4e-3),), "q4_1": ((0, 4e-3), (2, -3e-2)), "q5_0": ((0, 2e-3),), "q5_1": ((0, 2e-3), (2, -3e-2)),
    "q8_0": ((0, 3e-4),), "q2_k": ((80, 2e-3), (82, 3e-3)), "q3_k": ((108, 5e-4),), "q4_k": ((0, 1e-4), (2, 7.5e-4)),
    "q5_k": ((0, 5e-5), (2, 7.8e-4)), "q6_k": ((208, 1.5e-5),), "iq1_s": ((0, 5e-3),), "iq2_xxs": ((0, 4e-4),),
    "iq2_xs": ((0, 4e-4),), "iq2_s": ((0, 4e-4),), "iq3_xxs": ((0, 2e-4),), "iq3_s": ((0, 1e-4),),
    "iq4_nl": ((0, 3e-4),), "iq4_xs": ((0, 1.5e-5),), "tq1_0": ((52, 3e-2),), "tq2_0": ((64, 2e-2),),
}  # fmt: skip
PLAIN = ("f32", "f16", "bf16")
GUESSED = 1024  # general.file_type of a file whose mix has no number (LLAMA_FTYPE_GUESSED)
IQ1_M_SCALES = 48  # offset of four 16-bit words whose highest four bits together are an fp16 scale
MXFP4_EXPONENT = 120  # 2^(120 - 128), times codes of at most 12: the first byte of a block


def synthetic_gguf(source: Source, geometry: Geometry, quant: str, seed: int, beat: Beat) -> Path:
    """The file of random weights for this model, written on first use.

    ``quant`` is a name of ``gguf_mix.MIXES``. ``beat`` is told what is written, where, and how far it is. Raises
    ProfileError if llama.cpp has no such architecture or quantization, or if the file does not fit on the disk.
    """
    mix = gguf_mix.mix(quant)
    tensors = gguf_write.tensors(source.config, geometry, gguf_mix.each(geometry, mix))
    name = printable(re.sub(r"[^\w.-]+", "-", Path(source.location).name).strip("-."), 80) or "model"
    numbers = {kind: number for number, (kind, _) in gguf_tensors.FILE_TYPES.items()}
    metadata = gguf_write.metadata(source.config, geometry, f"{name} (random weights)", numbers.get(mix, GUESSED))
    header = gguf_write.header(metadata, tensors)
    key = hashlib.sha256(b"%d %d " % (RULES, seed) + header).hexdigest()[:16]
    folder = folders.scratch(FOLDER)
    path = folder / f"{name}-{mix}-{key}.gguf"
    size = len(header) + sum(tensor.padded for tensor in tensors)
    if _is_whole(path, folder, header, size):
        os.utime(path)
        return path
    _make_room(folder, size, path.name)
    beat(f"load: writing {bytes_text(size)} of random {mix} weights to {printable(path)}")
    _write(path, header, tensors, seed, beat)
    return path


def file_bytes(source: Source, geometry: Geometry, quant: str) -> int:
    """Bytes of all tensors of the file, which is not written. Raises ProfileError for a model without such a file."""
    tensors = gguf_write.tensors(source.config, geometry, gguf_mix.each(geometry, quant))
    gguf_write.metadata(source.config, geometry, "", GUESSED)
    return sum(tensor.padded for tensor in tensors)


def _is_whole(path: Path, folder: Path, header: bytes, size: int) -> bool:
    """Whether the file exists, is ours and complete. A file that somebody else may have written is removed."""
    try:
        why = folders.distrust(path, folder)
        if why is None and path.stat().st_size == size:
            with path.open("rb") as file:
                if file.read(len(header)) == header:
                    return True
    except FileNotFoundError:
        return False
    if why is not None:
        folders.note(f"{why}: the file is written again")
    path.unlink(missing_ok=True)
    return False


def _limit() -> int:
    stated = os.environ.get(LIMIT)
    if not stated:
        return USUAL_LIMIT
    try:
        return parse_bytes(stated)
    except ValueError as error:
        raise ProfileError(f"{LIMIT}: {error}", f"For example: {LIMIT}=100GiB") from None


def _make_room(folder: Path, size: int, name: str) -> None:
    """Remove abandoned files, then the least recently used ones until the new one fits. Raises ProfileError."""
    limit = _limit()
    if size > limit:
        raise ProfileError(
            f"{name} would take {bytes_text(size)}, but synthetic GGUF files may take {bytes_text(limit)} in total",
            f"Set {LIMIT} to a larger size.",
        )
    for partial in folder.glob(".*.part"):
        _remove_abandoned(partial)
    kept = sorted(_sizes(folder.glob("*.gguf")), key=lambda entry: entry[0])  # oldest first
    total = sum(nbytes for _, nbytes, _ in kept)
    while kept and (total + size > limit or shutil.disk_usage(folder).free < size + SPARE):
        _, nbytes, oldest = kept.pop(0)
        oldest.unlink(missing_ok=True)
        total -= nbytes
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise ProfileError(
            f"{name} would take {bytes_text(size)}, and {printable(folder)} has {bytes_text(free)} free",
            f"Free some space, or set {folders.CACHE} to a folder on another disk.",
        )


def _sizes(paths: Iterable[Path]) -> Iterator[tuple[float, int, Path]]:
    for path in paths:
        with suppress(FileNotFoundError):
            found = path.lstat()
            yield found.st_mtime, found.st_size, path


def _remove_abandoned(partial: Path) -> None:
    """Remove what a killed process left: the lock on a file that is being written ends with its process."""
    with suppress(OSError):
        file = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
        finally:
            os.close(file)


def _write(path: Path, header: bytes, tensors: list[NewTensor], seed: int, beat: Beat) -> None:
    """Under a temporary name until it is complete. Removes it and raises ProfileError if the disk fills up."""
    partial = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
    try:
        file = os.open(partial, NEW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            for chunk in _with_progress(_pieces(_content(header, tensors, seed)), tensors, beat):
                _write_all(file, chunk)
        finally:
            os.close(file)
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ProfileError(
                f"the disk became full while {printable(path)} was written; the partial file is removed",
                f"Free some space, or set {folders.CACHE} to a folder on another disk.",
            ) from None
        raise ProfileError(f"{printable(path)} cannot be written: {folders.describe(error)}") from None
    finally:
        partial.unlink(missing_ok=True)


def _write_all(file: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(file, chunk) :]


def _pieces(chunks: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes in pieces of ``PIECE_BYTES``; the last one may be shorter."""
    piece = bytearray()
    for chunk in chunks:
        while chunk:
            room = PIECE_BYTES - len(piece)
            piece += chunk[:room]
            chunk = chunk[room:]
            if len(piece) == PIECE_BYTES:
                yield memoryview(piece)
                piece = bytearray()
    yield memoryview(piece)


def _with_progress(chunks: Iterator[memoryview], tensors: list[NewTensor], beat: Beat) -> Iterator[memoryview]:
    total, written, said = sum(tensor.padded for tensor in tensors), 0, 0
    for chunk in chunks:
        yield chunk
        written += len(chunk)
        if written - said >= STEP_BYTES:
            said = written
            beat(f"load: writing random weights, {min(99, 100 * written // total)} % of {bytes_text(total)}")


def _content(header: bytes, tensors: list[NewTensor], seed: int) -> Iterator[memoryview]:
    """The file in pieces: the header, then each tensor as a part of the endless repetition of its type's pattern.

    Tensors begin at different blocks of the pattern, and its number of blocks is a prime. So the rows of a router
    differ from each other and from those in other layers, and tokens choose different experts.
    """
    yield memoryview(header)
    patterns: dict[str, memoryview] = {}
    for number, tensor in enumerate(tensors):
        if tensor.values is not None:
            yield memoryview(struct.pack(f"<{len(tensor.values)}f", *tensor.values))
        else:
            if tensor.type not in patterns:
                patterns[tensor.type] = memoryview(_pattern(tensor.type, random.Random(f"{tensor.type} {seed}")))
            pattern, block = patterns[tensor.type], gguf.BLOCKS[gguf.TYPES[tensor.type]][1]
            at, left = number * 7919 * block % len(pattern), tensor.nbytes
            while left:
                piece = pattern[at : at + left]
                yield piece
                at, left = 0, left - len(piece)
        yield memoryview(bytes(tensor.padded - tensor.nbytes))


def _pattern(kind: str, numbers: random.Random) -> bytes:
    """A prime number of random blocks of one type."""
    size = gguf.BLOCKS[gguf.TYPES[kind]][1]
    count = _prime_below(PATTERN_BYTES // size)
    data = bytearray(numbers.randbytes(count * size))
    if kind in PLAIN:  # from ±2^-6 to ±2^-5, in the highest bytes of each number: sign, exponent and mantissa
        _mask(data, size - 1, size, 0x83 if kind == "f16" else 0x80, 0x24 if kind == "f16" else 0x3C)
        if kind != "f16":
            _mask(data, size - 2, size, 0x7F, 0x80)
    elif kind == "mxfp4":
        data[0::size] = bytes([MXFP4_EXPONENT]) * count
    elif kind == "tq2_0":  # of four 2-bit codes in a byte, 3 is none
        data = data.translate(bytes(byte & ~(byte & byte << 1 & 0xAA) for byte in range(256)))
    elif kind == "iq1_m":
        scale = struct.unpack("<H", struct.pack("<e", 5e-3))[0]
        for word in range(4):
            _mask(data, IQ1_M_SCALES + 2 * word + 1, size, 0x0F, (scale >> 4 * word & 0xF) << 4)
    for offset, value in SCALES.get(kind, ()):
        for index, byte in enumerate(struct.pack("<e", value)):
            data[offset + index :: size] = bytes([byte]) * count
    return bytes(data)


def _mask(data: bytearray, start: int, step: int, kept: int, fixed: int) -> None:
    """In every ``step``-th byte, keep the random bits in ``kept`` and set those in ``fixed``."""
    data[start::step] = data[start::step].translate(bytes(byte & kept | fixed for byte in range(256)))


def _prime_below(most: int) -> int:
    return next(n for n in range(most, 1, -1) if all(n % d for d in range(2, int(n**0.5) + 1)))
