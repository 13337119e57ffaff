"""The rule: each of its conditions decides something that the others do not."""

from __future__ import annotations

import ast
import inspect
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from profiler.gate import rule as gate_rule
from profiler.gate.rule import (
    Decision,
    Evidence,
    RegressionRule,
    decide,
    detectable,
    evidence,
    sign_p,
    supportable,
    supports,
)

RULE = RegressionRule(delta=0.05)
L = RULE.log
CLEAR = Evidence(n=6, mean=0.10, median=0.10, sd=0.01, low=0.08, high=0.12, p_slower=0.0001, p_sign=1 / 64)

# What each condition is there for. A rule that forgets one of them gets one of these wrong.
CLAIMS: dict[str, tuple[Evidence, Decision]] = {
    "all conditions hold": (CLEAR, "fail"),
    "noise could have done it": (replace(CLEAR, low=-0.01), "go on"),
    "slower, but by less than δ in the mean": (replace(CLEAR, mean=L - 0.001), "go on"),
    "slower, but by less than δ in the median": (replace(CLEAR, median=L - 0.001), "go on"),
    "exactly δ is a regression": (replace(CLEAR, mean=L, median=L), "fail"),
    "a few pairs carry the mean": (replace(CLEAR, p_sign=0.11), "go on"),
    "no slower than δ": (replace(CLEAR, mean=0.0, median=0.0, low=-0.02, high=L - 0.001), "pass"),
    "no slower, or just so": (replace(CLEAR, mean=0.0, median=0.0, low=-0.02, high=L), "go on"),
    "certainly slower, by certainly less": (
        replace(CLEAR, mean=0.02, median=0.02, low=0.01, high=0.03),
        "pass",
    ),
    "faster": (replace(CLEAR, mean=-0.1, median=-0.1, low=-0.12, high=-0.08, p_sign=1.0), "pass"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_rule_decides(claim: str) -> None:
    found, expected = CLAIMS[claim]
    assert decide(found, RULE) == expected


def mutants() -> Iterator[tuple[str, Callable[..., Decision]]]:
    """``decide`` with one condition taken for true, one comparison turned round, or min for mean or median alone."""
    text = inspect.getsource(decide)
    whole = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.BoolOp))
    conditions = [ast.unparse(value) for value in whole.values]
    assert len(conditions) == 3
    plain = ast.unparse(ast.parse(text))
    changes = [(condition, "True") for condition in conditions]
    changes += [("min(found.mean, found.median)", "found.mean"), ("min(found.mean, found.median)", "found.median")]
    changes += [("min(found.mean, found.median)", "max(found.mean, found.median)"), (">= rule.log", "> rule.log")]
    changes += [("found.high < rule.log", "True"), ("found.high < rule.log", "found.high <= rule.log")]
    changes += [("found.high < rule.log", "found.mean < rule.log"), ("found.low > 0", "found.mean > 0")]
    for old, new in changes:
        if old == "significant":
            changed = plain.replace("if significant and", "if True and")
        else:
            changed = plain.replace(old, new)
        assert changed != plain, old
        space = dict(vars(gate_rule))
        exec(compile(changed, "mutant", "exec"), space)
        yield f"{old} → {new}", space["decide"]


@pytest.mark.parametrize("mutant", [pytest.param(rule, id=name) for name, rule in mutants()])
def test_a_rule_with_any_condition_changed_breaks_a_claim(mutant: Callable[..., Decision]) -> None:
    assert any(mutant(found, RULE) != expected for found, expected in CLAIMS.values())


def test_an_adjusted_test_takes_the_place_of_the_bound() -> None:
    assert decide(CLEAR, RULE, significant=False) == "go on"


def test_bounds_are_t_bounds_at_a_third_of_the_error() -> None:
    logs = [0.01, 0.03, 0.02, 0.05, -0.01, 0.04]
    found = evidence(logs, RULE.level)
    half = 2.911710494651743 * statistics.stdev(logs) / math.sqrt(6)  # t at 1 − 0.05/3, five degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert RULE.level == pytest.approx(0.05 / 3)


def test_a_lower_bound_above_zero_is_a_p_below_the_level() -> None:
    for shift in (0.02, 0.025, 0.03, 0.035, 0.04):
        found = evidence([shift + d for d in (-0.03, 0.01, 0.03, -0.02, 0.02, -0.01)], RULE.level)
        assert (found.low > 0) == (found.p_slower < RULE.level)


def test_pairs_without_any_spread_are_certain() -> None:
    worse, same = evidence([0.1] * 6, RULE.level), evidence([0.0] * 6, RULE.level)
    assert (worse.p_slower, worse.low) == (pytest.approx(0, abs=1e-50), pytest.approx(0.1))
    assert (same.p_slower, decide(same, RULE)) == (1.0, "pass")


def test_the_sign_test_is_that_of_coins() -> None:
    assert sign_p(6, 6) == 1 / 64
    assert sign_p(9, 10) == pytest.approx(11 / 1024)
    assert sign_p(0, 6) == 1


def test_a_pair_without_difference_speaks_against_slower() -> None:
    assert evidence([0.1, 0.1, 0.1, 0.1, 0.1, 0.0], RULE.level).p_sign == sign_p(5, 6)


def test_the_smallest_delta_that_is_supported_is_where_twice_of_it_is_detectable() -> None:
    for sd in (0.02, 0.05, 0.09):
        least = RegressionRule(supportable(sd, RULE))
        assert supports(sd, least)
        assert math.log1p(least.delta) * 2 == pytest.approx(math.log1p(detectable(sd, least)), rel=1e-9)
        assert not supports(sd, RegressionRule(least.delta * 0.99))
    assert supportable(0.10, RULE) == pytest.approx(0.0473, abs=1e-4)  # 3.7 · s / √16 / 2, in logarithms
