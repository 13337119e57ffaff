"""Many cases at once: every model × format × context × batch on every machine, without an object for each.

Work depends on model and case, rates on the machine: with both worked out once, a cell of the product costs a sum
of a few terms. Figures equal those of ``prediction.Predictor``, which is what a cell becomes when it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from profiler.models.geometry import Geometry
from profiler.predict import machine, work
from profiler.predict.efficiency import FEW_TOKENS, Rates
from profiler.predict.engines.base import Engine, Setting
from profiler.predict.machine import Machine
from profiler.predict.prediction import shared_out
from profiler.predict.storage import Storage
from profiler.predict.work import Work


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


class Sums(NamedTuple):
    """Work as numbers: for each format, bytes and FLOPs; experts apart."""

    items: tuple[tuple[str, float, float, bool], ...]
    passes: int
    launches: float
    expert_launches: float
    calls: float
    many: bool


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
    step = sums(work.decode(geometry, storage, setting.context, setting.batch, manner))
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
            prompts[small] = sums(done), done
        prompt, done = prompts[small]
        prefill_s, step_s = seconds(prompt, one.rates), seconds(step, one.rates)
        if target.count > 1:
            prefill_s += machine.link_s(done, geometry, one.machine)
            step_s += machine.link_s(work.decode(geometry, storage, setting.context, setting.batch, manner), geometry,
                                     one.machine)  # fmt: skip
        yield Cell(index, setting.quant, setting.context, setting.batch, number, headroom, prefill_s, step_s)


def sums(done: Work) -> Sums:
    """Only what a sum needs. Items of one format that compute alike per byte are one term, which changes no sum."""
    many = done.tokens > FEW_TOKENS
    merged: dict[tuple[str, float, bool], tuple[float, float]] = {}
    for item in done.items:
        if item.nbytes <= 0 and item.flops <= 0:
            continue
        key = (
            item.scheme,
            round(item.flops / item.nbytes, 6) if item.nbytes else -1.0,
            many and item.part == "experts",
        )
        nbytes, flops = merged.get(key, (0.0, 0.0))
        merged[key] = nbytes + item.nbytes, flops + item.flops
    items = tuple((key[0], *merged[key], key[2]) for key in merged)
    return Sums(items, done.passes, done.passes * done.layers, done.passes * done.expert_layers, done.calls, many)


def seconds(done: Sums, rates: Rates) -> float:
    """The same sum as ``efficiency.seconds``."""
    flop_s = rates.flop_s if done.many else rates.few_flop_s
    read_s, unpack_s = rates.read_s, rates.unpack_s
    total = (done.launches + rates.expert_layers * done.expert_launches) * rates.layer_s + done.calls * rates.call_s
    for scheme, nbytes, flops, experts in done.items:
        reading = nbytes * read_s[scheme]
        computing = flops * flop_s[scheme]
        if experts:
            computing *= rates.expert_flops
        total += reading if reading > computing else computing
        if unpack_s and scheme in unpack_s:
            total += nbytes * unpack_s[scheme]
    return total
