"""Many cases at once: every model × format × context × batch on every machine, without an object for each.

Work depends on model and case, rates on the machine: with both worked out once, a cell of the product costs a sum
of a few terms. Figures equal those of ``prediction.Predictor``, which is what a cell becomes when it is shown.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from profiler.models.geometry import Geometry
from profiler.predict import machine, work
from profiler.predict.efficiency import FEW_TOKENS, PLAIN, Rates
from profiler.predict.engines.base import Engine, Setting
from profiler.predict.machine import Machine
from profiler.predict.prediction import shared_out
from profiler.predict.storage import Storage
from profiler.predict.work import Work

UNIT, PACKED_UNIT = "bf16", "q4_k"  # formats that the others are counted in


class Cell(NamedTuple):
    """One case on one machine. Seconds are values without bounds, ``None`` where it does not fit; by position."""

    model: int
    quant: str
    context: int
    batch: int
    machine: int
    headroom_bytes: float
    prefill_s: float | None
    step_s: float | None


class Line(NamedTuple):
    """Σ max(a·r, b·c) for any r and c: terms sorted by b/a, with sums of a before and of b after each place.

    ``r`` are a machine's seconds per byte of bf16 and ``c`` per FLOP; ``a`` and ``b`` count other formats by how much
    slower they are, which is the same on every machine.
    """

    turns: list[float]  # b/a: where r/c is less, arithmetic binds
    before: list[float]
    after: list[float]

    def seconds(self, r: float, c: float) -> float:
        """The sum."""
        place = bisect_right(self.turns, r / c)
        return r * self.before[place] + c * self.after[place]


class Sums(NamedTuple):
    """Work as what a sum over any machine needs."""

    plain: Line  # terms whose products run on the matrix units
    packed: Line | None  # few tokens times packed weights: on the vector units
    launches: float
    expert_launches: float
    calls: float
    nbytes: dict[str, float]  # by format, for what unpacks them


def cells(
    models: Sequence[Geometry],
    engine: Engine,
    quants: Sequence[str],
    contexts: Sequence[int],
    batches: Sequence[int],
    machines: Sequence[Machine],
    dtype: str = "bf16",
) -> Iterator[Cell]:
    """Every combination, models slowest. Contexts beyond a model's positions are left out."""
    rated = [_Rated(host, engine, dtype) for host in machines]
    for index, geometry in enumerate(models):
        reach = [context for context in contexts if context <= geometry.max_position]
        for quant in quants:
            storage = engine.storage(geometry, quant, dtype)
            for context in reach:
                for batch in batches:
                    setting = Setting(quant, context, batch, dtype)
                    yield from _case(index, geometry, engine, storage, setting, rated)


class _Rated:
    """A machine with what a cell needs of it."""

    def __init__(self, host: Machine, engine: Engine, dtype: str) -> None:
        self.machine = host
        self.rates: Rates = machine.rates(host, engine.name, dtype)
        self.usable = host.usable_bytes
        self.shared = host.target.unified
        self.memory_key = (host.target.vendor, host.target.count, host.split)


def _case(
    index: int, geometry: Geometry, engine: Engine, storage: Storage, setting: Setting, rated: Sequence[_Rated]
) -> Iterator[Cell]:
    manner = engine.manner(geometry, setting)
    like = rated[0].rates
    step = sums(work.decode(geometry, storage, setting.context, setting.batch, manner), like)
    prompts: dict[bool, tuple[Sums, Work]] = {}
    needs: dict[tuple[object, ...], tuple[float, float]] = {}
    for number, one in enumerate(rated):
        target = one.machine.target
        need = needs.get(one.memory_key)
        if need is None:
            terms = shared_out(engine.memory(geometry, storage, setting, target), geometry, one.machine)
            need = needs[one.memory_key] = terms.peak.value, terms.host.value
        headroom = one.usable - need[0] - (need[1] if one.shared else 0.0)
        if headroom < 0:
            yield Cell(index, setting.quant, setting.context, setting.batch, number, headroom, None, None)
            continue
        small = target.vendor == "CPU" and engine.name == "transformers"
        if small not in prompts:
            sized = replace(manner, ubatch=min(manner.ubatch, 512)) if small else manner
            done = work.prefill(geometry, storage, setting.context, setting.batch, sized)
            prompts[small] = sums(done, like), done
        prompt, done = prompts[small]
        prefill_s, step_s = seconds(prompt, one.rates), seconds(step, one.rates)
        if target.count > 1:
            prefill_s += machine.link_s(done, geometry, one.machine)
            step_s += machine.link_s(work.decode(geometry, storage, setting.context, setting.batch, manner), geometry,
                                     one.machine)  # fmt: skip
        yield Cell(index, setting.quant, setting.context, setting.batch, number, headroom, prefill_s, step_s)


def sums(done: Work, like: Rates) -> Sums:
    """``like``: rates of any machine, for how formats compare on all of them."""
    many = done.tokens > FEW_TOKENS
    flop_s = like.flop_s if many else like.few_flop_s
    plain: list[tuple[float, float]] = []
    packed: list[tuple[float, float]] = []
    nbytes: dict[str, float] = {}
    for item in done.items:
        nbytes[item.scheme] = nbytes.get(item.scheme, 0.0) + item.nbytes
        a = item.nbytes * like.read_s[item.scheme] / like.read_s[UNIT]
        slower = like.expert_flops if many and item.part == "experts" else 1.0
        own_unit = many or item.scheme in (*PLAIN, "cache")
        b = item.flops * slower * flop_s[item.scheme] / flop_s[UNIT if own_unit else PACKED_UNIT]
        (plain if own_unit else packed).append((a, b))
    launches, experts = done.passes * done.layers, done.passes * done.expert_layers
    return Sums(_line(plain), _line(packed) if packed else None, launches, experts, done.calls, nbytes)


def _line(terms: list[tuple[float, float]]) -> Line:
    ordered = sorted((b / a if a else math.inf, a, b) for a, b in terms if a or b)
    before = list(accumulate((a for _, a, _ in ordered), initial=0.0))
    after = list(accumulate((b for _, _, b in reversed(ordered)), initial=0.0))[::-1]
    return Line([turn for turn, _, _ in ordered], before, after)


def seconds(done: Sums, rates: Rates) -> float:
    """The same sum as ``efficiency.seconds``."""
    r = rates.read_s[UNIT]
    few = done.packed is not None
    total = done.plain.seconds(r, (rates.few_flop_s if few else rates.flop_s)[UNIT])
    if done.packed is not None:
        total += done.packed.seconds(r, rates.few_flop_s[PACKED_UNIT])
    total += (done.launches + rates.expert_layers * done.expert_launches) * rates.layer_s + done.calls * rates.call_s
    for scheme, unpack in rates.unpack_s.items():
        total += done.nbytes.get(scheme, 0.0) * unpack
    return total
