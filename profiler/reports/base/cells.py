"""Figures with the digits they deserve."""

from __future__ import annotations

import math

from profiler.results import energy, stats
from profiler.results.measurement import Measurement, Phase
from profiler.units import UNKNOWN, significant

UNSPREAD_DIGITS = 2  # of a figure measured once: nothing says how far the next one would be
FEWEST_DIGITS = 2  # of any other: a lone digit reads like a slip, and the interval beside it says how little it means
MOST_DIGITS = 4
PHASES: tuple[Phase, ...] = ("prefill", "decode")


def rate_cell(measurement: Measurement, phase: Phase) -> str:
    """``1,230 ±4%``: the median rate and the longer arm of its interval; ``23 (0.60–820)`` where that says more."""
    summary = stats.rate(measurement, phase)
    if summary is None:
        return UNKNOWN
    shown = figure(summary.median, summary.relative_half)
    if summary.wide and summary.low and summary.high:
        return f"{shown} ({significant(summary.low, FEWEST_DIGITS)}–{significant(summary.high, FEWEST_DIGITS)})"
    return f"{shown}{_arm(summary.relative_half)}"


def figure(value: float, relative_half: float | None) -> str:
    """``value`` to the digits that its interval supports: to the place of the interval's leading digit.

    One place more where that digit is 1 or 2 (the rule of the Particle Data Group's Review, §5.3, in short).
    """
    return significant(value, _digits(value, relative_half))


def ttft_cell(measurement: Measurement) -> str:
    """Time to the first token, in ms or s."""
    summary = stats.ttft(measurement)
    if summary is None:
        return UNKNOWN
    if summary.median < 1:
        return f"{figure(summary.median * 1000, summary.relative_half)} ms"
    return f"{figure(summary.median, summary.relative_half)} s"


def token_cell(measurement: Measurement) -> str:
    """Milliseconds a sequence waits for a token: median over steps where they were timed, else over repetitions."""
    rate = stats.rate(measurement, "decode")
    if rate is None:
        return UNKNOWN
    steps = stats.steps(measurement)
    seconds = steps.p50_s if steps else measurement.case.batch / rate.median
    return figure(seconds * 1000, rate.relative_half)


def energy_cell(measurement: Measurement, phase: Phase) -> str:
    """Joules per token of a phase; a ``?`` where there is reason to doubt them."""
    taken = energy.consumption(measurement, phase)
    if taken is None:
        return UNKNOWN
    return f"{significant(taken.per_token_j)}{'?' if energy.suspect(measurement) else ''}"


def reps_cell(measurement: Measurement) -> str:
    """``3``, or ``1+3`` where prefill and decode were not repeated as often."""
    shown = repetitions(measurement)
    return "+".join(str(count) for count in (shown if len(set(shown)) > 1 else shown[:1])) or UNKNOWN


def repetitions(measurement: Measurement) -> list[int]:
    """How often each phase that ran was repeated."""
    return [count for count in (len(measurement.timed(phase)) for phase in PHASES) if count]


def _digits(value: float, relative_half: float | None) -> int:
    if relative_half is None:
        return UNSPREAD_DIGITS
    if relative_half == 0:
        return MOST_DIGITS
    half = value * relative_half
    place = math.floor(math.log10(half))
    if half / 10**place < 3:
        place -= 1
    return min(MOST_DIGITS, max(FEWEST_DIGITS, math.floor(math.log10(value)) - place + 1))


def _arm(relative_half: float | None) -> str:
    if relative_half is None:
        return ""
    percent = relative_half * 100
    if percent < 0.05:
        return " ±<0.1%"
    return f" ±{percent:.1f}%" if percent < 0.95 else f" ±{percent:,.0f}%"
