"""Our own decode step: predicted beside rows of an H200 (benchmarks/gpu.md), and by the rules one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.ceilings import MEASURED

from profiler.cost import engines
from profiler.cost import rates as cost_rates
from profiler.cost.calibrated import CalibratedRates, OwnKernels, calibrated
from profiler.cost.engines.transformers import COUNTS
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.cost.roofline import Ahead
from profiler.cost.work import Item, PhaseWork
from profiler.devices.calibration import LayerCost, LayerKernel, LinearLayer
from profiler.devices.target import find
from profiler.models import families, hub

OFF = 0.15  # of the measured time, without a calibration
CPU = replace(find("cpu"), ceilings=MEASURED, bandwidth_bytes_s=12e9, flops=MEASURED.flops)


def predictor(model: str, quant: str, on: str, path: str) -> Predictor:
    geometry = families.geometry(hub.shipped_config(model))
    return Predictor(geometry, engines.find("transformers"), quant, Machine(find(on)), "bf16", path)


@pytest.mark.parametrize(
    ("model", "quant", "context", "milliseconds"),
    [
        ("gemma-4-e2b", "bf16", 512, 4.375),
        ("gemma-4-e2b", "bf16", 32768, 4.855),
        ("gemma-4-e2b", "nf4", 512, 4.835),
        ("qwen3.5-0.8b", "bf16", 512, 2.076),
        ("qwen3.5-0.8b", "bf16", 131072, 2.666),
        ("qwen3-8b", "bf16", 2048, 6.965),
    ],
)
def test_graphs_of_an_h200_are_near_their_prediction(
    model: str, quant: str, context: int, milliseconds: float
) -> None:
    found = predictor(model, quant, "h200 sxm", "graph").predict(context, 1).decode
    assert found is not None
    assert found.seconds.value * 1e3 == pytest.approx(milliseconds, rel=OFF)
    assert found.seconds.low * 1e3 < milliseconds < found.seconds.high * 1e3


def test_the_shipped_step_takes_longer_everywhere() -> None:
    for on in ("h200 sxm", "rtx 4090", "cpu"):
        graph, static, eager = (
            predictor("qwen3.5-2b", "bf16", on, path).phases(512, 512, 1) for path in ("graph", "static", "eager")
        )
        assert graph[1].seconds.value <= static[1].seconds.value <= eager[1].seconds.value
        assert graph[0] == static[0] == eager[0]  # prefill is as shipped


def test_python_launches_more_slowly_on_a_server_than_on_a_desktop() -> None:
    server, desktop = (predictor("qwen3-8b", "bf16", on, "eager").step_rates.launches for on in ("a100", "rtx 4090"))
    assert server.call_s > desktop.call_s
    starts = [predictor("qwen3-8b", "int8", on, "eager").step_rates.launches for on in ("a100", "rtx 4090")]
    assert all(isinstance(each, Ahead) for each in starts)
    operators = [each.start_s["int8"] / each.call_s for each in starts if isinstance(each, Ahead)]
    assert operators == pytest.approx([24, 24])  # wherever they are launched from


def test_a_long_cache_is_read_once_and_not_copied() -> None:
    def growth(path: str) -> float:
        case = predictor("qwen3-8b", "bf16", "h100 sxm", path)
        near, far = (case.step_rates.split(case.works(512, depth, 1)[1]).reading for depth in (512, 32768))
        return far - near

    slower = cost_rates.shares()["engine"]["transformers"]["cache"]["other"]  # copying a cache, relative to reading
    assert growth("eager") == pytest.approx(3 * slower * growth("graph"), rel=0.01)


def test_other_engines_have_one_way_to_decode() -> None:
    geometry, machine = families.geometry(hub.shipped_config("qwen3-8b")), Machine(find("rtx 4090"))
    for engine in ("llama.cpp", "vllm"):
        found = engines.find(engine)
        ways = [
            Predictor(geometry, found, found.usual_quants[0], machine, "bf16", path) for path in ("eager", "graph")
        ]
        assert ways[0].phases(512, 512, 1) == ways[1].phases(512, 512, 1)


def one(item: Item, calls: float = 0.0, tokens: float = 1) -> PhaseWork:
    return PhaseWork((item,), 1, tokens, 0, 0, calls)


def gpu() -> CalibratedRates:
    base = calibrated(cost_rates.rates(find("h100 sxm"), "transformers", "bf16"), MEASURED, "fp32", COUNTS)
    return replace(base, launches=Ahead(10e-6, 2e-6, {"fp32": 15e-6}, layers_timed=True))


def test_a_gpu_works_while_python_starts_what_comes_next() -> None:
    large, small = (Item("mlp", "weights", "fp32", nbytes, 0.0, 1.0, 0.0, count=1) for nbytes in (1e9, 1e3))
    rates, calls = gpu(), 101.0
    busy = 1e9 * 1e-10 + 5e-6
    assert rates.split(one(large, calls)).total == pytest.approx(busy + 100 * 2e-6)  # Python is ahead
    assert rates.split(one(small, calls)).total == pytest.approx(101 * 10e-6 + 15e-6)  # the GPU waits
    assert rates.split(one(small, calls)).binds == "launches"


def test_few_tokens_are_multiplied_at_the_rates_of_our_own_products() -> None:
    quick = LinearLayer({tokens: LayerCost(0.5e-10, 0.0, 1e-6) for tokens in (1, 8)})
    rates = calibrated(
        cost_rates.rates(CPU, "transformers", "fp32"),
        replace(MEASURED, layers={**MEASURED.layers, LayerKernel("fp32", own=True): quick}),
        "fp32",
        COUNTS,
    )
    own = rates.own_step(CPU, "fp32", "static")
    item = Item("mlp", "weights", "fp32", 1e9, 0.0, 1.0, 0.0, count=1)

    def ratio(rows: float) -> float:
        work = one(replace(item, rows=rows), tokens=rows)
        return rates.split(work).total / own.split(work).total

    assert ratio(1) == pytest.approx(2.0, rel=1e-3)
    assert ratio(8) > 1.5
    assert ratio(16) == 1.0  # more than one pass over the rows serves
    large = replace(own, own_kernels=OwnKernels(4, 1e8))  # as on a GPU, where a large matrix is torch's
    assert large.split(one(item)).total == rates.split(one(item)).total
