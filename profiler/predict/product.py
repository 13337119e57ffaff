"""Many cases at once: every model × format × context × batch on every machine, without an object for each.

Work depends on model and case, rates on the machine: with both worked out once, a cell of the product costs a sum
of a few terms. Figures equal those of ``prediction.Predictor``, which is what a cell becomes when it is shown, for
transformers as shipped: ``--path eager``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from profiler.models.geometry import Geometry
from profiler.predict import efficiency, machine, work
from profiler.predict.efficiency import AS_THEY_ARE, FEW_TOKENS, Rates
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
    like = next((one.rates for one in rated if not one.rates.own), None) or rated[0].rates
    numbered = list(enumerate(rated))
    groups = {
        repacks: [each for each in numbered if each[1].machine.target.repacks == repacks]
        for repacks in {one.machine.target.repacks for one in rated}
    }
    for index, geometry in enumerate(models):
        reach = [context for context in contexts if context <= geometry.max_position]
        for quant in quants:
            alike = [(engine.storage(geometry, quant, dtype, repacks), group) for repacks, group in groups.items()]
            for context in reach:
                for batch in batches:
                    setting = Setting(quant, context, batch, dtype)
                    for storage, group in alike:
                        yield from _cells(index, _Case(geometry, engine, storage, setting, like), group)


class _Rated:
    """A machine with the few numbers that a cell needs of it."""

    def __init__(self, host: Machine, engine: Engine, dtype: str) -> None:
        self.machine = host
        self.rates = rates = machine.rates(host, engine.name, dtype)
        self.own = rates.own
        self.usable = host.usable_bytes
        self.shared = host.target.unified
        self.small = host.target.vendor == "CPU" and engine.name == "transformers"  # prefills in smaller passes
        self.several = host.target.count > 1
        maker = host.target.vendor if host.target.vendor in engine.makers else "other"
        self.memory_key = (maker, host.target.unified, host.target.count, host.split, host.target.features)
        self.read = rates.read_s[UNIT]
        self.many, self.few, self.packed = rates.flop_s[UNIT], rates.few_flop_s[UNIT], rates.few_flop_s[PACKED_UNIT]
        self.turn_many, self.turn_few, self.turn_packed = (self.read / c for c in (self.many, self.few, self.packed))
        self.layer_s, self.expert_s = rates.layer_s, rates.layer_s * rates.expert_layers
        self.call_s, self.unpack_s = rates.call_s, rates.unpack_s

    def seconds(self, done: Sums) -> float:
        """The same sum as ``efficiency.seconds``."""
        total = done.launches * self.layer_s + done.expert_launches * self.expert_s + done.calls * self.call_s
        turns, before, after = done.plain
        if done.packed is None:
            place = bisect_right(turns, self.turn_many)
            total += self.read * before[place] + self.many * after[place]
        else:
            place = bisect_right(turns, self.turn_few)
            total += self.read * before[place] + self.few * after[place]
            turns, before, after = done.packed
            place = bisect_right(turns, self.turn_packed)
            total += self.read * before[place] + self.packed * after[place]
        if self.unpack_s:
            total += sum(done.nbytes.get(scheme, 0.0) * unpack for scheme, unpack in self.unpack_s.items())
        return total


class _Case:
    """One model, format, context and batch: its work and its memory, each worked out when first needed."""

    def __init__(self, geometry: Geometry, engine: Engine, storage: Storage, setting: Setting, like: Rates) -> None:
        self.geometry, self.engine, self.storage, self.setting, self.like = geometry, engine, storage, setting, like
        self.manner = engine.manner(geometry, setting)
        self.step_work = work.decode(geometry, storage, setting.context, setting.batch, self.manner)
        self.step = sums(self.step_work, like)
        self.prompts: dict[bool, tuple[Sums, Work]] = {}
        self.needs: dict[tuple[object, ...], tuple[float, float]] = {}

    def need(self, one: _Rated) -> tuple[float, float]:
        """Bytes of the fullest device, and what stays on the host."""
        target = one.machine.target
        whole = self.engine.memory(self.geometry, self.storage, self.setting, target)
        terms = shared_out(whole, self.geometry, one.machine)
        found = self.needs[one.memory_key] = terms.peak.value, terms.host.value
        return found

    def prompt(self, small: bool) -> tuple[Sums, Work]:
        """The prefill's work."""
        manner = replace(self.manner, ubatch=min(self.manner.ubatch, 512)) if small else self.manner
        done = work.prefill(self.geometry, self.storage, self.setting.context, self.setting.batch, manner)
        found = self.prompts[small] = sums(done, self.like), done
        return found

    def seconds(self, one: _Rated) -> tuple[float, float]:
        """Of the prefill and of a step."""
        prompt, done = self.prompts.get(one.small) or self.prompt(one.small)
        if one.own:  # curves of its own: formats compare differently than elsewhere
            return efficiency.seconds(done, one.rates), efficiency.seconds(self.step_work, one.rates)
        if not one.several:
            return one.seconds(prompt), one.seconds(self.step)
        links = (machine.link_s(each, self.geometry, one.machine) for each in (done, self.step_work))
        return one.seconds(prompt) + next(links), one.seconds(self.step) + next(links)


def _cells(index: int, case: _Case, rated: Sequence[tuple[int, _Rated]]) -> Iterator[Cell]:
    quant, context, batch = case.setting.quant, case.setting.context, case.setting.batch
    needs = case.needs
    for number, one in rated:
        needed, on_host = needs.get(one.memory_key) or case.need(one)
        headroom = one.usable - needed - (on_host if one.shared else 0.0)
        if headroom < 0:
            yield Cell(index, quant, context, batch, number, headroom, None, None)
        else:
            yield Cell(index, quant, context, batch, number, headroom, *case.seconds(one))


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
        own_unit = many or item.scheme in AS_THEY_ARE
        b = item.flops * slower * flop_s[item.scheme] / flop_s[UNIT if own_unit else PACKED_UNIT]
        (plain if own_unit else packed).append((a, b))
    launches, experts = done.passes * done.layers, done.passes * done.expert_layers
    return Sums(_line(plain), _line(packed) if packed else None, launches, experts, done.calls, nbytes)


def _line(terms: list[tuple[float, float]]) -> Line:
    ordered = sorted((b / a if a else math.inf, a, b) for a, b in terms if a or b)
    before = list(accumulate((a for _, a, _ in ordered), initial=0.0))
    after = list(accumulate((b for _, _, b in reversed(ordered)), initial=0.0))[::-1]
    return Line([turn for turn, _, _ in ordered], before, after)
