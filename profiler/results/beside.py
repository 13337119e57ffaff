"""The fields ``ceiling`` and ``predicted`` of a row, from what was kept beside the measurement."""

from __future__ import annotations

from typing import Any

from profiler.results import stats
from profiler.results.measurement import Measurement
from profiler.results.stats import Centres

FIGURES = ("prefill_tps", "decode_tps", "peak_bytes")


def predicted(measurement: Measurement) -> dict[str, Any] | None:
    """Rates and peak as predicted before measuring, each with bounds and basis; null if nothing was."""
    known = {name: measurement.expected.get(name) for name in FIGURES}
    path = measurement.decode_path
    if path is not None and path.ran != measurement.case.path and measurement.expected.get("path") != path.ran:
        known["decode_tps"] = None  # of a step that did not run
    return known if any(known.values()) else None


def ceiling(measurement: Measurement, centres: Centres | None = None) -> dict[str, Any] | None:
    """The ceiling's over the measured time of each phase: 0..1, above it a bug of ours. Null if not calibrated."""
    if not measurement.expected.get("ceiling_s"):
        return None
    prefill, decode = (centres or stats.centres(measurement)).values()
    return shares(measurement, prefill and prefill.median, decode and decode.median)


def shares(measurement: Measurement, prefill_tps: float | None, decode_tps: float | None) -> dict[str, Any] | None:
    """The same, of rates that are known already."""
    at, case = measurement.expected.get("ceiling_s"), measurement.case
    if not at:
        return None
    prefill = None if prefill_tps is None else at["prefill"] * prefill_tps / (case.batch * case.context)
    decode = None if decode_tps is None else at["step"] * decode_tps / case.batch
    return {
        "prefill_fraction": prefill,
        "decode_fraction": decode,
        "bound": measurement.expected.get("decode_bound"),
    }
