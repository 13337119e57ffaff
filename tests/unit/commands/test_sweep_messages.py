"""What is said before a long sweep, and after one that did not do what was asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes.lab import make_case

from profiler.results.measurement import Measurement
from profiler.run import plan
from profiler.show.plan import ending, warning

OK = Measurement(make_case(128), {}, "ok")
SKIPPED = Measurement(make_case(512), {}, "skipped", "needs at least 4.00 GiB, has 1.00 GiB")


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every case is estimated to take so long."""
    plan_case = plan.plan_case
    monkeypatch.setattr(plan, "plan_case", lambda *a: replace(plan_case(*a), load_s=1.0, run_s=seconds))


def test_a_long_sweep_is_announced_with_what_to_do_about_it(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 1800.0)
    ran = sweep("-c", "128,256", "-n", "2", "-q", "fp32,nf4")
    first, *_ = ran.err.splitlines()
    assert first == ("4 cases to run, 2 model loads, about 2h 00m. --budget 30m limits it; --dry-run shows the plan")
    assert ran.outcomes == ["ok"] * 4


def test_a_short_sweep_and_one_with_a_budget_are_not(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert warning(plan.SweepPlan(()), None) is None
    slow(monkeypatch, 1800.0)
    assert "picks what fits" not in sweep("-c", "128", "-n", "2", "--budget", "1h").err


@pytest.mark.parametrize(
    ("total", "resumed", "said"),
    [
        (2, True, "stopped: 1 of 2 cases measured; the same command continues"),
        (1, True, "stopped: 1 of 1 case measured; the same command continues"),
        (2, False, "stopped: 1 of 2 cases measured; the same command without --fresh continues"),
    ],
)
def test_an_interrupted_sweep_says_how_to_go_on(total: int, resumed: bool, said: str) -> None:
    assert ending([OK, SKIPPED], total, True, resumed) == said


def test_a_sweep_that_measured_something_has_nothing_to_add() -> None:
    assert ending([SKIPPED, OK], 2, False, True) is None


def test_a_sweep_that_measures_nothing_says_why_and_fails(sweep: Any) -> None:
    ran = sweep("-q", "fp32", "-c", "128,256", "-n", "4", "--max-memory", "100MiB")
    assert ran.code == 1
    assert ran.outcomes == ["skipped"] * 2
    (line,) = ran.err.splitlines()
    assert line.startswith("nothing measured: tiny fp32 c=128 b=1: needs at least ")


def test_rows_kept_from_before_are_something(sweep: Any) -> None:
    sweep("-c", "128", "-n", "4")
    again = sweep("-c", "128", "-n", "4")
    assert again.code == 0 and "nothing measured" not in again.err


def test_a_sweep_without_some_of_its_cases_succeeds(sweep: Any) -> None:
    ran = sweep("-c", "128", "-b", "1,1000000", "-n", "4")
    assert (ran.code, sorted(ran.outcomes)) == (0, ["ok", "skipped"])
