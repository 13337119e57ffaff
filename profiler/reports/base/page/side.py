"""One machine of a report: its rows, newest first of each case, with what is derived from them worked out once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from profiler.case import IDENTITY, Case
from profiler.predict.verdict import TIGHT_BYTES, TIGHT_SHARE
from profiler.reports.base.columns import SETTINGS, device_memory, device_title
from profiler.reports.base.page.blocks import Tone
from profiler.reports.base.text import plain
from profiler.results import beside, energy, stats
from profiler.results.cautions import cautions
from profiler.results.measurement import Caution, Measurement, Memory
from profiler.results.stats import Summary

_CASE = attrgetter(*IDENTITY)
_SETTINGS = attrgetter(
    "model", "quant", "weights", "dtype", "device", "backend", "path", "fill", "steps"
)  # with what ``SETTINGS`` show


@dataclass(slots=True, eq=False)
class Fact:
    """What the sections look at in every row, worked out once. Rates in tokens per second; unknown is None."""

    case: Case
    environment: dict[str, Any]
    outcome: str
    ok: bool
    reason: str | None
    started_at: str | None
    memory: Memory
    peak_bytes: int | None
    limit_bytes: int | None  # memory of the device
    prefill_tps: float | None  # medians
    decode_tps: float | None
    least_tps: float  # that the lower end of decode's interval can be
    near: bool  # decode's repetitions surely lie near enough to each other to compare their median
    ceiling_s: Mapping[str, float] | None  # seconds of a prefill and of a step at the ceiling; None: not calibrated
    bound: str | None  # what decode was predicted to be held back by
    energy: Mapping[str, Any] | None
    cautions: tuple[Caution, ...]  # of a row with a result: all that is to be said of it
    again: Callable[[], Measurement]
    model: str = ""  # printable
    series: str = ""  # the format, and what else tells this row from others of its model: known with the other rows

    @property
    def measurement(self) -> Measurement:
        """The whole row. A page shows few of many, so they are read once more and not kept."""
        return self.again()

    @property
    def prefill(self) -> Summary | None:
        """The rate with its interval."""
        return stats.rate(self.measurement, "prefill")

    @property
    def decode(self) -> Summary | None:
        """Likewise."""
        return stats.rate(self.measurement, "decode")

    @property
    def comparable(self) -> bool:
        """Whether decode was measured, and its median can be compared."""
        if self.near or self.decode_tps is None:
            return self.near
        decode = self.decode
        return decode is not None and not decode.wide

    @property
    def shares(self) -> dict[str, float | None]:
        """Ceiling over measured time, by phase."""
        return beside.shares(self.case, self.ceiling_s, self.prefill_tps, self.decode_tps)

    @property
    def verdict(self) -> Tone:
        """By the measured peak, with the thresholds of predictions; ``none`` where the peak is unknown."""
        if not self.ok:
            return "no" if self.outcome == "oom" else "none"
        if self.peak_bytes is None or self.limit_bytes is None:
            return "none"
        left = self.limit_bytes - self.peak_bytes
        return "tight" if left < max(TIGHT_SHARE * self.limit_bytes, TIGHT_BYTES) else "fits"


@dataclass(frozen=True, slots=True)
class Side:
    """The rows of one machine. ``facts`` are in the order of models and formats as first seen, then by size."""

    title: str
    facts: Sequence[Fact]
    ok: Sequence[Fact]  # those with a result
    batch: int  # of the figures over context: what most rows have, the smallest of several
    of: Mapping[str, Sequence[Fact]]  # by model
    series: Sequence[str]  # of all facts, in their order

    @property
    def models(self) -> list[str]:
        return list(self.of)

    def ok_of(self, model: str) -> list[Fact]:
        """Rows of a model with a result."""
        return [fact for fact in self.of.get(model, ()) if fact.ok]

    def palette(self, names: Iterable[str]) -> dict[str, int]:
        """Places of series among all of this side, so that one has one colour in every chart."""
        return {name: self.series.index(name) for name in names}

    @property
    def environment(self) -> dict[str, Any]:
        """Of the newest row."""
        return max(self.facts, key=lambda fact: fact.started_at or "").environment


def sides(measurements: Iterable[Measurement]) -> list[Side]:
    """Machines in the order of their first row. Of a case measured twice the newer row counts, a good one first.

    Of each row only what every section needs is kept, so that a store may have far more rows than memory should hold.
    """
    machines: dict[tuple[Any, ...], dict[tuple[Any, ...], Fact]] = {}
    identities: dict[tuple[int, str], tuple[Any, ...]] = {}
    kept: list[dict[str, Any]] = []
    for row in measurements:
        name = id(row.environment), row.case.backend  # many rows share an environment, and ``kept`` holds on to it
        if name not in identities:
            identities[name] = _identity(row)
            kept.append(row.environment)
        cases = machines.setdefault(identities[name], {})
        key = _CASE(row.case)  # what ``Case.key`` hashes, and far faster over many rows
        known = cases.get(key)
        if known is None or row.outcome == "ok" or not known.ok:
            cases[key] = _fact(row)
    titles = Counter[str]()
    found = []
    for cases in machines.values():
        facts = _in_order(cases.values())
        title = device_title(facts[0])
        titles[title] += 1
        found.append(_side(title if titles[title] == 1 else f"{title} #{titles[title]}", facts))
    return found


def _in_order(facts: Iterable[Fact]) -> list[Fact]:
    """Models and formats as first seen, then by size."""
    models: dict[str, int] = {}
    quants: dict[str, int] = {}
    placed = []
    for number, fact in enumerate(facts):
        case = fact.case
        place = models.setdefault(case.model, number), quants.setdefault(case.quant, number)
        placed.append((*place, case.context, case.batch, case.steps, number, fact))
    placed.sort()
    return [fact for *_, fact in placed]


def _side(title: str, facts: Sequence[Fact]) -> Side:
    of = _name(facts)
    ok = facts if all(fact.ok for fact in facts) else [fact for fact in facts if fact.ok]
    counts = Counter(fact.case.batch for fact in ok or facts)
    batch = min(counts, key=lambda batch: (-counts[batch], batch))
    return Side(title, facts, ok, batch, of, list(dict.fromkeys(fact.series for fact in facts)))


def _fact(row: Measurement) -> Fact:
    """All but the names, which depend on the other rows."""
    centres = stats.centres(row)
    ok = row.outcome == "ok"
    noted = cautions(row, centres) if ok else ()
    joules = None if row.energy is None else energy.content(row)
    prefill, decode = centres["prefill"], centres["decode"]
    least = decode.median * math.exp(-decode.reach(stats.between(row, "decode"))) if decode else 0.0
    expected = row.expected
    return Fact(
        row.case, row.environment, row.outcome, ok, row.reason, row.started_at, row.memory,
        row.memory.process_peak_bytes, device_memory(row),
        prefill and prefill.median, decode and decode.median, least, decode is not None and decode.near,
        expected.get("ceiling_s"), expected.get("decode_bound"), joules, noted, row.again,
    )  # fmt: skip


def _name(facts: Sequence[Fact]) -> dict[str, list[Fact]]:
    """Give each fact the names of its model and its series. The facts of each model, by name.

    A series is named by the settings that tell rows of one model and format apart; a dtype that merely follows the
    format does not.
    """
    alike: dict[tuple[str, ...], list[Fact]] = {}  # many rows share all their settings
    for fact in facts:
        alike.setdefault(_SETTINGS(fact.case), []).append(fact)
    groups: dict[tuple[str, str], list[Fact]] = {}
    for mine in alike.values():
        groups.setdefault((mine[0].case.model, mine[0].case.quant), []).append(mine[0])
    telling = [
        column
        for column in SETTINGS
        if any(len({column.cell(fact) for fact in group}) > 1 for group in groups.values())
    ]
    for mine in alike.values():
        model, quant = (plain(name, 60) or "(no name)" for name in (mine[0].case.model, mine[0].case.quant))
        series = " ".join([quant, *(column.cell(mine[0]) for column in telling)])
        for fact in mine:
            fact.model, fact.series = model, series
    of: dict[str, list[Fact]] = {}
    for fact in facts:
        of.setdefault(fact.model, []).append(fact)
    return of


def _identity(row: Measurement) -> tuple[Any, ...]:
    """What makes a machine another one: not its software, nor how much of its memory is free."""
    device, cpu = row.environment.get("device") or {}, row.environment.get("cpu") or {}
    told = tuple(str(device.get(name)) for name in ("kind", "title", "memory_bytes", "uuid_hash"))
    return (row.case.backend == "fake", *told, str(cpu.get("title")), str(cpu.get("cores")))
