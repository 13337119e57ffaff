"""What a quantization gives. A file ``quants/NAME.py`` defines one ``QUANT``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from profiler.devices.base import DeviceInfo
from profiler.models.geometry import Weight

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def plain_bytes(weight: Weight, dtype: str) -> int:
    """Bytes of a weight stored in the compute dtype."""
    return weight.parameters * DTYPE_BYTES[dtype]


@dataclass(frozen=True, slots=True)
class Quant:
    """How weights are stored. ``weight_bytes(weight, dtype)`` counts every stored byte, scales included.

    ``dtype`` is the compute dtype: what stays unquantized is stored in it. ``load_config(dtype)`` gives the
    transformers quantization config (``None`` for a plain dtype) and may import torch; nothing else here does.
    """

    name: str
    weight_bytes: Callable[[Weight, str], int]
    quantizes: Callable[[Weight], bool]  # whether the scheme touches this weight at all
    unavailable: Callable[[DeviceInfo], str | None]  # the reason, in words
    load_config: Callable[[str], Any]
    dtype: str | None = None  # the dtype it fixes; None: the device's default compute dtype
