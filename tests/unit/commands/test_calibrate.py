"""What `profile calibrate` shows of a device, without measuring one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.ceilings import MEASURED

from profiler import devices
from profiler.commands import calibrate
from profiler.cost.engines.transformers import COUNTS
from profiler.devices import calibration
from profiler.run import ceilings


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
    assert (one["value"], one["how"]) == ("–", "needs 3 calibrations")
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


def test_a_calibration_is_of_the_machine_whatever_store_is_named(
    profile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``calibrate`` has no ``--store``: it must apply to a sweep with one. What lies beside that store does not."""
    own = replace(MEASURED, fingerprint=calibration.fingerprint(devices.find("cpu")))
    here, other = tmp_path / "own" / "store.sqlite", tmp_path / "other" / "store.sqlite"
    for path, known in ((here, own), (other, replace(own, step_s={"fp32": 10.0}))):
        monkeypatch.setenv("PROFILER_STORE", str(path))
        calibration.save(known)

    def seconds(*store: str) -> float:
        asked = ("-m", "gemma-3-270m", "-q", "fp32", "-c", "128", "-r", "2", "--device", "cpu")
        (row,) = profile("sweep", *asked, "--dry-run", "-o", "jsonl", *store).rows
        return float(row["run_s"])

    by_the_other = seconds()
    monkeypatch.setenv("PROFILER_STORE", str(here))
    assert seconds("--store", str(other)) == seconds() < by_the_other


def test_a_busy_machine_gives_no_calibration(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It once stored 254 MiB/s for an operator beside 66.8 GiB/s of reads."""
    text = '{"doing": "reading memory"}\n{"busy": "other processes took 44% or more", "seconds": 1.0}'
    monkeypatch.setattr(ceilings, "_program", lambda trait: (sys.executable, "-c", f"print({text!r})"))
    ran = profile("calibrate", "--device", "cpu")
    assert ran.code == 3
    assert "the machine is too busy to measure cpu: other processes took 44% or more" in ran.err
    assert not list(calibration.folder().glob("*")) and calibration.load(devices.find("cpu")) is None
