"""Many tests at once: the odds of one false alarm are those of one test."""

from __future__ import annotations

import random

from profiler.gate.rule import HypothesisFamily, holm


def test_holm_is_that_of_the_paper() -> None:
    """Thresholds 0.05/4, 0.05/3, 0.05/2, 0.05/1, and the first that fails ends it."""
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p, 0.05) == {"a", "d"}
    assert holm({"a": 0.012, "b": 0.016, "c": 0.024, "d": 0.049}, 0.05) == {"a", "b", "c", "d"}
    assert holm({"a": 0.013, "b": 0.0001}, 0.025) == {"a", "b"}


def test_one_hypothesis_alone_has_the_whole_level() -> None:
    assert holm({"a": 0.05}, 0.05) == {"a"}
    assert holm({}, 0.05) == set()


def test_the_odds_of_a_false_alarm_do_not_grow_with_the_number_of_cases() -> None:
    draw = random.Random(1)
    alarms = sum(bool(holm({n: draw.random() for n in range(16)}, 0.05)) for _ in range(4000))
    assert alarms / 4000 < 0.06
    draw = random.Random(1)
    alone = sum(any(draw.random() < 0.05 for _ in range(16)) for _ in range(1000))
    assert alone / 1000 > 0.5  # what Holm is there for


def test_what_is_not_measured_yet_holds_its_share() -> None:
    family = HypothesisFamily(["a", "b", "c"], 0.03)
    family.note("a", 0.012)
    assert family.rejected() == set()
    family.note("a", 0.0099)
    assert family.rejected() == {"a"}


def test_what_has_failed_passes_its_share_on() -> None:
    family = HypothesisFamily(["a", "b"], 0.03)
    family.note("b", 0.02)
    assert family.rejected() == set()
    family.failed("a")
    assert family.rejected() == {"a", "b"}
