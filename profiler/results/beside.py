"""The fields ``ceiling`` and ``predicted`` of a row, from what was kept beside the measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.case import Case
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
    at = measurement.expected.get("ceiling_s")
    if not at:
        return None
    prefill, decode = (centre and centre.median for centre in (centres or stats.centres(measurement)).values())
    return shares(measurement.case, at, prefill, decode) | {"bound": measurement.expected.get("decode_bound")}


def shares(
    case: Case, ceiling_s: Mapping[str, float] | None, prefill_tps: float | None, decode_tps: float | None
) -> dict[str, float | None]:
    """The same, of rates that are known already."""
    prefill = decode = None
    if ceiling_s and prefill_tps is not None:
        prefill = ceiling_s["prefill"] * prefill_tps / (case.batch * case.context)
    if ceiling_s and decode_tps is not None:
        decode = ceiling_s["step"] * decode_tps / case.batch
    return {"prefill_fraction": prefill, "decode_fraction": decode}
