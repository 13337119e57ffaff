"""Predictions for the cases of a sweep: their estimated memory and time, and the prediction stored with each row.

Memory and speed are predicted as in `profile fit`. A sweep also spends time on loading or generating weights and on
filling a cache. A row stores its own prediction, so it always shows what was predicted at the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from profiler import backends
from profiler.case import Case, options_of
from profiler.cost import engines, explanation
from profiler.cost.interval import Interval, exact, prior
from profiler.cost.learned import NOTHING, Learned, plain_figures
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.cost.storage import left_plain
from profiler.decode_path import GRAPH
from profiler.devices import target
from profiler.devices.base import DeviceInfo, DeviceKind
from profiler.devices.target import Target
from profiler.models.geometry import Geometry
from profiler.models.stored import Stored
from profiler.quants.base import DTYPE_BYTES

START_S = 8.0  # starting a worker process that imports torch and transformers, from a warm disk cache
PROGRAM_START_S = 1.0  # the same for a worker that only starts programs
DISK_BYTES_S = 0.5e9  # reading a checkpoint
CHECKPOINT_BYTES = 2  # per parameter: most are published in 16 bits
COMPILE_SPREAD = 6.0  # factor either way on the estimated seconds to compile a step
SPREAD = 2.0  # factor either way on other estimated seconds
PLACING = frozenset({"gpu-layers", "n-cpu-moe", "tensor-split"})  # options that move weights between devices


@dataclass(frozen=True, slots=True)
class CaseEstimate:
    """Bytes and seconds of one case."""

    weights: Interval
    cache: Interval  # of all sequences, at the end of decode
    peak: Interval
    load_s: Interval  # only the first case of a load pays it
    prefill_s: Interval  # all ``context`` tokens of all sequences
    fill_s: Interval  # generating a random cache instead of a prefill
    step_s: Interval  # one decode step of the whole batch
    left_plain: str | None  # such as ``nf4 leaves 117 GiB of fused experts in fp32``, if that is a large part


def estimate_case(
    case: Case,
    geometry: Geometry,
    host: Target,
    checkpoint_format: Stored | None = None,
    learned: Learned = NOTHING,
) -> CaseEstimate:
    """Estimate ``case`` on ``host`` (``host_of``) even if it does not fit.

    ``checkpoint_format``: the checkpoint, if it runs as it is stored.
    """
    found = predictor_of(case, geometry, host, checkpoint_format, learned)
    kind, width, kv = host.device_kind, DTYPE_BYTES[case.dtype], kv_of(case)
    terms = found.terms(found.request(case.context, case.batch, kv))
    held = geometry.cache_bytes(case.context + case.steps, case.batch, width).total
    if backends.find(case.backend).gguf:  # other cache types, and padding
        held = round(terms.cache.value)
    prefill, step = found.phases(case.context, mean_depth(case), case.batch, kv)
    return CaseEstimate(
        weights=terms.weights,
        cache=exact(held),
        peak=replace(terms.peak + Interval(held, 0, 2 * held, "prior"), low=terms.needed.low),
        load_s=_load_s(case, geometry, found, kind).scaled(1 / host.duty_cycle),
        prefill_s=prefill.seconds,
        fill_s=prior(held / kind.fill_bytes_s, SPREAD),
        step_s=step.seconds,
        left_plain=left_plain(found.storage, case.quant, case.dtype),
    )


def host_of(device: DeviceInfo, threads: int | None) -> Target:
    """``device`` as used by ``threads`` threads; None: the worker's default number of threads.

    It reads the file of ceilings, so call it once per sweep and not once per case.
    """
    return target.of(replace(device, threads=threads) if threads and device.cores else device)


def mean_depth(case: Case) -> int:
    """The mean number of tokens in the cache during decode."""
    return case.context + (case.steps + 1) // 2


def kv_of(case: Case) -> str | None:
    """The type of K and V that the case asks for; ``None``: the engine's default."""
    return options_of(case.options).get("kv")


def is_placed(case: Case) -> bool:
    """Whether the case places weights by hand, so that nothing here predicts what is where."""
    return not PLACING.isdisjoint(options_of(case.options))


def predictor_of(
    case: Case,
    geometry: Geometry,
    host: Target,
    checkpoint_format: Stored | None = None,
    learned: Learned = NOTHING,
) -> Predictor:
    """A predictor for all cases of a model in one quantization."""
    engine = backends.find(case.backend).engine
    return _predictor(geometry, engine, case.quant, case.dtype, host, case.path, checkpoint_format, learned)


@lru_cache(maxsize=64)
def _predictor(
    geometry: Geometry,
    engine: str,
    quant: str,
    dtype: str,
    device: Target,
    path: str,
    checkpoint_format: Stored | None,
    learned: Learned,
) -> Predictor:
    machine = Machine(device)
    return Predictor(geometry, engines.find(engine), quant, machine, dtype, path, checkpoint_format, learned)


def _load_s(case: Case, geometry: Geometry, found: Predictor, kind: DeviceKind) -> Interval:
    """Starting a worker, generating the weights or reading and packing them, and compiling a step for CUDA graphs."""
    storage = found.storage
    if found.checkpoint_format is not None:
        making = found.checkpoint_format.nbytes / DISK_BYTES_S
    elif case.weights == "synthetic":
        making = storage.device_bytes / kind.fill_bytes_s
    else:
        packed = sum(line.elements for line in storage.lines if line.packed)
        making = geometry.parameters * CHECKPOINT_BYTES / DISK_BYTES_S
        making += packed / kind.pack_elements_s
    compiling = kind.compile_layer_s * len(geometry.layers) if case.path == GRAPH else 0.0
    start = PROGRAM_START_S if backends.find(case.backend).times_itself else START_S
    return prior(start, 2.0) + prior(making, SPREAD) + prior(compiling, COMPILE_SPREAD)


def stored_prediction(
    case: Case,
    geometry: Geometry,
    device: DeviceInfo,
    checkpoint_format: Stored | None = None,
    learned: Learned = NOTHING,
) -> dict[str, Any]:
    """The prediction as JSON: rates and peak with bounds and basis, seconds at the ceilings if the device was
    calibrated, and the process-to-process variation (``stats.between``); as ``plain``, the figures without what
    earlier rows taught, and what they rest on.

    ``checkpoint_format``: the checkpoint, if it runs as it is stored. Empty for a backend whose engine has no rules,
    and for a case that ``is_placed``.
    """
    if not backends.find(case.backend).predicted or is_placed(case):
        return {}
    host = host_of(device, case.threads)
    predictor = predictor_of(case, geometry, host, checkpoint_format, learned)
    content = _stored(predictor, case, checkpoint_format)
    plain, terms = content, predictor.plain.terms(predictor.request(case.context, case.batch, kv_of(case)))
    if learned:
        plain = _stored(predictor_of(case, geometry, host, checkpoint_format), case, checkpoint_format)
    return content | {"plain": plain_figures(plain, terms.buffers + terms.framework, geometry.parameters, host)}


def _stored(predictor: Predictor, case: Case, checkpoint_format: Stored | None) -> dict[str, Any]:
    """The prediction of one predictor as JSON."""
    engine, on, geometry = predictor.engine, predictor.machine.target, predictor.geometry
    found = predictor.predict(case.context, case.batch, kv_of(case))
    real = case.weights == "real" and checkpoint_format is None  # as stored, nothing is packed during loading
    peak = found.terms.peak + (engine.left_mapped(predictor.storage, case.dtype, on) if real else exact(0))
    peak += exact(engine.measuring_bytes(geometry, found.request, case.steps, on))
    content: dict[str, Any] = {"peak_bytes": peak.to_json()}
    if real:
        packed = engine.storage(geometry, case.quant, case.dtype)  # as loaded; repacking happens in the first pass
        if (load := engine.load_peak(geometry, packed, case.dtype, on)) is not None:
            content["load_peak_bytes"] = load.to_json()
    content |= speeds(predictor, case)
    if "decode_tps" in content and predictor.path != case.path:
        content["path"] = predictor.path
    return content


def speeds(predictor: Predictor, case: Case) -> dict[str, Any]:
    """The predicted rates of all sequences, the seconds at the ceilings, and the process-to-process variation, each
    if it is known.
    """
    on, content, kv = predictor.machine.target, dict[str, Any](), kv_of(case)
    found = predictor.predict(case.context, case.batch, kv)
    deep = predictor.predict(mean_depth(case), case.batch, kv)
    if found.prefill and deep.decode:
        content |= {
            "prefill_tps": found.prefill.tps.to_json(),
            "prefill_bound": found.prefill.binds,
            "decode_tps": deep.decode.tps.to_json(),
            "decode_bound": deep.decode.binds,
        }
    if (apart := _between(on)) is not None:
        content["between"] = apart
    if on.ceilings is not None:
        prefill, decode = explanation.explain(predictor, case.context, case.batch, kv).phases
        content["ceiling_s"] = {"prefill": prefill.ceiling_s, "step": decode.ceiling_s}
    if (used := _utilization(predictor, case)) is not None:
        content["utilization"] = used
    return content


def _utilization(predictor: Predictor, case: Case) -> dict[str, Any] | None:
    """What MFU of the prefill and MBU of decode are computed from (``stats.ceiling``); ``None`` without ceilings."""
    on = predictor.machine.target
    at = on.at_quick
    if at.guessed or (backends.simulated(case.backend) and on.ceilings is None):
        return None
    there = predictor if at is on else predictor_of(case, predictor.geometry, at, predictor.checkpoint_format)
    prefill_s, step_s = there.utilization_s(case.context, mean_depth(case), case.batch, kv_of(case))
    basis = "calibrated" if on.ceilings is not None else "data sheet" if on.quick is None else on.quick.basis
    return {"prefill_s": prefill_s, "step_s": step_s, "basis": basis}


def _between(on: Target) -> dict[str, Any] | None:
    """The process-to-process variation on this device, by phase: standard deviation ÷ median. ``None`` if unknown."""
    if on.ceilings is not None and on.ceilings.between is not None:
        return {**on.ceilings.between, "basis": "calibrated"}
    known = on.device_kind.between
    return None if known is None else {**known, "basis": "prior"}
