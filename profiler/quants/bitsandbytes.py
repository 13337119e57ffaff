"""What the bitsandbytes quantizations share. The rules follow bitsandbytes 0.50 and transformers 5.23.

bitsandbytes replaces modules whose type is exactly ``nn.Linear``, except the output head. Fused experts are one 3-D
parameter and stay in the compute dtype (bitsandbytes issue 1849), as do embeddings, convolutions and norms.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from profiler.devices.base import DeviceInfo
from profiler.models.layers import Role, Weight
from profiler.quants.base import (
    Kernels,
    LayerBenchmark,
    PackedModules,
    Prior,
    Quant,
    RandomValues,
    StoredForm,
    plain_bytes,
)
from profiler.units import MIB

METHOD = "bitsandbytes"  # ``quant_method`` in the config of a checkpoint
LINEAR_ROLES: frozenset[Role] = frozenset({"linear"})

BLOCK = 64  # weights that share one scale
REPACKED_ROWS = 32  # rows of a block: bitsandbytes 0.50, functional.py, _convert_weight_packed_for_cpu
REPACKED_SCALE_BYTES = 2
NESTED_BLOCK = 256  # scales that share one scale, with double quantization
FOUR_BIT_CAPABILITY = 60  # compute capability × 10 that the kernels need (installation guide of bitsandbytes 0.50)
LEVELS_BYTES = 16 * 4  # each weight has its own table of 16 levels in fp32
OFFSET_BYTES = 4  # with double quantization, also an offset
NESTED_LEVELS_BYTES = 256 * 4 + OFFSET_BYTES  # and a table of 256 levels

PATTERN_WEIGHTS = 257 * 256 * 64  # quantized once and repeated; a whole number of blocks, also of nested scales
TIMED = "nf4"  # the 4-bit quantization that is calibrated, since all of them use the same kernels
# Measured on CPUs (low, usual, high): temporary bytes of 4-bit products, and copies of the largest matrix in fp32.
UNPACKING, UNPACKED_COPIES = (0, 40 * MIB, 120 * MIB), (1.0, 1.5, 3.0)
TENSORS = ("absmax", "code", "offset"), ("CB", "SCB")  # attributes of a 4-bit weight's state, and of an 8-bit weight


def missing(device: DeviceInfo, capability: int = FOUR_BIT_CAPABILITY) -> str | None:
    """Why bitsandbytes cannot run on ``device``, in words; ``None`` if it can.

    ``capability`` is the compute capability × 10 that its kernels need.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed: pip install bitsandbytes"
    for feature in device.features:
        if feature.startswith("sm_") and int(feature[3:]) < capability:
            return f"its bitsandbytes kernels need a GPU of compute capability {capability / 10:.1f} or newer"
    return None


def is_stated(stated: Mapping[str, Any]) -> bool:
    """Whether transformers reads a ``quantization_config`` as one of bitsandbytes. ``load_in_4bit`` and
    ``load_in_8bit`` take precedence over ``quant_method``.
    """
    return bool(stated.get("load_in_4bit") or stated.get("load_in_8bit") or stated.get("quant_method") == METHOD)


def repackable(weight: Weight) -> bool:
    """Whether bitsandbytes can repack a 4-bit weight, which must consist of whole blocks of rows and inputs."""
    return weight.role in LINEAR_ROLES and weight.shape[0] % REPACKED_ROWS == 0 and weight.shape[1] % BLOCK == 0


def tensors(module: Any) -> Iterator[Any]:
    """The scales, levels and codes that bitsandbytes keeps with the weight of a module."""
    weight = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None)
    holders = ((state, 0), (getattr(state, "state2", None), 0), (weight, 1), (getattr(module, "state", None), 1))
    for holder, kind in holders:
        found = (getattr(holder, name, None) for name in TENSORS[kind])
        yield from (tensor for tensor in found if hasattr(tensor, "untyped_storage"))


PRIOR = Prior(
    source="GPUs: bitsandbytes' README (T4 and RTX 4090, batches of 1 to 32); cpu: 0.3e9 elements a second and core"
    " on AVX2; repacking: as a Xeon with AMX",
    read=0.8,
    unpack_bytes={"cpu": 60.0, "repacking": 0.0, "other": 8.5},
    of_fp32={"repacking": 0.45},
    unpack_one=3.0,
)


def four_bit(name: str, levels: str, double: bool, start_calls: float) -> Quant:
    """A 4-bit quantization with blocks of 64 weights. ``double`` quantizes the scales as well. ``start_calls`` is
    that of its ``Prior``.
    """

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

    def matches(stated: Mapping[str, Any]) -> bool:
        if not is_stated(stated) or not stated.get("load_in_4bit"):
            return False
        own = "nf4" if stated.get("bnb_4bit_quant_type") == "nf4" else "fp4"  # transformers' default is fp4
        return own == levels and bool(stated.get("bnb_4bit_use_double_quant")) is double

    kernels = Kernels(
        prior=replace(PRIOR, start_calls=start_calls),
        same_as=None if name == TIMED else TIMED,
        unpacks=True,
        fused=repackable,
        cpu_scratch=_four_bit_scratch,
    )
    form = StoredForm(
        matches,
        needed=frozenset({"weight", "weight.absmax", "weight.quant_map"}),
        allowed=frozenset({"weight.nested_absmax", "weight.nested_quant_map"}),
        bits=4,
    )
    modules = PackedModules(
        names=frozenset({"Linear4bit"}),
        tensors=tensors,
        weight=_four_bit_weight,
        timed=LayerBenchmark(_four_bit_layer) if name == TIMED else None,
    )
    return Quant(name, weight_bytes, LINEAR_ROLES, missing, load_config, None, kernels, form, modules)


def _four_bit_scratch(rows: int, matrix_bytes: int, features: tuple[str, ...]) -> tuple[float, float, float]:
    low, usual, high = (heap + n * matrix_bytes for heap, n in zip(UNPACKING, UNPACKED_COPIES, strict=True))
    return low, usual, high


def _four_bit_layer(inputs: int, outputs: int, dtype: Any) -> Any:
    import bitsandbytes as bnb

    return bnb.nn.Linear4bit(inputs, outputs, False, dtype, quant_type=TIMED)


def _four_bit_weight(module: Any, values: RandomValues) -> Any:
    """A weight whose packed levels and scales repeat those of a quantized pattern."""
    import bitsandbytes as bnb
    import torch

    meta = module.weight
    packed, pattern = _pattern(meta.quant_type, meta.compress_statistics, values)
    count = meta.numel()
    data = torch.empty((-(-count // 2), 1), dtype=torch.uint8, device=values.device)
    values.tile(data.view(-1), packed.view(-1), shift=32)
    blocks = -(-count // pattern.blocksize)
    absmax = torch.empty(blocks, dtype=pattern.absmax.dtype, device=values.device)
    values.tile(absmax, pattern.absmax)
    nested = None
    if pattern.state2 is not None:
        scales = torch.empty(-(-blocks // pattern.state2.blocksize), device=values.device)
        values.tile(scales, pattern.state2.absmax)
        nested = bnb.functional.QuantState(
            absmax=scales,
            code=pattern.state2.code.clone(),
            blocksize=pattern.state2.blocksize,
            dtype=pattern.state2.dtype,
        )
    state = bnb.functional.QuantState(
        absmax=absmax,
        shape=torch.Size(meta.shape),
        code=pattern.code.clone(),
        blocksize=pattern.blocksize,
        quant_type=pattern.quant_type,
        dtype=values.dtype,
        offset=None if pattern.offset is None else pattern.offset.clone(),
        state2=nested,
    )
    module.quant_state = state
    return bnb.nn.Params4bit(
        data,
        requires_grad=False,
        quant_state=state,
        blocksize=pattern.blocksize,
        compress_statistics=meta.compress_statistics,
        quant_type=meta.quant_type,
        module=module,
        bnb_quantized=True,
    )


def _pattern(quant_type: str, nested: bool, values: RandomValues) -> tuple[Any, Any]:
    """Normally distributed weights that bitsandbytes itself has quantized: packed levels, and their state."""
    import bitsandbytes as bnb
    import torch

    key = (quant_type, nested)
    if key not in values.patterns:
        normal = torch.empty(PATTERN_WEIGHTS, dtype=values.dtype, device=values.device)
        values.normal(normal, values.std, values.seed)
        values.patterns[key] = bnb.functional.quantize_4bit(
            normal, blocksize=BLOCK, compress_statistics=nested, quant_type=quant_type
        )
    found: tuple[Any, Any] = values.patterns[key]
    return found
