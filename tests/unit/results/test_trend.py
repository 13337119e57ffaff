"""Drift, spread and trend of repetitions."""

from __future__ import annotations

import random

import pytest

from profiler.results.stats import drift, spread, steady, trend


def test_drift_is_the_change_over_all_repetitions() -> None:
    assert drift([1.0, 1.01, 1.02, 1.03, 1.04]) == pytest.approx(0.05 / 1.02)
    assert drift([1.04, 1.03, 1.02, 1.01, 1.0]) == pytest.approx(-0.05 / 1.02)


def test_one_outlier_is_no_drift() -> None:
    assert drift([9.0, 1.0, 1.0, 1.0, 1.0]) == 0.0
    assert steady([9.0, 1.0, 1.0, 1.0, 1.0]) is True


def test_spread_is_the_middle_half() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)


def test_too_few_repetitions_or_a_clock_that_does_not_advance_are_unknown() -> None:
    assert steady([1.0] * 4) is None and steady([0.0] * 5) is None
    assert trend([1.0, 2.0, 3.0, 4.0]) is None and trend([0.0] * 5) is None


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        ([1.0, 1.1, 1.2, 1.3, 1.4], 0.5 / 1.2),  # strictly rising
        ([1.0, 1.1, 1.3, 1.2, 1.4], None),  # one pair out of order: five are too few to be sure
        ([1.0, 1.2, 1.1, 1.3, 1.25, 1.4, 1.35, 1.5, 1.45, 1.6], True),  # ten are not
    ],
)
def test_a_trend_is_reported_only_if_it_is_more_than_chance(seconds: list[float], found: float | bool | None) -> None:
    told = trend(seconds)
    assert (told is not None) if found is True else (told == (found if found is None else pytest.approx(found)))


@pytest.mark.parametrize("n", [5, 10, 20])
def test_noise_alone_is_seldom_called_a_trend(n: int) -> None:
    draw = random.Random(n)
    told = sum(trend([draw.lognormvariate(0, 0.05) for _ in range(n)]) is not None for _ in range(500))
    assert told / 500 < 0.05
