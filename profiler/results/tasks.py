"""The tasks of a server's row: outcomes as they are stored in ``serving``, and the figures that follow from them.

    passed    the checker found nothing wrong
    wrong     it did, and the reason says what
    cut       the answer reached the limit of tokens before its end, so it was not checked
    failed    the request failed, or the answer could not be checked: says nothing about the model

**The pass rate** is passed ÷ (passed + wrong + cut). Its 95% interval is Wilson's (1927, JASA 22), which holds for
few tasks and for rates near 0 and 1. It is that of other tasks of the same kinds, as if these were drawn from them.

**Two models** that answered the same tasks are compared on those that only one of them passed, by the exact form of
McNemar's test: if neither were better, each such task would be a coin toss. Of several models, every two are
compared, and the p-values are corrected for the number of pairs (Holm 1979, Scandinavian Journal of Statistics 6), so
that the chance of any wrong "they differ" stays at 5%.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from profiler.results.quality import Estimate
from profiler.units import UNKNOWN

COLUMNS = ("kind", "name", "outcome", "reason")
DERIVED = ("passed", "answered", "rate", "kinds")  # added when a row is printed
Z = 1.959964  # of a normal distribution, 95% of which is nearer to the mean
ALPHA = 0.05
PAIRS_LISTED = 10  # of those that cannot be told apart


@dataclass(frozen=True, slots=True)
class TaskScore:
    """How many tasks ended in each way."""

    passed: int = 0
    wrong: int = 0
    cut: int = 0
    failed: int = 0

    @property
    def answered(self) -> int:
        """The tasks that count."""
        return self.passed + self.wrong + self.cut

    @property
    def rate(self) -> Estimate | None:
        """The pass rate with its 95% interval; None if no task counts."""
        return Estimate(self.passed / self.answered, *wilson(self.passed, self.answered)) if self.answered else None


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """Two models on the tasks that both answered."""

    count: int
    both: int  # passed by both
    only_a: int
    only_b: int
    p: float  # two-sided

    @property
    def a(self) -> float:
        """The pass rate of A on these tasks."""
        return (self.both + self.only_a) / self.count

    @property
    def b(self) -> float:
        return (self.both + self.only_b) / self.count

    @property
    def significant(self) -> bool:
        return self.p <= ALPHA


def wilson(passed: float, count: int) -> tuple[float, float]:
    """The ends of Wilson's 95% interval of ``passed`` of ``count``."""
    share, weight = passed / count, Z**2 / count
    center = share + weight / 2
    reach = Z * math.sqrt((share * (1 - share) + weight / 4) / count)
    low, high = (center - reach) / (1 + weight), (center + reach) / (1 + weight)
    return (0.0 if not passed else low), (1.0 if passed == count else high)  # without the rounding


def score(outcomes: Iterable[str]) -> TaskScore:
    """The score of outcomes in the words of ``TASK_VERDICTS``."""
    return TaskScore(**Counter(outcomes))


def score_of(serving: Mapping[str, Any] | None) -> TaskScore | None:
    """The score of a row's ``serving``; None if it has no tasks."""
    found = (serving or {}).get("tasks")
    return score(found["outcome"]) if found else None


def rate_text(found: TaskScore | None) -> str:
    """``62% (48–74)``: the pass rate and its 95% interval."""
    rate = None if found is None else found.rate
    if rate is None or rate.low is None or rate.high is None:
        return UNKNOWN
    return f"{rate.value:.0%} ({100 * rate.low:.0f}–{100 * rate.high:.0f})"


def by_kind(stored: Mapping[str, Sequence[Any]]) -> dict[str, TaskScore]:
    """The score of each kind, in the order of the tasks."""
    kinds: dict[str, list[str]] = {}
    for kind, outcome in zip(stored["kind"], stored["outcome"], strict=True):
        kinds.setdefault(kind, []).append(outcome)
    return {kind: score(outcomes) for kind, outcomes in kinds.items()}


def compared(a: Mapping[str, Sequence[Any]], b: Mapping[str, Sequence[Any]]) -> TaskComparison | None:
    """Two rows' ``tasks``; None if they are not of the same tasks, or share none that both answered."""
    if a["hash"] != b["hash"]:
        return None
    one, other = (dict(zip(zip(x["kind"], x["name"], strict=True), x["outcome"], strict=True)) for x in (a, b))
    pairs = [(one[task], other[task]) for task in one if task in other and "failed" not in (one[task], other[task])]
    if not pairs:
        return None
    counts = Counter((x == "passed", y == "passed") for x, y in pairs)
    only_a, only_b = counts[True, False], counts[False, True]
    return TaskComparison(len(pairs), counts[True, True], only_a, only_b, _coin(only_a, only_b))


def pairs(named: Sequence[tuple[str, Mapping[str, Sequence[Any]]]]) -> list[tuple[str, str, TaskComparison]]:
    """Every two of these rows' ``tasks`` that compare, with their names and p-values by Holm's correction."""
    every = combinations(named, 2)
    found = [(a, b, pair) for (a, one), (b, other) in every if a != b and (pair := compared(one, other)) is not None]
    highest, left = 0.0, len(found)
    corrected = list(found)
    for number, (a, b, pair) in sorted(enumerate(found), key=lambda each: each[1][2].p):
        highest = max(highest, min(1.0, left * pair.p))
        corrected[number] = a, b, replace(pair, p=highest)
        left -= 1
    return corrected


def pair_lines(found: Sequence[tuple[str, str, TaskComparison]]) -> list[str]:
    """What ``pairs`` tell, a line each. Of many pairs that cannot be told apart, the last ones are only counted."""
    lines: list[str] = []
    alike = 0
    for a, b, pair in found:
        alike += not pair.significant
        if not pair.significant and alike > PAIRS_LISTED:
            continue
        words = "they differ" if pair.significant else "too few to tell them apart"
        corrected = f", corrected for {len(found)} pairs" if len(found) > 1 else ""
        counts = f"both passed {pair.both}, only {a} {pair.only_a}, only {b} {pair.only_b}"
        lines.append(f"tasks: {counts}: {words} (p = {pair.p:.2g}{corrected})")
    if alike > PAIRS_LISTED:
        lines.append(f"tasks: {alike - PAIRS_LISTED} more pairs: too few to tell them apart")
    return lines


def biased(name: str, found: TaskScore) -> str | None:
    """What a reader of a pass rate must know about requests that failed; None if none did."""
    if not found.failed:
        return None
    return (
        f"{name}: {found.failed} of {found.answered + found.failed} tasks have no answer that could be checked. They"
        " are in no pass rate, which is too high if hard tasks fail more often, as by a timeout."
    )


def _coin(a: int, b: int) -> float:
    """How likely a fair coin shows sides as unequal as ``a`` and ``b``, or more."""
    tosses = a + b
    return min(1.0, 2.0 * sum(math.comb(tosses, k) for k in range(min(a, b) + 1)) / 2.0**tosses)


def fewest_apart() -> int:
    """The fewest tasks by which two models can differ significantly: all that only one of them passes are one's."""
    return next(count for count in range(1, 100) if _coin(count, 0) <= ALPHA)


def content(serving: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The ``serving`` of a public row: what is stored, and the pass rate of all tasks and of each kind."""
    if serving is None or not (found := serving.get("tasks")):
        return serving
    kinds = {kind: _figures(each) for kind, each in by_kind(found).items()}
    return {**serving, "tasks": {**found, **_figures(score(found["outcome"])), "kinds": kinds}}


def stored(serving: Any) -> Any:
    """What a row stores, from the ``serving`` of a public row."""
    if not isinstance(serving, dict) or not isinstance(found := serving.get("tasks"), dict):
        return serving
    return {**serving, "tasks": {name: value for name, value in found.items() if name not in DERIVED}}


def _figures(found: TaskScore) -> dict[str, Any]:
    rate = found.rate
    ends = None if rate is None else {name: round(getattr(rate, name), 9) for name in ("value", "low", "high")}
    return {"passed": found.passed, "answered": found.answered, "rate": ends}
