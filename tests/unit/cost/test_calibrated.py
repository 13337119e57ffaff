"""Rates of a device that was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.ceilings import FP32, MEASURED

from profiler.cost import rates as cost_rates
from profiler.cost.calibrated import CalibratedRates, calibrated
from profiler.cost.engines.transformers import COUNTS
from profiler.cost.roofline import Ahead
from profiler.cost.work import Item, PhaseWork
from profiler.devices.calibration import Ceilings, LayerKernel
from profiler.devices.target import find

GPU = replace(MEASURED, graph_step_s=1e-3)


def rates(ceilings: Ceilings) -> CalibratedRates:
    base = cost_rates.rates(find("h100 sxm"), "transformers", "fp32")
    return calibrated(base, ceilings, "fp32", COUNTS)


def test_devices_that_split_every_layer_read_a_part_of_its_weights_each() -> None:
    item = Item("mlp", "weights", "fp32", 1e9, 0.0, 1.0, 1e6, count=1)
    work = PhaseWork((item,), 1, 1, 0, 0, 0.0)
    for count in (1, 2, 4):
        assert rates(MEASURED).over(count).split(work).total == pytest.approx(1e9 / count * 1e-10 + 5e-6)


def test_formats_that_share_a_kernel_take_equally_long_to_start() -> None:
    layers = {LayerKernel("nf4"): replace(FP32, start_s=3e-5), LayerKernel("fp32"): replace(FP32, start_s=1e-5)}
    launches = rates(replace(GPU, layers=layers)).launches
    assert isinstance(launches, Ahead)
    assert launches.start_s == {"nf4": 3e-5, "nf4-dq": 3e-5, "fp4": 3e-5, "fp32": 1e-5}
