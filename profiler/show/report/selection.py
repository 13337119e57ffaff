"""The rows of a report by machine, newest first for each case, with what is derived from them worked out once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from operator import attrgetter
from typing import Any

from profiler.case import IDENTITY, Case
from profiler.cost.prediction import TIGHT_BYTES, TIGHT_SHARE
from profiler.results import energy, stats
from profiler.results.cautions import cautions
from profiler.results.measurement import Caution, Measurement, Memory, Phase
from profiler.results.stats import Centres, Summary
from profiler.show.columns import SETTINGS, device_memory, device_title, figure, plain
from profiler.show.report.blocks import Tone
from profiler.units import KIB, UNKNOWN

_CASE = attrgetter(*IDENTITY)
_FORMAT, _SIZE = attrgetter("model", "quant"), attrgetter("case.context", "case.batch", "case.steps")
_SETTINGS = attrgetter(  # with what ``SETTINGS`` show
    "model", "model_id", "quant", "weights", "dtype", "device", "backend", "path", "fill", "steps"
)

LIMITS: dict[object, tuple[str, str]] = {  # what holds a case back: in a cell, and in a sentence
    "bandwidth": ("reads", "reading weights and cache"),
    "compute": ("computes", "arithmetic"),
    "launches": ("launches", "starting operators one after the other"),
    "experts": ("experts", "reading experts"),
    "memory": ("memory", "memory"),
    "host memory": ("host", "reading weights from the host's memory"),
}


@dataclass(slots=True, eq=False)
class CaseResult:
    """What the sections look at in every row, worked out once. Rates in tokens per second; unknown is None."""

    case: Case
    environment: dict[str, Any]
    outcome: str
    ok: bool
    reason: str | None
    started_at: str | None
    memory: Memory
    centres: Centres  # of the rates
    expected: Mapping[str, Any]  # as predicted before it ran
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
    def peak_bytes(self) -> int | None:
        return self.memory.process_peak_bytes

    @property
    def limit_bytes(self) -> int | None:
        """Memory of the device."""
        return device_memory(self)

    @property
    def prefill_tps(self) -> float | None:
        """Median of the rate."""
        centre = self.centres["prefill"]
        return centre and centre.median

    @property
    def decode_tps(self) -> float | None:
        """Likewise."""
        centre = self.centres["decode"]
        return centre and centre.median

    @property
    def prefill(self) -> Summary | None:
        """The rate with its interval."""
        return stats.rate(self.measurement, "prefill")

    @property
    def decode(self) -> Summary | None:
        """Likewise."""
        return stats.rate(self.measurement, "decode")

    @property
    def least_tps(self) -> float:
        """The least that the lower end of decode's interval can be."""
        centre = self.centres["decode"]
        if centre is None:
            return 0.0
        between = (self.expected.get("between") or {}).get("decode")
        return centre.median * math.exp(-centre.reach(between))

    @property
    def comparable(self) -> bool:
        """Whether decode was measured, and its median can be compared."""
        centre = self.centres["decode"]
        if centre is None or centre.near:
            return centre is not None
        decode = self.decode
        return decode is not None and not decode.wide

    @property
    def ceiling_s(self) -> Mapping[str, float] | None:
        """Seconds of a prefill and of a step at the ceiling; None: not calibrated."""
        return self.expected.get("ceiling_s")

    @property
    def bound(self) -> str | None:
        """What decode was predicted to be held back by."""
        return self.expected.get("decode_bound")

    @property
    def shares(self) -> Mapping[Phase, float | None]:
        """Ceiling over measured time; empty if not calibrated."""
        return stats.shares(self.case, self.ceiling_s, self.centres) if self.ceiling_s else {}

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
class CaseGroup:
    """Rows of one machine that have all settings in common but context, batch and what nobody looks at."""

    model: str  # printable, as of its rows
    series: str
    case: Case  # of one of them
    results: Sequence[CaseResult]


@dataclass(frozen=True, slots=True)
class MachineRows:
    """The rows of one machine, in the order of models and formats as first seen, then by size."""

    title: str
    results: Sequence[CaseResult]
    ok: Sequence[CaseResult]  # those with a result
    of: Mapping[str, Sequence[CaseResult]]  # the same by model, of every model
    at: Mapping[int, Sequence[CaseResult]]  # and by batch
    groups: Sequence[CaseGroup]  # of all rows, by their first one
    batch: int  # of the figures over context: what most rows have, the smallest of several

    @property
    def models(self) -> list[str]:
        return list(self.of)

    @property
    def fewest(self) -> Sequence[CaseResult]:
        """Rows with a result of the smallest batch."""
        return self.at[min(self.at)] if self.at else ()

    def palette(self, names: Iterable[str]) -> dict[str, int]:
        """Places of series among all of this machine, so that one has one colour in every chart."""
        series = list(dict.fromkeys(group.series for group in self.groups))
        return {name: series.index(name) for name in names}

    @property
    def environment(self) -> dict[str, Any]:
        """Of the newest row."""
        return max(self.results, key=lambda result: result.started_at or "").environment


def machines(measurements: Iterable[Measurement]) -> list[MachineRows]:
    """Machines in the order of their first row. Of a case measured twice the newer row counts, a good one first.

    Of each row only what every section needs is kept, so that a store may have far more rows than memory should hold.
    """
    machines: dict[tuple[Any, ...], dict[tuple[Any, ...], CaseResult]] = {}
    places: dict[tuple[int, str], dict[tuple[Any, ...], CaseResult]] = {}
    kept: list[dict[str, Any]] = []
    for row in measurements:
        place = id(row.environment), row.case.backend  # many rows share an environment, and ``kept`` holds on to it
        cases = places.get(place)
        if cases is None:
            cases = places[place] = machines.setdefault(_identity(row), {})
            kept.append(row.environment)
        key = _CASE(row.case)  # what ``Case.key`` hashes, and far faster over many rows
        known = cases.get(key)
        if known is None or row.outcome == "ok" or not known.ok:
            cases[key] = _result(row)
    titles = Counter[str]()
    found = []
    for cases in machines.values():
        results = _in_order(cases.values())
        title = device_title(results[0])
        titles[title] += 1
        found.append(_machine(title if titles[title] == 1 else f"{title} #{titles[title]}", results))
    return found


def _in_order(results: Iterable[CaseResult]) -> list[CaseResult]:
    """Models and formats as first seen, then by size."""
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for result in results:
        groups.setdefault(_FORMAT(result.case), []).append(result)
    models, quants = (dict(zip(dict.fromkeys(names), count())) for names in zip(*groups, strict=True))
    ordered = sorted(groups, key=lambda name: (models[name[0]], quants[name[1]]))
    return [result for name in ordered for result in sorted(groups[name], key=_SIZE)]


def _machine(title: str, results: Sequence[CaseResult]) -> MachineRows:
    groups = _named(results)
    ok = results if all(result.ok for result in results) else [result for result in results if result.ok]
    of: dict[str, list[CaseResult]] = {group.model: [] for group in groups}
    at: dict[int, list[CaseResult]] = {}
    for result in ok:
        of[result.model].append(result)
        at.setdefault(result.case.batch, []).append(result)
    counts = Counter({batch: len(mine) for batch, mine in at.items()} or [result.case.batch for result in results])
    batch = min(counts, key=lambda batch: (-counts[batch], batch))
    return MachineRows(title, results, ok, of, at, groups, batch)


def _result(row: Measurement) -> CaseResult:
    """All but the names, which depend on the other rows."""
    centres = stats.centres(row)
    ok = row.outcome == "ok"
    noted = cautions(row, centres) if ok else ()
    joules = None if row.energy is None else energy.content(row)
    return CaseResult(
        row.case, row.environment, row.outcome, ok, row.reason, row.started_at, row.memory, centres, row.expected,
        joules, noted, row.again,
    )  # fmt: skip


def _named(results: Sequence[CaseResult]) -> list[CaseGroup]:
    """Give each row the names of its model and its series; the groups of rows that share all their settings.

    A series is named by the settings that tell rows of one model and format apart; a dtype that merely follows the
    format does not.
    """
    alike: dict[tuple[str, ...], list[CaseResult]] = {}
    for result in results:
        alike.setdefault(_SETTINGS(result.case), []).append(result)
    formats: dict[tuple[str, str], list[CaseResult]] = {}
    for mine in alike.values():
        formats.setdefault(_FORMAT(mine[0].case), []).append(mine[0])
    telling = [
        column
        for column in SETTINGS
        if any(len({column.cell(result) for result in mine}) > 1 for mine in formats.values())
    ]
    groups = []
    for mine in alike.values():
        model, quant = (plain(name, 60) or "(no name)" for name in _FORMAT(mine[0].case))
        series = " ".join([quant, *(column.cell(mine[0]) for column in telling)])
        for result in mine:
            result.model, result.series = model, series
        groups.append(CaseGroup(model, series, mine[0].case, mine))
    return groups


def _identity(row: Measurement) -> tuple[Any, ...]:
    """What makes a machine another one: not its software, nor how much of its memory is free."""
    device, cpu = row.environment.get("device") or {}, row.environment.get("cpu") or {}
    told = tuple(str(device.get(name)) for name in ("kind", "title", "memory_bytes", "uuid_hash"))
    return (row.case.backend == "fake", *told, str(cpu.get("title")), str(cpu.get("cores")))


def tokens(count: int) -> str:
    """``128``, ``32k``."""
    return f"{count // KIB}k" if count >= KIB and count % KIB == 0 else f"{count:,}"


def rate(summary: Summary | None) -> str:
    """The median rate with the digits that its interval supports."""
    return UNKNOWN if summary is None else figure(summary.median, summary.relative_half)


def ranged(summary: Summary | None) -> str:
    """``14.2 (13.8–14.7)``: with its 95 % interval, where it has one."""
    if summary is None:
        return UNKNOWN
    if summary.low is None or summary.high is None:
        return f"{rate(summary)} (measured once)"
    ends = (figure(end, summary.relative_half) for end in (summary.low, summary.high))
    return f"{rate(summary)} ({'–'.join(ends)})"


def case(result: CaseResult) -> str:
    """``gemma-4-e2b nf4 c=4096 b=1``, as everywhere; with what else tells it from others."""
    return f"{result.model} {result.series} c={result.case.context} b={result.case.batch}"


def joined(parts: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *some, last = parts
    return f"{', '.join(some)} and {last}" if some else last


def several(names: Sequence[str], most: int) -> str:
    """At most ``most`` of them, and how many more there are."""
    more = len(names) - most
    return joined(names) if more <= 0 else f"{', '.join(names[:most])} and {more:,} more"
