"""How often the gate errs, by a seeded simulation; ``benchmarks/gate_calibration.py`` has the larger table."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from fakes.variants import FakeBench, gate

from profiler.gate import trial
from profiler.gate.rule import GateVerdict

S = 0.03  # standard deviation of a pair: a workstation that does little else
GATES = 200


@cache
def words(slowdown: float, gates: int = GATES, noise: float = S, **bench: float) -> list[GateVerdict]:
    return [
        gate(FakeBench(slowdown, noise, seed=seed, **bench), known_noise=noise, seed=seed)[0][0]
        for seed in range(gates)
    ]


def failed_before_confirmation(verdicts: list[GateVerdict]) -> int:
    return sum(verdict.confirmation is not None for verdict in verdicts)


def test_equal_variants_fail_twice_in_two_hundred_at_most_and_never_after_confirmation() -> None:
    found = words(0.0)
    assert failed_before_confirmation(found) <= 2
    assert Counter(verdict.word for verdict in found)["FAIL"] == 0


def test_equal_variants_pass_in_nine_of_ten_gates() -> None:
    assert Counter(verdict.word for verdict in words(0.0))["PASS"] >= 180


def test_a_slowdown_of_twice_delta_is_found_in_ninety_five_of_a_hundred() -> None:
    assert Counter(verdict.word for verdict in words(0.10))["FAIL"] >= 0.95 * GATES


def test_a_slowdown_of_twice_delta_never_passes() -> None:
    assert Counter(verdict.word for verdict in words(0.10))["PASS"] == 0


def test_half_of_delta_seldom_fails() -> None:
    assert Counter(verdict.word for verdict in words(0.025, 100))["FAIL"] <= 3


def test_processes_that_differ_by_luck_do_not_make_equal_variants_fail() -> None:
    found = words(0.0, 100, process_noise=0.04)
    assert Counter(verdict.word for verdict in found)["FAIL"] == 0


def test_without_confirmation_luck_of_processes_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the confirmation is not there for nothing."""
    monkeypatch.setattr(trial.GateTrial, "_confirm", lambda self: None)
    found = words.__wrapped__(0.0, 100, process_noise=0.04)
    assert Counter(verdict.word for verdict in found)["FAIL"] > 0


def test_a_quiet_machine_needs_six_pairs() -> None:
    assert {verdict.pairs for verdict in words(0.0, 50, noise=0.01)} == {6}
