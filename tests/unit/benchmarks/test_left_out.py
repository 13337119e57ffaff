"""Widths of intervals follow the errors of an engine as far as its devices allow; sources that differ set a floor."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def left_out(request: pytest.FixtureRequest) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    request.addfinalizer(lambda: sys.path.remove(str(BENCHMARKS)))
    return importlib.import_module("left_out")


@pytest.fixture(scope="module")
def noise_floor(left_out: ModuleType) -> ModuleType:
    return importlib.import_module("noise_floor")


@pytest.fixture(scope="module")
def interval_coverage(left_out: ModuleType) -> ModuleType:
    return importlib.import_module("interval_coverage")


def judged(left_out: ModuleType, ratio: float, device: str = "A", **changes: Any) -> Any:
    """A figure whose measured time is ``ratio`` times the predicted one."""
    row = {
        "model": "m", "request": SimpleNamespace(quant="q4_0", batch=1), "engine": SimpleNamespace(name="llama.cpp"),
        "target": SimpleNamespace(name=device, title=device, count=1, members=()), "machine": None, "experts": False,
        "batch": 1, "source": "s", "series": "s · m", "tier": "A", "depth": 0, "prompt": 512, "prefill_depth": 0,
        "answer": None,
    } | changes  # fmt: skip
    return left_out.Judged(SimpleNamespace(**row), "decode", ratio, 1.0, 1.0, 1.0)


def spread_ratios(left_out: ModuleType, engine: str, devices: int, error: float) -> list[Any]:
    """Figures of ``devices``: one half takes ``error`` times as long as predicted, the other as much less."""
    runs = SimpleNamespace(name=engine)
    return [
        judged(left_out, error if number % 2 else 1 / error, f"{engine} {number}", engine=runs)
        for number in range(devices)
    ]


def width(bounds: tuple[float, float]) -> float:
    return bounds[1] / bounds[0]


def test_an_engine_with_many_devices_has_the_width_of_its_own_errors(left_out: ModuleType) -> None:
    others = spread_ratios(left_out, "vllm", 40, 2.0)
    sure = spread_ratios(left_out, "mlx", 300, 1.1)
    everything = [*others, *sure]
    own = width(left_out.spread(everything, "mlx", "decode", False))
    assert own < 1.1**2 * 1.3 < width(left_out.spread(everything, "vllm", "decode", False))


def test_an_engine_with_few_devices_keeps_most_of_the_width_of_the_others(left_out: ModuleType) -> None:
    others = spread_ratios(left_out, "vllm", 40, 2.0)
    widths = [
        width(left_out.spread([*others, *spread_ratios(left_out, "mlx", devices, 1.1)], "mlx", "decode", False))
        for devices in (0, 2, 10, 40)
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[1] > 0.6 * widths[0]


def test_an_interval_is_not_of_the_device_that_it_is_for(left_out: ModuleType) -> None:
    entries = [*spread_ratios(left_out, "vllm", 20, 1.2), judged(left_out, 9.0, "off")]
    bounded = left_out.bounded(entries)
    assert not bounded[-1].covered
    assert [each.high for each in bounded] == pytest.approx([1.2] * 21, rel=0.05)


def test_a_range_is_never_narrower_than_the_errors_of_its_engine(left_out: ModuleType) -> None:
    few = spread_ratios(left_out, "mlx", 2, 2.0)
    everything = [*spread_ratios(left_out, "vllm", 40, 1.1), *few]
    assert left_out.spread(everything, "mlx", "decode", False) == pytest.approx((0.5, 2.0))


def test_a_source_deviates_by_less_than_two_sources_differ(noise_floor: ModuleType, left_out: ModuleType) -> None:
    rows = [
        judged(left_out, ratio, model=f"m{number}", source=source)
        for number in range(20)
        for source, ratio in (("one", 1.0), ("two", 1.2))
    ]
    (case, *rest) = noise_floor.repeated(rows, "decode")
    assert len(rest) == 19
    assert case.gap == pytest.approx(0.2)
    found = noise_floor.floor([case, *rest])
    deviation = math.log(1.2) / math.sqrt(2)
    assert found.mean == pytest.approx((math.sinh(deviation),) * 3)
    assert found.median[0] == pytest.approx(1 - math.exp(-deviation))  # half of the errors are as small


def test_a_source_that_measured_twice_is_no_second_source(noise_floor: ModuleType, left_out: ModuleType) -> None:
    same_day = {"source": "localmaxxing", "series": "localmaxxing 2026-05-30 · m"}
    again = [judged(left_out, ratio, **same_day) for ratio in (1.0, 1.4)]
    assert noise_floor.repeated(again, "decode") == []
    later = judged(left_out, 1.1, source="localmaxxing.com", series="localmaxxing 2026-06-01 · m")
    assert len(noise_floor.repeated([*again, later], "decode")) == 1
    other_depth = judged(left_out, 1.0, source="other", depth=8192)
    assert noise_floor.repeated([*again, other_depth], "decode") == []


def test_coverage_is_as_sure_as_the_number_of_devices_allows(
    interval_coverage: ModuleType, left_out: ModuleType
) -> None:
    def figures(devices: int, rows: int, inside: bool) -> list[list[Any]]:
        ratio = 1.0 if inside else 2.0  # the interval is the point 1
        return [[judged(left_out, ratio, f"{inside} {number}")] * rows for number in range(devices)]

    few = interval_coverage.covered_range([*figures(9, 10, True), *figures(1, 10, False)])
    many = interval_coverage.covered_range([*figures(180, 1, True), *figures(20, 1, False)])
    assert few[0] < many[0] < 0.9 < many[1] <= few[1]
    assert interval_coverage.covered_range(figures(1, 100, True)) == (0.0, 1.0)


def test_a_device_with_many_rows_is_not_a_bias_of_all(interval_coverage: ModuleType, left_out: ModuleType) -> None:
    many = [judged(left_out, 0.8, "A")] * 30
    others = [judged(left_out, ratio, device) for device, ratio in (("B", 1.0), ("C", 1.02))]
    (line,) = (
        line for line in interval_coverage.section([*many, *others], {}) if line.startswith("| decode, llama.cpp")
    )
    assert "| 32 | 3 |" in line
    assert "-20.0% | +0.0%" in line
    assert "biased by the rows of few devices" in line
