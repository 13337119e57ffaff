"""The microbenchmarks of `profile calibrate` on this CPU, at sizes where they take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, replace

import pytest
import torch

from profiler import devices
from profiler.backends.hf import ceilings, linear_layers, microbenchmark, synthetic
from profiler.backends.hf.ceilings import Stopwatch
from profiler.cost.engines.transformers import COUNTS
from profiler.devices import cpu
from profiler.devices.base import HostWindow, Lap
from profiler.devices.calibration import SCHEMA, LayerKernel, parse, parse_quick

CEILINGS = {"LOOP_S": 0.01, "QUICK_S": 0.01, "MAX_WAIT": 1.0}  # tests need no idle machine
MICROBENCHMARK = {
    "LOOP_S": 0.01,
    "RATE_S": 0.005,
    "STEP_S": 0.005,
    "STEP_ROUNDS": 1,
    "CONV_CHANNELS": 16,
    "PASS_S": 0.005,
    "PASS_ROUNDS": 1,
}
LINEAR_LAYERS = {
    "RATE_S": 0.005,
    "MIN_POOL_BYTES": 2**20,
    "TALL": (1024, 64),
    "TOKENS": (1, 16),
}

SIZES = {
    "pass_tokens": 64,
    "peak": (64, 2048, 2048),
    "read_bytes": 8 * 2**20,
    # on a CPU with bf16 units bitsandbytes needs inputs in blocks of 64 and outputs in blocks of 32
    "shapes": ((256, 256), (256, 64), (64, 64)),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for module, values in ((ceilings, CEILINGS), (microbenchmark, MICROBENCHMARK), (linear_layers, LINEAR_LAYERS)):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(cpu, "KIND", replace(cpu.KIND, sizes=replace(cpu.KIND.sizes, **SIZES)))
    yield
    torch.set_num_threads(before)


def test_calibrate_accepts_everything_that_is_measured() -> None:
    found = microbenchmark.Microbenchmark("cpu").all() | {"seconds": 1.0}
    about = {"schema": SCHEMA, "title": "x", "fingerprint": "y", "measured_at": "z"}
    known = parse(json.loads(json.dumps(found)) | about)
    assert known is not None
    assert {LayerKernel("fp32"), LayerKernel("bf16"), LayerKernel("fp16")} <= set(known.layers)
    assert set(known.layers[LayerKernel("fp32")].costs) == {1, 16}
    assert set(known.layers[LayerKernel("fp32")].head) == {1, 16}
    assert set(known.attention) == {"fp32", "bf16", "fp16"}
    assert known.graph_step_s is None
    own = {"fp32", devices.find("cpu").default_dtype}
    assert set(known.step_s) == set(known.elementwise_s) == own
    assert all(1e-7 < COUNTS.call_s(known, dtype) < 0.1 for dtype in own)  # stalls on a busy machine included
    assert all(0.99e-14 < COUNTS.activation_s(known, dtype) < 1e-6 for dtype in own)  # slower on a busy machine
    assert 1e-4 < known.delta_s < 10
    assert known.process_bytes > 100 * 2**20 and "profiler.backends.hf.session" in sys.modules
    assert torch.get_num_threads() == 1


def test_a_run_has_its_fastest_and_its_median_time() -> None:
    times = Stopwatch(torch.device("cpu")).time(lambda: None, 0.01)
    assert 0 < times.best <= times.median < 1e-3


def test_several_tokens_take_no_less_time_than_one() -> None:
    found = linear_layers.LinearLayers(Stopwatch(torch.device("cpu"))).all()
    one, many = (found[LayerKernel("fp32")].costs[tokens].usual_s for tokens in (1, 16))
    assert many > 0.3 * one


def test_solving_recovers_the_costs() -> None:
    shapes = [(16e6, 2048), (4e6, 2048), (2.6e5, 256)]
    points = [(size, rows, size * 4e-11 + rows * 6e-8 + 2e-6) for size, rows in shapes]
    assert astuple(linear_layers.solve(points)) == pytest.approx((4e-11, 6e-8, 2e-6))


def test_no_cost_is_negative() -> None:
    """A small layer that is faster than its size suggests would need a negative cost per call."""
    costs = linear_layers.solve([(16e6, 2048, 1e-3), (4e6, 2048, 0.3e-3), (2.6e5, 256, 1e-6)])
    assert min(astuple(costs)) == 0.0
    assert costs.byte_s > 0


def test_a_pool_exceeds_the_caches() -> None:
    assert ceilings.past_caches(0, 128, 1024) == 128
    assert ceilings.past_caches(200, 128, 1024) == 300
    assert ceilings.past_caches(4000, 128, 1024) == 1024
    found = linear_layers.LinearLayers(Stopwatch(torch.device("cpu")), cache_bytes=2 * 2**20)
    layers = next(one for one in found._kernels() if one.kernel == LayerKernel("fp32")).pool(
        (256, 256), found.pool_bytes
    )
    together = {layer.keywords["weight"].data_ptr() for layer in layers}  # type: ignore[attr-defined]
    assert len(together) == 12  # 3 MiB of 256 KiB each


def test_decays_do_not_lead_to_denormal_numbers() -> None:
    decays = synthetic.log_decays(4000)
    assert decays.min() >= -1.6
    assert decays.max() < 0
    chunk = (64 * decays).exp()
    assert (chunk >= torch.finfo(torch.float32).tiny).float().mean() > 0.98


def test_a_timing_that_other_work_disturbs_is_repeated_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    laps = iter([Lap(1.0, 1.0, 1.0), Lap(1.0, 1.0, 0.01)])
    monkeypatch.setattr(ceilings, "PAUSE_S", 0.0)
    monkeypatch.setattr(ceilings, "MAX_WAIT", 0.1)
    monkeypatch.setattr(HostWindow, "close", lambda self: next(laps))
    assert Stopwatch(torch.device("cpu")).time(lambda: None, 0.001).best > 0
    assert list(laps) == []  # it was timed twice
    monkeypatch.setattr(HostWindow, "close", lambda self: Lap(1.0, 1.0, 1.0))
    with pytest.raises(ceilings.Busy, match="took 50% or more of the CPU time that we needed"):
        Stopwatch(torch.device("cpu")).time(lambda: None, 0.001)


def test_two_ceilings_take_no_other_library_than_pytorch() -> None:
    """They are measured before the first case of a sweep, and importing transformers takes longer than they do."""
    code = "import sys, profiler.backends.hf.ceilings; print({'transformers', 'bitsandbytes'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_quick_ceilings_are_accepted() -> None:
    found = ceilings.quick("cpu", 1, 1.0) | {"seconds": 1.0, "title": "x", "fingerprint": "y", "measured_at": "z"}
    known = parse_quick(found)
    assert known is not None and known.read_bytes_s > 1e8 and min(known.flops.values()) > 1e8
