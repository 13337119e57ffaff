"""What is derived of the energy of a phase, and when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from profiler.results import energy
from profiler.results.cautions import cautions
from profiler.results.measurement import Energy, Measurement, PhaseEnergy
from profiler.show.output import rendered

PREFILL = PhaseEnergy(100, seconds=11.88, window_s=12.0, tokens=12_800, counter_j=3600.0, power_j=3700.0)
DECODE = PhaseEnergy(25, seconds=10.0, window_s=10.0, tokens=100, counter_j=1000.0, power_j=960.0)
BOTH = Energy("nvml-counter", "gpu-board", PREFILL, DECODE, idle_w=60.0)

Make = Callable[..., Measurement]


def codes(measurement: Measurement) -> list[str]:
    return [caution.code for caution in cautions(measurement) if caution.code.startswith("energy")]


def changed(part: PhaseEnergy, **changes: Any) -> PhaseEnergy:
    return replace(part, **changes)


def test_a_row_has_joules_per_repetition_and_token_and_mean_watts(make: Make) -> None:
    row = energy.content(make(energy=BOTH))
    assert row == {
        "prefill_j": pytest.approx(300 * 11.88 / 100),  # what lies between repetitions is not of them
        "decode_j": pytest.approx(40.0),
        "prefill_j_per_token": pytest.approx(300 * 11.88 / 12_800),
        "decode_j_per_token": pytest.approx(10.0),
        "prefill_w": pytest.approx(300.0),
        "decode_w": pytest.approx(100.0),
        "prefill_j_per_token_above_idle": pytest.approx(240 * 11.88 / 12_800),
        "decode_j_per_token_above_idle": pytest.approx(4.0),
        "idle_w": 60.0,
        "source": "nvml-counter",
        "scope": "gpu-board",
        "suspect": False,
        "reason": None,
    }
    assert codes(make(energy=BOTH)) == []


def test_energy_that_was_not_requested_is_null_without_a_caution(make: Make) -> None:
    assert energy.content(make()) is None and codes(make()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"counter_j": None, "counter_reason": "the energy counter stood still for 8.5 s"}, "stood still"),
        ({"counter_j": 0.0}, "0 J for 100 tokens is impossible"),
        ({"window_s": 4.0, "seconds": 4.0}, "the window of 4.00 s is shorter than the 10 s that counters need"),
        ({"seconds": 9.0}, "repetitions filled only 90% of the measured window"),
        ({"invalid": "power brake for 3.0% of the time"}, "the device was disturbed (power brake for 3.0%"),
    ],
)
def test_unknown_energy_is_null_with_the_reason(make: Make, changes: dict[str, Any], words: str) -> None:
    row = make(energy=Energy("nvml-counter", "gpu-board", PREFILL, changed(DECODE, **changes), 60.0))
    content = energy.content(row)
    assert content is not None and content["reason"].startswith("decode: ") and words in content["reason"]
    assert [content[name] for name in ("decode_j", "decode_j_per_token", "decode_w")] == [None] * 3
    assert content["prefill_w"] == pytest.approx(300.0) and content["scope"] == "gpu-board"
    assert codes(row) == ["energy-unknown"]


def test_one_reason_for_both_phases_is_given_once(make: Make) -> None:
    why = "this machine has no energy counters of its CPU (RAPL)"
    nothing = PhaseEnergy(0, 0.0, 0.0, 0, counter_reason=why, power_reason=why)
    row = make(energy=Energy(None, None, nothing, nothing, None, why))
    content = energy.content(row)
    assert content is not None and content["reason"] == f"prefill and decode: {why}"
    assert {content[name] for name in content if name != "reason"} == {None}


@pytest.mark.parametrize(("power_j", "doubted"), [(1099.0, False), (1115.0, True), (905.0, False), (895.0, True)])
def test_a_counter_and_power_a_tenth_apart_are_suspect(make: Make, power_j: float, doubted: bool) -> None:
    row = make(energy=Energy("nvml-counter", "gpu-board", PREFILL, changed(DECODE, power_j=power_j), 60.0))
    content = energy.content(row)
    assert content is not None and content["suspect"] is doubted
    assert codes(row) == ["energy-suspect"] * doubted


def test_without_an_energy_counter_the_power_is_used(make: Make) -> None:
    part = changed(DECODE, counter_j=None, counter_reason="the device does not report its energy (Not Supported)")
    content = energy.content(make(energy=Energy("nvml-power", "gpu-board", None, part, None)))
    assert content is not None and content["decode_w"] == pytest.approx(96.0)
    assert content["source"] == "nvml-power" and content["reason"] is None
    assert content["decode_j_per_token_above_idle"] is None


def test_unknown_energy_survives_the_store(make: Make, store: Any, environment: Any) -> None:
    row = make(energy=Energy(None, None, idle_reason="no meter"))
    run = store.start_run([], environment)
    store.append(run, row)
    assert store.rows(run)[0].energy == row.energy


def test_energy_survives_the_store(make: Make, store: Any, environment: dict[str, Any]) -> None:
    row = make(energy=BOTH)
    run = store.start_run(["sweep"], environment)
    store.append(run, row)
    assert [stored.energy for stored in store.rows(run)] == [BOTH]
    assert Measurement.from_json(row.to_json()) == row


def test_a_table_shows_joules_only_if_they_were_requested(make: Make) -> None:
    plain, _ = rendered("table", None, [make()])
    asked, _ = rendered("table", None, [make(energy=BOTH)])
    assert "J/token" not in plain
    assert "J/token" in asked and "of the GPU's board alone, idle power included" in " ".join(asked.split())
    assert " 0.278 " in asked and " 10.0 " in asked
    doubted, _ = rendered(
        "table", None, [make(energy=Energy("nvml-counter", "gpu-board", None, changed(DECODE, power_j=1.0)))]
    )
    assert " 10.0? " in doubted and "the power it reports comes to 1.00 J" in " ".join(doubted.split())
