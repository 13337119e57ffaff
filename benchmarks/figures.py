"""Formats the benchmarks' results: median and 95% interval, with the same statistics as a result row."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from profiler.results.stats import summarize
from profiler.units import seconds_text


def in_turn(pairs: int, *contenders: Callable[[], None]) -> None:
    """Run the contenders in the order AB, BA, AB, …, so that a drifting or shared machine favors none of them."""
    for number in range(pairs):
        for run in contenders if number % 2 == 0 else reversed(contenders):
            run()


def ratio_text(ours: list[float], theirs: list[float]) -> str:
    """The ratio ours ÷ theirs over pairs: ``1.003 (95% interval 0.998 to 1.008, 20 pairs)``."""
    figure = summarize([our / their for our, their in zip(ours, theirs, strict=True)])
    assert figure is not None
    if figure.low is None or figure.high is None:
        return f"{figure.median:.3f} (one pair: no interval)"
    return f"{figure.median:.3f} (95% interval {figure.low:.3f} to {figure.high:.3f}, {figure.n} pairs)"


def certainly_above(ours: list[float], theirs: list[float], limit: float) -> bool:
    """Whether the whole interval of ours ÷ theirs is above ``limit``."""
    figure = summarize([our / their for our, their in zip(ours, theirs, strict=True)])
    return figure is not None and figure.low is not None and figure.low > limit


def seconds_line(what: str, seconds: list[float]) -> str:
    """``what: 123 ms (95% interval 120 ms to 126 ms, 20 times)``."""
    figure = summarize(seconds)
    assert figure is not None
    if figure.low is None or figure.high is None:
        return f"{what}: {seconds_text(figure.median)} (once: no interval)"
    interval = f"{seconds_text(figure.low)} to {seconds_text(figure.high)}"
    return f"{what}: {seconds_text(figure.median)} (95% interval {interval}, {figure.n} times)"


def difference_line(what: str, seconds: list[float]) -> str:
    """``what: 12 ms (10 ms to 15 ms, 6 differences)``. Noise can make one negative, so there is no interval."""
    low, high = (seconds_text(value) for value in (min(seconds), max(seconds)))
    return f"{what}: {seconds_text(statistics.median(seconds))} ({low} to {high}, {len(seconds)} differences)"
