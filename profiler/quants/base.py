"""What a quantization gives. A file ``quants/NAME.py`` defines one ``QUANT``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from profiler.devices.base import DeviceInfo
from profiler.models.layers import Role, Weight

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

# bitsandbytes replaces modules whose type is exactly nn.Linear, except the output head. Fused experts are one 3-D
# parameter and stay in the compute dtype (bitsandbytes issue 1849), as do embeddings, convolutions and norms.
LINEAR_ROLES: frozenset[Role] = frozenset({"linear"})

BLOCK = 64  # weights that share one scale
REPACKED_ROWS = 32  # of a weight, or a multiple: bitsandbytes 0.50, functional.py, _convert_weight_packed_for_cpu
REPACKED_SCALE_BYTES = 2
NESTED_BLOCK = 256  # scales that share one scale, with double quantization
FOUR_BIT_CAPABILITY = 60  # compute capability × 10 that the kernels need (installation guide of bitsandbytes 0.50)
LEVELS_BYTES = 16 * 4  # each weight keeps its own table of 16 fp32 levels
OFFSET_BYTES = 4  # with double quantization also an offset,
NESTED_LEVELS_BYTES = 256 * 4 + OFFSET_BYTES  # and a table of 256 levels


@dataclass(frozen=True, slots=True)
class Quant:
    """How weights are stored. ``weight_bytes(weight, dtype, repacks)`` counts every stored byte, scales included.

    ``dtype`` is the compute dtype: what stays unquantized is stored in it. ``repacks``: whether the device is one for
    which bitsandbytes packs 4-bit weights anew in their first pass (``DeviceInfo.repacks``). ``load_config(dtype)``
    gives the transformers quantization config (``None`` for a plain dtype) and may import torch; nothing else does.
    """

    name: str
    weight_bytes: Callable[[Weight, str, bool], int]
    roles: frozenset[Role]  # what the scheme quantizes; empty for a plain dtype
    unavailable: Callable[[DeviceInfo], str | None]  # the reason, in words
    load_config: Callable[[str], Any]
    dtype: str | None = None  # the dtype it fixes; None: the device's default compute dtype


def plain_bytes(weight: Weight, dtype: str, repacks: bool = False) -> int:
    """Bytes of a weight stored in the compute dtype."""
    return weight.parameters * DTYPE_BYTES[dtype]


def repackable(weight: Weight) -> bool:
    """Whether a 4-bit weight has the shape that bitsandbytes packs anew: whole blocks of rows and of inputs."""
    return weight.role in LINEAR_ROLES and weight.shape[0] % REPACKED_ROWS == 0 and weight.shape[1] % BLOCK == 0


def plain(name: str) -> Quant:
    """A plain dtype: everything is stored and computed in it."""
    return Quant(name, plain_bytes, frozenset(), lambda device: None, lambda dtype: None, dtype=name)


def four_bit(name: str, levels: str, double: bool) -> Quant:
    """A 4-bit scheme of bitsandbytes with blocks of 64; ``double`` quantizes the scales as well."""

    def weight_bytes(weight: Weight, dtype: str, repacks: bool = False) -> int:
        if weight.role not in LINEAR_ROLES:
            return plain_bytes(weight, dtype)
        blocks = -(-weight.parameters // BLOCK)
        packed = -(-weight.parameters // 2) + LEVELS_BYTES
        if repacks and repackable(weight):
            return packed + REPACKED_SCALE_BYTES * blocks + (OFFSET_BYTES if double else 0)
        if not double:
            return packed + 4 * blocks
        return packed + blocks + 4 * -(-blocks // NESTED_BLOCK) + NESTED_LEVELS_BYTES

    def load_config(dtype: str) -> Any:
        import torch
        from transformers import BitsAndBytesConfig

        compute = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=levels,
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=compute,
        )

    return Quant(name, weight_bytes, LINEAR_ROLES, bitsandbytes_missing, load_config)


def bitsandbytes_missing(device: DeviceInfo, capability: int = FOUR_BIT_CAPABILITY) -> str | None:
    """Why bitsandbytes cannot run here, if it cannot: not installed, or a GPU older than its kernels."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed: pip install bitsandbytes"
    for feature in device.features:
        if feature.startswith("sm_") and int(feature[3:]) < capability:
            return f"bitsandbytes needs a GPU of compute capability {capability / 10:.1f} or newer for it"
    return None
