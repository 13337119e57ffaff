"""One case taken apart: where time and memory go, how fast the device could be at best, and what would help.

The best time follows from the device's ceilings: rates that `profile calibrate` measured, else its maker's figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler.cost import machine, work
from profiler.cost.engines.base import EngineRequest, Terms
from profiler.cost.machine import Machine
from profiler.cost.prediction import Offloaded, Predictor, judge, shared_out
from profiler.cost.rates import PLAIN
from profiler.cost.roofline import Rates
from profiler.cost.work import PhaseWork
from profiler.decode_path import GRAPH
from profiler.quants.base import DTYPE_BYTES

PHASES = ("prefill", "decode")
NAMES = {
    "other": "norms, routers, convolutions",
    "mlp": "feed-forward",
    "tables": "embeddings",
    "delta": "gated delta layers",
    "head": "output head",
}
SMALLER_KV = {"llama.cpp": "q8_0", "vllm": "fp8"}
PLAIN_FLOPS = ("fp32", "bf16", "fp16")
OWN_FLOPS = {"nvfp4": "fp4"}
CONVOLUTIONS = "convolutions"
NEAR_BEST = 0.8  # of the best speed: below it, the lost time has a cause worth naming
LOST = {
    "bandwidth": ", where kernels read below the memory bandwidth",
    "compute": ", where matrix products run below peak FLOP/s",
}


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a phase. Seconds of the whole phase; ``ceiling_s`` is the time at the device's ceilings: 0 for what
    has no bytes and no FLOPs."""

    part: str
    nbytes: float
    flops: float
    ceiling_s: float
    predicted_s: float
    binds: str  # bandwidth | compute | launches | link | host memory
    packed: bool = False  # whether quantized weights are most of its time


@dataclass(frozen=True, slots=True)
class PhaseParts:
    """A phase, part by part."""

    name: str
    shares: tuple[Share, ...]
    passes: int
    graph_helps: bool = False  # whether `--path graph` would launch it at once

    @property
    def ceiling_s(self) -> float:
        """If nothing but reading and computing took time, at the ceilings."""
        return sum(share.ceiling_s for share in self.shares)

    @property
    def predicted_s(self) -> float:
        """As predicted."""
        return sum(share.predicted_s for share in self.shares)

    @property
    def fraction(self) -> float:
        """The predicted speed as a part of the best: 0..1."""
        return self.ceiling_s / self.predicted_s

    @property
    def widest(self) -> Share:
        """The part that loses most time: predicted less at best."""
        return max(self.shares, key=lambda share: share.predicted_s - share.ceiling_s)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do differently, as the subject of a sentence, and the bytes that the peak falls by."""

    words: str
    freed_bytes: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Time by phase, memory by moment, and the changes that free most, best first."""

    phases: tuple[PhaseParts, ...]
    terms: Terms
    changes: tuple[Change, ...]


def explain(predictor: Predictor, context: int, batch: int, kv: str | None = None) -> Explanation:
    """The case of ``context`` tokens in each of ``batch`` sequences, whether it fits or not."""
    setting = predictor.setting(context, batch, kv)
    works, terms = predictor.works(context, context, batch, kv), predictor.terms(setting)
    offloaded = judge(terms, predictor.machine).offloaded_bytes
    phases = tuple(
        PhaseParts(
            name,
            tuple(_shares(done, predictor, rates, predictor.offloaded(done, offloaded, rates))),
            done.passes,
            name == "decode" and _graph_helps(predictor),
        )
        for name, done, rates in zip(PHASES, works, (predictor.rates, predictor.step_rates), strict=True)
    )
    return Explanation(phases, terms, tuple(_changes(predictor, setting)))


def _graph_helps(predictor: Predictor) -> bool:
    path = predictor.engine.runs(GRAPH, predictor.quant, predictor.dtype, predictor.machine.target)
    return path == GRAPH != predictor.path


def _shares(done: PhaseWork, predictor: Predictor, rates: Rates, offloaded: Offloaded) -> list[Share]:
    """Parts of equal name together, the longest first; launches, links and offloaded weights at the end."""
    bandwidth = predictor.machine.ceiling_bytes_s
    peaks = {
        scheme: flops_ceiling(predictor.machine, predictor.dtype, scheme, predictor.engine.name)
        for scheme in {item.scheme for item in done.items}
    }
    parts: dict[str, list[float]] = {}
    moved = [*offloaded.lines, *[(0.0, 0.0)] * (len(done.items) - len(offloaded.lines))]  # weights come first
    for item, (elsewhere, spared_s) in zip(done.items, moved, strict=True):
        cost = rates.cost(item, done)
        entry = parts.setdefault(_name(item), [0.0] * 6)
        total, nbytes = max(0.0, cost.total - spared_s), max(0.0, item.nbytes - elsewhere)
        needed_flops = item.flops - item.spared_flops
        ceiling = max((nbytes - item.spared) / bandwidth, needed_flops / peaks[item.scheme])
        if elsewhere:  # FLOPs of weights in host memory may overlap with reading them
            ceiling = min(ceiling, total)
        bound = cost.computing if cost.computing >= cost.reading else 0.0
        packed = total if item.kind == "weights" and item.scheme not in PLAIN else 0.0
        for index, value in enumerate((nbytes, item.flops, ceiling, total, bound + cost.extra, packed)):
            entry[index] += value
    shares = [
        Share(
            name,
            nbytes,
            flops,
            ceiling,
            predicted,
            "compute" if computing > predicted / 2 else "bandwidth",
            packed > predicted / 2,
        )
        for name, (nbytes, flops, ceiling, predicted, computing, packed) in parts.items()
        if predicted > 0
    ]
    shares.sort(key=lambda share: -share.predicted_s)
    launching = rates.launching_s(done)
    shares.append(Share("launches", 0.0, 0.0, 0.0, launching, "launches"))
    if linking := machine.link_s(done, predictor.geometry, predictor.machine):
        shares.append(Share("links between devices", 0.0, 0.0, 0.0, linking, "link"))
    if offloaded.nbytes:
        seconds = offloaded.at_best_s, offloaded.predicted_s
        shares.append(Share("weights in host memory", offloaded.nbytes, 0.0, *seconds, "host memory"))
    return shares


def _name(item: work.Item) -> str:
    if item.kind == "cache":
        return f"cache, {item.part} layers"
    if item.kind == "state":
        return "state, gated delta layers"
    if item.part == "activations":
        return "element-wise operators"
    return NAMES.get(item.part, item.part)


def flops_ceiling(host: Machine, dtype: str, scheme: str, engine: str) -> float:
    """FLOP per second that they could do with weights in the quantization ``scheme``.

    Products run in ``dtype`` or another plain one; those of packed weights may run in the weights' own format, and in
    llama.cpp in 8 bits. A CPU widens what it is slow at, so there the fastest dtype counts.
    """
    target, measured = host.target, host.target.ceilings
    flops = measured.flops if measured else target.flops
    names = {dtype, *PLAIN_FLOPS}
    if scheme not in (*PLAIN, "state"):
        names |= {OWN_FLOPS.get(scheme, scheme)} | ({"int8"} if engine == "llama.cpp" else set())
    known = [value for name, value in flops.items() if name in names or target.vendor == "CPU"]
    return max(known, default=max(flops.values(), default=target.bandwidth_bytes_s * 50)) * host.at_once


def cause(phase: PhaseParts) -> str:
    """The likeliest reason, in words, why a phase is below the best speed of the device."""
    part = phase.widest
    if phase.fraction >= NEAR_BEST and part.part != "launches":
        return f"near the best speed: the largest loss is in {part.part}"
    lost = f"{(part.predicted_s - part.ceiling_s) / (phase.predicted_s - phase.ceiling_s):.0%} of the lost time"
    if part.part == "launches":
        hide = "a larger batch or --path graph hides it" if phase.graph_helps else "a larger batch hides it"
        return f"{lost} goes to launching kernels; {hide}"
    if part.part == CONVOLUTIONS:
        return f"{lost} is in depthwise convolutions, which run channel by channel in this dtype"
    if part.binds == "compute" and part.packed:
        return (
            f"{lost} is dequantizing and multiplying the weights of {part.part};"
            " a different quantization would change it, more bandwidth would not"
        )
    if part.binds == "host memory":
        return f"{lost} is spent on weights in host memory"
    return f"{lost} is in {part.part}{LOST.get(part.binds, '')}"


def _changes(predictor: Predictor, setting: EngineRequest) -> list[Change]:
    """What one change to the case would free at the peak."""
    engine, geometry, host = predictor.engine, predictor.geometry, predictor.machine
    now = predictor.terms(setting).peak.value
    found = []

    def consider(words: str, other: EngineRequest) -> None:
        found.append(Change(words, now - _peak(predictor, other)))

    if setting.context > 1:
        half = setting.context // 2
        consider(f"half the context (-c {half})", replace(setting, context=half))
    if setting.batch > 1:
        consider(f"half the batch (-b {setting.batch // 2})", replace(setting, batch=setting.batch // 2))
    if engine.name in SMALLER_KV and setting.kv is None:
        consider(f"a smaller cache (--kv {SMALLER_KV[engine.name]})", replace(setting, kv=SMALLER_KV[engine.name]))
    ubatch = engine.manner(geometry, setting, host.target).ubatch
    if setting.context > 256 and ubatch > 256:
        consider("a prefill in chunks of 256 tokens", replace(setting, ubatch=256))
    for quant in _smaller(predictor):
        consider(f"a smaller quantization (-q {quant})", replace(setting, quant=quant))
    return sorted((change for change in found if change.freed_bytes > 0), key=lambda change: -change.freed_bytes)


def _smaller(predictor: Predictor) -> Sequence[str]:
    """The engine's next smaller quantization, if there is one and the checkpoint can be had in it."""
    own, stored = predictor.storage.device_bytes, predictor.stored
    if stored is not None and stored.scheme is not None:
        return []
    sizes = {quant: predictor.storage_in(quant, predictor.dtype).device_bytes for quant in predictor.engine.quants}
    below = {quant: size for quant, size in sizes.items() if size < 0.97 * own}
    return [max(below, key=lambda quant: below[quant])] if below else []


def _peak(predictor: Predictor, setting: EngineRequest) -> float:
    dtype = setting.quant if setting.quant in DTYPE_BYTES else setting.dtype
    storage = predictor.storage_in(setting.quant, dtype)
    host, geometry = predictor.machine, predictor.geometry
    return shared_out(predictor.engine.memory(geometry, storage, setting, host.target), geometry, host).peak.value
