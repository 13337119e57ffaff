"""Compares two sets of measurements: the cases in both, the ratios of their medians, and confidence intervals.

The ratio is that of the medians, B over A. Its 95% interval is Welch's t interval (Welch 1947) of the difference
between the mean logarithms of both sets of repetitions, exponentiated: timing noise is multiplicative and about
normal in logarithms, so the median is exp(mean). Degrees of freedom are rounded down to a tenth. There is no interval
if either side has a single repetition.

Like the interval of a row (``stats``) it is widened for correlated consecutive repetitions and, if it was known when
the rows were measured, for the process-to-process variation. It still compares one process with one other, at two
different times: a difference holds for these two runs only. ``profiler.gate`` detects regressions.

KL divergences are compared if both rows have the same scale (``quality.KlScale``). The interval of their ratio is
that of other texts of the same kinds, because the divergence over the same texts is the same each time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from profiler.case import Case
from profiler.results import measurement, quality, stats
from profiler.results.environment import differences
from profiler.results.measurement import PHASES, Measurement, Phase
from profiler.results.tasks import TaskComparison, compared
from profiler.units import printable, significant

CONFIDENCE = 0.95
MAX_DEGREES_OF_FREEDOM = 200.0  # beyond this, Student's t is as good as normal


@dataclass(frozen=True, slots=True)
class Ratio:
    """B over A of one quantity. Without repetitions on both sides there is no interval."""

    a: float  # medians
    b: float
    n: tuple[int, int] = (1, 1)  # repetitions of A and B
    low: float | None = None  # ends of the 95% interval
    high: float | None = None
    t: float | None = None  # difference of the mean logarithms in standard errors; infinite without any variation
    df: float | None = None

    @property
    def value(self) -> float:
        return self.b / self.a

    @property
    def relative_half(self) -> float | None:
        """From the ratio to the farther end of its interval, ÷ ratio; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return max(self.high - self.value, self.value - self.low) / self.value

    @property
    def wide(self) -> bool:
        """Whether the interval is too wide to say anything, by the same limit as for a rate (``stats.WIDE``)."""
        return self.relative_half is not None and self.relative_half > stats.WIDE

    @property
    def significant(self) -> bool | None:
        """Whether the interval excludes 1; None without an interval."""
        return None if self.low is None or self.high is None else not self.low <= 1 <= self.high

    @property
    def p(self) -> float | None:
        """Two-sided p value of the hypothesis that A and B are equal."""
        if self.t is None or self.df is None:
            return None
        return 2 * stats.tail(self.t, self.df) if math.isfinite(self.t) else 0.0


@dataclass(frozen=True, slots=True)
class ComparedCase:
    """One case with ``ok`` rows on both sides, and the ratios of the figures that both have."""

    a: Measurement
    b: Measurement
    rates: Mapping[Phase, Ratio]  # of tokens per second, so above 1 means that B is faster
    peak: Ratio | None  # of the peak memory that decides whether the case fits
    total: Ratio | None = None  # of the tokens per second of all streams of a server together, by wall time
    tasks: TaskComparison | None = None  # of the tasks of --tasks that both answered
    kl: Ratio | None = None  # of the mean KL divergence, so above 1 means that B loses more

    @property
    def case(self) -> Case:
        return self.a.case


@dataclass(frozen=True, slots=True)
class Comparison:
    """The cases that two sets of measurements share, and their differences."""

    pairs: tuple[ComparedCase, ...]  # in the order of A
    failed: tuple[tuple[Measurement, Measurement], ...]  # in both sets, but not ``ok`` in both
    only_a: tuple[Measurement, ...]
    only_b: tuple[Measurement, ...]
    differences: tuple[str, ...]  # between the environments and decode steps of the pairs


def compare(a: Iterable[Measurement], b: Iterable[Measurement]) -> Comparison:
    """Pair ``a`` and ``b`` by case key. If a case has several rows, the last one counts and a message says so."""
    sides = {"A": list(a), "B": list(b)}
    left, right = ({row.case.key: row for row in rows} for rows in sides.values())
    both = [(row, right[key]) for key, row in left.items() if key in right]
    ended_well = [(row, other) for row, other in both if row.outcome == other.outcome == "ok"]
    return Comparison(
        pairs=tuple(replace(pair(row, other), kl=_kl(row, other)) for row, other in ended_well),
        failed=tuple((row, other) for row, other in both if not row.outcome == other.outcome == "ok"),
        only_a=tuple(row for key, row in left.items() if key not in right),
        only_b=tuple(row for key, row in right.items() if key not in left),
        differences=(
            *_repeated("A", sides["A"], left),
            *_repeated("B", sides["B"], right),
            *_differences(ended_well),
        ),
    )


def _repeated(side: str, rows: Sequence[Measurement], cases: Mapping[str, Measurement]) -> list[str]:
    extra = len(rows) - len(cases)
    if not extra:
        return []
    return [
        f"{side} has {extra} more row{'s' * (extra != 1)} of cases that it already contains: the last of each counts"
    ]


def pair(a: Measurement, b: Measurement) -> ComparedCase:
    """Compare two measurements of one case."""
    rates: dict[Phase, Ratio] = {}
    for phase in PHASES:
        found = ratio(stats.rates(a, phase), stats.rates(b, phase), stats.between(a, phase), stats.between(b, phase))
        if found is not None:
            rates[phase] = found
    peak = _exact(a.memory.process_peak_bytes, b.memory.process_peak_bytes)
    totals = ((row.serving or {}).get("total_tps") for row in (a, b))
    one, other = ((row.serving or {}).get("tasks") for row in (a, b))
    tasks = compared(one, other) if one and other else None
    return ComparedCase(a, b, rates, peak, _exact(*totals) if a.case.batch > 1 else None, tasks)


def _kl(a: Measurement, b: Measurement) -> Ratio | None:
    """The ratio of the KL divergences of two rows with the same scale; None if one of them is 0."""
    left, right = quality.scale(a.quality), quality.scale(b.quality)
    if left is None or right is None or quality.unlike(left, right) is not None:
        return None
    sides = [quality.blocks(row.quality or {}) for row in (a, b)]
    found = quality.kl_ratio(*sides)
    if found is None:
        return None
    before, after = (quality.quick_kl(row.quality or {}) for row in (a, b))
    return Ratio(before, after, (len(sides[0]), len(sides[1])), found.low, found.high)


def too_noisy(a: Measurement, b: Measurement, phase: Phase) -> bool:
    """Whether the repetitions of a phase differ too much in A or in B for a ratio of the two."""
    return any(found is not None and found.wide for found in (stats.rate(a, phase), stats.rate(b, phase)))


def ratio(
    a: Sequence[float], b: Sequence[float], between_a: float | None = None, between_b: float | None = None
) -> Ratio | None:
    """The ratio of the medians of positive values, B over A, with its interval; None if a side has no values.

    Values are in the order of measurement. ``between_a`` and ``between_b``: process-to-process variation (``stats``).
    """
    if not a or not b:
        return None
    medians, n = (statistics.median(a), statistics.median(b)), (len(a), len(b))
    if min(n) < 2:
        return Ratio(*medians, n)
    logs_a, logs_b = [math.log(each) for each in a], [math.log(each) for each in b]
    center = math.fsum(logs_b) / len(b) - math.fsum(logs_a) / len(a)
    part_a, part_b = ((stats.widening(logs) * stats.stdev(logs)) ** 2 / len(logs) for logs in (logs_a, logs_b))
    apart = (between_a or 0.0) ** 2 + (between_b or 0.0) ** 2
    error, value = math.sqrt(part_a + part_b + apart), medians[1] / medians[0]
    if error == 0:
        return Ratio(*medians, n, value, value, 0.0 if value == 1 else math.inf, 1.0)
    df = _degrees(part_a, len(a), part_b, len(b), apart)
    half = stats.quantile(1 - (1 - CONFIDENCE) / 2, df) * error
    low, high = math.exp(center - half), math.exp(center + half)
    return Ratio(*medians, n, min(low, value), max(high, value), abs(center) / error, df)  # value ≈ exp(center)


def in_words(comparison: Comparison) -> str:
    """A message about why two sets share no case: the fields in which their cases always differ."""
    sides = [[row.case for row in rows] for rows in (comparison.only_a, comparison.only_b)]
    empty = [name for name, side in zip("AB", sides, strict=True) if not side]
    if empty:
        return f"{empty[0]} has no rows" if len(empty) == 1 else "neither has any rows"
    fields = [
        "model_id",
        "quant",
        "dtype",
        "device",
        "backend",
        "path",
        "weights",
        "context",
        "batch",
        "steps",
        "fill",
        "threads",
        "ubatch",
        "seed",
        "options",
    ]
    never = [name for name in fields if not set.intersection(*({getattr(c, name) for c in side} for side in sides))]
    return f"their cases differ in {', '.join(never)}" if never else "they have no case in common"


def _exact(a: float | None, b: float | None) -> Ratio | None:
    return Ratio(a, b) if a and b else None


def _degrees(part_a: float, n_a: int, part_b: float, n_b: int, apart: float) -> float:
    """Welch–Satterthwaite degrees of freedom, rounded down to a tenth so that ``quantile`` can cache its results.

    ``apart``, the process-to-process variation, is treated as known and not as estimated from these values.
    """
    below = part_a**2 / (n_a - 1) + part_b**2 / (n_b - 1)
    if below <= 0:
        return MAX_DEGREES_OF_FREEDOM if apart else 1.0
    return min(MAX_DEGREES_OF_FREEDOM, max(1.0, math.floor(10 * (part_a + part_b + apart) ** 2 / below) / 10))


def _differences(pairs: Iterable[tuple[Measurement, Measurement]]) -> tuple[str, ...]:
    """Each difference between environments once, since rows of a run share theirs, and those between decode steps."""
    found: dict[str, None] = {}
    seen: set[tuple[int, int]] = set()
    for a, b in pairs:
        environments = (id(a.environment), id(b.environment))
        if environments not in seen:
            seen.add(environments)
            found.update(dict.fromkeys(differences(a.environment, b.environment)))
        unlike = measurement.difference(a, b, ("A", "B"))
        if unlike:
            found[f"{printable(a.case.label)}: {unlike}"] = None
        found.update(dict.fromkeys(_unlike_kl(a, b)))
    return tuple(found)


def _unlike_kl(a: Measurement, b: Measurement) -> Iterator[str]:
    """Why the KL divergences of both rows have no ratio."""
    left, right = quality.scale(a.quality), quality.scale(b.quality)
    if left is None or right is None:
        return
    if (what := quality.unlike(left, right)) is not None:
        yield f"{printable(a.case.label)}: KL divergences are not compared, because A and B differ in {what}"
        return
    values = [quality.quick_kl(row.quality or {}) for row in (a, b)]
    if min(values) <= 0 < max(values):
        shown = (significant(value, 2) for value in values)
        yield f"{printable(a.case.label)}: the KL divergence is {' in A and '.join(shown)} in B"
