"""What `profile calibrate` shows of a device, without measuring one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes.ceilings import MEASURED

from profiler.commands import calibrate
from profiler.cost.engines.transformers import COUNTS
from profiler.devices import calibration


def shown(found: calibration.Ceilings) -> dict[str, dict[str, str]]:
    cells = [calibrate._cells(row) for row in calibrate.rows(found, repacks=False)]
    return {cell["figure"]: cell for cell in cells}


def test_figures_are_shown_by_dtype_and_with_their_units() -> None:
    found = shown(
        replace(
            MEASURED,
            step_s={dtype: value * COUNTS.step_operators for dtype, value in {"fp32": 5e-6, "bf16": 8e-6}.items()},
            elementwise_s={
                dtype: value * COUNTS.elementwise for dtype, value in {"fp32": 2e-10, "bf16": 4e-10}.items()
            },
        )
    )
    assert found["call fp32"]["value"] == "5.00 µs"
    assert found["call bf16"]["value"] == "8.00 µs"
    assert found["element-wise operators bf16"]["value"] == "2.33 GiB/s"
    assert found["products fp32"]["value"] == "60.0 GFLOP/s"
    assert found["a call's work on the device"]["value"] == "–"


def test_how_much_processes_differ_takes_three_calibrations() -> None:
    one = shown(MEASURED)["processes differ, decode"]
    assert (one["value"], one["how"]) == ("–", "takes 3 calibrations")
    several = shown(replace(MEASURED, runs=4, between={"prefill": 0.0312, "decode": 0.008}))
    assert (several["processes differ, prefill"]["value"], several["processes differ, prefill"]["how"]) == (
        "3.1%",
        "4 calibrations",
    )
    assert several["processes differ, decode"]["value"] == "0.8%"


def test_a_device_that_was_never_calibrated_has_nothing_to_show(
    profile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "load", lambda device: None)
    ran = profile("calibrate", "--show", "--device", "cpu")
    assert ran.code == 2
    assert "no calibration of cpu in its current state" in ran.err
