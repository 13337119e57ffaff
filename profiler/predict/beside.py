"""What is put beside a measurement of ours: the prediction as it was before, and the ceiling's time.

The one hook of the sweep: the recorder asks once a case and keeps the answer with the row, so that a stored row
always shows what was predicted then.
"""

from __future__ import annotations

from typing import Any

from profiler.case import Case
from profiler.devices import target
from profiler.devices.base import DeviceInfo
from profiler.models.geometry import Geometry
from profiler.predict import engines, explanation
from profiler.predict.engines.transformers import Transformers
from profiler.predict.interval import Interval
from profiler.predict.machine import Machine
from profiler.predict.prediction import Predictor

ENGINES = {"hf": "transformers"}  # by backend: those that an engine's rules describe


def expected(case: Case, geometry: Geometry, device: DeviceInfo) -> dict[str, Any]:
    """Plain JSON: rates and peak with bounds and basis; seconds at the ceilings where the device was calibrated.

    Empty for a backend whose engine has no rules.
    """
    name = ENGINES.get(case.backend)
    if name is None:
        return {}
    machine = Machine(target.of(device))
    predictor = Predictor(geometry, engines.find(name), case.quant, machine, case.dtype)
    depth = case.context + (case.steps + 1) // 2
    found = predictor.predict(case.context, case.batch)
    deep = predictor.predict(depth, case.batch)
    content: dict[str, Any] = {"peak_bytes": _interval(found.terms.peak)}
    if isinstance(predictor.engine, Transformers) and case.weights == "real" and machine.target.vendor == "CPU":
        load = predictor.engine.load_peak(geometry, predictor.storage, case.dtype, machine.target)
        content["load_peak_bytes"] = _interval(load)
    if found.prefill and deep.decode:
        content |= {"prefill_tps": _interval(found.prefill.tps), "decode_tps": _interval(deep.decode.tps)}
        content |= {"prefill_bound": found.prefill.binds, "decode_bound": deep.decode.binds}
    if machine.target.ceilings is not None:
        prefill, decode = explanation.explain(predictor, case.context, case.batch).phases
        content["ceiling_s"] = {"prefill": prefill.ceiling_s, "step": decode.ceiling_s}
    return content


def _interval(value: Interval) -> dict[str, Any]:
    return {"value": value.value, "low": value.low, "high": value.high, "basis": value.basis}
