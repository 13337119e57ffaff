"""The rows of a report by machine, newest first for each case, with what is derived from them worked out once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from profiler import backends
from profiler.case import IDENTITY, Case
from profiler.cost.prediction import TIGHT_BYTES, TIGHT_SHARE
from profiler.results import energy, stats
from profiler.results.cautions import cautions
from profiler.results.measurement import Caution, Measurement, Memory
from profiler.results.stats import Summary
from profiler.show.columns import SETTINGS, device_memory, device_title, figure, plain
from profiler.show.report.blocks import Tone
from profiler.units import KIB, UNKNOWN

_CASE = attrgetter(*IDENTITY)
_SETTINGS = attrgetter(
    "model", "quant", "weights", "dtype", "device", "backend", "path", "fill", "steps"
)  # with what ``SETTINGS`` show

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
        return stats.shares(self.case, self.ceiling_s, self.prefill_tps, self.decode_tps)

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
class MachineRows:
    """The rows of one machine. ``facts`` are in the order of models and formats as first seen, then by size."""

    title: str
    results: Sequence[CaseResult]
    ok: Sequence[CaseResult]  # those with a result
    batch: int  # of the figures over context: what most rows have, the smallest of several
    of: Mapping[str, Sequence[CaseResult]]  # by model
    series: Sequence[str]  # of all facts, in their order

    @property
    def models(self) -> list[str]:
        return list(self.of)

    def ok_of(self, model: str) -> list[CaseResult]:
        """Rows of a model with a result."""
        return [result for result in self.of.get(model, ()) if result.ok]

    def palette(self, names: Iterable[str]) -> dict[str, int]:
        """Places of series among all of this side, so that one has one colour in every chart."""
        return {name: self.series.index(name) for name in names}

    @property
    def environment(self) -> dict[str, Any]:
        """Of the newest row."""
        return max(self.results, key=lambda result: result.started_at or "").environment


def machines(measurements: Iterable[Measurement]) -> list[MachineRows]:
    """Machines in the order of their first row. Of a case measured twice the newer row counts, a good one first.

    Of each row only what every section needs is kept, so that a store may have far more rows than memory should hold.
    """
    machines: dict[tuple[Any, ...], dict[tuple[Any, ...], CaseResult]] = {}
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
    models: dict[str, int] = {}
    quants: dict[str, int] = {}
    placed = []
    for number, result in enumerate(results):
        case = result.case
        place = models.setdefault(case.model, number), quants.setdefault(case.quant, number)
        placed.append((*place, case.context, case.batch, case.steps, number, result))
    placed.sort()
    return [result for *_, result in placed]


def _machine(title: str, results: Sequence[CaseResult]) -> MachineRows:
    of = _name(results)
    ok = results if all(result.ok for result in results) else [result for result in results if result.ok]
    counts = Counter(result.case.batch for result in ok or results)
    batch = min(counts, key=lambda batch: (-counts[batch], batch))
    return MachineRows(title, results, ok, batch, of, list(dict.fromkeys(result.series for result in results)))


def _result(row: Measurement) -> CaseResult:
    """All but the names, which depend on the other rows."""
    centres = stats.centres(row)
    ok = row.outcome == "ok"
    noted = cautions(row, centres) if ok else ()
    joules = None if row.energy is None else energy.content(row)
    prefill, decode = centres["prefill"], centres["decode"]
    least = decode.median * math.exp(-decode.reach(stats.between(row, "decode"))) if decode else 0.0
    expected = row.expected
    return CaseResult(
        row.case, row.environment, row.outcome, ok, row.reason, row.started_at, row.memory,
        row.memory.process_peak_bytes, device_memory(row),
        prefill and prefill.median, decode and decode.median, least, decode is not None and decode.near,
        expected.get("ceiling_s"), expected.get("decode_bound"), joules, noted, row.again,
    )  # fmt: skip


def _name(results: Sequence[CaseResult]) -> dict[str, list[CaseResult]]:
    """Give each fact the names of its model and its series. The facts of each model, by name.

    A series is named by the settings that tell rows of one model and format apart; a dtype that merely follows the
    format does not.
    """
    alike: dict[tuple[str, ...], list[CaseResult]] = {}  # many rows share all their settings
    for result in results:
        alike.setdefault(_SETTINGS(result.case), []).append(result)
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for mine in alike.values():
        groups.setdefault((mine[0].case.model, mine[0].case.quant), []).append(mine[0])
    telling = [
        column
        for column in SETTINGS
        if any(len({column.cell(result) for result in group}) > 1 for group in groups.values())
    ]
    for mine in alike.values():
        model, quant = (plain(name, 60) or "(no name)" for name in (mine[0].case.model, mine[0].case.quant))
        series = " ".join([quant, *(column.cell(mine[0]) for column in telling)])
        for result in mine:
            result.model, result.series = model, series
    of: dict[str, list[CaseResult]] = {}
    for result in results:
        of.setdefault(result.model, []).append(result)
    return of


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
