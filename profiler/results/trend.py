"""Whether repetitions have settled: their drift, and whether it is more than chance.

Drift is the Theil–Sen slope, the median of the slopes between all pairs, times the number of repetitions, relative to
their median: a single outlier does not move it. Whether there is a trend at all is Mann's test (Mann 1945, Kendall
1975): among repetitions without one, later is longer as often as shorter.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations

from profiler.results.stats import percentile

WINDOW = 5  # repetitions that are looked at: fewer tell a trend from chance only by luck
STEADY_DRIFT = 0.01  # over the window; half of the default precision
STEADY_SPREAD = 0.02  # interquartile range ÷ median over the window
CLEAR_Z = 2.2  # of Mann's test: of five repetitions only a strictly rising or falling row passes (odds 1 in 60)


def drift(seconds: Sequence[float]) -> float:
    """Relative change over all of ``seconds`` (at least two), negative where they became shorter."""
    slopes = [(seconds[j] - seconds[i]) / (j - i) for i, j in combinations(range(len(seconds)), 2)]
    return statistics.median(slopes) * len(seconds) / statistics.median(seconds)


def spread(seconds: Sequence[float]) -> float:
    """Interquartile range ÷ median."""
    ordered = sorted(seconds)
    return (percentile(ordered, 0.75) - percentile(ordered, 0.25)) / percentile(ordered, 0.5)


def steady(seconds: Sequence[float]) -> bool | None:
    """Whether the last ``WINDOW`` repetitions neither drift nor spread; None: there were not so many."""
    last = seconds[-WINDOW:]
    if len(last) < WINDOW or not min(last) > 0:  # a clock that stands still says nothing
        return None
    return abs(drift(last)) < STEADY_DRIFT and spread(last) < STEADY_SPREAD


def trend(seconds: Sequence[float]) -> float | None:
    """The drift of ``seconds`` if it is more than chance, else None."""
    n = len(seconds)
    if n < WINDOW or not min(seconds) > 0:
        return None
    score = sum((after > before) - (after < before) for before, after in combinations(seconds, 2))
    z = (abs(score) - 1) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)  # ties, rare in clocks, make it err to no trend
    return drift(seconds) if z >= CLEAR_Z else None
