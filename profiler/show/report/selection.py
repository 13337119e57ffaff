"""The rows of a report by machine, newest first for each case, with what is derived from them worked out once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Any

from profiler import backends
from profiler.case import IDENTITY, Case
from profiler.cost.prediction import TIGHT_BYTES, TIGHT_SHARE
from profiler.results import energy, stats
from profiler.results.cautions import cautions
from profiler.results.measurement import Caution, Measurement, Memory, Phase
from profiler.results.stats import Centre, Summary
from profiler.show.columns import SETTINGS, device_memory, device_title, figure, plain
from profiler.show.report.blocks import Tone
from profiler.units import KIB, UNKNOWN

_CASE = attrgetter(*IDENTITY)
_SIZE = attrgetter("case.context", "case.batch", "case.steps")
_SETTINGS = attrgetter(  # with what ``SETTINGS`` show
    "model", "model_id", "quant", "weights", "dtype", "device", "backend", "path", "fill", "steps"
)

LIMITS: dict[object, tuple[str, str]] = {  # what holds a case back: in a cell, and in a sentence
    "bandwidth": ("reads", "reading weights and cache"),
    "compute": ("computes", "arithmetic"),
    "launches": ("launches", "launching kernels"),
    "experts": ("experts", "reading expert weights"),
    "memory": ("memory", "memory"),
    "host memory": ("host", "reading weights from host memory"),
}


@dataclass(slots=True, eq=False)
class CaseGroup:
    """What rows share that differ only in context, in batch and in what no page shows.

    A row refers to its group, but a group does not refer to its rows: cycles of 100,000 rows would keep the garbage
    collector busy for half a second.
    """

    case: Case  # of one of them
    format: tuple[str, str]  # model and quantization
    model: str = ""  # printable
    series: str = ""  # the quantization, and what else tells this group from others of its model


@dataclass(slots=True, eq=False)
class CaseResult:
    """What the sections look at in every row, worked out once. Rates in tokens per second; unknown is None.

    A page may have 100,000 rows, and every field makes each of them larger. What is asked of few rows is a property.
    """

    case: Case
    group: CaseGroup
    environment: dict[str, Any]
    outcome: str
    ok: bool
    reason: str | None
    started_at: str | None
    memory: Memory
    prefill_tps: float | None  # medians
    decode_tps: float | None
    centre: Centre | None  # of the rates of decode
    expected: Mapping[str, Any]  # as predicted before it ran
    energy: Mapping[str, Any] | None
    cautions: tuple[Caution, ...]  # of a row with a result: all that is to be said of it
    again: Callable[[], Measurement]

    @property
    def model(self) -> str:
        return self.group.model

    @property
    def series(self) -> str:
        return self.group.series

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
        if self.centre is None:
            return 0.0
        between = (self.expected.get("between") or {}).get("decode")
        return self.centre.median * math.exp(-self.centre.reach(between))

    @property
    def comparable(self) -> bool:
        """Whether decode was measured, and its median can be compared."""
        if self.centre is None or self.centre.near:
            return self.centre is not None
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
        at = self.ceiling_s
        return stats.shares(self.case, at, self.prefill_tps, self.decode_tps) if at else {}

    @property
    def verdict(self) -> Tone:
        """By the measured peak, with the thresholds of predictions; ``none`` where the peak is unknown."""
        if not self.ok:
            return "no" if self.outcome == "oom" else "none"
        if self.peak_bytes is None or self.limit_bytes is None:
            return "none"
        left = self.limit_bytes - self.peak_bytes
        return "tight" if left < max(TIGHT_SHARE * self.limit_bytes, TIGHT_BYTES) else "fits"


@dataclass(slots=True, eq=False)
class MachineRows:
    """The rows of one machine, in the order of models and quantizations as first seen, then by size."""

    title: str
    results: Sequence[CaseResult]
    batch: int = 1  # of the figures over context: what most rows have, the smallest of several
    groups: dict[CaseGroup, list[CaseResult]] = field(default_factory=dict)  # in the order of their first rows
    ok: list[CaseResult] = field(default_factory=list)  # rows with a result
    of: dict[str, list[CaseResult]] = field(default_factory=dict)  # the same by model, of every model
    at: dict[int, list[CaseResult]] = field(default_factory=dict)  # and by batch
    weighed: list[CaseResult] = field(default_factory=list)  # those whose peak is known
    noted: list[CaseResult] = field(default_factory=list)  # those with cautions
    calibrated: list[CaseResult] = field(default_factory=list)  # those with a ceiling
    ended: list[CaseResult] = field(default_factory=list)  # rows without a result

    def __post_init__(self) -> None:
        for result in self.results:
            self.groups.setdefault(result.group, []).append(result)
            if not result.ok:
                self.ended.append(result)
                continue
            self.ok.append(result)
            self.at.setdefault(result.case.batch, []).append(result)
            if result.memory.process_peak_bytes is not None:
                self.weighed.append(result)
            if result.cautions:
                self.noted.append(result)
            if result.ceiling_s:
                self.calibrated.append(result)
        _name(self.groups)
        self.of = {group.model: [] for group in self.groups}
        for result in self.ok:
            self.of[result.model].append(result)
        counts = Counter({batch: len(mine) for batch, mine in self.at.items()})
        counts = counts or Counter(result.case.batch for result in self.results)
        self.batch = min(counts, key=lambda batch: (-counts[batch], batch))

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
    found: dict[tuple[Any, ...], _Cases] = {}
    places: dict[tuple[int, str], _Cases] = {}
    kept: list[dict[str, Any]] = []
    for row in measurements:
        place = id(row.environment), row.case.backend  # many rows share an environment, and ``kept`` holds on to it
        cases = places.get(place)
        if cases is None:
            cases = places[place] = found.setdefault(_identity(row), _Cases())
            kept.append(row.environment)
        cases.add(row)
    titles = Counter[str]()
    machines = []
    for cases in found.values():
        results = cases.in_order()
        title = device_title(results[0])
        titles[title] += 1
        machines.append(MachineRows(title if titles[title] == 1 else f"{title} #{titles[title]}", results))
    return machines


class _Cases:
    """The rows of one machine while they are read."""

    def __init__(self) -> None:
        self.results: dict[tuple[Any, ...], CaseResult] = {}  # by what ``Case.key`` hashes, which takes far longer
        self.groups: dict[tuple[Any, ...], CaseGroup] = {}

    def add(self, row: Measurement) -> None:
        """Take a row up unless there is a better one of its case."""
        key = _CASE(row.case)
        known = self.results.get(key)
        if known is not None and known.ok and row.outcome != "ok":
            return
        settings = _SETTINGS(row.case)
        group = self.groups.get(settings)
        if group is None:
            group = self.groups[settings] = CaseGroup(row.case, (row.case.model, row.case.quant))
        self.results[key] = _result(row, group)

    def in_order(self) -> list[CaseResult]:
        """Models and quantizations as first seen, then by size."""
        formats: dict[tuple[str, str], list[CaseResult]] = {}
        for result in self.results.values():
            formats.setdefault(result.group.format, []).append(result)
        models, quants = (dict(zip(dict.fromkeys(names), count())) for names in zip(*formats, strict=True))
        ordered = sorted(formats, key=lambda name: (models[name[0]], quants[name[1]]))
        return [result for name in ordered for result in sorted(formats[name], key=_SIZE)]


def _result(row: Measurement, group: CaseGroup) -> CaseResult:
    centres = stats.centres(row)
    prefill, decode = centres["prefill"], centres["decode"]
    ok = row.outcome == "ok"
    noted = cautions(row, centres) if ok else ()
    joules = None if row.energy is None else energy.content(row)
    return CaseResult(
        row.case, group, row.environment, row.outcome, ok, row.reason, row.started_at, row.memory,
        prefill and prefill.median, decode and decode.median, decode, row.expected, joules, noted, row.again,
    )  # fmt: skip


def _name(groups: Collection[CaseGroup]) -> None:
    """Give each group the names of its model and its series.

    A series is named by the settings that tell rows of one model and quantization apart; a dtype that merely
    follows the quantization does not.
    """
    formats: dict[tuple[str, str], list[CaseGroup]] = {}
    for group in groups:
        formats.setdefault(group.format, []).append(group)
    telling = [
        column
        for column in SETTINGS
        if any(len({column.cell(group) for group in mine}) > 1 for mine in formats.values())
    ]
    for group in groups:
        group.model, quant = (plain(name, 60) or "(no name)" for name in group.format)
        group.series = " ".join([quant, *(column.cell(group) for column in telling)])


def _identity(row: Measurement) -> tuple[Any, ...]:
    """What makes a machine another one: not its software, nor how much of its memory is free."""
    device, cpu = row.environment.get("device") or {}, row.environment.get("cpu") or {}
    told = tuple(str(device.get(name)) for name in ("kind", "title", "memory_bytes", "uuid_hash"))
    return (backends.made_up(row.case.backend) is not None, *told, str(cpu.get("title")), str(cpu.get("cores")))


def tokens(count: int) -> str:
    """``128``, ``32k``."""
    return f"{count // KIB}k" if count >= KIB and count % KIB == 0 else f"{count:,}"


def rate(summary: Summary | None) -> str:
    """The median rate with the digits that its interval supports."""
    return UNKNOWN if summary is None else figure(summary.median, summary.relative_half)


def ranged(summary: Summary | None) -> str:
    """``14.2 (13.8–14.7)``: with its 95% interval, where it has one."""
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
