"""What to run on a machine if nobody says what: a model of each headline family, with its quantization.

A goal, and a command without models, choose by the same order:

1. the quality class of the model: its size, in doublings. A mixture of experts counts as a dense model of
   total^⅔ · active^⅓ parameters.
2. the loss of quality by the quantization, by its bits per weight; from 8 bits on there is none.
3. what is surer to fit and to be fast enough.

A command without a goal wants a rate as fast as people read, at 8k tokens of context, and considers 4 bits or more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import floor, inf, log2

from profiler.cost.engines.base import Engine
from profiler.cost.engines.transformers import usual_path
from profiler.cost.machine import Machine
from profiler.cost.prediction import Prediction, Predictor
from profiler.devices.target import Target
from profiler.models import families, hub
from profiler.models.geometry import Geometry
from profiler.quants.base import DTYPE_BYTES
from profiler.run.quantization import compute_dtype

FAMILIES = {"Gemma 4": "gemma-4-", "Qwen 3.5": "qwen3.5-"}
CONTEXT = 8192
READING_TPS = 5.3  # 238 words a minute (Brysbaert 2019, J. Mem. Lang. 109:104047), four tokens to three words
# What people run. Others are older (q5_1), for models of their own (mxfp4) or slow (LLM.int8()), and need -q.
USUAL = {
    *("bf16", "fp8", "int4", "nf4"),  # and checkpoints of servers
    *("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "iq3_xxs", "q2_k", "iq2_xxs"),
    *("8bit", "6bit", "5bit", "4bit", "3bit", "2bit"),  # mlx
}
LEAST_BITS = 4  # of a choice without a goal
LOSSLESS_BITS = 8  # q8_0 changes the perplexity of Llama 2 7B by 0.01%, q4_k_m by 1% (llama.cpp, PR 1684)
# Perplexity in the same table: 7B 5.91 in f16 and 6.78 in q2_k, 13B 5.85 in q2_k. 2 bits cost a doubling of the size.
COSTS_A_CLASS = 3  # quantizations of fewer bits
SHRINKS = 0.75  # of the bytes in 16 bits, at most: in nf4 a mixture of experts keeps 95%, and Gemma 4 E2B 71%
HOST_SHARE = 0.75  # of a host's memory; the rest is for the system and other programs
ANSWER = 256  # tokens of an answer, by which speeds are compared


def bits(quant: str) -> int:
    """Bits per weight, as the name says: 4 for ``q4_k_m``, ``iq4_xs``, ``nf4`` and ``awq``, 16 for ``bf16``."""
    found = re.search(r"\d+", quant)
    return int(found[0]) if found else 4


def loss(quant: str) -> int:
    """Bits that a quantization lacks to ``LOSSLESS_BITS``: 0 for 8 bits and more."""
    return LOSSLESS_BITS - min(LOSSLESS_BITS, bits(quant))


def dense_size(geometry: Geometry) -> float:
    """Parameters of a dense model of about the same quality: a rule of thumb, checked against
    ``scenarios/quality.toml`` by the tests."""
    return float(geometry.parameters ** (2 / 3) * geometry.active_parameters ** (1 / 3))


def quality_class(geometry: Geometry, quant: str) -> int:
    """Doublings of 2.5 billion parameters, dense: 0 for 2.5 to 5, 3 for 20 to 40. One less in fewer than 3 bits."""
    return floor(log2(dense_size(geometry) / 2.5e9)) - (bits(quant) < COSTS_A_CLASS)


def names() -> tuple[str, ...]:
    """The catalog's models of the headline families."""
    return tuple(name for name in hub.names() if name.startswith(tuple(FAMILIES.values())))


@cache
def by_size(prefix: str) -> tuple[tuple[str, Geometry], ...]:
    """The catalog's models of a family, the best first."""
    found = [(name, families.geometry(hub.shipped_config(name))) for name in hub.names() if name.startswith(prefix)]
    return tuple(sorted(found, key=lambda pair: -dense_size(pair[1])))


def usual_quants(engine: Engine, target: Target) -> tuple[str, ...]:
    """The quantizations of an engine that are considered without -q."""
    kept = (USUAL | {target.default_dtype}) - {*target.unsupported_dtypes}
    return tuple(quant for quant in engine.quants if quant in kept) or (engine.default_quant,)


def predictor(geometry: Geometry, engine: Engine, quant: str, machine: Machine, path: str | None = None) -> Predictor:
    """A predictor of a model that is quantized as ``quant``, run as a sweep would run it on ``machine``."""
    target = machine.target
    return Predictor(geometry, engine, quant, machine, compute_dtype(target, quant), path or usual_path(target))


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
        return self.tps >= READING_TPS

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
    return prediction.prefill.seconds.value + ANSWER * prediction.decode.seconds.value


def shrinks(found: Predictor) -> bool:
    """Whether the quantization is a plain dtype, or makes the model really smaller."""
    storage = found.storage
    stored = storage.device_bytes + storage.host_bytes
    return storage.plain or stored <= SHRINKS * found.geometry.parameters * DTYPE_BYTES["bf16"]


def rule(quants: Sequence[str] = ()) -> str:
    """How ``ranking`` chooses, in a sentence."""
    limit = " or ".join(quants) if quants else f"{LEAST_BITS} bits or more"
    return (
        f"Chosen: the largest model of each family that fits at {CONTEXT // 1024}k in {limit} and decodes as fast as"
        f" people read ({READING_TPS} t/s), in the quantization that loses least"
    )


def ranking(
    prefix: str, engine: Engine, machine: Machine, quants: Sequence[str] = (), path: str | None = None
) -> Iterator[Candidate]:
    """What fits of a family, the best choice first: the largest model that decodes as fast as people read, with the
    least loss; models that are slower come last, the fastest of them first.

    ``quants``: those of -q; otherwise the usual ones of at least ``LEAST_BITS`` that shrink the model.
    """
    slow: list[Candidate] = []
    for name, geometry in by_size(prefix):
        found = list(_candidates(name, geometry, engine, machine, quants, path))
        found.sort(key=lambda each: (each.prediction.verdict.word != "fits", each.rank))
        yield from (each for each in found if each.reads)
        slow += [each for each in found if not each.reads]
    yield from sorted(slow, key=lambda each: -each.tps)


def _candidates(
    name: str, geometry: Geometry, engine: Engine, machine: Machine, quants: Sequence[str], path: str | None
) -> Iterator[Candidate]:
    usual = (quant for quant in usual_quants(engine, machine.target) if bits(quant) >= LEAST_BITS)
    context = min(CONTEXT, geometry.max_position)
    for quant in quants or usual:
        if geometry.active_parameters * bits(quant) / 8 > machine.usable_bytes * machine.target.count:
            continue  # it needs more for the weights of one token
        found = predictor(geometry, engine, quant, machine, path)
        prediction = found.predict(context, 1)
        if prediction.verdict.word != "no" and (quants or shrinks(found)):
            yield Candidate(name, quant, found, prediction)


def smallest(prefix: str, engine: Engine, machine: Machine, quants: Sequence[str] = ()) -> tuple[str, str]:
    """Name and quantization of the smallest of a family, for a machine that no choice fits."""
    name, geometry = by_size(prefix)[-1]
    usual = [quant for quant in usual_quants(engine, machine.target) if bits(quant) >= LEAST_BITS]
    return name, min(quants or usual, key=lambda q: predictor(geometry, engine, q, machine).storage.device_bytes)
