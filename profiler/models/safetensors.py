"""Safetensors files: parses headers within bounds, and checks that a folder's weights are complete.

Format: an 8-byte little-endian header length, a JSON object ``name → {dtype, shape, data_offsets}``, then the data
without gaps (https://github.com/huggingface/safetensors#format). All of it is checked before a worker maps the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
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
MAX_HEADERS = 4 * MAX_HEADER  # for all files of a model
MAX_SHARDS = 1000
MAX_INTEGERS = 8  # in a tensor that holds a shape
HEADER = Budget(nbytes=MAX_HEADER, values=2**21, depth=8)
INDEXED = Budget(nbytes=2 * MAX_HEADER, values=2**20, depth=8)  # an index of 210,000 tensors takes 20 MiB
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
STATES = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # pickles of a training, not weights
UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download")  # by the usual downloaders
DOWNLOADS = Path(".cache", "huggingface", "download")  # where huggingface_hub keeps them in a folder of the user
OTHERS = {  # endings of weights that nothing here reads
    ".onnx": "ONNX", ".gguf": "GGUF", ".npz": "MLX", ".h5": "TensorFlow", ".msgpack": "Flax", ".tflite": "TFLite",
}  # fmt: skip
NONE = "the folder has no safetensors"
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


BITS |= {"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64}

BITS |= {"F64": 64, "C64": 64}


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # offsets into the data section
    end: int
    file: Path | None = None  # None if only the header is known
    data: int = 0  # offset of the data section in the file

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.end - self.begin


def header(path: Path, most: int = MAX_HEADER) -> tuple[dict[str, SafetensorsTensor], int]:
    """The tensors by name, and the size of the header in bytes, of which ``most`` are allowed.

    ProfileError unless the file is complete; the message says if it is truncated.
    """
    shown = printable(path.name)
    with open_file(path, shown) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            if length is None or length + 8 > size:
                raise ProfileError(f"{shown} is truncated or not a safetensors file ({size} bytes)", _AGAIN)
            if length > most:
                raise ProfileError(f"{shown} has a header of {length} bytes, more than any real file")
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
    """One tensor whose size matches its type and shape; ValueError otherwise."""
    if not isinstance(fields, dict):
        raise ValueError(f"{name} is not an object")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name} has an unknown dtype")
    if not _are_counts(shape) or len(shape) > 8 or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has a bad shape or offsets")
    begin, end = offsets
    if (end - begin) * 8 != prod(shape) * BITS[dtype]:
        raise ValueError(f"{name} has {end - begin} bytes, which contradicts its shape and dtype")
    return SafetensorsTensor(dtype, tuple(shape), begin, end)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**53 for n in value)


def _check_coverage(tensors: dict[str, SafetensorsTensor], size: int, shown: str) -> None:
    """ProfileError unless the tensors cover all ``size`` bytes of data without gaps or overlaps."""
    spans = sorted((tensor.begin, tensor.end) for tensor in tensors.values())
    end = spans[-1][1] if spans else 0
    if end > size:
        raise ProfileError(f"{shown} is truncated: it has {size} bytes of data, its header says {end}", _AGAIN)
    if (spans and spans[0][0] != 0) or end != size or any(a[1] != b[0] for a, b in pairwise(spans)):
        raise ProfileError(f"the tensors of {shown} do not cover the file without gaps or overlaps")


def shards(folder: Path) -> list[Path] | None:
    """The safetensors files with a folder's weights; ``None`` if there are none.

    Like transformers, this looks for a single file and then for an index. Others, such as an adapter, are ignored.
    ProfileError if the index names a file that is missing or outside the folder.
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
        raise ProfileError(f"{INDEX} names {printable(name)}, which is not a safetensors file in this folder")
    path = folder / name
    if not is_file(path):
        part = next((ending for ending in UNFINISHED if is_file(path.with_name(name + ending))), "")
        what = f"is not downloaded completely (there is {printable(name)}{part})" if part else "is missing"
        raise ProfileError(f"{printable(name)}, which {INDEX} names, {what}", _AGAIN)
    return path


def verify(folder: Path) -> dict[str, SafetensorsTensor]:
    """All tensors of a folder's weights, with every file checked; empty if it has no safetensors.

    A file is read once even if the index names it several times, since links are free to make.
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
                    f"{printable(name)} is stored twice, again in {printable(path.name)}",
                    f"It is unclear which one to use. {_AGAIN}",
                )
            found[name] = tensor
    return found


def why_missing(folder: Path, names: Iterable[str] | None = None) -> str:
    """Why ``shards`` finds no weights in a folder, whose files are ``names`` if they are known."""
    names = sorted(path.name for path in folder.iterdir()) if names is None else list(names)
    part = next((name for name in names if name.endswith(UNFINISHED)), None) or _download(folder)
    if part is not None:
        return f"{printable(part, 60)} is an unfinished download"
    others = [name for name in names if name.endswith(".safetensors") and name != SINGLE]
    if others and (folder / "config.json").is_file():
        return f"{printable(others[0], 60)} is not named {SINGLE}, and no {INDEX} names it"
    pickles = [name for name in names if name.endswith(PICKLES) and not name.startswith(STATES)]
    if pickles:
        return f"it has only pickled weights ({printable(pickles[0], 60)}), which can run code and are never loaded"
    other = next((name for name in names if Path(name).suffix.casefold() in OTHERS), None)
    if other is not None:
        kind = OTHERS[Path(other).suffix.casefold()]
        instead = ", which is passed by its own path" if kind == "GGUF" else ", which transformers does not load"
        return f"it has weights for {kind} only ({printable(other, 60)}){instead}"
    return NONE


def _download(folder: Path) -> str | None:
    """A weight file of this folder that huggingface_hub has not finished downloading."""
    found = (folder / DOWNLOADS).glob("*.safetensors.*.incomplete") if (folder / DOWNLOADS).is_dir() else ()
    return next((path.name.partition(".safetensors")[0] + ".safetensors" for path in found), None)


def unread(folder: Path) -> list[Path]:
    """Safetensors files in a folder with weights that are not loaded."""
    read = {path.name for path in shards(folder) or ()}
    return sorted(path for path in folder.glob("*.safetensors") if path.name not in read)


def spans(tensors: Mapping[str, SafetensorsTensor]) -> Iterator[profiler_files.FileSpan]:
    """The locations of the tensors that ``verify`` returned."""
    for name, tensor in tensors.items():
        if tensor.file is not None:
            label = f"{name} {tensor.dtype} {list(tensor.shape)}"
            yield profiler_files.FileSpan(label, tensor.file, tensor.data + tensor.begin, tensor.nbytes)


def integers(tensor: SafetensorsTensor) -> tuple[int, ...] | None:
    """The values of a short integer tensor, such as a stored shape; ``None`` for any other tensor.

    Raises ProfileError if the file cannot be read.
    """
    size = {"I32": 4, "I64": 8}.get(tensor.dtype)
    if size is None or tensor.file is None or tensor.nbytes > MAX_INTEGERS * size:
        return None
    with open_file(tensor.file) as file:
        content = os.pread(file.fileno(), tensor.nbytes, tensor.data + tensor.begin)
    return tuple(
        int.from_bytes(content[at : at + size], "little", signed=True) for at in range(0, len(content), size)
    )


def same_data(one: SafetensorsTensor, other: SafetensorsTensor) -> bool:
    """Whether two tensors hold the same values of the same type, as far as ``files.content_id`` compares them."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (profiler_files.content_id(spans({"": tensor})) for tensor in (one, other))
    return first == second
