"""Safetensors files without torch: any names, shapes and number types, and those that a config describes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from profiler.models import families
from profiler.models.safetensors import BITS

Shapes = Mapping[str, list[int]]


def described(raw: Mapping[str, Any]) -> dict[str, list[int]]:
    """Name → shape of every weight that a config describes, as transformers would save them."""
    geometry = families.geometry(raw)
    found = {weight.name: list(weight.shape) for weight in geometry.outside}
    for index, layer in enumerate(geometry.layers):
        found |= {f"model.layers.{index}.{weight.name}": list(weight.shape) for weight in layer.weights}
    return found


def content(shapes: Shapes, dtype: str | Mapping[str, str] = "F32", fill: bytes = b"\0") -> bytes:
    """A whole file. ``dtype`` is of all tensors, or by name with F32 for the others; every byte is ``fill``."""
    entries, offset = {}, 0
    for name, shape in shapes.items():
        kind = dtype if isinstance(dtype, str) else dtype.get(name, "F32")
        size = prod(shape) * BITS[kind] // 8
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + fill * offset


def folder(path: Path, raw: Mapping[str, Any], shapes: Shapes | None = None, **how: Any) -> Path:
    """A checkpoint: the config, and ``shapes`` or what the config describes in one file."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw))
    (path / "model.safetensors").write_bytes(content(described(raw) if shapes is None else shapes, **how))
    return path
