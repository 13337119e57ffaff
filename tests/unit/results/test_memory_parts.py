"""What the measured parts of memory add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.results.measurement import Memory, parts, peak_phase, unaccounted_bytes

WHOLE = Memory(
    weights_bytes=1000,
    framework_bytes=300,
    cache_bytes=50,
    prefill_cache_bytes=40,
    prefill_activation_bytes=200,
    decode_activation_bytes=10,
    prefill_peak_bytes=1560,
    decode_peak_bytes=1370,
    phases_process_bytes=1560,
)


def test_the_remainder_is_the_larger_peak_minus_the_parts_of_its_phase() -> None:
    assert peak_phase(WHOLE) == "prefill"
    assert unaccounted_bytes(WHOLE) == 1560 - (1000 + 300 + 40 + 200)
    decode = replace(WHOLE, prefill_peak_bytes=None, phases_process_bytes=1370)
    assert peak_phase(decode) == "decode"
    assert unaccounted_bytes(decode) == 1370 - (1000 + 300 + 50 + 10)


def test_the_pool_of_a_graph_is_a_part() -> None:
    assert unaccounted_bytes(replace(WHOLE, graph_pool_bytes=15)) == 5


def test_a_checkpoint_that_stays_mapped_is_a_part_if_it_was_recorded() -> None:
    assert unaccounted_bytes(replace(WHOLE, left_mapped_bytes=12)) == 8
    assert unaccounted_bytes(replace(WHOLE, left_mapped_bytes=None)) == 20


def test_parts_larger_than_the_peak_give_a_negative_remainder_and_not_zero() -> None:
    assert unaccounted_bytes(replace(WHOLE, weights_bytes=1100)) == -80


@pytest.mark.parametrize(
    "name",
    ["weights_bytes", "framework_bytes", "prefill_cache_bytes", "prefill_activation_bytes", "phases_process_bytes"],
)
def test_without_one_of_the_parts_the_remainder_is_unknown(name: str) -> None:
    assert unaccounted_bytes(replace(WHOLE, **{name: None})) is None


def test_a_row_from_an_earlier_version_has_no_parts() -> None:
    assert parts(Memory()) == {} and unaccounted_bytes(Memory()) is None
    old = Memory(weights_bytes=1, cache_bytes=1, prefill_peak_bytes=3, decode_peak_bytes=2)
    assert unaccounted_bytes(old) is None
