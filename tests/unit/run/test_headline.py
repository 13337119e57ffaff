"""The pair that is measured when nobody says what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from profiler import registry
from profiler.case import Task
from profiler.devices.base import DeviceInfo
from profiler.quants.base import Quant
from profiler.run import headline
from profiler.run import plan as run_plan
from profiler.run.repetitions import Effort

EFFORT = Effort(headline.REPS)


@pytest.fixture
def choose(make_points: Any) -> Any:
    def choice(device: DeviceInfo, budget_s: float = headline.BUDGET_S, asked: str = "") -> headline.HeadlineChoice:
        def grid(name: str, quant: Quant) -> list[Task]:
            found: list[Task] = make_points(name, quant.name, (128, 512), device=device)
            return found

        formats = [registry.load("quants", name, "quantization").QUANT for name in asked.split(",") if name]
        return headline.choose(headline.HeadlineBudget(device, EFFORT, device.free_bytes, budget_s), grid, formats)

    return choice


def pairs(choice: headline.HeadlineChoice) -> list[tuple[str, str]]:
    return [(name, quant.name) for name, quant in choice.pairs]


def test_two_cores_without_bf16_units_get_small_models_in_fp32(choose: Any, make_cpu: Any) -> None:
    choice = choose(make_cpu(free_gib=21))
    assert pairs(choice) == [("gemma-4-e2b", "fp32"), ("qwen3.5-2b", "fp32")]
    assert "\n" not in choice.words
    assert "gemma-4-e2b fp32 and qwen3.5-2b fp32" in choice.words
    assert "21.0 GiB free" in choice.words


def test_a_24_gb_card_gets_what_it_holds_in_bf16_and_both_in_nf4_as_well(choose: Any, make_gpu: Any) -> None:
    choice = choose(make_gpu())
    assert pairs(choice) == [
        ("gemma-4-e4b", "bf16"),
        ("qwen3.5-9b", "bf16"),
        ("gemma-4-e4b", "nf4"),
        ("qwen3.5-9b", "nf4"),
    ]


def test_an_80_gb_card_gets_the_31b_and_the_27b(choose: Any, make_gpu: Any) -> None:
    choice = choose(make_gpu("NVIDIA H100 80GB HBM3", 80))
    assert pairs(choice)[0] == ("gemma-4-31b", "bf16")
    assert pairs(choice)[1][0] in ("qwen3.5-27b", "qwen3.5-35b-a3b")


def test_little_memory_falls_back_to_a_smaller_quantization(choose: Any, make_cpu: Any) -> None:
    assert pairs(choose(make_cpu(free_gib=11)))[0] == ("gemma-4-e2b", "bf16")


def test_no_memory_at_all_still_names_a_pair_for_the_plan_to_refuse(choose: Any, make_cpu: Any) -> None:
    choice = choose(make_cpu(free_gib=0.5))
    assert [name for name, _ in pairs(choice)] == ["gemma-4-e2b", "qwen3.5-0.8b"]
    assert choice.words.startswith(
        "without -m, this sweep measures gemma-4-e2b fp32 and qwen3.5-0.8b fp32, which may not all fit on cpu"
        " (512 MiB free):"
        " gemma-4-e2b fp32 needs about 18."
    )


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 64])
def test_the_pair_fits_five_minutes_and_the_first_row_a_minute(
    choose: Any, make_cpu: Any, make_points: Any, cores: int
) -> None:
    device = make_cpu(free_gib=60, cores=cores)
    choice = choose(device)
    tasks = [task for name, quant in pairs(choice) for task in make_points(name, quant, (128, 512), device=device)]
    plan = run_plan.make(tasks, device, EFFORT, device.free_bytes)
    first = min(planned.load_s + planned.run_s for planned in plan.tasks)
    assert first <= headline.FIRST_ROW_S
    if cores > 1:  # one core cannot: the budget then cuts the grid
        assert plan.seconds <= headline.BUDGET_S


def test_a_longer_budget_never_chooses_smaller_models(choose: Any, make_cpu: Any, make_points: Any) -> None:
    device = make_cpu(free_gib=200, cores=8)

    def parameters(seconds: float) -> list[int]:
        return [make_points(name, quant)[0].geometry.parameters for name, quant in pairs(choose(device, seconds))[:2]]

    for shorter, longer in zip(parameters(300), parameters(7200), strict=True):
        assert shorter <= longer


def test_a_budget_that_no_pair_fits_is_reported_with_the_time_needed(choose: Any, make_cpu: Any) -> None:
    words = choose(make_cpu(free_gib=30), budget_s=10).words
    assert words.startswith("without -m, this sweep measures gemma-4-e2b fp32 and qwen3.5-0.8b fp32; they need")
    assert words.endswith(", more than the budget of 10.0 s, so cases run cheapest first until it is used up")
    assert "within" not in words


def test_a_quantization_that_cannot_run_here_is_reported(
    choose: Any, make_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nf4 = registry.load("quants", "nf4", "quantization")
    broken = replace(nf4.QUANT, unavailable=lambda device: "bitsandbytes is not installed")
    monkeypatch.setattr(nf4, "QUANT", broken)
    assert choose(make_gpu(), asked="nf4").words.endswith(" nf4, but bitsandbytes is not installed")


def test_several_quantizations_read_as_a_list(choose: Any, make_gpu: Any) -> None:
    words = choose(make_gpu()).words
    assert "gemma-4-e4b bf16, qwen3.5-9b bf16, gemma-4-e4b nf4 and qwen3.5-9b nf4: the largest" in words


def test_all_requested_quantizations_are_used_and_no_other(choose: Any, make_gpu: Any) -> None:
    assert [quant for _, quant in pairs(choose(make_gpu(), asked="nf4,int8"))] == ["nf4", "nf4", "int8", "int8"]
