"""One case taken apart: where time and memory go, what the device's ceilings would allow, and what would help.

A ceiling is what this device was measured to do (`profile calibrate`), else its maker's figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler.cost import machine, work
from profiler.cost.engines.base import EngineRequest, Terms
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor, shared_out
from profiler.cost.rates import PLAIN
from profiler.cost.roofline import Rates
from profiler.cost.work import PhaseWork
from profiler.quants.base import DTYPE_BYTES

PHASES = ("prefill", "decode")
NAMES = {"other": "norms, routers, convolutions", "mlp": "feed-forward", "tables": "embeddings"}
SMALLER_KV = {"llama.cpp": "q8_0", "vllm": "fp8"}
PLAIN_FLOPS = ("fp32", "bf16", "fp16")
OWN_FLOPS = {"nvfp4": "fp4"}
CONVOLUTIONS = "convolutions"
BELOW_PEAK = 0.5  # of the ceiling: further away, the gap has a cause worth naming


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a phase. Seconds of the whole phase; ``ceiling_s`` 0 for what has no bytes and no FLOPs."""

    part: str
    nbytes: float
    flops: float
    ceiling_s: float
    predicted_s: float
    binds: str  # bandwidth | compute | launches | link
    packed: bool = False  # whether weights in a format that is more than a dtype are most of its time


@dataclass(frozen=True, slots=True)
class PhaseParts:
    """A phase, part by part."""

    name: str
    shares: tuple[Share, ...]
    passes: int

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
        """Ceiling over predicted time, 0..1."""
        return self.ceiling_s / self.predicted_s

    @property
    def widest(self) -> Share:
        """The part whose predicted time is furthest above its ceiling."""
        return max(self.shares, key=lambda share: share.predicted_s - share.ceiling_s)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do differently, and the bytes that the peak falls by."""

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
    works = predictor.works(context, context, batch, kv)
    phases = tuple(
        PhaseParts(name, tuple(_shares(done, predictor, rates)), done.passes)
        for name, done, rates in zip(PHASES, works, (predictor.rates, predictor.step_rates), strict=True)
    )
    return Explanation(phases, predictor.terms(setting), tuple(_changes(predictor, setting)))


def _shares(done: PhaseWork, predictor: Predictor, rates: Rates) -> list[Share]:
    """Parts of equal name together, the longest first; launches and links at the end."""
    bandwidth = predictor.machine.ceiling_bytes_s
    peaks = {
        scheme: flops_ceiling(predictor.machine, predictor.dtype, scheme, predictor.engine.name)
        for scheme in {item.scheme for item in done.items}
    }
    parts: dict[str, list[float]] = {}
    for item in done.items:
        cost = rates.cost(item, done)
        entry = parts.setdefault(_name(item), [0.0] * 6)
        needed_flops = item.flops - item.spared_flops
        ceiling = max((item.nbytes - item.spared) / bandwidth, needed_flops / peaks[item.scheme])
        bound, total = cost.computing if cost.computing >= cost.reading else 0.0, cost.total
        packed = total if item.kind == "weights" and item.scheme not in PLAIN else 0.0
        for index, value in enumerate((item.nbytes, item.flops, ceiling, total, bound + cost.extra, packed)):
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
    linking = machine.link_s(done, predictor.geometry, predictor.machine)
    return [*shares, Share("links between devices", 0.0, 0.0, 0.0, linking, "link")] if linking else shares


def _name(item: work.Item) -> str:
    if item.kind == "cache":
        return f"cache, {item.part} layers"
    if item.kind == "state":
        return "state, gated delta layers"
    if item.part == "activations":
        return "element-wise operators"
    return NAMES.get(item.part, item.part)


def flops_ceiling(host: Machine, dtype: str, scheme: str, engine: str) -> float:
    """FLOP per second that they could do with weights in the format ``scheme``.

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
    """The likeliest reason, in words, why a phase is not at its ceiling."""
    if phase.fraction >= BELOW_PEAK and phase.widest.part != "launches":
        return f"near its ceiling: what is left is in {phase.widest.part}"
    part = phase.widest
    share = (part.predicted_s - part.ceiling_s) / (phase.predicted_s - phase.ceiling_s)
    if part.part == "launches":
        return f"{share:.0%} of the gap is starting operators one after the other: larger batches or a graph hide it"
    if part.part == CONVOLUTIONS:
        return f"{share:.0%} of the gap is depthwise convolutions, which run channel by channel in this dtype"
    if part.binds == "compute" and part.packed:
        return (
            f"{share:.0%} of the gap is unpacking and multiplying the weights of {part.part}: the format, not memory"
        )
    reasons = {
        "bandwidth": "kernels that read below the ceiling",
        "compute": "products below the peak",
        "link": "links",
    }
    return f"{share:.0%} of the gap is {part.part}: {reasons.get(part.binds, part.binds)}"


def _changes(predictor: Predictor, setting: EngineRequest) -> list[Change]:
    """What one change to the case would free at the peak."""
    engine, geometry, host = predictor.engine, predictor.geometry, predictor.machine
    now = predictor.terms(setting).peak.value
    found = []

    def consider(words: str, other: EngineRequest) -> None:
        found.append(Change(words, now - _peak(predictor, other)))

    if setting.context > 1:
        half = setting.context // 2
        consider(f"half the context, -c {half}", replace(setting, context=half))
    if setting.batch > 1:
        consider(f"half the batch, -b {setting.batch // 2}", replace(setting, batch=setting.batch // 2))
    if engine.name in SMALLER_KV and setting.kv is None:
        consider(f"a smaller cache, --kv {SMALLER_KV[engine.name]}", replace(setting, kv=SMALLER_KV[engine.name]))
    ubatch = engine.manner(geometry, setting, host.target).ubatch
    if setting.context > 256 and ubatch > 256:
        consider("prefill in passes of 256 tokens", replace(setting, ubatch=256))
    for quant in _smaller(predictor):
        consider(f"a smaller format, -q {quant}", replace(setting, quant=quant))
    return sorted((change for change in found if change.freed_bytes > 0), key=lambda change: -change.freed_bytes)


def _smaller(predictor: Predictor) -> Sequence[str]:
    """The engine's next smaller format, if there is one and the checkpoint can be had in it."""
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
