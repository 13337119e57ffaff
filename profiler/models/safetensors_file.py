"""Safetensors files: their headers, read within bounds, and whether a folder of real weights is whole.

Format: 8 bytes little-endian header length, a JSON object ``name → {dtype, shape, data_offsets}``, then the data,
without holes (https://github.com/huggingface/safetensors#format). Checked here, before a worker maps the file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from profiler.errors import ProfileError
from profiler.units import printable

MAX_HEADER = 16 * 1024 * 1024  # the largest real headers are a few MiB
MAX_SHARDS = 1000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= {"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64}
BITS |= {"F64": 64, "C64": 64}

FLOATS = ("F16", "BF16", "F32", "F64")

SAMPLES, SAMPLE_BYTES = 16, 4096  # of each file's data, for its identity


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # offsets into the data that follows the header
    end: int


def header(path: Path) -> dict[str, Tensor]:
    """Name → tensor. ProfileError for anything but a complete file: a truncated one is named as such."""
    shown = printable(path.name)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            if length is None or length + 8 > size:
                raise ProfileError(f"{shown} is truncated or no safetensors file ({size} bytes)", _AGAIN)
            if length > MAX_HEADER:
                raise ProfileError(f"{shown}: a header of {length} bytes is larger than any real one")
            content = file.read(length)
    except OSError as error:
        raise ProfileError(f"cannot read {shown}: {printable(error.strerror)}") from None
    tensors = _entries(content, shown)
    _check_coverage(tensors, size - 8 - length, shown)
    return tensors


_AGAIN = "Copy or download the file again."


def _entries(content: bytes, shown: str) -> dict[str, Tensor]:
    try:
        entries = json.loads(content)
        if not isinstance(entries, dict):
            raise ValueError("no JSON object")
        entries.pop("__metadata__", None)
        return {name: _entry(name, fields) for name, fields in entries.items()}
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{shown}: bad safetensors header: {printable(error, 120)}") from None


def _entry(name: str, fields: Any) -> Tensor:
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
    return Tensor(dtype, tuple(shape), begin, end)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**53 for n in value)


def _check_coverage(tensors: dict[str, Tensor], size: int, shown: str) -> None:
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
    if single.is_file():
        return [single]
    return [_shard(folder, name) for name in _indexed(index)] if index.is_file() else None


def _indexed(index: Path) -> list[str]:
    try:
        if index.stat().st_size > MAX_HEADER:
            raise ProfileError(f"{INDEX} is larger than any real one")
        weight_map = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ProfileError(f"{INDEX} is not a valid index of safetensors files") from None
    if not names or len(names) > MAX_SHARDS or not all(isinstance(name, str) for name in names):
        raise ProfileError(f"{INDEX} is not a valid index of safetensors files")
    return names


def _shard(folder: Path, name: str) -> Path:
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise ProfileError(f"{INDEX} names {printable(name)}, which is no safetensors file of this folder")
    path = folder / name
    if not path.is_file():
        raise ProfileError(f"{printable(name)} is missing, {INDEX} names it", _AGAIN)
    return path


def verify(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's weights, every file checked; empty if it has no safetensors."""
    return {name: tensor for path in shards(folder) or () for name, tensor in header(path).items()}


def why_missing(folder: Path) -> str:
    """Why a folder that ``shards`` finds nothing in has no real weights, in words."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"{printable(others[0], 60)} is not {SINGLE}, and there is no {INDEX} that names it"
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return f"only {printable(pickles[0], 60)} and the like: pickled weights can run code and are never loaded"
    return "the folder holds no safetensors"


def content_id(folder: Path) -> str:
    """Hash of the headers, sizes and samples of the data of all weight files of ``folder``."""
    return files_id(shards(folder) or [])


def files_id(paths: list[Path]) -> str:
    """Hash of names, sizes, first 64 KiB and evenly spaced samples: tells fine-tunes of one shape apart in
    milliseconds, where hashing tens of GiB would take minutes."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            digest.update(file.read(65536))
            for offset in _sample_offsets(size):
                file.seek(offset)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _sample_offsets(size: int) -> Iterator[int]:
    return (size * n // (SAMPLES + 1) for n in range(1, SAMPLES + 1))


def check_embedding(tensors: dict[str, Tensor], vocab: int, hidden: int) -> None:
    """ProfileError if the stored embedding is not ``[vocab, hidden]``: config and weights are of different models."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:  # codes, several to an element
            continue
        if name.endswith("embed_tokens.weight") and tensor.shape != (vocab, hidden) and len(tensor.shape) == 2:
            raise ProfileError(
                f"{printable(name)} is {list(tensor.shape)} in the weights, {[vocab, hidden]} in the config",
                "Config and weights are not of the same model.",
            )
