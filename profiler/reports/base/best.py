"""The last line of a table: which case decodes fastest, and how much memory it leaves."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.reports.base.cells import figure
from profiler.reports.base.columns import device_memory
from profiler.reports.base.text import plain
from profiler.results import stats
from profiler.results.measurement import Measurement
from profiler.results.stats import Summary
from profiler.units import bytes_text

MODELS_NAMED = 6

Rated = tuple[Summary, Measurement]


def answer(measurements: Sequence[Measurement]) -> str | None:
    """The fastest decode of each model, fastest model first; None unless two rows can be compared at all."""
    rated: list[Rated] = []
    for measurement in measurements:
        rate = stats.rate(measurement, "decode")
        if measurement.outcome == "ok" and rate is not None and not rate.wide:
            rated.append((rate, measurement))
    if len(rated) < 2:
        return None
    best: dict[tuple[str, str], Rated] = {}
    for rate, measurement in rated:
        model = (measurement.case.model, measurement.case.model_id)
        if model not in best or rate.median > best[model][0].median:
            best[model] = (rate, measurement)
    ordered = sorted(best.values(), key=lambda pair: pair[0].median, reverse=True)[:MODELS_NAMED]
    by_model = " by model" if len(best) > 1 else ""
    return f"fastest decode{by_model}: {'; '.join(_words(rate, m) for rate, m in ordered)}"


def _words(rate: Summary, measurement: Measurement) -> str:
    words = f"{plain(measurement.case.label)} at {figure(rate.median, rate.relative_half)} t/s"
    peak, memory = measurement.memory.process_peak_bytes, device_memory(measurement)
    if peak is None or memory is None:
        return words
    return f"{words}, {bytes_text(memory - peak)} of {bytes_text(memory)} to spare"
