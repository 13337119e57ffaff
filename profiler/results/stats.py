"""Statistics of a measurement, derived from its raw samples on demand.

The figure of a phase is the **median** over its repetitions with a 95% interval of that median. Two rules give the
interval, by the number of repetitions n:

- ``order``, n ≥ 6: the narrowest pair of order statistics (x₍k₎, x₍n+1−k₎) whose coverage 1 − 2·P(Bin(n, ½) < k) is
  at least 95%. It assumes no distribution (Thompson 1936; David & Nagaraja, *Order Statistics*, 3rd ed., §7.1).
  No such pair exists below six: the whole range of n values covers 1 − 2^(1−n), 93.75% at n = 5 and 75% at n = 3.
- ``log-t``, 2 ≤ n ≤ 5: Student's t on the logarithms, exponentiated. It assumes that a rate's noise is a factor and
  about normal in logarithms, so that its median is exp(mean). It is wide for n = 2 and 3, as so few values require.

One repetition has a median and no interval. Both rules assume that repetitions are independent and do not know other
sources of variation. The ends are therefore moved away from the median, on a logarithmic scale, for two reasons:

- **neighbors**: consecutive repetitions of one process are correlated (0.6 to 0.7 on shared CPUs,
  ``benchmarks/drift.py``). From five repetitions on, the interval is wider by √((1 + r) ÷ (1 − r)) for their lag-1
  correlation r, as for the mean of an AR(1) process (Zwiers & von Storch 1995); see ``widening``.
- **processes**: two processes that measure the same case differ by more than their repetitions show. If that
  variation is known (``between``, one standard deviation ÷ median), 1.96 times it is added in quadrature. It is
  itself an estimate, from three to five calibrations or from other CPUs, so 1.96 covers only 80 to 90%.

**Trend.** Drift is the Theil–Sen slope, the median of the slopes between all pairs, times the number of repetitions,
relative to their median: a single outlier does not move it. Mann's test (Mann 1945, Kendall 1975) decides whether
there is a trend: without one, later repetitions are as often longer as shorter.

**Student's t**, without scipy. The tail is a regularized incomplete beta function, P(T > t) = ½ · I(ν / (ν + t²);
ν/2, ½) for t ≥ 0 (Abramowitz & Stegun 26.7.1), by its continued fraction (NIST DLMF 8.17.22) with Lentz's method.

The ``ceiling`` and ``predicted`` fields of a row follow from these figures and from stored ones.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import chain, combinations
from typing import Any, Literal, NamedTuple

from profiler.case import Case
from profiler.results.measurement import PHASES, Measurement, Phase

TINY = 1e-300  # replaces 0 in Lentz's denominators
PRECISION = 1e-15
TERMS = 10_000  # guards against endless loops: the fraction needs about the root of its larger argument

COVERAGE = 0.95
ORDER_NEEDS = 6  # the fewest values whose range covers the median with at least 95%
CLOSE = 1.5  # largest ÷ smallest of two repetitions that agree
WIDE = 0.5  # of the median: repetitions with a wider interval cannot be compared
CORRELATION_NEEDS = 5  # values: fewer do not show how neighbors are correlated
MAX_CORRELATION = 0.9
MAX_WIDENING = math.sqrt((1 + MAX_CORRELATION) / (1 - MAX_CORRELATION))
Z_975 = 1.96
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # by degrees of freedom; NIST e-Handbook of Statistics, 1.3.6.7.2
IntervalRule = Literal["order", "log-t"]

WINDOW = 5  # repetitions: fewer distinguish a trend from chance only by luck
STEADY_DRIFT = 0.01  # over the window; half of the default precision
STEADY_SPREAD = 0.02  # interquartile range ÷ median over the window
CLEAR_Z = 2.2  # of Mann's test: of five repetitions only a strictly monotonic series passes (1 in 60 by chance)

FIGURES = ("prefill_tps", "decode_tps", "peak_bytes")


def tail(t: float, df: float) -> float:
    """P(T > t) with ``df`` > 0 degrees of freedom, which need not be an integer."""
    if t < 0:
        return 1.0 - tail(-t, df)
    return 0.5 * _beta(df / (df + t * t), df / 2, 0.5)


@lru_cache(maxsize=4096)
def quantile(p: float, df: float) -> float:
    """The t below which a fraction ``p`` of the distribution lies, 0 < p < 1, to about 12 digits."""
    if p < 0.5:
        return -quantile(1 - p, df)
    low, high = 0.0, 1.0
    while tail(high, df) > 1 - p:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, df) > 1 - p else (low, middle)
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I(x; a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # symmetric in (x, a) and (1 − x, b)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction, evaluated forwards; it converges fast for x < (a + 1) / (a + b + 2)."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < PRECISION:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY


@dataclass(frozen=True, slots=True)
class Summary:
    """Repetitions of one quantity, in its own unit. ``None`` if ``n`` is too small."""

    n: int
    median: float
    low: float | None  # ends of the interval of the median
    high: float | None
    rule: IntervalRule | None  # the rule that gave the interval
    coverage: float | None  # for independent values: exact for ``order``, nominal for ``log-t``
    stdev: float | None  # of the sample, n − 1
    within: float | None = None  # as ``relative_half``, without process-to-process variation
    between: float | None = None  # process-to-process variation: standard deviation ÷ median; None: unknown
    least: float | None = None  # the range of the repetitions; None if their values are not known
    most: float | None = None
    busy: bool = False  # other processes took so much CPU time that the figure says how busy the machine was

    @property
    def relative_half(self) -> float | None:
        """From the median to the farther end of the interval, ÷ median."""
        if self.low is None or self.high is None:
            return None
        return max(self.high - self.median, self.median - self.low) / self.median

    @property
    def wide(self) -> bool:
        """Whether the median must not be compared: its interval is too wide, or the machine was ``busy``."""
        return self.busy or self.noisy

    @property
    def noisy(self) -> bool:
        """Whether the repetitions differ too much to compare."""
        return self.within is not None and self.within > WIDE

    @property
    def too_few(self) -> bool:
        """Whether two repetitions are close, so that an interval is ``wide`` only because there are two."""
        return self.n <= 2 and bool(self.least and self.most and self.most / self.least < CLOSE)


class MedianRange(NamedTuple):
    """Median and range of repetitions, without an interval."""

    n: int
    median: float
    spread: float  # the largest ÷ the smallest

    @property
    def near(self) -> bool:
        """Whether the repetitions are close enough that they cannot be ``wide``."""
        return self.spread <= most_spread(self.n)

    def reach(self, between: float | None) -> float:
        """The largest possible distance from the median to an end of its interval, as a difference of logarithms."""
        return _reach(self.n) * math.log(self.spread) + Z_975 * (between or 0.0)


@cache
def _reach(n: int) -> float:
    """The largest possible distance from the median to an end of its interval, in logarithms, for n values whose
    logarithms differ by at most 1, without process-to-process variation.

    The ends of ``order`` are two of the values, so they lie within that range of the median. The standard deviation
    of n logarithms is at most half their range × √(n ÷ (n − 1)), and t times that ÷ √n is half of ``log-t``, around a
    mean that lies within the range too. The maximum correlation of neighbors widens both.
    """
    apart = 1 + T_975[n - 1] / (2 * math.sqrt(n - 1)) if 1 < n < ORDER_NEEDS else 1.0
    return apart * (MAX_WIDENING if n >= CORRELATION_NEEDS else 1.0)


@cache
def most_spread(n: int) -> float:
    """The ratio of the largest to the smallest of n values up to which their interval cannot be ``wide``."""
    return math.exp(math.log1p(WIDE) / _reach(n)) if n > 1 else math.inf


Medians = Mapping[Phase, MedianRange | None]


@dataclass(frozen=True, slots=True)
class StepLatencies:
    """Seconds of single decode steps over all repetitions: how long a sequence waits for each token."""

    n: int
    p50_s: float
    p95_s: float | None  # None below 20 steps (p99_s: below 100), because the tail was not observed
    p99_s: float | None


def rates(measurement: Measurement, phase: Phase) -> list[float]:
    """Tokens per second of each repetition, over all sequences. Raises ValueError for a repetition without time."""
    timed = measurement.samples.timed(phase)
    for seconds, _ in timed:
        if not seconds > 0:
            raise ValueError(f"a {phase} sample of case {measurement.case.key} took no time")
    return [tokens / seconds for seconds, tokens in timed]


def rate(measurement: Measurement, phase: Phase) -> Summary | None:
    """Tokens per second of a phase, or None if it was not measured."""
    apart = between(measurement, phase)
    found: Summary | None = measurement.samples.cached(
        ("rate", phase, apart), lambda: summarize(rates(measurement, phase), apart)
    )
    return replace(found, busy=True) if found is not None and busy(measurement, phase) else found


def busy(measurement: Measurement, phase: Phase) -> bool:
    """Whether a caution says that other processes took too much CPU time for the figures of ``phase`` to mean
    anything."""
    return any(caution.code == f"{phase}-busy" for caution in measurement.cautions)


def median_range(values: list[float]) -> MedianRange | None:
    """Median and range of ``values``, which are sorted in place; None for none."""
    if not values:
        return None
    values.sort()
    return MedianRange(len(values), middle(values), values[-1] / values[0])


def medians(measurement: Measurement) -> Medians:
    """Median and range of both phases' rates, None for one that was not measured: a tenth of the work of ``rate``."""
    columns = measurement.samples.counted
    if columns is None:
        return {phase: median_range(rates(measurement, phase)) for phase in PHASES}
    found: dict[Phase, list[float]] = {"prefill": [], "decode": []}
    for phase, seconds, tokens in zip(*columns, strict=True):
        found[phase].append(tokens / seconds)
    return {"prefill": median_range(found["prefill"]), "decode": median_range(found["decode"])}


def between(measurement: Measurement, phase: Phase) -> float | None:
    """The process-to-process variation, as far as it was known: standard deviation ÷ median."""
    known = measurement.expected.get("between")
    return known.get(phase) if known else None


def ttft(measurement: Measurement) -> Summary | None:
    """Time to the first token: seconds of the prefill, which ends with the first token's logits.

    For a server whose prompts were cached, or that does not count tokens, only the median is known.
    """
    known = (measurement.serving or {}).get("ttft_s")
    if known and known.get("p50") and not measurement.samples.timed("prefill"):
        return Summary(known.get("n") or 1, known["p50"], None, None, None, None, None)
    found = summarize(measurement.samples.seconds("prefill"), between(measurement, "prefill"))
    return replace(found, busy=True) if found is not None and busy(measurement, "prefill") else found


def steps(measurement: Measurement) -> StepLatencies | None:
    """Latencies of decode steps; None if no repetition timed its steps."""
    found: StepLatencies | None = measurement.samples.cached("steps", lambda: _steps(measurement))
    return found


def _steps(measurement: Measurement) -> StepLatencies | None:
    seconds = sorted(chain.from_iterable(measurement.samples.column("step_s", "decode")))
    if not seconds:
        return None
    return StepLatencies(len(seconds), percentile(seconds, 0.5), _tail(seconds, 0.95), _tail(seconds, 0.99))


def summarize(values: Sequence[float], between: float | None = None) -> Summary | None:
    """Median, interval and spread of positive values, in the order of measurement; None for none."""
    if not values:
        return None
    ordered = sorted(values)
    n, median = len(ordered), middle(ordered)
    if n == 1:
        return Summary(1, median, None, None, None, None, None, least=median, most=median)
    low, high, rule, coverage = _order_interval(ordered) if n >= ORDER_NEEDS else _log_t_interval(ordered)
    low, high = _moved(median, low, high, widening(values), 0.0)
    within = max(high - median, median - low) / median
    if between:
        low, high = _moved(median, low, high, 1.0, Z_975 * between)
    return Summary(n, median, low, high, rule, coverage, stdev(ordered), within, between, ordered[0], ordered[-1])


def widening(values: Sequence[float]) -> float:
    """The factor by which an interval must be wider because consecutive values are correlated; 1 for fewer than five.

    √((1 + r) ÷ (1 − r)) for the lag-1 correlation r of ``values`` in the order of measurement. With few values r is
    biased by −(1 + 4·r) ÷ n (Marriott & Pope 1954), which is corrected; a negative result counts as 0, since no
    machine compensates a slow repetition with a fast one. For few values r is still too low: if neighbors are
    correlated by 0.6, the nominal 95% cover about 80% with five values, 89% with ten, 91% with twenty.
    """
    n = len(values)
    if n < CORRELATION_NEEDS:
        return 1.0
    mean = math.fsum(values) / n
    off = [value - mean for value in values]
    squares = math.fsum(each * each for each in off)
    if squares <= 0:
        return 1.0
    plain = math.fsum(map(operator.mul, off, off[1:])) / squares
    r = min(MAX_CORRELATION, max(0.0, plain + (1 + 4 * plain) / n))
    return math.sqrt((1 + r) / (1 - r))


def middle(ordered: Sequence[float]) -> float:
    """Median of sorted values, at least one. ``statistics.median`` would sort them again."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Percentile of sorted values, linearly interpolated (type 7 of Hyndman & Fan 1996, numpy's default)."""
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def stdev(values: Sequence[float]) -> float:
    """Sample standard deviation, n − 1. ``statistics.stdev`` uses fractions, which takes seconds for many rows."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1))


def _tail(ordered: Sequence[float], fraction: float) -> float | None:
    """A tail percentile, or None if fewer than one value is expected beyond it."""
    enough = len(ordered) >= round(1 / (1 - fraction))
    return percentile(ordered, fraction) if enough else None


def _moved(median: float, low: float, high: float, factor: float, more: float) -> tuple[float, float]:
    """The ends of an interval, ``factor`` times as far from the median plus ``more``; in logarithms."""
    if factor == 1 and not more:
        return low, high
    below, above = (math.hypot(factor * math.log(end / median), more) for end in (low, high))
    return median * math.exp(-below), median * math.exp(above)


def _order_interval(ordered: Sequence[float]) -> tuple[float, float, IntervalRule, float]:
    """Ends, rule and exact coverage of the narrowest symmetric pair of order statistics that covers 95%."""
    n, k = len(ordered), 1
    missed = 2.0 ** (1 - n)  # 2·P(Bin(n, ½) < k)
    while missed + 2 * math.comb(n, k) * 0.5**n <= 1 - COVERAGE:
        missed += 2 * math.comb(n, k) * 0.5**n
        k += 1
    return ordered[k - 1], ordered[n - k], "order", 1 - missed


def _log_t_interval(ordered: Sequence[float]) -> tuple[float, float, IntervalRule, float]:
    """Ends, rule and nominal coverage of the t interval on logarithms."""
    logs = [math.log(value) for value in ordered]
    mean = math.fsum(logs) / len(logs)
    if logs[0] == logs[-1]:
        return ordered[0], ordered[-1], "log-t", COVERAGE
    half = T_975[len(logs) - 1] * stdev(logs) / math.sqrt(len(logs))
    median = middle(ordered)  # not quite exp(mean), but the interval must contain it
    return min(math.exp(mean - half), median), max(math.exp(mean + half), median), "log-t", COVERAGE


def drift(seconds: Sequence[float]) -> float:
    """Relative change over all of ``seconds`` (at least two); negative if they became shorter."""
    slopes = [(seconds[j] - seconds[i]) / (j - i) for i, j in combinations(range(len(seconds)), 2)]
    return statistics.median(slopes) * len(seconds) / statistics.median(seconds)


def spread(seconds: Sequence[float]) -> float:
    """Interquartile range ÷ median."""
    ordered = sorted(seconds)
    return (percentile(ordered, 0.75) - percentile(ordered, 0.25)) / percentile(ordered, 0.5)


def steady(seconds: Sequence[float]) -> bool | None:
    """Whether the last ``WINDOW`` repetitions neither drift nor spread; None: there were fewer."""
    last = seconds[-WINDOW:]
    if len(last) < WINDOW or not min(last) > 0:  # the clock did not advance
        return None
    return abs(drift(last)) < STEADY_DRIFT and spread(last) < STEADY_SPREAD


def trend(seconds: Sequence[float]) -> float | None:
    """The drift of ``seconds`` if it is more than chance, else None."""
    n = len(seconds)
    if n < WINDOW or not min(seconds) > 0:
        return None
    score = sum((after > before) - (after < before) for before, after in combinations(seconds, 2))
    z = (abs(score) - 1) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)  # ties, rare in timings, make it conservative
    return drift(seconds) if z >= CLEAR_Z else None


def predicted(measurement: Measurement) -> dict[str, Any] | None:
    """Predicted rates and peak, each with bounds and basis; null if nothing was predicted."""
    known = {name: measurement.expected.get(name) for name in FIGURES}
    path = measurement.decode_path
    if path is not None and path.ran != measurement.case.path and measurement.expected.get("path") != path.ran:
        known["decode_tps"] = None  # it is for a decode step that did not run
    return known if any(known.values()) else None


def ceiling(measurement: Measurement, known: Medians | None = None) -> dict[str, Any] | None:
    """The field ``ceiling`` of a row: how much of the device both phases use, 0..1, and what limits decode; null if
    nothing is known of the device's ceilings. A share above 1 is our bug.
    """
    at, used = (measurement.expected.get(name) for name in ("ceiling_s", "utilization"))
    if not at and not used:
        return None
    prefill, decode = (each and each.median for each in (known or medians(measurement)).values())
    parts: dict[str, Any] = {
        "prefill_fraction": None,
        "decode_fraction": None,
        "prefill_mfu": None,
        "decode_mbu": None,
    }
    if at:
        found = shares(measurement.case, at, prefill, decode)
        parts |= {f"{phase}_fraction": share for phase, share in found.items()}
    if used:
        seconds = {"prefill": used["prefill_s"], "step": used["step_s"]}
        found = shares(measurement.case, seconds, prefill, decode)
        parts |= {"prefill_mfu": found["prefill"], "decode_mbu": found["decode"]}
    return parts | {"bound": measurement.expected.get("decode_bound"), "basis": (used or {}).get("basis")}


def utilization(measurement: Measurement, phase: Phase) -> float | None:
    """MFU of the prefill or MBU of decode, 0..1; ``None`` if it is unknown or the phase cannot be compared."""
    if not measurement.expected.get("utilization") or ((found := rate(measurement, phase)) and found.wide):
        return None
    share = (ceiling(measurement) or {}).get("prefill_mfu" if phase == "prefill" else "decode_mbu")
    return share if isinstance(share, float) else None


def shares(
    case: Case, ceiling_s: Mapping[str, float], prefill_tps: float | None, decode_tps: float | None
) -> dict[Phase, float | None]:
    """Time at the ceiling ÷ measured time of each phase; ``ceiling_s``: seconds of a prefill and of a step.

    Prefill has none for a server that gets several requests at a time, because a request's TTFT then includes waiting
    for the others.
    """
    count = sequences(case)
    whole = prefill_tps if count == case.batch else None
    return {
        "prefill": whole and ceiling_s["prefill"] * whole / (count * case.context),
        "decode": decode_tps and ceiling_s["step"] * decode_tps / count,
    }


def sequences(case: Case) -> int:
    """The number of sequences whose tokens a repetition counts: the batch, or 1 for a request to a server."""
    return 1 if case.server else case.batch
