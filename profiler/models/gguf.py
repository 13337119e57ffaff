"""GGUF files: parses the header, and trusts none of its numbers.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Readers that trust a header's lengths have hung or
overflowed on 43-byte files (CVE-2025-53630, CVE-2026-27940, llama.cpp#27188). Here, a length must fit into the rest
of the file, and there are limits on counts, names, the bytes kept in memory and the CPU time of the whole header,
because a sparse file of any length is free to make.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

from profiler.errors import ProfileError
from profiler.foreign import open_file, why
from profiler.units import bytes_text, printable

MAGIC = b"GGUF"
MAX_COUNT = 2**16  # metadata keys, tensors: the largest real files have a few thousand
MAX_ARRAY = 2**24
MAX_STRING = 2**20
MAX_NAME = 1024  # bytes of a key or a tensor's name; llama.cpp allows 64 for a tensor
MAX_DIMS = 4
MAX_KEPT = 2**24  # bytes of text and array entries of the whole header; chat templates are the largest real ones
MAX_SECONDS = 1.0  # of CPU time, so that a busy machine does not fail a good file
ENTRY_BYTES = 32  # memory of an array entry, without its text
WINDOW = 2**16  # bytes read at a time
KEPT = 4096  # longer arrays (the vocabulary) are skipped, and only their length is kept
PART = re.compile(r"(?P<name>.*-)(?P<number>\d{5})(?P<of>-of-\d{5}\.gguf)", re.DOTALL)  # of a split file
MAX_PARTS = 1000
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
# ggml_type → elements and bytes of a block (ggml.h, ggml-common.h)
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40)}
TYPES = {  # their names in ggml, without the prefix
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q8_1": 9, "q2_k": 10, "q3_k": 11,
    "q4_k": 12, "q5_k": 13, "q6_k": 14, "q8_k": 15, "iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18, "iq1_s": 19,
    "iq4_nl": 20, "iq3_s": 21, "iq2_s": 22, "iq4_xs": 23, "i8": 24, "i16": 25, "i32": 26, "i64": 27, "f64": 28,
    "iq1_m": 29, "bf16": 30, "tq1_0": 34, "tq2_0": 35, "mxfp4": 39, "nvfp4": 40, "q1_0": 41,
    "q2_0": 42,
}  # fmt: skip
TYPE_NAMES = {number: name for name, number in TYPES.items()}


BLOCKS |= {10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)}

BLOCKS |= {16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82)}

BLOCKS |= {23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)}

BLOCKS |= {34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18)}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor. ``shape`` has the outputs first, as in transformers: the reverse of the file's order."""

    name: str
    shape: tuple[int, ...]
    type_id: int  # ggml_type
    offset: int  # into the data section

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int | None:
        """Stored bytes; ``None`` for an unknown type."""
        if self.type_id not in BLOCKS:
            return None
        elements, size = BLOCKS[self.type_id]
        return -(-self.parameters // elements) * size


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata and tensors. An array of more than 4,096 entries appears as its length, a ``range``."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data: int = 0  # offset of the data section in the file
    parts: tuple[tuple[Path, GgufHeader], ...] = ()  # of a split file: each part with its own tensors

    @property
    def is_split(self) -> bool:
        """Whether this file is one of several parts."""
        return self.metadata.get("split.count", 1) not in (0, 1)


def is_gguf(path: Path) -> bool:
    """Whether the file starts like GGUF. Its name may be anything: Ollama stores ``sha256-…``."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class _Bad(Exception):
    """The message says what is wrong with the file."""


def model_header(path: Path) -> GgufHeader:
    """The header of a model that may be split into parts, as llama-gguf-split does: all tensors of all parts.

    ``path`` is the only part or the first one. ProfileError for another part, or if one is missing or damaged.
    """
    first = header(path)
    if not first.is_split:
        return first
    shown, count, named = printable(path.name), first.metadata["split.count"], PART.fullmatch(path.name)
    if type(count) is not int or not 1 < count <= MAX_PARTS or named is None or int(named["of"][4:9]) != count:
        raise ProfileError(
            f"{shown} is one of {printable(count, 40)} parts of a split file, but its name does not end as llama.cpp "
            "requires, such as -00001-of-00003.gguf",
            "Restore the names of all parts.",
        )
    if int(named["number"]) != 1:
        raise ProfileError(
            f"{shown} is part {int(named['number'])} of {count} of a split file",
            f"Pass the first part: {printable(named['name'])}00001{named['of']}",
        )
    parts = [(path, first)]
    for number in range(2, count + 1):
        part = path.with_name(f"{named['name']}{number:05d}{named['of']}")
        if not part.is_file():
            raise ProfileError(f"part {number} of {count} is missing: there is no {printable(part.name)}")
        parts.append((part, header(part)))
    tensors: dict[str, GgufTensor] = {}
    for part, each in parts:
        twice = tensors.keys() & each.tensors.keys()
        if twice:
            raise ProfileError(
                f"{printable(part.name)} has a tensor of an earlier part: {printable(min(twice), 80)}",
                "The parts belong to different files.",
            )
        tensors |= each.tensors
    return replace(first, tensors=tensors, parts=tuple(parts))


def header(path: Path) -> GgufHeader:
    """Parse the header. ProfileError unless the file is a complete GGUF file of version 2 or 3."""
    shown = printable(path.name)
    with open_file(path, shown) as file:
        try:
            return _Reader(file.fileno()).header()
        except OSError as error:
            raise ProfileError(f"cannot read {shown}: {why(error)}") from None
        except _Bad as error:
            raise ProfileError(f"{shown} is not a valid GGUF file: {printable(error)}") from None


class _Reader:
    """A position in the file; every step checks that the bytes it needs exist.

    The file is read in windows, not mapped: if another program shortened a mapped file, SIGBUS would kill us.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self.at = 0
        self.window, self.start = b"", 0  # the last bytes read, and their offset in the file
        self.kept = 0
        self.deadline = time.thread_time() + MAX_SECONDS

    def header(self) -> GgufHeader:
        if self.take(min(len(MAGIC), self.size)) != MAGIC:
            raise _Bad("it does not start with GGUF" if self.size else "it is empty")
        version = self.number("<I")
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
            raise _Bad("version 3 in big-endian byte order, and only little-endian files are read")
        if version not in (2, 3):
            raise _Bad(f"version {version} is not supported, only 2 and 3 are")
        tensors, keys = self.number("<Q"), self.number("<Q")
        if tensors > MAX_COUNT or keys > MAX_COUNT:
            raise _Bad(f"{tensors} tensors and {keys} metadata keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key, value = self.pair()
            if key in metadata:
                raise _Bad(f"the metadata key {printable(key, 80)} occurs twice")
            metadata[key] = value
        found: dict[str, GgufTensor] = {}
        for _ in range(tensors):
            tensor = self.tensor()
            if tensor.name in found:
                raise _Bad(f"two of its tensors have the same name, {printable(tensor.name, 80)}")
            found[tensor.name] = tensor
        data = self.check_length(metadata, list(found.values()))
        return GgufHeader(metadata, found, data)

    def take(self, length: int) -> bytes:
        """The next bytes, at most ``MAX_STRING``."""
        self.check_left(length)
        first = self.at - self.start
        if first < 0 or first + length > len(self.window):
            self.window, self.start, first = os.pread(self.fd, max(length, WINDOW), self.at), self.at, 0
        taken = self.window[first : first + length]
        if len(taken) < length:
            raise _Bad("it became shorter while it was read")
        self.at += length
        return taken

    def skip(self, length: int) -> None:
        self.check_left(length)
        self.at += length

    def check_left(self, length: int) -> None:
        if length > self.size - self.at:
            raise _Bad(f"it is truncated at byte {self.size}, or contains a wrong length")

    def keep(self, nbytes: int) -> None:
        """Count bytes that stay in memory."""
        self.kept += nbytes
        if self.kept > MAX_KEPT:
            raise _Bad(f"it holds more than {bytes_text(MAX_KEPT)} of metadata and names")

    def number(self, kind: str) -> int:
        value: int = struct.unpack(kind, self.take(struct.calcsize(kind)))[0]
        return value

    def string(self, most: int = MAX_STRING) -> str:
        length = self.number("<Q")
        if length > most:
            raise _Bad(f"a string of {length} bytes")
        self.keep(length + ENTRY_BYTES)
        return self.take(length).decode("utf-8", "replace")

    def pair(self) -> tuple[str, Any]:
        self.look_at_clock()
        key, kind = self.string(MAX_NAME), self.number("<I")
        if kind == ARRAY:
            return key, self.array(key)
        return key, self.value(key, kind)

    def value(self, key: str, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind not in SCALARS:
            raise _Bad(f"metadata of unknown type {kind}")
        number = self.number(SCALARS[kind])
        if not isfinite(number):
            raise _Bad(f"{printable(key, 80)} is {number}, which is not a finite number")
        return number

    def array(self, key: str) -> Any:
        kind, length = self.number("<I"), self.number("<Q")
        if length > MAX_ARRAY:
            raise _Bad(f"{key} has {length} entries")
        if kind != STRING and kind not in SCALARS:
            raise _Bad(f"{key} is an array of unknown type {kind}")
        if length <= KEPT:
            self.look_at_clock()
            self.keep(length * ENTRY_BYTES)
            return [self.value(key, kind) for _ in range(length)]
        if kind == STRING:
            self.skip_strings(length)
        else:
            self.skip(length * struct.calcsize(SCALARS[kind]))
        return range(length)

    def skip_strings(self, count: int) -> None:
        """Skip a vocabulary or its merges: up to a million strings, so the inner loop only adds up their lengths."""
        length = struct.Struct("<Q").unpack_from
        while count:
            self.look_at_clock()
            self.check_left(8)
            window, at = os.pread(self.fd, WINDOW, self.at), 0
            last = len(window) - 8  # the last place where a whole length can be read
            if last < 0:
                raise _Bad("it became shorter while it was read")
            skipped = 0
            for skipped in range(1, count + 1):  # noqa: B007, as it is used after the loop
                at += 8 + length(window, at)[0]
                if at > last:
                    break
            count -= skipped
            self.skip(at)

    def tensor(self) -> GgufTensor:
        self.look_at_clock()
        name, dims = self.string(MAX_NAME), self.number("<I")
        if not 1 <= dims <= MAX_DIMS:
            raise _Bad(f"{name} has {dims} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dims))
        if prod(shape) >= 2**63:
            raise _Bad(f"{name} has an impossible shape")
        return GgufTensor(name, shape[::-1], self.number("<I"), self.number("<Q"))

    def check_length(self, metadata: Mapping[str, Any], tensors: list[GgufTensor]) -> int:
        """Check that the data of every tensor lies within the file, aligned and apart; returns where the data begins.

        llama.cpp requires the same, and rows of whole blocks. Tensors that share their data would make a small file
        look like one of any size.
        """
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**16:
            raise _Bad(f"alignment {printable(alignment, 40)}")
        start = -(-self.at // alignment) * alignment
        end = start + max((tensor.offset + (tensor.nbytes or 0) for tensor in tensors), default=0)
        if end > self.size:
            raise _Bad(f"it is truncated: it has {self.size} bytes, but its tensors end at byte {end}")
        before, reached = "", 0
        for tensor in sorted(tensors, key=lambda each: each.offset):
            name = printable(tensor.name, 80)
            if tensor.offset < reached:
                raise _Bad(f"{name} begins within the data of {before}")
            if tensor.offset % alignment:
                raise _Bad(
                    f"{name} begins at byte {tensor.offset} of the data, which is not a multiple of {alignment}"
                )
            block = BLOCKS.get(tensor.type_id, (1, 0))[0]
            if tensor.shape[-1] % block:
                kind = TYPE_NAMES[tensor.type_id]
                raise _Bad(f"{name} has rows of {tensor.shape[-1]}, not a multiple of the {block} of a {kind} block")
            before, reached = name, tensor.offset + (tensor.nbytes or 0)
        return start

    def look_at_clock(self) -> None:
        if time.thread_time() > self.deadline:
            raise _Bad(f"reading its header took more than {MAX_SECONDS:g} s")
