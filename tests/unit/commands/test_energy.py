"""``--energy`` on the command line, over a fake model whose power is stated, and one whose is not."""

from __future__ import annotations

from typing import Any

import pytest


def test_energy_is_told_per_token_with_its_source_and_scope(sweep: Any) -> None:
    (row,) = sweep("-c", "512", "-n", "10", "--energy", idle_w=40.0, prefill_w=200.0, decode_w=100.0).rows
    energy = row["energy"]
    assert (energy["prefill_j_per_token"], energy["decode_j_per_token"]) == pytest.approx((0.02, 1.0))
    assert (energy["prefill_w"], energy["decode_w"], energy["idle_w"]) == pytest.approx((200, 100, 40))
    assert (energy["source"], energy["scope"], energy["reason"]) == ("fake-counter", "fake", None)
    assert row["asked"]["energy"] is True


def test_a_device_that_does_not_tell_prints_a_dash_and_the_reason(sweep: Any) -> None:
    ran = sweep("-q", "fp32", "-c", "512", "--energy", output="table")
    assert ran.code == 0
    line = next(line for line in ran.out.splitlines() if line.startswith("  fp32"))
    assert line.split()[-3:] == ["–", "–", "1"]  # J/prompt, J/token, and the note
    assert "[1] energy: prefill and decode: the script states no power" in ran.out


def test_a_row_without_a_counter_is_read_from_its_store(sweep: Any, profile: Any) -> None:
    (row,) = sweep("-c", "512", "--energy").rows
    (stored,) = profile("runs", "show", "-o", "jsonl").rows
    assert stored["energy"] == row["energy"] and "the script states no power" in str(row["energy"])
    (again,) = sweep("-c", "512", "--energy").rows
    assert again["started_at"] == row["started_at"]


def test_a_row_without_energy_is_measured_again_for_it_and_the_other_way_round_not(sweep: Any, model: Any) -> None:
    named = ("-m", model(idle_w=40.0), "-c", "512")
    assert sweep(*named).rows[0]["energy"] is None
    assert sweep(*named, "--energy").rows[0]["energy"] is not None
    again = sweep(*named)
    assert "reuses a stored row" in again.err and again.rows[0]["energy"] is not None


def test_a_plan_reckons_with_the_time_that_energy_takes(sweep: Any) -> None:
    plain, asked = (sweep("-c", "512", "--dry-run", *more).rows[0]["run_s"] for more in ((), ("--energy",)))
    assert asked - plain == pytest.approx(20, abs=1)  # ten seconds of each phase
