"""Which stored rows a sweep reuses: by content, not by name, and only where conditions are equal."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from fakes.lab import make_case

from profiler.models import hub
from profiler.models.resolve import resolve
from profiler.results.measurement import Measurement, Sample
from profiler.results.store import Store
from profiler.run import reuse
from profiler.run.plan import Pace
from profiler.run.repetitions import Effort

TOKEN = "hf_" + "aB3dE" * 7


@pytest.mark.parametrize("output", ["jsonl", "json", "table"])
def test_a_row_stored_under_another_name_is_shown_under_the_one_asked_for(
    sweep: Any, model: Any, output: str
) -> None:
    measured = sweep("-m", model("first"), "-c", "128", "-n", "4")
    ran = sweep("-m", model("second"), "-c", "128,256", "-n", "4", output=output)
    assert ran.code == 0
    assert "1 of 2 cases" in ran.err and "reuses a stored row" in ran.err
    assert "second" in ran.out and "first" not in ran.out
    if output == "jsonl":
        assert [row["case"]["model"] for row in ran.rows] == ["second"] * 2
        assert ran.rows[0]["started_at"] == measured.rows[0]["started_at"]


@pytest.mark.parametrize("output", ["jsonl", "table"])
def test_a_name_that_the_store_redacts_is_resumed(sweep: Any, model: Any, output: str) -> None:
    name = model(TOKEN)
    assert sweep("-m", name, "-c", "128", "-n", "4").code == 0
    ran = sweep("-m", name, "-c", "128", "-n", "4", output=output)
    assert ran.code == 0
    assert "1 of 1 case reuses a stored row" in ran.err
    assert TOKEN not in ran.out


def test_a_reused_row_bears_the_cautions_of_the_model_as_asked(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--backend", "fake", "-m", "gemma-3-270m", "-c", "128", "-n", "4", "-o", "jsonl")
    (before,) = profile("sweep", *options).rows
    monkeypatch.setitem(hub.NOTES, "gemma-3-270m", "its config is inferred")
    (after,) = profile("sweep", *options).rows
    assert after["started_at"] == before["started_at"]
    assert "its config is inferred" in [caution["text"] for caution in after["cautions"]]
    assert len(after["cautions"]) == len(before["cautions"]) + 1


def test_two_names_of_one_model_are_measured_once_and_it_is_said(sweep: Any, model: Any) -> None:
    ran = sweep("-m", f"{model('one')},{model('two')}", "-c", "128", "-n", "4")
    assert (ran.code, ran.outcomes) == (0, ["ok"])
    assert ran.rows[0]["case"]["model"] == "one"
    assert ran.err.splitlines() == ["two and one are the same model, which is measured once"]


def test_two_spellings_of_a_quantization_are_measured_once(sweep: Any) -> None:
    ran = sweep("-q", "nf4-dq,nf4_dq", "-c", "128", "-n", "4")
    assert (ran.code, ran.outcomes, ran.err) == (0, ["ok"], "")


def test_the_cautions_of_the_name_that_is_measured_are_shown(profile: Any) -> None:
    common = ("sweep", "--backend", "fake", "-o", "jsonl", "-c", "128", "-n", "4", "--fresh", "--max-memory", "1TiB")
    for first, second in (("qwen3.6-27b", "qwen3.8-27b"), ("qwen3.8-27b", "qwen3.6-27b")):
        (row,) = profile(*common, "-q", "nf4", "-m", f"{first},{second}").rows
        said = tuple(caution["text"] for caution in row["cautions"] if caution["code"] == "model")
        assert (row["case"]["model"], said) == (first, resolve(first).cautions)


def test_a_row_that_took_more_than_the_limit_is_measured_again(sweep: Any) -> None:
    (first,) = sweep("-c", "128", "-n", "4", weights_bytes=3 * 2**30).rows
    assert first["memory"]["process_peak_bytes"] > 3 * 2**30
    options = ("-c", "128", "-n", "4", "--max-memory")
    (roomy,) = sweep(*options, "4GiB", weights_bytes=3 * 2**30).rows
    assert roomy["started_at"] == first["started_at"]
    (tight,) = sweep(*options, "2GiB", weights_bytes=3 * 2**30).rows
    assert tight["started_at"] != first["started_at"]
    (again,) = sweep(*options, "2GiB", weights_bytes=3 * 2**30).rows  # that one was held to the limit
    assert again["started_at"] == tight["started_at"]


def test_a_dry_run_holds_rows_to_the_limit_as_well(sweep: Any) -> None:
    sweep("-c", "128", "-n", "4", weights_bytes=3 * 2**30)
    planned = sweep("-c", "128", "-n", "4", "--max-memory", "2GiB", "--dry-run", weights_bytes=3 * 2**30)
    assert [row["action"] for row in planned.rows] == ["run"]


def test_a_setting_of_the_worker_makes_rows_stale(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep("-c", "128", "-n", "4")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    second = sweep("-c", "128", "-n", "4")
    assert second.rows[0]["started_at"] != first.rows[0]["started_at"]
    assert second.rows[0]["environment"]["settings"]["ATEN_CPU_CAPABILITY"] == "default"


def test_a_measured_row_is_stored_whatever_comes_after(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug in an estimate")

    monkeypatch.setattr(Pace, "note", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for the details of a bug
    ran = sweep("-c", "128", "-n", "4", output="csv")
    assert ran.code == 1 and "a bug in an estimate" in ran.err
    assert len(ran.out.splitlines()) == 2  # and it is shown
    with Store.open() as store:
        assert [row.outcome for row in store.rows()] == ["ok"]


FAST = ("-c", "128", "-n", "4")


@pytest.mark.parametrize(
    ("before", "now", "reused"),
    [
        (("--precision", "2%"), ("--precision", "5%"), True),
        (("-r", "5"), (), True),  # the figures of the fake model do not spread
        (("-r", "1"), (), False),  # one repetition has no interval
        ((), ("-r", "5"), True),  # as many as precision took
        ((), ("-r", "6"), False),
        ((), ("--max-phase", "90s"), False),
    ],
)
def test_a_row_is_reused_when_it_is_as_exact_as_what_is_asked_for(
    sweep: Any, before: tuple[str, ...], now: tuple[str, ...], reused: bool
) -> None:
    first = sweep(*FAST, *before).rows[0]
    assert (sweep(*FAST, *now).rows[0]["started_at"] == first["started_at"]) is reused


def test_a_row_that_missed_its_precision_is_not_measured_for_ever(sweep: Any, model: Any) -> None:
    noisy = model("noisy", noise=0.3)
    first = sweep("-m", noisy, *FAST).rows[0]
    assert first["decode"]["stopped"] == "cap"
    assert sweep("-m", noisy, *FAST).rows[0]["started_at"] == first["started_at"]
    assert sweep("-m", noisy, *FAST, "--precision", "1%").rows[0]["started_at"] != first["started_at"]


def test_a_row_of_many_repetitions_is_as_exact_as_they_are_whatever_processes_differ_by() -> None:
    apart = {"between": {"prefill": 0.05, "decode": 0.05, "basis": "prior"}}
    samples = tuple(Sample("decode", 1 + n / 1000, 32) for n in range(20))
    row = Measurement(make_case(), {}, "ok", samples=samples, asked={"reps": 20, "max_phase_s": 60.0}, expected=apart)
    assert reuse._is_as_thorough(row, Effort())
    assert not reuse._is_as_thorough(row, Effort(precision=0.0001))
