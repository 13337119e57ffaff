"""How long a case takes: to load its model, to prefill, and for one decode step.

    pass = max(bytes read ÷ bandwidth, FLOPs ÷ rate at that many tokens) + unpacking + layers × overhead

The rates are priors (``speeds.py``) that err on the slow side; what rests on them is good to plan with, not to print
beside a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiler.case import Case
from profiler.devices.base import DeviceInfo
from profiler.models.geometry import Geometry
from profiler.models.layers import Execution
from profiler.predict.interval import Interval, prior
from profiler.predict.memory import weights_bytes
from profiler.predict.speeds import Speeds, speeds
from profiler.quants.base import DTYPE_BYTES, Quant

START_S = 8.0  # a worker process that imports torch and transformers, from a warm disk
DISK_BYTES_S = 0.5e9  # reading a checkpoint
CHECKPOINT_BYTES = 2  # per parameter: most are published in 16 bits
CACHE_TOUCHES = 3  # a dynamic cache is read, and copied (read and written) to append, in every step
RECURRENT_CHUNK_S = 1e-3  # a chunk of 64 tokens of a gated-delta layer in transformers' own PyTorch code
RECURRENT_PASS_S = 20e-3  # and what such a layer takes for each pass: a triangular solve, row by row
RECURRENT_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    load_s: Interval
    prefill_s: Interval  # all ``context`` tokens of all sequences, once
    fill_s: Interval  # writing a random cache instead
    step_s: Interval  # one decode step of the whole batch


def predict(case: Case, geometry: Geometry, quant: Quant, device: DeviceInfo) -> Timing:
    """The times of a case, in seconds."""
    rates = speeds(device, case.dtype, case.threads)
    cache = geometry.cache_bytes(case.context, case.batch, DTYPE_BYTES[case.dtype]).total
    return Timing(
        load_s=_load(case, geometry, quant, rates),
        prefill_s=prior(_prefill(case, geometry, quant, rates), rates.spread),
        fill_s=prior(cache / rates.fill_bytes_s, rates.spread),
        step_s=prior(_step(case, geometry, quant, rates), rates.spread),
    )


def _load(case: Case, geometry: Geometry, quant: Quant, rates: Speeds) -> Interval:
    """Start a worker, then make the weights, or read and pack them."""
    if case.weights == "synthetic":
        making = weights_bytes(geometry, quant, case.dtype) / rates.fill_bytes_s
    else:
        packed = sum(w.parameters * count for w, count in geometry.counted_weights() if w.role in quant.roles)
        making = geometry.parameters * CHECKPOINT_BYTES / DISK_BYTES_S + packed / rates.unpack_elements_s
    return prior(START_S, 2.0) + prior(making, rates.spread)


def _prefill(case: Case, geometry: Geometry, quant: Quant, rates: Speeds) -> float:
    how = Execution(chunk=min(case.ubatch, case.context), skips_masked=False, every_expert=True)
    passes = len(how.spans(case.context))
    tokens = min(case.ubatch, case.context) * case.batch
    seconds = _pass(
        tokens,
        geometry.prefill_flops(case.context, case.batch, how) / passes,
        0.0,
        geometry,
        quant,
        case.dtype,
        rates,
    )
    recurrent = sum(count for layer, count in geometry.groups if layer.kind == "gated delta")
    chunks = case.batch * -(-case.context // RECURRENT_CHUNK)
    return passes * (seconds + recurrent * RECURRENT_PASS_S) + recurrent * chunks * RECURRENT_CHUNK_S


def _step(case: Case, geometry: Geometry, quant: Quant, rates: Speeds) -> float:
    depth = case.context + case.steps // 2
    cache = geometry.cache_bytes(depth, case.batch, DTYPE_BYTES[case.dtype]).total * CACHE_TOUCHES
    flops = geometry.decode_flops(depth, case.batch, Execution(every_expert=True))
    return _pass(case.batch, flops, cache, geometry, quant, case.dtype, rates)


def _pass(
    tokens: int, flops: float, cache_bytes: float, geometry: Geometry, quant: Quant, dtype: str, rates: Speeds
) -> float:
    """Seconds of one forward pass over ``tokens`` tokens."""
    read, packed = cache_bytes, 0.0
    for part in geometry.reads(tokens):
        read += part.count * part.share * quant.weight_bytes(part.weight, dtype)
        packed += part.elements if part.weight.role in quant.roles else 0.0
    rate = rates.flops * tokens / (tokens + rates.half_rate_tokens)
    unpacking = packed / rates.unpack_elements_s
    return max(read / rates.read_bytes_s, flops / rate) + unpacking + len(geometry.layers) * rates.layer_s
