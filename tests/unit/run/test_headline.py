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
def choose(make_tasks: Any) -> Any:
    def choice(device: DeviceInfo, budget_s: float = headline.BUDGET_S, asked: str = "") -> headline.HeadlineChoice:
        def grid(name: str, quant: Quant) -> list[Task]:
            found: list[Task] = make_tasks(name, quant.name, (128, 512), device=device)
            return found

        formats = [registry.load("quants", name, "quantization").QUANT for name in asked.split(",") if name]
        return headline.choose(headline.HeadlineBudget(device, EFFORT, device.free_bytes, budget_s), grid, formats)

    return choice


def pairs(choice: headline.HeadlineChoice) -> list[tuple[str, str]]:
    return [(name, quant.name) for name, quant in choice.pairs]


def test_two_cores_without_bf16_units_get_the_fastest_models_in_the_dtype_that_is_faster(
    choose: Any, make_cpu: Any
) -> None:
    """Nothing decodes as fast as people read, which is then not claimed."""
    choice = choose(make_cpu(free_gib=21))
    assert pairs(choice) == [("gemma-4-e2b", "bf16"), ("qwen3.5-0.8b", "fp32")]
    assert "\n" not in choice.words
    assert "gemma-4-e2b bf16 and qwen3.5-0.8b fp32" in choice.words
    assert "21.0 GiB free) and finish" in choice.words


def test_a_24_gb_card_gets_the_largest_models_in_four_bits_and_not_smaller_ones_in_bf16(
    choose: Any, make_gpu: Any
) -> None:
    choice = choose(make_gpu())
    assert pairs(choice) == [("gemma-4-31b", "nf4"), ("qwen3.5-27b", "nf4")]
    assert "decode as fast as people read (5.3 t/s) and finish" in choice.words


def test_an_80_gb_card_gets_the_31b_and_the_27b_in_bf16_and_in_nf4_as_well(choose: Any, make_gpu: Any) -> None:
    assert pairs(choose(make_gpu("NVIDIA H100 80GB HBM3", 80))) == [
        ("gemma-4-31b", "bf16"),
        ("qwen3.5-27b", "bf16"),
        ("gemma-4-31b", "nf4"),
        ("qwen3.5-27b", "nf4"),
    ]


def test_a_mixture_of_experts_is_not_measured_in_nf4(choose: Any, make_gpu: Any) -> None:
    """The second quantization is left out where it does not make the model smaller."""
    for gib in (48, 64, 96):
        chosen = pairs(choose(make_gpu("NVIDIA GB10", gib)))
        assert not [pair for pair in chosen if pair[1] == "nf4" and "-a" in pair[0]]


def test_a_family_that_does_not_fit_is_left_out(choose: Any, make_cpu: Any) -> None:
    choice = choose(make_cpu(free_gib=6, cores=4))
    assert [name for name, _ in pairs(choice)] == ["qwen3.5-0.8b"]
    assert choice.words.endswith(". No Gemma 4 fits")


def test_no_memory_at_all_still_names_a_pair_for_the_plan_to_refuse(choose: Any, make_cpu: Any) -> None:
    choice = choose(make_cpu(free_gib=0.5))
    assert [name for name, _ in pairs(choice)] == ["gemma-4-e2b", "qwen3.5-0.8b"]
    assert choice.words.startswith(
        "without -m, this sweep measures gemma-4-e2b bf16 and qwen3.5-0.8b nf4, which may not all fit on cpu"
        " (512 MiB free): gemma-4-e2b bf16 needs about 9."
    )


def test_each_grid_is_planned_once(choose: Any, make_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = run_plan.make
    monkeypatch.setattr(
        run_plan, "make", lambda tasks, *rest: made.append(tasks[0].case.load_key) or make(tasks, *rest)
    )
    choose(make_gpu("NVIDIA H100 80GB HBM3", 80))
    assert len(made) == len(set(made)) == 4


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 64])
def test_the_pair_fits_five_minutes_and_the_first_row_a_minute(
    choose: Any, make_cpu: Any, make_tasks: Any, cores: int
) -> None:
    device = make_cpu(free_gib=60, cores=cores)
    choice = choose(device)
    tasks = [task for name, quant in pairs(choice) for task in make_tasks(name, quant, (128, 512), device=device)]
    plan = run_plan.make(tasks, device, EFFORT, device.free_bytes)
    first = min(planned.load_s + planned.run_s for planned in plan.tasks)
    assert first <= headline.FIRST_ROW_S
    if cores > 1:  # one core cannot: the budget then cuts the grid
        assert plan.seconds <= headline.BUDGET_S


def test_a_longer_budget_never_chooses_smaller_models(choose: Any, make_cpu: Any, make_tasks: Any) -> None:
    device = make_cpu(free_gib=200, cores=8)

    def parameters(seconds: float) -> list[int]:
        return [make_tasks(name, quant)[0].geometry.parameters for name, quant in pairs(choose(device, seconds))[:2]]

    for shorter, longer in zip(parameters(300), parameters(7200), strict=True):
        assert shorter <= longer


def test_a_budget_that_no_pair_fits_is_reported_with_the_time_needed(choose: Any, make_cpu: Any) -> None:
    words = choose(make_cpu(free_gib=30), budget_s=10).words
    assert words.startswith("without -m, this sweep measures gemma-4-e2b bf16 and qwen3.5-0.8b nf4; they need")
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
    words = choose(make_gpu("NVIDIA H100 80GB HBM3", 80)).words
    assert "gemma-4-31b bf16, qwen3.5-27b bf16, gemma-4-31b nf4 and qwen3.5-27b nf4: the largest" in words


def test_all_requested_quantizations_are_used_and_no_other(choose: Any, make_gpu: Any) -> None:
    assert [quant for _, quant in pairs(choose(make_gpu(), asked="nf4,int8"))] == ["nf4", "nf4", "int8", "int8"]
