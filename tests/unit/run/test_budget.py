"""Choosing by estimates, and correcting them by what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from profiler import console
from profiler.case import Case, Task
from profiler.run import plan as run_plan
from profiler.run.plan import SweepPlan
from profiler.run.repetitions import Effort
from profiler.show import plan as show_plan
from profiler.units import GIB

Costs = dict[str, tuple[float, list[float]]]  # quant → seconds to load, seconds of its cases by context


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def plan_of(make_tasks: Any, make_cpu: Any) -> Any:
    """A plan of one model with stated costs."""

    def plan(costs: Costs) -> SweepPlan:
        cases: list[Task] = []
        for quant, (load_s, runs) in costs.items():
            tasks = make_tasks("gemma-3-1b", quant, tuple(128 * (n + 1) for n in range(len(runs))))
            made = run_plan.make(tasks, make_cpu(), Effort(), 20 * GIB).tasks
            cases += [replace(entry, load_s=load_s, run_s=run) for entry, run in zip(made, runs, strict=True)]
        return SweepPlan(tuple(cases))

    return plan


def names(plan: SweepPlan) -> list[str]:
    return [f"{entry.case.quant} {entry.case.context}" for entry in plan.tasks]


COSTS: Costs = {"fp32": (10, [5, 20, 100]), "bf16": (10, [30, 40, 200]), "nf4": (5, [8, 9, 10])}


def test_every_load_gets_a_case_before_any_gets_a_second(plan_of: Any) -> None:
    chosen = run_plan.choose(plan_of(COSTS), 70)  # 13 + 15 + 40 = 68
    assert names(chosen) == ["nf4 128", "fp32 128", "bf16 128"]
    assert len(chosen.skipped) == 6


def test_a_plan_says_when_a_larger_case_takes_less_time_than_a_smaller_one(plan_of: Any) -> None:
    said = "run: slower cases repeat fewer times, so a larger one can take less time.\n"
    for runs, falls in (([5.0, 20.0, 15.0], True), ([5.0, 20.0, 20.0], False)):
        text = show_plan.render(plan_of({"fp32": (10, runs)}), {}, 20 * GIB, "table")
        assert text.endswith(said) == falls
        assert "load: paid once by cases that share a worker.\n" in text


def test_a_plan_explains_no_column_that_a_narrow_terminal_leaves_out(
    plan_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", lambda: 60)
    text = show_plan.render(plan_of({"fp32": (10, [5.0, 20.0])}), {}, 20 * GIB, "table")
    assert "load" not in text and "peak" in text


def test_the_cheapest_other_cases_fill_the_remaining_budget(plan_of: Any) -> None:
    chosen = run_plan.choose(plan_of(COSTS), 68 + 9 + 10 + 20)
    assert names(chosen) == ["nf4 128", "nf4 256", "nf4 384", "fp32 128", "fp32 256", "bf16 128"]
    assert chosen.seconds == 107


def test_a_budget_that_is_large_enough_skips_nothing(plan_of: Any) -> None:
    plan = plan_of(COSTS)
    chosen = run_plan.choose(plan, plan.seconds)
    assert sorted(names(chosen)) == sorted(names(plan))
    assert chosen.skipped == ()


def test_a_load_that_cannot_fit_is_skipped_entirely_with_its_estimate(plan_of: Any) -> None:
    chosen = run_plan.choose(plan_of(COSTS), 30)
    assert names(chosen) == ["nf4 128", "fp32 128"]
    reasons = {f"{skip.case.quant} {skip.case.context}": skip.reason for skip in chosen.skipped}
    assert reasons["bf16 128"] == "does not fit the budget of 30.0 s: estimated 40.0 s, 2.00 s left"
    assert reasons["fp32 256"] == "does not fit the budget of 30.0 s: estimated 20.0 s, 2.00 s left"
    assert len(reasons) == 7


def test_a_tiny_budget_skips_everything(plan_of: Any) -> None:
    chosen = run_plan.choose(plan_of(COSTS), 1)
    assert chosen.tasks == ()
    assert len(chosen.skipped) == 9


def run(plan: SweepPlan, seconds: float, factor: dict[str, float]) -> tuple[list[str], list[str], float]:
    """Go through a plan whose cases really take ``factor`` times their estimate: run, refused, seconds taken."""
    clock = Clock()
    pace = run_plan.Pace(plan.tasks, seconds, clock)
    ran, refused, loaded = [], [], set[str]()
    for entry in plan.tasks:
        case = entry.case
        if pace.refuse(case):
            refused.append(f"{case.quant} {case.context}")
            pace.drop(case)
            continue
        load_s = 0.0 if case.load_key in loaded else entry.load_s
        loaded.add(case.load_key)
        clock.seconds += load_s + entry.run_s * factor.get(case.quant, 1.0)
        pace.note(case, entry.load_s, measured=True)
        ran.append(f"{case.quant} {case.context}")
    return ran, refused, clock.seconds - 1000.0


def test_cases_run_as_planned_when_the_estimates_hold(plan_of: Any) -> None:
    plan = plan_of(COSTS)
    ran, refused, seconds = run(plan, plan.seconds, {})
    assert (len(ran), refused, seconds) == (9, [], plan.seconds)


def test_a_compilation_does_not_make_later_cases_look_slow(plan_of: Any) -> None:
    plan = plan_of({"fp32": (5.0, [10.0, 10.0, 10.0])})
    clock = Clock()
    pace = run_plan.Pace(plan.tasks, 100.0, clock)
    clock.seconds += 5.0 + 60.0 + 10.0
    pace.note(plan.tasks[0].case, 5.0, measured=True, prepare_s=60.0)
    assert pace.refuse(plan.tasks[1].case) is None
    assert pace.remaining_s() == pytest.approx(20.0)


def test_measured_times_correct_the_estimates_of_the_same_load(plan_of: Any) -> None:
    plan = plan_of({"fp32": (10, [5, 20, 30])})
    ran, refused, seconds = run(plan, 70, {"fp32": 2.0})
    assert ran == ["fp32 128", "fp32 256"]  # 10 + 10 + 40, and 60 more would not fit
    assert refused == ["fp32 384"]
    assert seconds <= 70


def test_faster_than_estimated_lets_more_run(plan_of: Any) -> None:
    clock = Clock()
    plan = plan_of({"fp32": (10, [10, 100])})
    pace = run_plan.Pace(plan.tasks, 60, clock)
    assert pace.refuse(plan.tasks[0].case) is None
    clock.seconds += 10 + 2
    pace.note(plan.tasks[0].case, 10, measured=True)
    assert pace.refuse(plan.tasks[1].case) is None  # 100 × 0.2 = 20


def test_a_slow_load_leaves_room_for_the_first_case_of_the_others(plan_of: Any) -> None:
    plan = plan_of({"fp32": (10, [5, 20, 20]), "nf4": (10, [30])})
    ran, refused, seconds = run(plan, plan.seconds, {"fp32": 2.0})
    assert ran == ["fp32 128", "nf4 128"]
    assert refused == ["fp32 256", "fp32 384"]
    assert seconds <= plan.seconds


def test_nothing_is_reserved_for_a_load_that_can_no_longer_run(plan_of: Any) -> None:
    plan = plan_of({"fp32": (10, [5, 5]), "nf4": (10, [300])})
    ran, refused, _ = run(plan, 40, {})
    assert (ran, refused) == (["fp32 128", "fp32 256"], ["nf4 128"])


def test_a_failed_case_corrects_nothing_and_its_model_is_loaded_again(plan_of: Any) -> None:
    clock = Clock()
    plan = plan_of({"fp32": (10, [5, 20])})
    first, second = (entry.case for entry in plan.tasks)
    pace = run_plan.Pace(plan.tasks, 100, clock)
    clock.seconds += 60
    pace.note(first, 10, measured=False)
    assert pace.remaining_s() == 30  # its load again, and 20 as estimated
    assert pace.refuse(second) is None


def test_without_a_budget_nothing_is_skipped_and_the_remaining_time_is_estimated(plan_of: Any) -> None:
    clock = Clock()
    plan = plan_of({"fp32": (10, [5, 20]), "nf4": (10, [30])})
    pace = run_plan.Pace(plan.tasks, None, clock)
    assert pace.remaining_s() == 75
    case: Case = plan.tasks[0].case
    clock.seconds += 10 + 10
    pace.note(case, 10, measured=True)
    assert pace.remaining_s() == 20 * 2 + 10 + 30 * 2  # what runs in another load takes twice as long, too
    assert all(pace.refuse(entry.case) is None for entry in plan.tasks[1:])


def test_the_rest_of_a_running_case_is_estimated_by_the_pace_of_those_before(plan_of: Any) -> None:
    plan, clock = plan_of({"fp32": (10, [5, 20])}), Clock()
    pace = run_plan.Pace(plan.tasks, clock=clock)
    first, second = (task.case for task in plan.tasks)
    clock.seconds += 4
    assert pace.left_s(first) == pytest.approx(11)  # of 10 to load and 5 to run
    clock.seconds += 16
    assert pace.left_s(first) is None  # longer than estimated
    pace.note(first, 10.0, measured=True)
    assert pace.left_s(second) == pytest.approx(40)  # it ran for 10 instead of 5 seconds
    assert pace.left_s(first) is None
