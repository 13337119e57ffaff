"""Student's t against published tables."""

from __future__ import annotations

import math

import pytest

from profiler.results import stats
from profiler.results.stats import quantile, tail

TABLE = [  # NIST e-Handbook of Statistics, 1.3.6.7.2; there 318.313, but tan(0.499 π) is 318.309
    (0.90, 1, 3.078), (0.95, 1, 6.314), (0.975, 1, 12.706), (0.99, 1, 31.821), (0.999, 1, 318.309),
    (0.90, 5, 1.476), (0.95, 5, 2.015), (0.975, 5, 2.571), (0.99, 5, 3.365), (0.999, 5, 5.893),
    (0.90, 15, 1.341), (0.95, 15, 1.753), (0.975, 15, 2.131), (0.99, 15, 2.602), (0.999, 15, 3.733),
    (0.95, 30, 1.697), (0.975, 60, 2.000), (0.99, 100, 2.364), (0.999, 100, 3.174),
]  # fmt: skip


@pytest.mark.parametrize(("p", "df", "t"), TABLE)
def test_quantiles_are_those_of_the_table(p: float, df: float, t: float) -> None:
    assert quantile(p, df) == pytest.approx(t, abs=6e-4)


@pytest.mark.parametrize("df", [0.5, 1, 1.7, 2, 4.3, 15, 250, 1e5])
def test_tail_and_quantile_are_inverse(df: float) -> None:
    for p in (0.6, 0.9, 0.95, 0.975, 1 - 0.05 / 3, 0.999):
        assert 1 - tail(quantile(p, df), df) == pytest.approx(p, abs=1e-10)


def test_one_degree_of_freedom_is_the_cauchy_distribution() -> None:
    for t in (0.1, 1.0, 7.5, 1e4):
        assert tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, abs=1e-12)


def test_two_degrees_of_freedom_have_a_closed_form() -> None:
    for t in (0.1, 1.0, 7.5, 50.0):
        assert tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), abs=1e-12)


def test_the_distribution_is_symmetric() -> None:
    assert tail(0, 3) == 0.5
    assert tail(-1.3, 3) == pytest.approx(1 - tail(1.3, 3))
    assert quantile(0.05, 7) == -quantile(0.95, 7)


def test_the_small_table_of_row_intervals_agrees() -> None:
    assert {df: round(quantile(0.975, df), 3) for df in stats.T_975} == stats.T_975
