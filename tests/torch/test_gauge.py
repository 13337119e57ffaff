"""The gauge on this CPU, at sizes where it takes seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from profiler import devices
from profiler.backends.hf import gauge
from profiler.commands import calibrate
from profiler.devices.ceilings import Ceilings


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, value in {"LOOP_S": 0.01, "POOL_BYTES": 2**20, "WIDTH": 256, "TOKENS": (1, 16), "CALLS": 70}.items():
        monkeypatch.setattr(gauge, name, value)
    monkeypatch.setitem(gauge.READ_BYTES, "cpu", 8 * 2**20)
    yield
    torch.set_num_threads(before)


def test_everything_that_is_measured_is_believed_by_its_reader() -> None:
    found = gauge.Gauge("cpu").all() | {"seconds": 1.0}
    known = calibrate._ceilings(devices.find("cpu"), json.dumps(found))
    assert isinstance(known, Ceilings)
    assert {"fp32", "bf16", "fp16"} <= set(known.curves)
    assert set(known.curves["fp32"]) == {"1", "16"}
    assert known.graph_call_s is None
    assert 1e-7 < known.call_s < 1e-3
    assert torch.get_num_threads() == 1


def test_the_fastest_run_counts() -> None:
    one = gauge.Gauge("cpu")
    assert 0 < one.best(lambda: None) < 1e-3


def test_several_tokens_take_no_less_than_one() -> None:
    curve = gauge.Gauge("cpu").curves()["fp32"]
    assert curve["16"] > 0.3 * curve["1"]
