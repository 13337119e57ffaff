"""One machine of a report: its rows, newest first of each case, with what is derived from them worked out once."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from profiler.case import IDENTITY, Case
from profiler.predict.verdict import TIGHT_BYTES, TIGHT_SHARE
from profiler.reports.base.columns import SETTINGS, device_memory, device_title
from profiler.reports.base.page.blocks import Tone
from profiler.reports.base.text import plain
from profiler.results import beside, stats
from profiler.results.cautions import cautions
from profiler.results.measurement import Caution, Measurement
from profiler.results.stats import Summary

_CASE = attrgetter(*IDENTITY)
_SETTINGS = attrgetter("weights", "dtype", "device", "backend", "path", "fill", "steps")  # what ``SETTINGS`` show


class Fact(NamedTuple):
    """A row and its statistics. Rates in tokens per second, memory in bytes; unknown is None."""

    measurement: Measurement
    case: Case
    ok: bool
    model: str  # printable
    series: str  # the format, and what else tells this row from others of its model
    prefill_tps: float | None  # medians
    decode_tps: float | None
    least_tps: float  # that the lower end of decode's interval can be
    near: bool  # decode's repetitions surely lie near enough to each other to compare their median
    peak_bytes: int | None
    limit_bytes: int | None  # of the device
    cautions: tuple[Caution, ...] = ()  # of a row with a result: all that is to be said of it

    @property
    def prefill(self) -> Summary | None:
        """With its interval: worked out when it is asked for, since a page shows few rows of many."""
        return stats.rate(self.measurement, "prefill")

    @property
    def decode(self) -> Summary | None:
        """Likewise."""
        return stats.rate(self.measurement, "decode")

    @property
    def comparable(self) -> bool:
        """Whether decode was measured, and its median can be compared."""
        return self.near or (self.decode is not None and not self.decode.wide)

    @property
    def calibrated(self) -> bool:
        """Whether the ceilings of its device were known."""
        return bool(self.measurement.expected.get("ceiling_s"))

    @property
    def fractions(self) -> dict[str, Any] | None:
        """Ceiling over measured time of each phase, and what binds decode; None where nothing was calibrated."""
        return beside.shares(self.measurement, self.prefill_tps, self.decode_tps)

    @property
    def verdict(self) -> Tone:
        """By the measured peak, with the thresholds of predictions; ``none`` where the peak is unknown."""
        if not self.ok:
            return "no" if self.measurement.outcome == "oom" else "none"
        if self.peak_bytes is None or self.limit_bytes is None:
            return "none"
        left = self.limit_bytes - self.peak_bytes
        return "tight" if left < max(TIGHT_SHARE * self.limit_bytes, TIGHT_BYTES) else "fits"


@dataclass(frozen=True, slots=True)
class Side:
    """The rows of one machine. ``facts`` are in the order of models and formats as first seen, then by size."""

    title: str
    facts: tuple[Fact, ...]
    ok: tuple[Fact, ...]  # those with a result
    batch: int  # of the figures over context: what most rows have, the smallest of several
    of: Mapping[str, Sequence[Fact]]  # by model

    @property
    def models(self) -> list[str]:
        return list(self.of)

    def ok_of(self, model: str) -> list[Fact]:
        """Rows of a model with a result."""
        return [fact for fact in self.of.get(model, ()) if fact.ok]

    def palette(self, names: Iterable[str]) -> dict[str, int]:
        """Places of series among all of this side, so that one has one colour in every chart."""
        every = list(dict.fromkeys(fact.series for fact in self.facts))
        return {name: every.index(name) for name in names}

    @property
    def environment(self) -> dict[str, Any]:
        """Of the newest row."""
        newest = max(self.facts, key=lambda fact: fact.measurement.started_at or "")
        return newest.measurement.environment


def sides(measurements: Iterable[Measurement]) -> list[Side]:
    """Machines in the order of their first row. Of a case measured twice the newer row counts, a good one first."""
    machines: dict[tuple[Any, ...], dict[tuple[Any, ...], Measurement]] = {}
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
        if known is None or row.outcome == "ok" or known.outcome != "ok":
            cases[key] = row
    titles = Counter[str]()
    found = []
    for cases in machines.values():
        rows = in_order(cases.values())
        title = device_title(rows[0])
        titles[title] += 1
        found.append(_side(title if titles[title] == 1 else f"{title} #{titles[title]}", rows))
    return found


def in_order(rows: Iterable[Measurement]) -> list[Measurement]:
    """Models and formats as first seen, then by size."""
    listed = list(rows)
    models = {row.case.model: place for place, row in reversed(list(enumerate(listed)))}
    quants = {row.case.quant: place for place, row in reversed(list(enumerate(listed)))}

    def place(row: Measurement) -> tuple[int, ...]:
        case = row.case
        return models[case.model], quants[case.quant], case.context, case.batch, case.steps

    return sorted(listed, key=place)


def _side(title: str, rows: Sequence[Measurement]) -> Side:
    telling = _telling(rows)
    shown: dict[tuple[Any, ...], tuple[str, str]] = {}  # many rows share their names
    facts = tuple(_fact(row, telling, shown) for row in rows)
    counts = Counter(fact.case.batch for fact in facts if fact.ok) or Counter(fact.case.batch for fact in facts)
    batch = min(counts, key=lambda batch: (-counts[batch], batch))
    of: dict[str, list[Fact]] = {}
    for fact in facts:
        of.setdefault(fact.model, []).append(fact)
    return Side(title, facts, tuple(fact for fact in facts if fact.ok), batch, of)


def _fact(row: Measurement, telling: Sequence[Any], shown: dict[tuple[Any, ...], tuple[str, str]]) -> Fact:
    named = (row.case.model, row.case.quant, *_SETTINGS(row.case))
    if named not in shown:
        model, quant = (plain(name, 60) or "(no name)" for name in (row.case.model, row.case.quant))
        shown[named] = model, " ".join([quant, *(column.cell(row) for column in telling)])
    model, series = shown[named]
    peak, limit = row.memory.process_peak_bytes, device_memory(row)
    centres = stats.centres(row)
    ok = row.outcome == "ok"
    noted = cautions(row, centres) if ok else ()
    row.forget()
    prefill, decode = centres["prefill"], centres["decode"]
    prefill_tps = prefill and prefill.median
    if decode is None:
        return Fact(row, row.case, ok, model, series, prefill_tps, None, 0.0, False, peak, limit, noted)
    least = decode.median * math.exp(-decode.reach(stats.between(row, "decode")))
    return Fact(row, row.case, ok, model, series, prefill_tps, decode.median, least, decode.near, peak, limit, noted)


def _telling(rows: Sequence[Measurement]) -> list[Any]:
    """Settings that tell rows of one model and format apart; a dtype that merely follows the format does not."""
    groups: dict[tuple[str, str], dict[tuple[Any, ...], Measurement]] = defaultdict(dict)
    for row in rows:
        groups[row.case.model, row.case.quant].setdefault(_SETTINGS(row.case), row)
    return [
        column
        for column in SETTINGS
        if any(len({column.cell(row) for row in group.values()}) > 1 for group in groups.values())
    ]


def _identity(row: Measurement) -> tuple[Any, ...]:
    """What makes a machine another one: not its software, nor how much of its memory is free."""
    device, cpu = row.environment.get("device") or {}, row.environment.get("cpu") or {}
    told = tuple(str(device.get(name)) for name in ("kind", "title", "memory_bytes", "uuid_hash"))
    return (row.case.backend == "fake", *told, str(cpu.get("title")), str(cpu.get("cores")))
