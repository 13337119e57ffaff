"""The order of a plan, and its reasons for leaving a case out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from profiler.cost.cases import host_of
from profiler.run import plan as run_plan
from profiler.run.repetitions import Effort
from profiler.units import GIB

EFFORT = Effort(reps=2, max_phase_s=60)


def test_each_model_is_loaded_once_and_small_cases_come_first(make_tasks: Any, make_cpu: Any) -> None:
    tasks = make_tasks("gemma-3-1b,qwen3-0.6b", "fp32,bf16", (512, 128), (4, 1))
    plan = run_plan.make(tasks, make_cpu(), EFFORT, 20 * GIB)
    runs = [(planned.case.model, planned.case.quant) for planned in plan.tasks]
    assert len([1 for before, after in pairwise(runs) if before != after]) == 3
    assert runs[0] == ("gemma-3-1b", "fp32")  # as asked
    shapes = [(planned.case.context, planned.case.batch) for planned in plan.tasks[:4]]
    assert shapes == [(128, 1), (128, 4), (512, 1), (512, 4)]
    assert plan.skipped == ()


def test_cases_of_a_load_that_are_apart_in_the_grid_run_together(make_tasks: Any, make_cpu: Any) -> None:
    tasks = [p for c in (128, 256) for p in make_tasks("gemma-3-1b", "fp32,bf16", (c,))]
    plan = run_plan.make(tasks, make_cpu(), EFFORT, 20 * GIB)
    assert [planned.case.quant for planned in plan.tasks] == ["fp32", "fp32", "bf16", "bf16"]


def test_a_context_beyond_the_models_maximum_is_skipped(make_tasks: Any, make_cpu: Any) -> None:
    plan = run_plan.make(make_tasks("gemma-3-1b", contexts=(32768, 32769)), make_cpu(), EFFORT, 20 * GIB)
    assert [planned.case.context for planned in plan.tasks] == [32768]
    assert [skip.reason for skip in plan.skipped] == ["the model supports at most 32,768 tokens"]


def test_weights_that_cannot_fit_are_skipped_with_both_sizes(make_tasks: Any, make_cpu: Any) -> None:
    plan = run_plan.make(make_tasks("gemma-4-31b", "fp32"), make_cpu(), EFFORT, 20 * GIB)
    assert plan.tasks == ()
    assert "needs at least 115 GiB (weights 114 GiB, cache" in plan.skipped[0].reason
    assert plan.skipped[0].reason.endswith("has 20.0 GiB")
    assert plan.skipped[0].estimate is not None and plan.skipped[0].estimate.weights.value > 114 * GIB


def test_a_quantized_model_that_stays_large_says_what_is_left(make_tasks: Any, make_cpu: Any) -> None:
    plan = run_plan.make(make_tasks("qwen3.5-35b-a3b", "nf4"), make_cpu(), EFFORT, 20 * GIB)
    assert plan.skipped[0].reason.endswith("has 20.0 GiB; nf4 leaves 124 GiB of fused experts in fp32")


def test_a_cache_that_cannot_fit_is_skipped_and_smaller_ones_run(make_tasks: Any, make_cpu: Any) -> None:
    plan = run_plan.make(
        make_tasks("qwen3-0.6b", contexts=(1024, 32768), batches=(1, 64)), make_cpu(), EFFORT, 20 * GIB
    )
    assert [(skip.case.context, skip.case.batch) for skip in plan.skipped] == [(32768, 64)]
    assert len(plan.tasks) == 3


def test_a_case_that_may_just_fit_is_tried(make_tasks: Any, make_cpu: Any) -> None:
    (task,) = make_tasks("gemma-4-e2b", "fp32")
    needed = run_plan.plan_case(task, host_of(make_cpu(), None), EFFORT).estimate.peak
    assert needed.low < needed.value
    assert run_plan.make([task], make_cpu(), EFFORT, round(needed.low) + 1).skipped == ()
    assert run_plan.make([task], make_cpu(), EFFORT, round(needed.low) - 1).tasks == ()


def test_a_quantization_that_cannot_run_here_gives_its_reason(make_tasks: Any, make_cpu: Any) -> None:
    (task,) = make_tasks("gemma-3-1b", "nf4")
    broken = replace(task, quant=replace(task.quant, unavailable=lambda device: f"no kernel for {device.name}"))
    plan = run_plan.make([broken], make_cpu(), EFFORT, 20 * GIB)
    assert [skip.reason for skip in plan.skipped] == ["nf4 cannot run on cpu: no kernel for cpu"]


@pytest.mark.parametrize(
    ("once_s", "reps", "max_phase_s", "seconds"),
    [
        (1.0, 3, 60, 4.0),  # a warm-up and three; only the first case of a load has more warm-ups
        (0.1, None, 60, 1.1),  # what a precision usually takes
        (30.0, None, 60, 90.0),
        (30.0, 3, 60, 90.0),  # a warm-up, and no third after 60 s
        (60.0, 3, 60, 60.0),  # the warm-up is the measurement
        (500.0, 3, 60, 500.0),
        (25.0, 5, 60, 100.0),
    ],
)
def test_a_phase_is_estimated_as_the_loop_runs_it(
    once_s: float, reps: int | None, max_phase_s: float, seconds: float
) -> None:
    assert run_plan._phase_s(once_s, Effort(reps, max_phase_s)) == pytest.approx(seconds)


def test_a_plan_counts_each_load_once(make_tasks: Any, make_cpu: Any) -> None:
    plan = run_plan.make(make_tasks("gemma-3-1b", "fp32,bf16", (128, 256)), make_cpu(), EFFORT, 20 * GIB)
    loads = {planned.case.quant: planned.load_s for planned in plan.tasks}
    assert plan.seconds == pytest.approx(sum(loads.values()) + sum(planned.run_s for planned in plan.tasks))


def test_a_synthetic_cache_costs_no_prefill(make_tasks: Any, make_cpu: Any) -> None:
    (prefilled,) = make_tasks("gemma-3-1b", contexts=(16384,))
    (written,) = make_tasks("gemma-3-1b", contexts=(16384,), fill="synthetic")
    longer, shorter = (
        run_plan.plan_case(task, host_of(make_cpu(), None), EFFORT).run_s for task in (prefilled, written)
    )
    assert shorter < longer / 3
