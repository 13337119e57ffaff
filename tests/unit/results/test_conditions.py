"""Cautions that follow from what a GPU was like in each repetition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from profiler.results.cautions import cautions
from profiler.results.measurement import Measurement, Sample

Make = Callable[..., Measurement]


def decoded(make: Make, environment: dict[str, Any], *each: dict[str, Any]) -> Measurement:
    samples = tuple(Sample("decode", 1.0, 4, **fields) for fields in each)
    device = environment["device"] | {"power_limit_w": 320.0}
    return make(samples=samples, environment=environment | {"device": device})


def texts(measurement: Measurement, code: str) -> list[str]:
    return [caution.text for caution in cautions(measurement) if caution.code == code]


@pytest.mark.parametrize(("shares", "said"), [((0.0, 0.1), []), ((0.0, 0.3, None), ["15%"]), ((None,), [])])
def test_a_power_limit_that_lowered_the_clocks_is_reported_with_its_share(
    make: Make, environment: dict[str, Any], shares: tuple[float | None, ...], said: list[str]
) -> None:
    row = decoded(make, environment, *({"capped": share} for share in shares))
    words = [f"decode: the power limit of 320 W lowered the clocks for {share} of the time" for share in said]
    assert texts(row, "decode-power-capped") == words


@pytest.mark.parametrize(("clocks", "differ"), [((1980, 1965), False), ((1980, 1900), True), ((None, 1980), False)])
def test_clocks_that_differ_between_repetitions_are_reported(
    make: Make, environment: dict[str, Any], clocks: tuple[float | None, ...], differ: bool
) -> None:
    row = decoded(make, environment, *({"sm_mhz": clock} for clock in clocks))
    expected = ["decode: clocks differ between repetitions, 1,900 to 1,980 MHz"] * differ
    assert texts(row, "decode-clocks-differ") == expected


def test_repetitions_that_do_not_count_cause_no_caution(make: Make, environment: dict[str, Any]) -> None:
    row = decoded(
        make, environment, {"sm_mhz": 1980}, {"sm_mhz": 900, "invalid": "x"}, {"sm_mhz": 900, "warmup": True}
    )
    assert texts(row, "decode-clocks-differ") == []
