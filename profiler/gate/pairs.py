"""The sequential test: pairs of blocks, one of each side, until they say slower, not slower, or nothing after
sixteen.

A *block* is one order to one warm process: its value is the median of its repetitions. The unit of inference is the
pair, d = ln(candidate ÷ base) of two blocks measured one right after the other, so positive is worse. After 6, 10 and
16 pairs the test looks at them, each time with a third of its error (Bonferroni over looks):

    FAIL          the lower t bound of d is above 0, and min(mean, median) ≥ ln(1 + δ), and a sign test has p ≤ 0.05
    PASS          the upper t bound of d is below ln(1 + δ)
    inconclusive  neither, after the last look

The three conditions of FAIL guard against different things: the t bound against noise, the mean *and* the median
against calling a slowdown below δ one and against a few outliers, the sign test against a mean that they carry. At a
true slowdown of exactly δ about half of the gates fail, and between 0 and δ many are inconclusive: that is what δ
means. How often the rule errs is simulated in ``benchmarks/gate_calibration.py``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from profiler.results import stats, student

LOOKS = (6, 10, 16)
CONFIRM_PAIRS = 10
ALPHA = 0.05  # one-sided, of all looks together
SIGN_P = 0.05
DELTA = 0.05  # slowdown that is a regression: what people act on, and what a machine with unlocked clocks can tell
POWER_SIGMAS = 1.34  # one-sided: nine of ten gates at the smallest detectable slowdown find it
DETECT_SIGMAS = 3.7  # the last look's t quantile (2.34 at 16 pairs) and those, in standard errors, rounded up

Decision = Literal["fail", "pass", "go on"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is a regression, and how sure one must be."""

    delta: float = DELTA  # relative
    alpha: float = ALPHA
    looks: tuple[int, ...] = LOOKS

    @property
    def log(self) -> float:
        """ln(1 + δ), what pairs are compared with."""
        return math.log1p(self.delta)

    @property
    def level(self) -> float:
        """One-sided error of one look."""
        return self.alpha / len(self.looks)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What pairs say, in natural logarithms of candidate ÷ base."""

    n: int
    mean: float
    median: float
    sd: float
    low: float  # one-sided bounds of the mean, each at the level of one look
    high: float
    p_slower: float  # one-sided t test of "not slower"
    p_sign: float  # one-sided sign test of the same; a difference of 0 speaks against slower


def evidence(logs: Sequence[float], level: float) -> Evidence:
    """Of at least two pairs."""
    n, mean, sd = len(logs), math.fsum(logs) / len(logs), stats.stdev(logs)
    error = sd / math.sqrt(n)
    half = student.quantile(1 - level, n - 1) * error
    p_slower = student.tail(mean / error, n - 1) if error else float(mean <= 0)
    return Evidence(
        n, mean, statistics.median(logs), sd, mean - half, mean + half, p_slower, sign_p(sum(d > 0 for d in logs), n)
    )


def decide(found: Evidence, rule: Rule, significant: bool | None = None) -> Decision:
    """What these pairs decide. ``significant``: the t test as corrected for other cells and metrics (``holm``)."""
    if significant is None:
        significant = found.low > 0
    if significant and min(found.mean, found.median) >= rule.log and found.p_sign <= SIGN_P:
        return "fail"
    return "pass" if found.high < rule.log else "go on"


def sign_p(worse: int, n: int) -> float:
    """P(at least ``worse`` of ``n`` fair coins)."""
    return sum(math.comb(n, k) for k in range(worse, n + 1)) / float(2**n)


def detectable(sd: float, rule: Rule) -> float:
    """The smallest slowdown (relative) that nine of ten gates find, at this standard deviation of one pair."""
    error = sd / math.sqrt(rule.looks[-1])
    return math.expm1(max(rule.log + POWER_SIGMAS * error, DETECT_SIGMAS * error))


def supportable(sd: float, rule: Rule) -> float:
    """The smallest δ at which a slowdown of 2 δ is detectable (in logarithms, as all of this is)."""
    error = sd / math.sqrt(rule.looks[-1])
    return math.expm1(max(POWER_SIGMAS * error, DETECT_SIGMAS * error / 2))


def supports(sd: float, rule: Rule) -> bool:
    """Whether a gate at this noise would find a slowdown of 2 δ."""
    return rule.delta >= supportable(sd, rule)
