"""The prediction for one case: whether it fits, how fast it runs, what limits it, and whether it meets a goal.

A case fits, is tight, needs offloading, or does not fit. A goal is a decode rate such as ``20 tok/s at 64k``, with a
limit for the loss of the quantization if that matters: ``20 tok/s at 64k, kl<0.05``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from profiler import quants
from profiler.case import PHASES
from profiler.cost import machine, work
from profiler.cost import rates as cost_rates
from profiler.cost.calibrated import calibrated
from profiler.cost.engines.base import Engine, EngineRequest, Terms
from profiler.cost.interval import Basis, Interval
from profiler.cost.learned import NOTHING, Correction, Learned, LearnedCase
from profiler.cost.machine import Machine
from profiler.cost.roofline import Bounds, Rates
from profiler.cost.speculation import Draft, Speculation, draft, spread_of
from profiler.cost.storage import Storage
from profiler.cost.work import PhaseWork
from profiler.decode_path import EAGER
from profiler.errors import ProfileError
from profiler.models.geometry import Geometry
from profiler.models.layers import Experts
from profiler.models.stored import Stored
from profiler.quants.base import DTYPE_BYTES
from profiler.units import GIB, bytes_text, parse_count, printable

FitWord = Literal["fits", "tight", "offload", "no"]
TIGHT_SHARE, TIGHT_BYTES = 0.05, 512 * 1024**2  # less headroom than either of these is tight
RAM_RESERVE = 2 * GIB  # reserved for the operating system

Binds = Literal["memory", "bandwidth", "compute", "launches", "experts", "host memory"]
LIMITS: dict[object, str] = {  # what each of them means; the vocabulary of every table and chart
    "bandwidth": "reading weights and cache",
    "compute": "arithmetic",
    "launches": "launching kernels",
    "experts": "reading expert weights",
    "memory": "does not fit",
    "host memory": "reading weights from host memory",
}
OFFLOAD_SPREAD = 1.8  # which weights are offloaded depends on the user's settings, which are unknown
POWER = (0.4, 0.75, 1.0)  # share of the board's power limit: low, usual and full load
MAX_BATCH = 4096  # sequences; the search for the largest batch ends here

GoalAnswer = Literal["yes", "likely", "unknown", "unlikely", "no"]
EXAMPLE = '--goal "20 tok/s at 64k" or --goal "20 tok/s at 64k, kl<0.05"'
_GOAL = re.compile(
    r"^\s*(?P<rate>\d+(?:\.\d+)?)\s*(?:tok(?:en)?s?(?:/s| per second)|t/s)?\s*(?:(?:at|@)\s*(?P<context>\w+))?"
    r"\s*(?:,?\s*kl\s*<\s*(?P<kl>\d*\.?\d+(?:e-?\d+)?)\s*(?:nats?)?)?\s*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FitVerdict:
    """The verdict; negative ``headroom_bytes`` are missing bytes at the peak. ``reason`` is text for the user."""

    word: FitWord
    headroom_bytes: int
    usable_bytes: int
    reason: str
    offloaded_bytes: int = 0  # weights in host memory


def judge(terms: Terms, machine: Machine) -> FitVerdict:
    """The verdict on the memory of the fullest device.

    It uses the predicted value of the peak. If only the upper bound exceeds the device, the verdict is tight.
    """
    usable = machine.usable_bytes
    peak = terms.needed
    shared = round(terms.host.value) if machine.target.unified else 0
    needed = round(peak.value) + shared
    headroom = usable - needed
    limit = machine.target.memory_limit
    each = " on each device" if machine.target.count > 1 else ""
    bound = each if limit is None else f" of the {bytes_text(usable)} that {limit} allows"
    if headroom >= 0:
        close = headroom < max(TIGHT_SHARE * usable, TIGHT_BYTES) or peak.high + shared > usable
        sure = "" if peak.high + shared <= usable else f", but the peak may reach {bytes_text(peak.high + shared)}"
        return FitVerdict(
            "tight" if close else "fits", headroom, usable, f"{bytes_text(headroom)} headroom{bound}{sure}"
        )
    missing = f"{bytes_text(-headroom)} missing{each if limit is None else f': {limit} allows {bytes_text(usable)}'}"
    room = machine.ram_bytes - RAM_RESERVE - round(terms.host.value) if machine.ram_bytes is not None else 0
    offloaded = round(-headroom * machine.whole)
    movable = terms.weights.value * machine.whole
    if machine.target.unified or offloaded > room or offloaded > movable:
        return FitVerdict("no", headroom, usable, missing)
    return FitVerdict("offload", headroom, usable, f"{bytes_text(offloaded)} of weights in host memory", offloaded)


@dataclass(frozen=True, slots=True)
class Offloaded:
    """What a phase reads from host memory. ``lines`` match ``Storage.read`` item by item."""

    lines: tuple[tuple[float, float], ...]  # bytes over all passes, and seconds to read them on the device
    predicted_s: float
    at_best_s: float  # at the full rate of the link or of host memory

    @property
    def nbytes(self) -> float:
        """Bytes over all passes."""
        return sum(nbytes for nbytes, _ in self.lines)

    @property
    def spared_s(self) -> float:
        """Seconds that reading the same bytes on the device would take."""
        return sum(seconds for _, seconds in self.lines)


@dataclass(frozen=True, slots=True)
class PredictedPhase:
    """One phase: seconds, tokens of all sequences, and what takes most of the time."""

    seconds: Interval
    tokens: float  # whole, unless a step yields drafted tokens: then their expected number
    binds: Binds

    @property
    def tps(self) -> Interval:
        """Tokens per second over all sequences."""
        s = self.seconds
        return Interval(self.tokens / s.value, self.tokens / s.high, self.tokens / s.low, s.basis, s.rows)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one case. Phases are ``None`` if it does not fit."""

    engine: Engine
    machine: Machine
    request: EngineRequest
    terms: Terms
    verdict: FitVerdict
    prefill: PredictedPhase | None
    decode: PredictedPhase | None
    host_bytes: int  # offloaded weights, without what the engine always keeps on the host

    @property
    def offloaded_bytes(self) -> float:
        """``host_bytes`` on the fullest device, which ``terms`` includes in the weights and the peak."""
        return self.host_bytes / self.machine.whole

    @property
    def basis(self) -> Basis:
        """The basis of the speeds."""
        return self.decode.seconds.basis if self.decode else self.terms.peak.basis

    @property
    def binds(self) -> Binds:
        """What limits the case."""
        if self.decode is None or self.verdict.word in ("no", "offload"):
            return "memory" if self.decode is None else "host memory"
        return self.decode.binds

    @property
    def ttft_s(self) -> Interval | None:
        """Seconds to the first token: the prefill, which produces it."""
        return self.prefill.seconds if self.prefill else None

    @property
    def token_j(self) -> Interval | None:
        """Joules per decoded token, from the board's power limit; ``None`` if the limit is unknown."""
        watts = self.machine.target.tdp_w
        if watts is None or self.decode is None:
            return None
        low, usual, high = (share * watts * self.machine.target.count / self.decode.tokens for share in POWER)
        s = self.decode.seconds
        return Interval(usual * s.value, low * s.low, high * s.high, "prior")


def rates_of(engine: Engine, host: Machine, dtype: str, experts: bool) -> Rates:
    """Rates of ``engine`` on one device: calibrated if its kernels were timed there, else from the data sheet.
    ``experts``: for a mixture of experts."""
    return _rates_of(engine, host, dtype, experts, tuple(quants.__path__))


@lru_cache(maxsize=32)
def _rates_of(engine: Engine, host: Machine, dtype: str, experts: bool, folders: tuple[str, ...]) -> Rates:
    """Cached for each set of ``folders`` with quantizations: a choice predicts dozens of models on one machine."""
    target = host.target
    if target.members:
        each = [cost_rates.rates(member, engine.name, dtype, experts=experts) for member in target.members]
        return cost_rates.joined(each, [machine.work_share(member, host) for member in target.members])
    base = cost_rates.rates(target, engine.name, dtype, experts=experts)
    if target.ceilings is None or engine.operator_counts is None:
        return base
    return calibrated(base, target.ceilings, dtype, engine.operator_counts)


class Predictor:
    """Predicts the cases of one model and quantization on a machine; computes what all cases share only once."""

    def __init__(
        self,
        geometry: Geometry,
        engine: Engine,
        quant: str,
        host: Machine,
        dtype: str = "bf16",
        path: str = EAGER,
        checkpoint_format: Stored | None = None,
        learned: Learned = NOTHING,
        speculation: Speculation | None = None,
    ) -> None:
        """``path``: the decode path of transformers. ``checkpoint_format``: the checkpoint, if it runs as stored.
        ``learned``: what rows of this machine teach; nothing gives the plain prediction. ``speculation``: decode with
        the model's multi-token-prediction layers."""
        self.checkpoint_format, self.learned = checkpoint_format, learned
        geometry, host = engine.as_run(geometry), machine.as_summed(host, engine.sums_in_fp32)
        self.geometry, self.engine, self.quant, self.machine, self.dtype = geometry, engine, quant, host, dtype
        self.path = path = engine.runs(path, quant, dtype, host.target, geometry.model_type)
        self._ceilings: dict[str, float] = {}  # FLOP/s by storage type
        self.storage: Storage = self.storage_in(quant, dtype)
        machine.check(geometry, host)
        self.speculation, self.draft = speculation, None
        if speculation is not None:
            self.draft = draft(geometry, self.storage, engine, quant, dtype, checkpoint_format)
        experts = any(isinstance(layer.mlp, Experts) for layer, _ in geometry.groups)
        shipped = rates_of(engine, host, dtype, experts)
        own = path != EAGER and engine.operator_counts is not None  # our decode step replaces that of transformers
        step = shipped.own_step(host.target, dtype, path) if own else shipped
        if not engine.timed(quant, checkpoint_format, host.target):
            shipped, step = shipped.untimed(), step.untimed()
        self.rates: Rates = machine.of_all_devices(shipped, geometry, host)
        self.step_rates: Rates = machine.of_all_devices(step, geometry, host)

    def storage_in(self, quant: str, dtype: str) -> Storage:
        """The weights in another quantization, or in the one of the checkpoint."""
        repacks = self.machine.target.repacks
        if self.checkpoint_format is not None and quant == self.checkpoint_format.quant:
            return self.engine.stored(self.geometry, self.checkpoint_format, dtype, repacks)
        return self.engine.storage(self.geometry, quant, dtype, repacks)

    def request(self, context: int, batch: int, kv: str | None = None) -> EngineRequest:
        """The request to the engine. Its chunk size is the engine's default, which is smaller on small devices."""
        drafted = 0 if self.speculation is None else self.speculation.drafted
        return EngineRequest(self.quant, context, batch, self.dtype, kv, path=self.path, mtp=drafted)

    def runs(self, path: str) -> str:
        """The decode path that runs if ``path`` is requested."""
        return self.engine.runs(path, self.quant, self.dtype, self.machine.target, self.geometry.model_type)

    @property
    def plain(self) -> Predictor:
        """The same predictor without what rows taught."""
        found = copy(self)
        found.learned = NOTHING
        return found

    def terms(self, request: EngineRequest) -> Terms:
        """Memory of the fullest device; ``request`` may have another quantization than this predictor."""
        storage = self.storage
        if request.quant != self.quant:
            storage = self.storage_in(request.quant, request.quant if request.quant in DTYPE_BYTES else request.dtype)
        whole = self.engine.memory(self.geometry, storage, request, self.machine.target)
        if self.draft is not None:
            whole = self.draft.added_to(whole, self.geometry, self.engine, request, self.machine.target)
        terms = shared_out(whole, self.geometry, self.machine)
        found = self.correction("memory", request.context, request.batch)
        if found is None:
            return terms
        prefill, decode, framework = map(found.of, (terms.prefill, terms.decode, terms.framework))
        return replace(terms, prefill=prefill, decode=decode, framework=framework)

    def correction(self, phase: str, context: int, batch: int) -> Correction | None:
        """What rows teach about a phase, or about ``memory``; ``None`` if no row is like this case."""
        case = LearnedCase(self.quant, self.geometry.parameters, context, batch)
        return self.learned.correction(self.engine.name, self.path, phase, case)

    def predict(self, context: int, batch: int, kv: str | None = None) -> Prediction:
        """Predict the case of ``context`` tokens in each of ``batch`` sequences."""
        request = self.request(context, batch, kv)
        terms = self.terms(request)
        verdict = judge(terms, self.machine)
        prefill = decode = None
        if verdict.word != "no":
            prefill, decode = self.phases(context, context, batch, kv, verdict.offloaded_bytes)
        return Prediction(
            self.engine, self.machine, request, terms, verdict, prefill, decode, verdict.offloaded_bytes
        )

    def phases(
        self, context: int, depth: int, batch: int, kv: str | None = None, offloaded_bytes: int = 0
    ) -> tuple[PredictedPhase, PredictedPhase]:
        """A prefill of ``context`` tokens and a decode step at ``depth``, even if they do not fit.

        ``offloaded_bytes``: weights in host memory.
        """
        prompt, step = self.works(context, depth, batch, kv)
        learned = [None if offloaded_bytes else self.correction(phase, context, batch) for phase in PHASES]
        prefill = self._phase(prompt, context * batch, self.rates, self.rates.prefill, offloaded_bytes, learned[0])
        bounds = self.step_rates.step_bounds(batch)
        decode = self._phase(step, batch, self.step_rates, bounds, offloaded_bytes, learned[1])
        if self.draft is None or self.speculation is None:
            return prefill, decode
        filling, drafting = self._drafting(self.draft, context, depth, batch, kv)
        filled = self._phase(filling, context * batch, self.rates, self.rates.prefill, 0, None)
        drafted = self._phase(drafting, batch, self.step_rates, bounds, 0, None)
        count = self.speculation.drafted
        seconds = spread_of(decode.seconds + drafted.seconds.scaled(count))
        if not offloaded_bytes:
            seconds = self._possible(seconds, self._least(step) + count * self._least(drafting))
        return (
            replace(prefill, seconds=prefill.seconds + filled.seconds),
            PredictedPhase(seconds, batch * self.speculation.tokens_per_step, decode.binds),
        )

    def _drafting(
        self, layers: Draft, context: int, depth: int, batch: int, kv: str | None
    ) -> tuple[PhaseWork, PhaseWork]:
        """The work of the draft layers: in a prefill, and for one drafted token of each sequence."""
        asked = (layers.geometry, self.request(context, batch, kv), self.machine.target)
        prompt = work.prefill(layers.geometry, layers.read, context, batch, self.engine.prefill_rules(*asked))
        return prompt, work.decode(layers.geometry, layers.read, depth, batch, self.engine.step_rules(*asked))

    def works(self, context: int, depth: int, batch: int, kv: str | None = None) -> tuple[PhaseWork, PhaseWork]:
        """The work of a prefill of ``context`` tokens and of a decode step at ``depth``. A CPU prefills in smaller
        chunks."""
        asked = (self.geometry, self.request(context, batch, kv), self.machine.target)
        prompt = work.prefill(self.geometry, self.storage, context, batch, self.engine.prefill_rules(*asked))
        tokens = 1 if self.speculation is None else self.speculation.drafted + 1
        return prompt, work.decode(self.geometry, self.storage, depth, batch, self.engine.step_rules(*asked), tokens)

    def _possible(self, seconds: Interval, least: float) -> Interval:
        """``seconds`` with a lower bound that the device's ceilings allow; a guess about a device has none.

        The value itself stays: kernels that were timed on this device may be faster than its ceilings, in its caches.
        """
        if self.machine.target.guessed:
            return seconds
        return replace(seconds, low=max(seconds.low, min(seconds.value, least)))

    def largest_context(self, batch: int, kv: str | None = None) -> int:
        """The most tokens per sequence for which the case still fits; 0 if none do."""
        return largest(self.geometry.max_position, lambda n: self._fits(n, batch, kv))

    def largest_batch(self, context: int, kv: str | None = None) -> int:
        """The most sequences of ``context`` tokens that fit; 0 if none do."""
        return largest(MAX_BATCH, lambda n: self._fits(context, n, kv))

    def _fits(self, context: int, batch: int, kv: str | None) -> bool:
        return judge(self.terms(self.request(context, batch, kv)), self.machine).word in ("fits", "tight")

    def _phase(
        self,
        done: PhaseWork,
        tokens: int,
        rates: Rates,
        bounds: Bounds,
        offloaded_bytes: int,
        learned: Correction | None,
    ) -> PredictedPhase:
        split = rates.split(done)
        at_once = machine.overlap(done, self.machine, self.engine.pipelining)
        seconds = split.total * at_once + machine.link_s(done, self.geometry, self.machine)
        binds = experts_or(split.binds, done, rates)
        basis = rates.basis
        low, high = rates.on_any_host(done, bounds)
        if offloaded_bytes:
            offloaded = self.offloaded(done, offloaded_bytes, rates)
            seconds += offloaded.predicted_s - offloaded.spared_s * at_once
            low, high, basis = low / OFFLOAD_SPREAD, high * OFFLOAD_SPREAD, "prior"
            binds = "host memory" if offloaded.predicted_s > seconds / 2 else binds
        found = Interval(seconds, seconds * low, seconds * high, basis)
        found = found if learned is None else learned.of(found)
        if not offloaded_bytes:
            found = self._possible(found, self._least(done))
        return PredictedPhase(found, tokens, binds)

    def _least(self, done: PhaseWork) -> float:
        """Seconds at the ceilings: each item takes the longer of reading what it needs and multiplying it."""
        return sum(max(part) for part in self._at_ceilings(done))

    def utilization_s(self, context: int, depth: int, batch: int, kv: str | None = None) -> tuple[float, float]:
        """Seconds that the FLOPs of a prefill and the bytes of a decode step alone take at the ceilings. Divided by
        the measured seconds, they are MFU and MBU."""
        prompt, step = (self._at_ceilings(done) for done in self.works(context, depth, batch, kv))
        return sum(computing for _, computing in prompt), sum(reading for reading, _ in step)

    def _at_ceilings(self, done: PhaseWork) -> list[tuple[float, float]]:
        """Seconds to read what each item needs, and to multiply it."""
        bandwidth = self.machine.ceiling_bytes_s
        return [
            (
                (item.nbytes - item.avoidable_bytes) / bandwidth,
                (item.flops - item.avoidable_flops) / self._flops_ceiling(item.scheme),
            )
            for item in done.items
        ]

    def _flops_ceiling(self, scheme: str) -> float:
        if scheme not in self._ceilings:
            in_int8 = self.engine.multiplies_in_int8
            self._ceilings[scheme] = machine.flops_ceiling(self.machine, self.dtype, scheme, in_int8)
        return self._ceilings[scheme]

    def offloaded(self, done: PhaseWork, nbytes: int, rates: Rates) -> Offloaded:
        """The part of ``nbytes`` in host memory that ``done`` reads. Experts go first, since each token reads few;
        some engines copy those of a layer whole."""
        lines, left = self.storage.read, float(nbytes)
        moved = [(0.0, 0.0)] * len(lines)
        for index in sorted(range(len(lines)), key=lambda index: lines[index].experts is None):
            part = min(left, lines[index].nbytes)
            left -= part
            read = part * lines[index].share(done.tokens, done.how) * done.passes
            copied = part * done.passes if self.engine.copies_experts_whole else read
            moved[index] = copied, read * rates.roofline.read_s[lines[index].scheme]
        streams, each = not self.engine.computes_on_host, sum(read for read, _ in moved) / done.passes
        return Offloaded(tuple(moved), *machine.offload_s(done, each, streams, self.machine))


def shared_out(terms: Terms, geometry: Geometry, host: Machine) -> Terms:
    """Terms of the fullest of several devices: its layers or slices, plus its full buffers and framework memory."""
    count = host.target.count
    if count == 1:
        return terms
    weights = machine.per_device(1.0, geometry, count, host.split)
    cache = machine.cache_share(geometry, count, host.split)
    if host.smallest_share is not None:  # layers are shared out by memory, and the smallest device is full first
        weights = cache = host.smallest_share
    return replace(terms, weights=terms.weights.scaled(weights), cache=terms.cache.scaled(cache))


def experts_or(binds: str, done: PhaseWork, rates: Rates) -> Binds:
    """``experts`` if they are most of what is read, else ``binds``."""
    if binds == "bandwidth":
        reading = {
            item.part: item.nbytes * rates.roofline.read_s[item.scheme]
            for item in done.items
            if item.kind == "weights"
        }
        if reading.get("experts", 0.0) > sum(reading.values()) / 2:
            return "experts"
    return binds  # type: ignore[return-value]


def largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` for which ``holds`` is true; after the first false it must stay false."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class Goal:
    """A decode rate per sequence, optionally at a given context. ``kl``: nats; a quantization must lose less, which
    ``profiler/run/loss.py`` knows.
    """

    tps: float
    context: int | None
    kl: float | None = None

    def met(self, prediction: Prediction) -> GoalAnswer:
        """``yes`` if the lower bound meets it, ``likely`` if the value does, ``unlikely`` if only the upper does."""
        if prediction.decode is None:
            return "no"
        rate = prediction.decode.tps.scaled(1 / prediction.request.batch)
        if rate.low >= self.tps:
            return "yes" if prediction.verdict.word == "fits" else "likely"
        if rate.value >= self.tps:
            return "likely"
        return "unlikely" if rate.high >= self.tps else "no"


def parse(text: str) -> Goal:
    """Parse ``20 tok/s at 64k``, ``20 t/s @ 8192, kl<0.05`` or ``20``. Raises ProfileError."""
    match = _GOAL.match(text)
    if match is None or float(match["rate"]) <= 0:
        raise ProfileError(
            f"--goal {printable(text)!r} is not a decode rate with an optional context and KL limit",
            f"Example: {EXAMPLE}",
        )
    kl = None if match["kl"] is None else float(match["kl"])
    if kl == 0:
        raise ProfileError("--goal: no loss is below 0, so nothing meets kl<0", f"Example: {EXAMPLE}")
    try:
        context = parse_count(match["context"]) if match["context"] else None
    except ValueError as error:
        raise ProfileError(f"--goal: {error}", f"Example: {EXAMPLE}") from None
    if context is not None and context < 1:
        raise ProfileError("--goal: the context must be at least one token", f"Example: {EXAMPLE}")
    return Goal(float(match["rate"]), context, kl)
