"""LLM.int8() (arXiv 2208.07339): 8-bit rows with one fp32 scale each; outlier columns are computed in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.devices.base import DeviceInfo
from profiler.models.layers import Weight
from profiler.quants import bitsandbytes
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
from profiler.quants.bitsandbytes import LINEAR_ROLES, PATTERN_WEIGHTS
from profiler.units import MIB

SCALE_BYTES = 4
CAPABILITY = 75
SCRATCH = (0, 160 * MIB, 450 * MIB)  # temporary bytes of products on a CPU (low, usual, high)
# With torch._int_mm (AVX-512), the temporary bytes stay as holes in the heap and grow with the tokens of a pass: 7e5
# to 9e5 per token were measured. The tensors of passes of more than
# ``MAX_HOLE_ROWS`` tokens are too large for the heap.
INTEGER_HOLES, MAX_HOLE_ROWS = (2e5, 8e5, 2e6), 4096


def weight_bytes(weight: Weight, dtype: str, repacks: bool = False) -> int:
    """One byte per weight, and a scale per row."""
    if weight.role not in LINEAR_ROLES:
        return plain_bytes(weight, dtype)
    return weight.parameters + SCALE_BYTES * weight.shape[0]


def load_config(dtype: str) -> Any:
    """The threshold stays the library's default (6.0), as for anyone who loads a model in 8 bits."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def unavailable(device: DeviceInfo) -> str | None:
    """On a GPU, its matrix products need integer tensor cores (Turing or newer)."""
    return bitsandbytes.missing(device, CAPABILITY)


def matches(stated: Mapping[str, Any]) -> bool:
    """Every bitsandbytes config that does not request 4 bits."""
    return bitsandbytes.is_stated(stated) and not stated.get("load_in_4bit")


def scratch(rows: int, matrix_bytes: int, features: tuple[str, ...]) -> tuple[float, float, float]:
    """Temporary bytes of products on a CPU (low, usual, high), from measurements."""
    if "avx512f" not in features:
        return SCRATCH
    low, usual, high = (min(rows, MAX_HOLE_ROWS) * each for each in INTEGER_HOLES)
    return low, usual, high


def random_weight(module: Any, values: RandomValues) -> Any:
    """Rows of rounded normal values, the largest near 127, just as row-wise quantization makes them."""
    import bitsandbytes as bnb
    import torch

    rows, columns = module.weight.shape
    if "int8" not in values.patterns:
        normal = torch.empty(PATTERN_WEIGHTS, device=values.device)
        values.normal(normal, 127 / 4, values.seed)  # the largest of some thousand normal values is near 4 sigma
        values.patterns["int8"] = normal.round_().clamp_(-127, 127).to(torch.int8)
    data = torch.empty((rows, columns), dtype=torch.int8, device=values.device)
    values.tile(data.view(-1), values.patterns["int8"], shift=31)
    scales = torch.empty(rows, device=values.device)
    values.normal(scales, values.std / 4)
    scales.add_(4 * values.std)  # absolute maxima: near 4 sigma, and all different
    return bnb.nn.Int8Params(data, requires_grad=False, has_fp16_weights=False, CB=data, SCB=scales)


def layer(inputs: int, outputs: int, dtype: Any) -> Any:
    """A linear layer as transformers creates it."""
    import bitsandbytes as bnb

    return bnb.nn.Linear8bitLt(inputs, outputs, False, has_fp16_weights=False, threshold=6.0)


QUANT = Quant(
    "int8",
    weight_bytes,
    LINEAR_ROLES,
    unavailable,
    load_config,
    kernels=Kernels(
        prior=Prior(
            source="GPUs: bitsandbytes' README (T4 and RTX 4090, batches of 1 to 32); products of many tokens seen on"
            " AVX2 and on a Xeon with AMX",
            read=0.8,
            unpack_bytes={"cpu": 0.0, "repacking": 0.0, "other": 0.5},
            of_fp32={"cpu": 0.8, "repacking": 0.8},
            start_calls=24,
        ),
        cpu_scratch=scratch,
        in_graphs=False,  # it searches for outlier features on the host
        own=frozenset({"cpu"}),
        own_caution=("int8-rows", "decode multiplies 8-bit rows by unrounded activations (not LLM.int8)"),
    ),
    stored=StoredForm(
        matches,
        needed=frozenset({"weight", "SCB"}),
        allowed=frozenset({"weight_format"}),
        types=frozenset({"I8"}),
    ),
    modules=PackedModules(
        names=frozenset({"Linear8bitLt"}),
        tensors=bitsandbytes.tensors,
        weight=random_weight,
        # In long passes its cost per token grows again, because intermediate results no longer fit the caches.
        timed=LayerBenchmark(layer, gpu_dtype="fp16", more_tokens=(1024,)),
    ),
)
