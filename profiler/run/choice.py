"""What to run on a machine if nobody says what: a model of each headline family, with its quantization.

A goal, and a command without models, choose by the same order:

1. the quality class of the model: its size, in doublings. A mixture of experts counts as a dense model of
   total^⅔ · active^⅓ parameters, and tables of embeddings do not count.
2. the loss of quality by the quantization, by its bits per weight; from 6 bits on there is none that shows.
3. what is surer to fit and to be fast enough.

A command without a goal wants a rate as fast as people read, at 8k tokens of context, with some memory left for a
desktop, and considers 4 bits or more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import chain, groupby
from math import floor, inf, log2

from profiler.cost import engines
from profiler.cost.engines.base import Engine
from profiler.cost.engines.transformers import swept, usual_path
from profiler.cost.learned import NOTHING, Learned
from profiler.cost.machine import Machine
from profiler.cost.prediction import TIGHT_BYTES, Prediction, Predictor
from profiler.cost.speculation import Speculation
from profiler.devices.target import Target
from profiler.models import families, hub
from profiler.models.geometry import Geometry
from profiler.quants.base import DTYPE_BYTES
from profiler.run.quantization import EngineQuant, compute_dtype

FAMILIES = {"Gemma 4": "gemma-4-", "Qwen 3.5": "qwen3.5-"}
CONTEXT = 8192
READING_TPS = 5.3  # 238 words a minute (Brysbaert 2019, J. Mem. Lang. 109:104047), four tokens to three words
# What people run, the least loss first. Others need -q: they are older (q5_1), for other models (mxfp4) or slow
# (LLM.int8()).
USUAL = (
    *("q8_0", "8bit", "fp8", "bf16", "fp16", "fp32"),
    *("q6_k", "6bit", "q5_k_m", "5bit", "q4_k_m", "nf4", "int4", "4bit", "iq4_xs"),
    *("q3_k_m", "3bit", "iq3_xxs", "q2_k", "2bit", "iq2_xxs"),
)
IN_8_BITS = frozenset(
    {"q8_0", "8bit"}
)  # an engine that has one is not run in 16 bits: as little loss, twice the size
MIN_BITS = 4  # of a choice without a goal: see the loss below
MOST_BITS = 8  # of what is named in place of a quantization that does not fit or is too slow
# Perplexity of Llama 3 8B (llama.cpp, tools/perplexity/README.md): 6.233 ± 0.038 in f16, to which q8_0 adds 0.001,
# q6_k 0.020, q5_k_m 0.055 and q4_k_m 0.174. So 6 bits cost nothing that shows, and decode a fifth faster than 8.
# LLaMA 7B has 5.91 in f16 and 6.78 in q2_k, 13B 5.85 in q2_k (pull request 1684): 2 bits cost a doubling of the size.
LOSSLESS_BITS = 6
CLASS_BITS = 3  # fewer bits cost a quality class
MAX_SIZE_SHARE = 0.75  # of the bytes in 16 bits: in nf4 a mixture of experts keeps 95%, and Gemma 4 E2B 71%
HOST_SHARE = 0.75  # of a host's memory; the rest is for the system and other programs
FASTER = (2.0, 1.5)  # a third choice is named if it is this many times as fast as the slowest and the fastest one
CLASSES_BELOW = 2  # how many quality classes that third choice may be below the best
ANSWER_TOKENS = 256  # of an answer, by which speeds are compared


def bits(quant: str) -> int:
    """Bits per weight, as the name says: 4 for ``q4_k_m``, ``iq4_xs`` and ``nf4``, 16 for ``bf16``."""
    found = re.search(r"\d+", quant)
    return int(found[0]) if found else 4


def loss(quant: str) -> float:
    """Bits that a quantization lacks to ``LOSSLESS_BITS``: 0 for 6 bits and more. The K mixes of llama.cpp, such as
    ``q4_k_m``, give some tensors more bits and count half a bit more."""
    return LOSSLESS_BITS - min(LOSSLESS_BITS, bits(quant) + ("_k_" in quant) / 2)


def dense_size(geometry: Geometry) -> float:
    """Parameters of a dense model of about the same quality: a rule of thumb, checked against
    ``scenarios/quality.toml`` by the tests. Tables in which a token looks up a row do not count, as in the names of
    Gemma 4 E2B and E4B."""
    tables = sum(weight.parameters for weight in geometry.outside if weight.role == "embedding")
    whole = max(geometry.active_parameters, geometry.parameters - tables)
    return float(whole ** (2 / 3) * geometry.active_parameters ** (1 / 3))


def quality_class(geometry: Geometry, quant: str) -> int:
    """The quality class of a model, by its dense size and its quantization."""
    return size_class(dense_size(geometry), quant)


def size_class(parameters: float, quant: str) -> int:
    """Doublings of 2.5 billion parameters, dense: 0 for 2.5 to 5, 3 for 20 to 40. One less in fewer than 3 bits."""
    return floor(log2(parameters / 2.5e9)) - (bits(quant) < CLASS_BITS)


def names() -> tuple[str, ...]:
    """The catalog's models of the headline families."""
    return tuple(name for name in hub.names() if name.startswith(tuple(FAMILIES.values())))


@cache
def by_size(prefix: str) -> tuple[tuple[str, Geometry], ...]:
    """The catalog's models of a family, the best first."""
    found = [(name, families.geometry(hub.shipped_config(name))) for name in hub.names() if name.startswith(prefix)]
    return tuple(sorted(found, key=lambda pair: -dense_size(pair[1])))


def usual_quants(engine: Engine, target: Target) -> tuple[str, ...]:
    """The quantizations of an engine that are considered without -q, the least loss first."""
    of_engine = frozenset(engine.quants)
    known = [quant for quant in USUAL if quant in of_engine]
    plain = (
        {"bf16", target.default_dtype} - {*target.unsupported_dtypes} if IN_8_BITS.isdisjoint(known) else frozenset()
    )
    found = tuple(quant for quant in known if quant not in DTYPE_BYTES or quant in plain)
    return found or (engine.usual_quants[0],)


def predictor(
    geometry: Geometry,
    engine: Engine,
    quant: str,
    machine: Machine,
    path: str | None = None,
    learned: Learned = NOTHING,
    run_as: EngineQuant | None = None,
    speculation: Speculation | None = None,
) -> Predictor:
    """A predictor of a model that is quantized as ``quant``, run as a sweep would run it on ``machine``. ``run_as``
    has the dtype and the format of a checkpoint, where one is known.
    """
    target = machine.target
    dtype, stored = (run_as.dtype, run_as.checkpoint_format) if run_as is not None else (None, None)
    dtype = dtype or compute_dtype(target, quant)
    path = path or usual_path(target)
    return Predictor(geometry, engine, quant, machine, dtype, path, stored, learned, speculation)


def with_room(machine: Machine) -> Machine:
    """``machine`` without the memory that other programs need, if it is the host itself."""
    target = machine.target
    if not target.device_kind.is_host:
        return machine
    return replace(machine, target=replace(target, memory_bytes=int(target.memory_bytes * HOST_SHARE)))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model and a quantization that fit, as predicted at ``CONTEXT`` tokens."""

    name: str
    quant: str
    predictor: Predictor
    prediction: Prediction

    @property
    def tps(self) -> float:
        """Predicted decode rate of one sequence; 0 if it does not fit."""
        return self.prediction.decode.tps.value if self.prediction.decode else 0.0

    @property
    def reads(self) -> bool:
        """Whether it decodes as fast as people read."""
        return reads(self.prediction)

    @property
    def quality(self) -> int:
        """Its quality class."""
        return quality_class(self.predictor.geometry, self.quant)

    @property
    def size(self) -> float:
        """Parameters of a dense model of about the same quality."""
        return dense_size(self.predictor.geometry)

    @property
    def largest_context(self) -> int:
        """The most tokens that fit."""
        return self.predictor.largest_context(1)

    @property
    def rank(self) -> tuple[float, ...]:
        """The sort key by which a goal ranks, the best first."""
        return order(self.predictor.geometry, self.prediction, self.prediction.verdict.word == "fits")


def order(geometry: Geometry, prediction: Prediction, sure: bool) -> tuple[float, ...]:
    """The sort key of predictions that meet the same goal, the best first. Without a loss, the faster is better."""
    quant, weights = prediction.request.quant, prediction.terms.weights.value
    return (
        -quality_class(geometry, quant),
        loss(quant),
        not sure,
        -dense_size(geometry),
        -weights if loss(quant) else answer_s(prediction),
    )


def answer_s(prediction: Prediction) -> float:
    """Seconds for a prompt that fills the context, and an answer; infinite if it does not fit."""
    if prediction.prefill is None or prediction.decode is None:
        return inf
    return prediction.prefill.seconds.value + ANSWER_TOKENS * prediction.decode.seconds.value


def shrinks(found: Predictor) -> bool:
    """Whether the quantization is a plain dtype, or makes the model really smaller."""
    storage = found.storage
    stored = storage.device_bytes + storage.host_bytes
    return storage.plain or stored <= MAX_SIZE_SHARE * found.geometry.parameters * DTYPE_BYTES["bf16"]


def rule(quants: Sequence[str] = ()) -> str:
    """How ``Choices`` choose, in a sentence."""
    limit = " or ".join(quants) if quants else f"{MIN_BITS} bits or more"
    return (
        f"Chosen: the largest model of each family that fits at {CONTEXT // 1024}k in {limit} and decodes as fast as"
        f" people read ({READING_TPS} t/s), in the quantization that loses least"
    )


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices of a family in an engine. ``quants``: those of -q; otherwise the usual ones of at least
    ``MIN_BITS`` that really shrink the model. ``path``, ``learned``: as for ``predictor``. ``least_tps``: a decode
    rate.
    """

    prefix: str
    engine: Engine
    machine: Machine
    quants: tuple[str, ...] = ()
    path: str | None = None
    least_tps: float = READING_TPS
    learned: Learned = NOTHING

    def ranking(self) -> Iterator[Candidate]:
        """What fits, the best choice first; what is slower than ``least_tps`` comes last, the fastest first."""
        return chain(self.fast(), self.slow())

    def fast(self) -> Iterator[Candidate]:
        """What is as fast as ``least_tps``: the largest model first, with the least loss that surely fits."""
        quants = self._quants()
        for name, geometry in by_size(self.prefix):
            tight: list[Candidate] = []
            for lost, several in groupby(quants, key=loss):
                found = [each for quant in several for each in self._predicted(name, geometry, quant)]
                found = [each for each in found if each.tps >= self.least_tps]
                tight += [each for each in found if each.prediction.verdict.word != "fits"]
                fits = [each for each in found if each.prediction.verdict.word == "fits"]
                yield from fits if lost else sorted(fits, key=lambda each: answer_s(each.prediction))
            yield from tight

    def slow(self) -> Iterator[Candidate]:
        """What is slower, the fastest first."""
        quants = self._quants()
        found = [
            each
            for name, geometry in by_size(self.prefix)
            for quant in quants
            for each in self._predicted(name, geometry, quant, hopeless=True)
            if each.tps < self.least_tps
        ]
        yield from sorted(found, key=lambda each: -each.tps)

    def smallest(self) -> tuple[str, str]:
        """Name and quantization of the smallest model, for a machine that no choice fits."""
        name, geometry = by_size(self.prefix)[-1]

        def stored_bytes(quant: str) -> int:
            return predictor(geometry, self.engine, quant, self.machine).storage.device_bytes

        return name, min(self._quants(), key=stored_bytes)

    def _quants(self) -> Sequence[str]:
        usual = usual_quants(self.engine, self.machine.target)
        return self.quants or [quant for quant in usual if bits(quant) >= MIN_BITS]

    def _predicted(self, name: str, geometry: Geometry, quant: str, hopeless: bool = False) -> Iterator[Candidate]:
        """The candidate, if it fits; only a ``hopeless`` one may need too long to read its weights at any rate."""
        machine, per_weight = self.machine, bits(quant) / 8
        if not hopeless and geometry.active_parameters * per_weight * self.least_tps > machine.ceiling_bytes_s:
            return
        tables = sum(
            weight.parameters for weight in geometry.outside if weight.role == "embedding"
        )  # may be on the host
        if (geometry.parameters - tables) * per_weight > machine.usable_bytes * machine.target.count:
            return
        found, prediction = _at_context(geometry, self.engine, quant, machine, self.path, self.learned)
        fits = prediction.verdict.word != "no" and prediction.verdict.headroom_bytes >= TIGHT_BYTES
        if fits and (self.quants or shrinks(found)):
            yield Candidate(name, quant, found, prediction)


def measured_engines(target: Target) -> list[Engine]:
    """The engines that `profile sweep` measures on such a device: transformers, and llama.cpp everywhere."""
    names = (engines.DEFAULT, engines.OF_GGUF) if swept(target) else (engines.OF_GGUF,)
    return [engines.find(name) for name in names]


def instead(geometry: Geometry, machine: Machine, context: int, batch: int, most_bits: int) -> Prediction | None:
    """What fits of a model in at most so many bits, in an engine that we measure: as fast as people read if possible,
    with the least loss. ``None`` if nothing of at least ``MIN_BITS`` fits.
    """
    found: list[Prediction] = []
    for engine in measured_engines(machine.target):
        for quant in usual_quants(engine, machine.target):
            if MIN_BITS <= bits(quant) <= most_bits:
                made = predictor(geometry, engine, quant, machine)
                found += [made.predict(context, batch)] if shrinks(made) else []
    fitting = [each for each in found if each.verdict.word in ("fits", "tight")]
    return min(fitting, key=lambda p: (not reads(p), loss(p.request.quant), answer_s(p)), default=None)


def reads(prediction: Prediction) -> bool:
    """Whether each sequence is decoded as fast as people read."""
    return prediction.decode is not None and prediction.decode.tps.value / prediction.request.batch >= READING_TPS


@lru_cache(maxsize=256)
def _at_context(
    geometry: Geometry, engine: Engine, quant: str, machine: Machine, path: str | None, learned: Learned
) -> tuple[Predictor, Prediction]:
    """Predictions of the catalog, which different choices look at."""
    found = predictor(geometry, engine, quant, machine, path, learned)
    return found, found.predict(min(CONTEXT, geometry.max_position), 1)


def best_three(machine: Machine, learned: Learned = NOTHING) -> list[tuple[str, Candidate]]:
    """Up to three different things to run, across the engines that we measure, each with what it is best at."""
    known, room = measured_engines(machine.target), with_room(machine)
    found: list[tuple[Candidate, Choices]] = []
    for prefix in FAMILIES.values():
        choices = [Choices(prefix, engine, room, learned=learned) for engine in known]
        firsts = _firsts(choices, Choices.fast) or _firsts(choices, Choices.slow)
        found += sorted(firsts, key=lambda pair: _across(pair[0]))[:1]
    found.sort(key=lambda pair: (not pair[0].reads, pair[0].rank if pair[0].reads else (-pair[0].tps,)))
    best = [candidate for candidate, _ in found]
    named = list(zip(("best", "other"), best, strict=False))
    third = _fast(found) or [("next", each) for each in _after(found)]
    return [*named, *third[:1]]


def _fast(found: Sequence[tuple[Candidate, Choices]]) -> list[tuple[str, Candidate]]:
    """The best model that is much faster than the choices of the families, and not much worse."""
    best = [candidate for candidate, _ in found]
    rates, models = [each.tps for each in best] or [inf], {each.name for each in best}
    wanted = max(FASTER[0] * min(rates), FASTER[1] * max(rates))
    least = max((each.quality for each in best), default=0) - CLASSES_BELOW
    rankings = (replace(choices, least_tps=wanted).fast() for _, choices in found)
    first = (next((e for e in ranking if e.name not in models and e.quality >= least), None) for ranking in rankings)
    return [("fast", each) for each in sorted((e for e in first if e is not None), key=lambda each: each.rank)]


def _after(found: Sequence[tuple[Candidate, Choices]]) -> list[Candidate]:
    """The next model of each family that is as fast as people read."""
    models = {candidate.name for candidate, _ in found}
    first = (next((e for e in choices.fast() if e.name not in models), None) for _, choices in found)
    return sorted((each for each in first if each is not None), key=lambda each: each.rank)


def _firsts(
    choices: Sequence[Choices], ranking: Callable[[Choices], Iterator[Candidate]]
) -> list[tuple[Candidate, Choices]]:
    return [(first, each) for each in choices if (first := next(ranking(each), None)) is not None]


def _across(candidate: Candidate) -> tuple[float, ...]:
    """The sort key of a family's choices in several engines: the largest model, the least loss, the fastest."""
    if not candidate.reads:
        return (1, -candidate.tps)
    return (0, -candidate.size, loss(candidate.quant), -candidate.tps)
