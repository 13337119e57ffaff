"""Stored rows are predicted for the device, driver and packages that they were measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes.reported import ENVIRONMENT, GIB

from profiler.devices import calibration
from profiler.devices.base import DeviceInfo
from profiler.devices.calibration import Ceilings
from profiler.show.report import predictions


def calibrated(folder: Path, packages: list[str], **limits: Any) -> None:
    device = DeviceInfo("cpu", "cpu", "Some CPU", 64 * GIB, 64 * GIB, "fp32", cores=8, features=("avx2",), **limits)
    mark = calibration.fingerprint(device, packages)
    found = Ceilings(
        "Some CPU", mark, "2026-11-24", 30.0, 0, 5e10, 4e10, {"fp32": 1e11}, None,
        {"fp32": 6e-3}, {"fp32": 75e-9}, 0.0, 0.067, {}, {}, {},
    )  # fmt: skip
    (folder / "ceilings").mkdir(exist_ok=True)
    content = [calibration.to_json(found)]
    (folder / "ceilings" / f"{mark}.json").write_text(json.dumps(content))


def test_ceilings_of_the_packages_that_the_rows_name_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "store.sqlite"))
    calibrated(tmp_path, ["2.13.0", "0.50.2"])
    found = predictions.place_found(ENVIRONMENT)
    assert found is not None and found.ceilings is not None and found.bandwidth_bytes_s == 5e10
    local = ENVIRONMENT | {"libraries": {"torch": "2.13.0+cpu", "bitsandbytes": "0.50.2"}}  # metadata may lack +cpu
    assert (predictions.place_found(local) or found).ceilings is not None
    newer = predictions.place_found(ENVIRONMENT | {"libraries": {"torch": "2.14.0", "bitsandbytes": "0.50.2"}})
    assert newer is not None and newer.ceilings is None


def test_ceilings_of_the_limits_that_the_rows_name_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "store.sqlite"))
    limits = {"cores": 0.5, "threads": 1, "physical": 8, "cpus": None}
    calibrated(tmp_path, ["2.13.0", "0.50.2"], quota=0.5, threads=1, physical=8)
    free = predictions.place_found(ENVIRONMENT)
    assert free is not None and free.ceilings is None
    found = predictions.place_found(ENVIRONMENT | {"limits": limits})
    assert found is not None and found.ceilings is not None and found.bandwidth_bytes_s == 2.5e10
    calibrated(tmp_path, ["2.13.0", "0.50.2"], threads=1, physical=8, confined=(1, 2**25))
    pinned = predictions.place_found(ENVIRONMENT | {"limits": limits | {"cores": None, "cpus": [1, 2**25]}})
    assert pinned is not None and pinned.ceilings is not None and pinned.bandwidth_bytes_s == 5e10


def test_a_slice_of_a_card_is_predicted_as_one():
    part = {"profile": "1g.10gb", "of_title": "NVIDIA H100 80GB HBM3", "of_bytes": 80 * GIB, "memory_share": 0.125,
            "compute_share": None}  # fmt: skip
    device = {
        "name": "cuda:0",
        "kind": "cuda",
        "title": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "memory_bytes": 10 * GIB,
    }
    found = predictions.place_found({"device": device | {"slice": part}})
    assert found is not None and found.title == "H100 SXM MIG 1g.10gb"
    for broken in ({}, {"profile": 1}, "x", part | {"memory_share": "x"}):
        assert predictions.place_found({"device": device | {"slice": broken}}).title == device["title"]


def test_a_device_that_was_not_recorded_is_not_guessed():
    assert predictions.place_found({}) is None
    assert predictions.place_found({"device": {"kind": "cpu", "title": None, "memory_bytes": 1}}) is None
    assert predictions.place_found({"device": {"kind": "cpu", "title": "x", "memory_bytes": 0}}) is None
