"""Stored rows are predicted for the device, driver and packages that they were measured with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from fakes.reported import ENVIRONMENT, GIB

from profiler.devices import ceilings
from profiler.devices.base import DeviceInfo
from profiler.devices.ceilings import Ceilings
from profiler.reports.base.page import place


def calibrated(folder: Path, packages: list[str]) -> None:
    device = DeviceInfo("cpu", "cpu", "Some CPU", 64 * GIB, 64 * GIB, "fp32", cores=8, features=("avx2",))
    mark = ceilings.fingerprint(device, packages)
    found = Ceilings(
        "Some CPU", mark, "2026-11-24", 30.0, 0, 5e10, 4e10, {"fp32": 1e11}, None,
        {"fp32": 1e-5}, {"fp32": 1e-9}, 0.0, 1e-10, {}, {}, {}, {}, {},
    )  # fmt: skip
    (folder / "ceilings").mkdir(exist_ok=True)
    content = [{"schema": ceilings.SCHEMA} | asdict(found)]
    (folder / "ceilings" / f"{mark}.json").write_text(json.dumps(content))


def test_ceilings_of_the_packages_that_the_rows_name_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "store.sqlite"))
    calibrated(tmp_path, ["2.13.0", "0.50.2"])
    found = place.found(ENVIRONMENT)
    assert found is not None and found.ceilings is not None and found.bandwidth_bytes_s == 5e10
    local = ENVIRONMENT | {"libraries": {"torch": "2.13.0+cpu", "bitsandbytes": "0.50.2"}}  # metadata may lack +cpu
    assert (place.found(local) or found).ceilings is not None
    newer = place.found(ENVIRONMENT | {"libraries": {"torch": "2.14.0", "bitsandbytes": "0.50.2"}})
    assert newer is not None and newer.ceilings is None


def test_a_device_that_was_not_recorded_is_not_guessed():
    assert place.found({}) is None
    assert place.found({"device": {"kind": "cpu", "title": None, "memory_bytes": 1}}) is None
    assert place.found({"device": {"kind": "cpu", "title": "x", "memory_bytes": 0}}) is None
