"""Pass rates: their intervals, what two models' tasks tell, and that a row keeps the outcomes and nothing derived."""

from __future__ import annotations

import random
from typing import Any

import pytest

from profiler.results import tasks
from profiler.results.tasks import TaskScore, compared, wilson


@pytest.mark.parametrize(
    ("passed", "count", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(passed: int, count: int, low: float, high: float) -> None:
    assert wilson(passed, count) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    chance = random.Random(22)
    for rate in (0.5, 0.8, 0.95):
        ends = [wilson(sum(chance.random() < rate for _ in range(50)), 50) for _ in range(2000)]
        assert 0.92 < sum(low <= rate <= high for low, high in ends) / len(ends) < 0.98


def test_cut_answers_count_as_not_passed_and_failed_ones_not_at_all() -> None:
    found = tasks.score(["passed", "wrong", "cut", "failed"])
    assert found == TaskScore(1, 1, 1, 1)
    assert found.answered == 3 and found.rate is not None and found.rate.value == pytest.approx(1 / 3)
    assert tasks.score(["failed"]).rate is None


def stored(outcomes: str, hashed: str = "h") -> dict[str, Any]:
    """``+-.``: passed, wrong, failed."""
    words = {"+": "passed", "-": "wrong", ".": "failed"}
    count = len(outcomes)
    return {
        "set": "s",
        "hash": hashed,
        "kind": ["html"] * count,
        "name": list(map(str, range(count))),
        "outcome": [words[each] for each in outcomes],
        "reason": [None] * count,
    }


@pytest.mark.parametrize(
    ("a", "b", "only", "p"),
    [
        ("+++---", "+++---", (0, 0), 1.0),
        ("++++++", "------", (6, 0), 2 / 64),
        ("+++++-", "-----+", (5, 1), 14 / 64),
        ("+.+---", "+++.--", (0, 0), 1.0),
    ],
)
def test_two_models_are_compared_by_the_tasks_that_one_of_them_passed(
    a: str, b: str, only: tuple[int, int], p: float
) -> None:
    found = compared(stored(a), stored(b))
    assert found is not None and (found.only_a, found.only_b) == only and found.p == pytest.approx(p)
    assert found.significant == (p <= 0.05)


def test_unlike_sets_are_not_compared() -> None:
    assert compared(stored("+"), stored("+", "other")) is None
    assert compared(stored("."), stored("+")) is None
    assert tasks.fewest_apart() == 6


def test_several_pairs_are_corrected_by_holm() -> None:
    """Six tasks that only one of them passed tell two models apart, but not any two of three."""
    good, poor = stored("++++++++"), stored("++------")
    (pair,) = tasks.pairs([("good", good), ("poor", poor)])
    assert pair[2].p == pytest.approx(2 / 64)
    assert tasks.pair_lines([pair]) == ["tasks: both passed 2, only good 6, only poor 0: they differ (p = 0.031)"]
    three = tasks.pairs([("good", good), ("also good", good), ("poor", poor)])
    assert [found.p for _, _, found in three] == pytest.approx([1.0, 3 * 2 / 64, 3 * 2 / 64])
    assert tasks.pair_lines(three)[1].endswith("too few to tell them apart (p = 0.094, corrected for 3 pairs)")
    best, worst = stored("+" * 9), stored("-" * 9)
    stepped = tasks.pairs([("best", best), ("middle", stored("+++------")), ("worst", worst)])
    assert [found.p for _, _, found in stepped] == pytest.approx([2 * 2 / 64, 3 * 2 / 512, 0.25])  # Holm's steps


def test_of_many_pairs_that_are_alike_the_last_are_only_counted() -> None:
    many = [(f"m{number}", stored("++--")) for number in range(6)]
    lines = tasks.pair_lines(tasks.pairs(many))
    assert len(lines) == 11 and lines[-1] == "tasks: 5 more pairs: too few to tell them apart"


def test_failed_requests_are_told_because_the_rate_is_without_them() -> None:
    assert tasks.biased("m", tasks.score(["passed", "wrong"])) is None
    said = tasks.biased("m", tasks.score(["passed", "failed"]))
    assert said is not None and said.startswith("m: 1 of 2 tasks have no answer that could be checked.")


def test_a_row_adds_the_rates_and_what_is_read_back_has_none() -> None:
    serving = {"requests": 4, "tasks": stored("++-.")}
    public = tasks.content(serving)
    assert public is not None
    found = public["tasks"]
    assert (found["passed"], found["answered"], found["kinds"]["html"]["passed"]) == (2, 3, 2)
    assert found["rate"]["value"] == pytest.approx(2 / 3)
    assert tasks.stored(public) == serving
    assert tasks.content({"requests": 1}) == {"requests": 1} and tasks.content(None) is None
