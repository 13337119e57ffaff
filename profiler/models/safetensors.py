"""Safetensors files: their headers, read within bounds, and whether a folder of real weights is whole.

Format: 8 bytes little-endian header length, a JSON object ``name → {dtype, shape, data_offsets}``, then the data,
without holes (https://github.com/huggingface/safetensors#format). Checked here, before a worker maps the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from profiler import files as profiler_files
from profiler.errors import ProfileError
from profiler.foreign import Budget, exists, is_file, json_value, open_file, read_json, why
from profiler.units import printable

MAX_HEADER = 16 * 1024 * 1024  # the largest real headers are a few MiB
MAX_HEADERS = 4 * MAX_HEADER  # of all files of a model
MAX_SHARDS = 1000
MOST_INTEGERS = 8  # of a tensor that states a shape
HEADER = Budget(nbytes=MAX_HEADER, values=2**21, depth=8)
INDEXED = Budget(nbytes=2 * MAX_HEADER, values=2**20, depth=8)  # 210,000 tensors of a trillion parameters take 20 MiB
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


BITS |= {"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64}

BITS |= {"F64": 64, "C64": 64}


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # offsets into the data that follows the header
    end: int
    file: Path | None = None  # where it is; None if only its header is known
    data: int = 0  # where the data begin in the file

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.end - self.begin


def header(path: Path, most: int = MAX_HEADER) -> tuple[dict[str, SafetensorsTensor], int]:
    """Name → tensor, and the bytes of the header, of which it may have ``most``.

    ProfileError for anything but a complete file: a truncated one is named as such.
    """
    shown = printable(path.name)
    with open_file(path, shown) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            if length is None or length + 8 > size:
                raise ProfileError(f"{shown} is truncated or no safetensors file ({size} bytes)", _AGAIN)
            if length > most:
                raise ProfileError(f"{shown}: a header of {length} bytes is larger than any real one")
            content = file.read(length)
        except OSError as error:
            raise ProfileError(f"cannot read {shown}: {why(error)}") from None
    tensors = _entries(content, shown)
    _check_coverage(tensors, size - 8 - length, shown)
    return {name: replace(tensor, file=path, data=8 + length) for name, tensor in tensors.items()}, length


_AGAIN = "Copy or download the file again."


def _entries(content: bytes, shown: str) -> dict[str, SafetensorsTensor]:
    try:
        entries = json_value(content, HEADER)
        if not isinstance(entries, dict):
            raise ValueError("no JSON object")
        entries.pop("__metadata__", None)
        return {name: _entry(name, fields) for name, fields in entries.items()}
    except ValueError as error:
        raise ProfileError(f"{shown}: bad safetensors header: {printable(error, 120)}") from None


def _entry(name: str, fields: Any) -> SafetensorsTensor:
    """One tensor whose size agrees with its type and shape; ValueError otherwise."""
    if not isinstance(fields, dict):
        raise ValueError(f"{name} is no object")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name} has an unknown dtype")
    if not _are_counts(shape) or len(shape) > 8 or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has a bad shape or offsets")
    begin, end = offsets
    if (end - begin) * 8 != prod(shape) * BITS[dtype]:
        raise ValueError(f"{name} takes {end - begin} bytes, which its shape and dtype contradict")
    return SafetensorsTensor(dtype, tuple(shape), begin, end)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**53 for n in value)


def _check_coverage(tensors: dict[str, SafetensorsTensor], size: int, shown: str) -> None:
    """ProfileError unless the tensors cover all ``size`` bytes of data without hole or overlap."""
    spans = sorted((tensor.begin, tensor.end) for tensor in tensors.values())
    end = spans[-1][1] if spans else 0
    if end > size:
        raise ProfileError(f"{shown} is truncated: {size} bytes of data, the header speaks of {end}", _AGAIN)
    if (spans and spans[0][0] != 0) or end != size or any(a[1] != b[0] for a, b in pairwise(spans)):
        raise ProfileError(f"{shown}: its tensors do not cover the file without holes or overlaps")


def shards(folder: Path) -> list[Path] | None:
    """The safetensors files that hold a folder's weights, ``None`` if there are none.

    As transformers looks for them: one whole file, else the index. Others, such as an adapter's, are not the model.
    ProfileError if the index names a file that is missing or lies outside the folder.
    """
    single, index = folder / SINGLE, folder / INDEX
    if is_file(single):
        return [single]
    return [_shard(folder, name) for name in _indexed(index)] if exists(index) else None


def _indexed(index: Path) -> list[str]:
    content = read_json(index, INDEXED, INDEX, _AGAIN)
    try:
        names = sorted(set(content["weight_map"].values()))
    except (LookupError, TypeError, AttributeError):
        raise ProfileError(f"{INDEX} is not a valid index of safetensors files") from None
    if not names or len(names) > MAX_SHARDS or not all(isinstance(name, str) for name in names):
        raise ProfileError(f"{INDEX} is not a valid index of safetensors files")
    return names


def _shard(folder: Path, name: str) -> Path:
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise ProfileError(f"{INDEX} names {printable(name)}, which is no safetensors file of this folder")
    path = folder / name
    if not is_file(path):
        raise ProfileError(f"{printable(name)} is missing, {INDEX} names it", _AGAIN)
    return path


def verify(folder: Path) -> dict[str, SafetensorsTensor]:
    """All tensors of a folder's weights, every file checked; empty if it has no safetensors.

    A file counts once, by however many names an index calls it: links and hard links are free to make.
    """
    found: dict[str, SafetensorsTensor] = {}
    files: set[tuple[int, int]] = set()
    left = MAX_HEADERS
    for path in shards(folder) or ():
        try:
            status = path.stat()
        except OSError as error:
            raise ProfileError(f"cannot read {printable(path.name)}: {why(error)}", _AGAIN) from None
        if (file := (status.st_dev, status.st_ino)) in files:
            continue
        files.add(file)
        tensors, length = header(path, min(left, MAX_HEADER))
        left -= length
        for name, tensor in tensors.items():
            if name in found:
                raise ProfileError(
                    f"{printable(name)} is stored twice, the second time in {printable(path.name)}",
                    f"Which of them is meant cannot be known. {_AGAIN}",
                )
            found[name] = tensor
    return found


def why_missing(folder: Path) -> str:
    """Why a folder that ``shards`` finds nothing in has no real weights, in words."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"{printable(others[0], 60)} is not {SINGLE}, and there is no {INDEX} that names it"
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return f"only {printable(pickles[0], 60)} and the like: pickled weights can run code and are never loaded"
    return "the folder holds no safetensors"


def unread(folder: Path) -> list[Path]:
    """Other safetensors files of a folder with weights: nothing of them is loaded."""
    read = {path.name for path in shards(folder) or ()}
    return sorted(path for path in folder.glob("*.safetensors") if path.name not in read)


def spans(tensors: Mapping[str, SafetensorsTensor]) -> Iterator[profiler_files.FileSpan]:
    """Where the data of ``verify``'s tensors are."""
    for name, tensor in tensors.items():
        if tensor.file is not None:
            label = f"{name} {tensor.dtype} {list(tensor.shape)}"
            yield profiler_files.FileSpan(label, tensor.file, tensor.data + tensor.begin, tensor.nbytes)


def integers(tensor: SafetensorsTensor) -> tuple[int, ...] | None:
    """The values of a short tensor of whole numbers, such as a stored shape; ``None`` for any other.

    Raises ProfileError where its file cannot be read.
    """
    size = {"I32": 4, "I64": 8}.get(tensor.dtype)
    if size is None or tensor.file is None or tensor.nbytes > MOST_INTEGERS * size:
        return None
    with open_file(tensor.file) as file:
        content = os.pread(file.fileno(), tensor.nbytes, tensor.data + tensor.begin)
    return tuple(
        int.from_bytes(content[at : at + size], "little", signed=True) for at in range(0, len(content), size)
    )


def same_data(one: SafetensorsTensor, other: SafetensorsTensor) -> bool:
    """Whether two tensors hold the same values in the same number type (``identity`` says how exactly)."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (profiler_files.content_id(spans({"": tensor})) for tensor in (one, other))
    return first == second
