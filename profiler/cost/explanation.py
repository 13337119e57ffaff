"""One case broken down: where time and memory go, the device's best time, and which changes would help.

The time at best follows from the device's ceilings: rates that `profile calibrate` measured, or the data sheet's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler.case import PHASES
from profiler.cost import machine, work
from profiler.cost.engines.base import EngineRequest, Terms
from profiler.cost.prediction import Offloaded, Predictor, judge
from profiler.cost.rates import PLAIN
from profiler.cost.roofline import Rates
from profiler.cost.work import PhaseWork
from profiler.decode_path import GRAPH

NAMES = {
    "other": "norms, routers, convolutions",
    "mlp": "feed-forward",
    "tables": "embeddings",
    "delta": "gated delta layers",
    "head": "output head",
    "scores": "attention scores",
}
CONVOLUTIONS = "convolutions"
NEAR_BEST = 0.8  # share of the best speed; below it, the breakdown names a cause for the lost time
LOST = {
    "bandwidth": ", where kernels read below the memory bandwidth",
    "compute": ", where matrix products run below peak FLOP/s",
}


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a phase. Seconds are for the whole phase. ``ceiling_s`` is the time at the device's ceilings: 0 for
    parts without bytes and FLOPs."""

    part: str
    nbytes: float
    flops: float
    ceiling_s: float
    predicted_s: float
    binds: str  # bandwidth | compute | launches | link | host memory
    packed: bool = False  # whether quantized weights take most of the time


@dataclass(frozen=True, slots=True)
class PhaseParts:
    """A phase broken down into its parts."""

    name: str
    shares: tuple[Share, ...]
    passes: int
    graph_helps: bool = False  # whether `--path graph` would launch it as one CUDA graph

    @property
    def ceiling_s(self) -> float:
        """Seconds at the ceilings, if only reading and computing took time."""
        return sum(share.ceiling_s for share in self.shares)

    @property
    def predicted_s(self) -> float:
        """Predicted seconds."""
        return sum(share.predicted_s for share in self.shares)

    @property
    def fraction(self) -> float:
        """The predicted speed relative to the best speed: 0..1."""
        return self.ceiling_s / self.predicted_s

    @property
    def widest(self) -> Share:
        """The part that loses the most time: predicted seconds minus seconds at best."""
        return max(self.shares, key=lambda share: share.predicted_s - share.ceiling_s)


@dataclass(frozen=True, slots=True)
class Change:
    """A change to the case, worded as the subject of a sentence, and the bytes by which it lowers the peak."""

    words: str
    freed_bytes: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Time by phase, memory at its peak, and the changes that save the most memory, best first."""

    phases: tuple[PhaseParts, ...]
    terms: Terms
    changes: tuple[Change, ...]


def explain(predictor: Predictor, context: int, batch: int, kv: str | None = None) -> Explanation:
    """Explain the case of ``context`` tokens in each of ``batch`` sequences, whether it fits or not."""
    request = predictor.request(context, batch, kv)
    works, terms = predictor.works(context, context, batch, kv), predictor.terms(request)
    offloaded = judge(terms, predictor.machine).offloaded_bytes
    found = [None if offloaded else predictor.correction(phase, context, batch) for phase in PHASES]
    learned = [1.0 if each is None else each.factor for each in found]  # rows know the whole, and not its parts
    phases = tuple(
        PhaseParts(
            name,
            tuple(
                _corrected(share, factor, predictor.machine.target.guessed)
                for share in _shares(done, predictor, rates, predictor.offloaded(done, offloaded, rates))
            ),
            done.passes,
            name == "decode" and _graph_helps(predictor),
        )
        for name, done, rates, factor in zip(
            PHASES, works, (predictor.rates, predictor.step_rates), learned, strict=True
        )
    )
    return Explanation(phases, terms, tuple(_changes(predictor, request)))


def _corrected(share: Share, factor: float, guessed: bool) -> Share:
    """``share`` with what rows taught. Where ceilings are guesses, nothing is predicted to be faster than them."""
    predicted = share.predicted_s * factor
    ceiling = min(share.ceiling_s, predicted) if guessed else share.ceiling_s
    return replace(share, predicted_s=predicted, ceiling_s=ceiling)


def _graph_helps(predictor: Predictor) -> bool:
    path = predictor.runs(GRAPH)
    return path == GRAPH != predictor.path


def _shares(done: PhaseWork, predictor: Predictor, rates: Rates, offloaded: Offloaded) -> list[Share]:
    """Parts with the same name are merged, longest first. Launches, links and offloaded weights come last."""
    bandwidth, in_int8 = predictor.machine.ceiling_bytes_s, predictor.engine.multiplies_in_int8
    peaks = {
        scheme: machine.flops_ceiling(predictor.machine, predictor.dtype, scheme, in_int8)
        for scheme in {item.scheme for item in done.items}
    }
    parts: dict[str, list[float]] = {}
    moved = [*offloaded.lines, *[(0.0, 0.0)] * (len(done.items) - len(offloaded.lines))]  # weights come first
    for item, (elsewhere, spared_s) in zip(done.items, moved, strict=True):
        cost = rates.cost(item, done)
        entry = parts.setdefault(_name(item), [0.0] * 6)
        total, nbytes = max(0.0, cost.total - spared_s), max(0.0, item.nbytes - elsewhere)
        needed_flops = item.flops - item.avoidable_flops
        ceiling = max((nbytes - item.avoidable_bytes) / bandwidth, needed_flops / peaks[item.scheme])
        if elsewhere:  # reading weights in host memory can overlap with their FLOPs
            ceiling = min(ceiling, total)
        bound = cost.computing if cost.computing >= cost.reading else 0.0
        packed = total if item.kind == "weights" and item.scheme not in PLAIN else 0.0
        for index, value in enumerate((nbytes, item.flops, ceiling, total, bound + cost.extra, packed)):
            entry[index] += value
    at_once = machine.overlap(done, predictor.machine, predictor.engine.pipelining)  # passes on several devices
    shares = [
        Share(
            name,
            nbytes,
            flops,
            ceiling * at_once,
            predicted * at_once,
            "compute" if computing > predicted / 2 else "bandwidth",
            packed > predicted / 2,
        )
        for name, (nbytes, flops, ceiling, predicted, computing, packed) in parts.items()
        if predicted > 0
    ]
    shares.sort(key=lambda share: -share.predicted_s)
    launching = rates.split(done).launching * at_once
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


def cause(phase: PhaseParts) -> str:
    """A message with the most likely reason why a phase is slower than the device's best."""
    part = phase.widest
    if phase.fraction >= NEAR_BEST and part.part != "launches":
        return f"near the best speed: the largest loss is in {part.part}"
    losses = sum(max(0.0, share.predicted_s - share.ceiling_s) for share in phase.shares)  # caches beat some ceilings
    lost = f"{(part.predicted_s - part.ceiling_s) / losses:.0%} of the lost time"
    if part.part == "launches":
        hide = "a larger batch or --path graph hides it" if phase.graph_helps else "a larger batch hides it"
        return f"{lost} goes to launching kernels; {hide}"
    if part.part == CONVOLUTIONS:
        return f"{lost} is in depthwise convolutions, which run channel by channel in this dtype"
    if part.binds == "compute" and part.packed:
        return (
            f"the largest loss is in dequantizing and multiplying {part.part.removesuffix('s')} weights ({lost})."
            " Another quantization helps; more bandwidth does not"
        )
    if part.binds == "host memory":
        return f"{lost} is spent on weights in host memory"
    return f"{lost} is in {part.part}{LOST.get(part.binds, '')}"


def _changes(predictor: Predictor, request: EngineRequest) -> list[Change]:
    """Single changes to the case, with the bytes that each would save at the peak."""
    engine, geometry, host = predictor.engine, predictor.geometry, predictor.machine
    now = predictor.terms(request).peak.value
    found = []

    def consider(words: str, other: EngineRequest) -> None:
        found.append(Change(words, now - predictor.terms(other).peak.value))

    if request.context > 1:
        half = request.context // 2
        consider(f"half the context (-c {half})", replace(request, context=half))
    if request.batch > 1:
        consider(f"half the batch (-b {request.batch // 2})", replace(request, batch=request.batch // 2))
    if (smaller := engine.smaller_kv) is not None and request.kv is None:
        consider(f"a smaller cache (--kv {smaller})", replace(request, kv=smaller))
    ubatch = engine.prefill_rules(geometry, request, host.target).ubatch
    if request.context > 256 and ubatch > 256:
        option = f"{engine.chunk_option} 256" if engine.chunk_option else "256 tokens"
        words = f"profile sweep {option}" if engine.loads_with_transformers else option
        consider(f"a prefill in smaller chunks ({words})", replace(request, ubatch=256))
    for quant in _smaller(predictor):
        consider(f"a smaller quantization (-q {quant})", replace(request, quant=quant))
    return sorted((change for change in found if change.freed_bytes > 0), key=lambda change: -change.freed_bytes)


def _smaller(predictor: Predictor) -> Sequence[str]:
    """The engine's next smaller quantization, if there is one and the checkpoint is available in it."""
    own, checkpoint_format = predictor.storage.device_bytes, predictor.checkpoint_format
    if checkpoint_format is not None and checkpoint_format.scheme is not None:
        return []
    advised = [quant for quant in predictor.engine.quants if quant not in predictor.engine.outdated_quants]
    sizes = {quant: predictor.storage_in(quant, predictor.dtype).device_bytes for quant in advised}
    below = {quant: size for quant, size in sizes.items() if size < 0.97 * own}
    return [max(below, key=lambda quant: below[quant])] if below else []
