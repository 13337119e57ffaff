"""What is put beside a measurement of ours: the prediction as it was before, and the ceiling's time.

The one hook of the sweep: the recorder asks once a case and keeps the answer with the row, so that a stored row
always shows what was predicted then.
"""

from __future__ import annotations

from typing import Any

from profiler.case import Case
from profiler.devices import priors
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target
from profiler.models.geometry import Geometry
from profiler.models.stored import Stored
from profiler.predict import explanation
from profiler.predict.engines.transformers import left_mapped
from profiler.predict.estimate import host_of, mean_depth
from profiler.predict.estimate import predictor as predictor_of
from profiler.predict.interval import exact

BACKENDS = frozenset({"hf"})  # those that the engine's rules describe


def expected(case: Case, geometry: Geometry, device: DeviceInfo, stored: Stored | None = None) -> dict[str, Any]:
    """Plain JSON: rates and peak with bounds and basis; seconds at the ceilings where the device was calibrated; and
    how much processes differ (``stats.between``).

    ``stored``: the checkpoint, if it runs as it is stored. Empty for a backend whose engine has no rules.
    """
    if case.backend not in BACKENDS:
        return {}
    predictor = predictor_of(case, geometry, host_of(device, case.threads), stored)
    engine, on = predictor.engine, predictor.machine.target
    found = predictor.predict(case.context, case.batch)
    deep = predictor.predict(mean_depth(case), case.batch)
    real = case.weights == "real" and stored is None  # nothing is packed while it is loaded
    peak = found.terms.peak + (left_mapped(predictor.storage, case.dtype, on) if real else exact(0))
    content: dict[str, Any] = {"peak_bytes": peak.to_json()}
    if real:
        packed = engine.storage(geometry, case.quant, case.dtype)  # as loaded: repacking comes with the first pass
        if (load := engine.load_peak(geometry, packed, case.dtype, on)) is not None:
            content["load_peak_bytes"] = load.to_json()
    if found.prefill and deep.decode:
        content |= {
            "prefill_tps": found.prefill.tps.to_json(),
            "prefill_bound": found.prefill.binds,
            "decode_tps": deep.decode.tps.to_json(),
            "decode_bound": deep.decode.binds,
        }
        if predictor.path != case.path:
            content["path"] = predictor.path
    if (apart := _between(on)) is not None:
        content["between"] = apart
    if on.ceilings is not None:
        prefill, decode = explanation.explain(predictor, case.context, case.batch).phases
        content["ceiling_s"] = {"prefill": prefill.ceiling_s, "step": decode.ceiling_s}
    return content


def _between(on: Target) -> dict[str, Any] | None:
    """By phase, how much processes of this device differ: standard deviation ÷ median. Not known of other GPUs."""
    if on.ceilings is not None and on.ceilings.between is not None:
        return {**on.ceilings.between, "basis": "calibrated"}
    return {**priors.BETWEEN, "basis": "prior"} if on.vendor == "CPU" else None
