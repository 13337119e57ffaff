"""When a phase is warm and when it has been measured enough, on made-up seconds."""

from __future__ import annotations

import random

import pytest

from profiler.results.measurement import Sample
from profiler.results.stats import summarize
from profiler.run.repetitions import MAX_REPS, MIN_REPS, Effort, Repeater, likely, stop


def samples(*seconds: float, invalid: tuple[int, ...] = ()) -> list[Sample]:
    return [
        Sample("decode", second, 32, invalid="hot" if place in invalid else None)
        for place, second in enumerate(seconds)
    ]


@pytest.mark.parametrize(
    ("seconds", "warm"),
    [
        ((0.1,) * 4, False),  # too few to tell
        ((0.1,) * 5, True),
        ((0.9, 0.5, 0.3, 0.2, 0.15), False),  # still falling
        ((0.9, 0.5, 0.3, *(0.1, 0.1002, 0.1, 0.0999, 0.1001)), True),  # only the last five count
        ((0.100, 0.101, 0.102, 0.103, 0.104), False),  # 5 % over the window, though hardly spread
        ((0.10, 0.12, 0.09, 0.11, 0.10), False),  # no drift, but too wide to see one
        ((0.10, 0.12, 0.09, 0.11, 0.10) * 4, True),  # the most there may be
        ((5.0,), True),  # a long phase warms up once
        ((1.0, 2.0, 1.5), False),
        ((1.0, 2.0, 2.5), True),  # 5 s are over
    ],
)
def test_a_phase_is_warm_when_it_is_steady_or_has_reached_a_limit(seconds: tuple[float, ...], warm: bool) -> None:
    assert Repeater(Effort()).is_warm("decode", samples(*seconds)) is warm


def test_a_case_measured_before_by_this_process_warms_up_for_a_second() -> None:
    seconds = samples(0.5, 0.6)
    assert not Repeater(Effort()).is_warm("decode", seconds)
    assert Repeater(Effort(), measured_before=True).is_warm("decode", seconds)
    assert not Repeater(Effort(), measured_before=True).is_warm("decode", samples(0.5, 0.3))


def test_only_the_first_case_of_a_process_warms_up_until_it_is_steady() -> None:
    """Later ones warm up once for their new shape; a quick look warms up twice in the first."""
    once = samples(0.1)
    assert not Repeater(Effort(), settled={"prefill"}).is_warm("decode", once)
    assert Repeater(Effort(), settled={"prefill", "decode"}).is_warm("decode", once)
    quick = Repeater(Effort(quick=True))
    assert not quick.is_warm("decode", once) and quick.is_warm("decode", samples(0.2, 0.1))
    assert not Repeater(Effort(), measured_before=True, settled={"decode"}).is_warm("decode", once)  # a gate's blocks


def test_a_quick_look_ends_at_three_repetitions_within_five_percent() -> None:
    quick = Effort(precision=0.05, quick=True)
    assert stop(samples(1.0, 1.001), quick) is None
    assert stop(samples(1.0, 1.001, 1.002), quick) == "precision"
    assert stop(samples(1.0, 1.001, 1.002), Effort(precision=0.05)) is None
    assert stop(samples(*(1.0, 1.5) * 3), quick) == "cap"
    assert quick.requested["quick"] is True and "quick" not in Effort().requested


def test_a_short_limit_shortens_the_warm_up_too() -> None:
    assert not Repeater(Effort(max_phase_s=1.0)).is_warm("decode", samples(0.5, 0.4))
    assert Repeater(Effort(max_phase_s=1.0)).is_warm("decode", samples(0.5, 0.6))


@pytest.mark.parametrize(
    ("taken", "effort", "why"),
    [
        ((), Effort(), None),
        ((1.0,) * (MIN_REPS - 1), Effort(), None),
        ((1.0,) * MIN_REPS, Effort(), "precision"),
        ((1.0, 1.2, 0.9, 1.1, 1.0), Effort(), None),
        ((1.0, 1.2, 0.9, 1.1, 1.0), Effort(precision=0.2), "precision"),
        ((1.0, 1.2) * (MAX_REPS // 2), Effort(), "cap"),
        ((1.0, 1.2) * (MAX_REPS // 2), Effort(precision=0.2), "precision"),
        ((1.0, 1.0), Effort(reps=3), None),
        ((1.0, 2.0, 3.0), Effort(reps=3), "reps"),
        ((30.0, 30.0), Effort(), "time"),
        ((30.0, 30.0), Effort(reps=3), "time"),
        ((30.0, 29.0), Effort(reps=3), None),
    ],
)
def test_a_phase_ends_for_a_reason(taken: tuple[float, ...], effort: Effort, why: str | None) -> None:
    assert stop(samples(*taken), effort) == why


@pytest.mark.parametrize(
    ("taken", "invalid", "effort", "why"),
    [
        ((1.0,) * MIN_REPS, (0,), Effort(), None),  # an invalid one is none of the fewest
        ((1.0,) * (MIN_REPS + 1), (0,), Effort(), "precision"),
        ((1.0, 1.0), (0, 1), Effort(reps=4), "invalid"),
        ((1.0, 1.0), (0, 1), Effort(reps=8), None),
        ((60.0,), (0,), Effort(), None),  # one is replaced whatever it takes
        ((60.0, 60.0), (0, 1), Effort(), "invalid"),
        ((60.0, 60.0), (0,), Effort(), "time"),
        ((20.0, 20.0, 25.0), (2,), Effort(), "time"),
    ],
)
def test_an_invalid_repetition_is_replaced_within_bounds(
    taken: tuple[float, ...], invalid: tuple[int, ...], effort: Effort, why: str | None
) -> None:
    assert stop(samples(*taken, invalid=invalid), effort) == why


def phase(noise: float, draw: random.Random) -> list[float]:
    """Seconds of a phase with this noise, measured until the loop would end it."""
    taken: list[float] = []
    while stop(samples(*taken), Effort(max_phase_s=1e9)) is None:
        taken.append(draw.lognormvariate(0, noise))
    return taken


@pytest.mark.parametrize("noise", [0.005, 0.02, 0.05])
def test_an_interval_that_ended_a_phase_still_covers_the_true_median(noise: float) -> None:
    """Looking again and again makes it cover less than 95 %, and neighbors that look alike by chance more."""
    draw = random.Random(7)
    found = [summarize(phase(noise, draw)) for _ in range(400)]
    covered = sum(s is not None and (s.low or 2) <= 1.0 <= (s.high or 0) for s in found) / len(found)
    assert covered >= 0.91  # 93 % and four standard errors of 400 draws less


def test_estimates_know_that_long_phases_run_once_and_others_warm_up_once() -> None:
    assert [likely(once_s, Effort(reps=3)) for once_s in (0.1, 6.0, 25.0, 60.0)] == [4, 4, 4, 1]
    assert likely(0.1, Effort()) == 11 and likely(0.1, Effort(quick=True)) == 5
