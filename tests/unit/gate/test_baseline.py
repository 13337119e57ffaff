"""A stored baseline: exact where things do not vary, blunt where they do, and moved by nobody but its owner."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.lab import make_case, source
from fakes.variants import BASE, FakeBench, row

from profiler.case import Task
from profiler.errors import ProfileError
from profiler.gate import baseline
from profiler.gate import measured as gate_measured
from profiler.gate import rule as gate_rule
from profiler.gate.baseline import Baseline, BaselineEntry, BaselineSession
from profiler.gate.rule import RegressionRule, worst
from profiler.results.measurement import DecodePath

TASK = Task(make_case(512), source())
HERE: dict[str, Any] = {"system": "Linux 6.1", "libraries": {"torch": "2.13.0"}, "device": {"features": ["avx2"]}}
RULE = RegressionRule(0.05)


def measured(
    name: str = "cell", slowdown: float = 0.0, noise: float = 0.0, task: Task = TASK, **change: Any
) -> gate_measured.GateMeasurement:
    bench = FakeBench(noise=noise, seed=1, change={"base": lambda same: replace(same, **change)})
    found = gate_measured.measure(name, task, bench, BASE, HERE, ("prefill", "decode"))
    times = {metric: tuple(value * (1 + slowdown) for value in values) for metric, values in found.times.items()}
    return replace(found, times=times)


def kept(*cells: gate_measured.GateMeasurement) -> Baseline:
    return Baseline({each.name: each.entry() for each in cells})


def words(found: gate_measured.GateMeasurement, known: Baseline, **rule: float) -> dict[str, str]:
    verdicts = gate_measured.against(found, known, RegressionRule(**rule) if rule else RULE, ("prefill", "decode"))
    return {verdict.metric: verdict.word for verdict in verdicts}


def test_what_is_as_it_was_passes() -> None:
    assert set(words(measured(), kept(measured())).values()) == {"PASS"}


def test_six_blocks_come_from_two_processes_in_turns() -> None:
    bench = FakeBench()
    found = gate_measured.measure("cell", TASK, bench, BASE, HERE, ("decode",))
    assert (len(found.rows), bench.processes) == (gate_measured.BLOCKS, 2)


@pytest.mark.parametrize("name", ["weights_bytes", "cache_bytes"])
@pytest.mark.parametrize("by", [1, -1])
def test_one_byte_of_weights_or_cache_fails_in_either_direction(name: str, by: int) -> None:
    memory = measured().rows[0].memory
    changed = replace(memory, **{name: getattr(memory, name) + by})
    assert words(measured(memory=changed), kept(measured()))[name] == "FAIL"


def test_ten_times_the_memory_fails() -> None:
    memory = replace(measured().rows[0].memory, process_peak_bytes=50_000)
    assert words(measured(memory=memory), kept(measured()))["process_peak_bytes"] == "FAIL"


def test_a_peak_may_vary_by_what_allocators_do_and_may_shrink() -> None:
    memory = measured().rows[0].memory
    for peak, word in ((5400, "PASS"), (5600, "FAIL"), (100, "PASS")):
        now = measured(memory=replace(memory, process_peak_bytes=peak))
        assert words(now, kept(measured()))["process_peak_bytes"] == word


def test_allocated_bytes_of_a_gpu_are_held_to_half_a_percent() -> None:
    gpu = make_case(512, device="cuda:0")
    before, more, most = (
        gate_rule.exact_figures(
            row(gpu, 1.0, 1.0, memory=replace(measured().rows[0].memory, prefill_peak_bytes=peak))
        )
        for peak in (100_000, 100_400, 100_600)
    )
    got = [
        next(v.word for v in gate_rule.verdicts("cell", before, now, "it") if v.metric == "prefill_allocated_bytes")
        for now in (more, most)
    ]
    assert got == ["PASS", "FAIL"]


def test_a_figure_that_is_gone_fails_and_one_that_is_new_cannot_be_compared() -> None:
    assert {v.word for v in gate_rule.verdicts("cell", {"cache_bytes": 1}, {}, "it")} == {"FAIL"}
    assert {v.word for v in gate_rule.verdicts("cell", {}, {"cache_bytes": 1}, "it")} == {"INCOMPARABLE"}


def test_three_times_slower_fails_and_a_tenth_is_left_to_pairs() -> None:
    assert words(measured(slowdown=2.0), kept(measured()))["decode_cpu_s"] == "FAIL"
    found = gate_measured.against(measured(slowdown=0.1), kept(measured()), RULE, ("decode",))[-1]
    assert found.word == "INCONCLUSIVE"
    assert (found.command or "").startswith("profile gate --base REV -m ")


def test_a_stored_time_that_varies_too_much_does_not_pass() -> None:
    assert words(measured(noise=0.3), kept(measured()))["decode_cpu_s"] != "PASS"


def sessions(*medians: float) -> BaselineEntry:
    every = tuple(BaselineSession("2026", "cpu", {"decode": (median,) * 6}) for median in medians)
    return BaselineEntry(TASK.case, {}, HERE, 1, every)


def test_ten_sessions_say_how_much_sessions_differ() -> None:
    assert baseline.threshold(sessions(*[1.0] * 9).sessions, "decode", RULE) == baseline.FEW_SESSIONS_DELTA
    assert baseline.threshold(sessions(*[1.0] * 10).sessions, "decode", RULE) == RULE.delta
    spread = sessions(*(1 + n / 100 for n in range(11)))  # quartiles 1.025 and 1.075, median 1.05
    assert baseline.threshold(spread.sessions, "decode", RULE) == pytest.approx((1.075 + 3 * 0.05) / 1.05 - 1)


def test_sessions_by_another_clock_or_without_times_do_not_widen_what_fails() -> None:
    found = measured()
    entry = found.entry()
    others = [BaselineSession("2026", "wall", {"decode": (10.0**n,) * 6}) for n in range(-4, 8)]
    others.append(BaselineSession("2026", "cpu", {"decode": ()}))
    wider = Baseline({found.name: replace(entry, sessions=(*others, *entry.sessions))})
    by_metric = {each.metric: each for each in gate_measured.against(found, wider, RULE, ("prefill", "decode"))}
    assert by_metric["decode_cpu_s"].detectable == baseline.FEW_SESSIONS_DELTA


def test_another_machine_is_incomparable_in_time_and_peak_and_comparable_in_what_follows_from_the_case() -> None:
    other = HERE | {"libraries": {"torch": "2.14.0"}}
    found = replace(measured(), environment=other)
    said = words(found, kept(measured()))
    assert said["decode_cpu_s"] == said["process_peak_bytes"] == "INCOMPARABLE"
    assert said["weights_bytes"] == said["cache_bytes"] == said["decode_tokens"] == "PASS"
    reasons = [verdict.reason for verdict in gate_measured.against(found, kept(measured()), RULE, ("decode",))]
    assert any("torch 2.13.0 → 2.14.0" in reason for reason in reasons)


def test_another_number_of_threads_is_incomparable() -> None:
    found = replace(measured(), rows=tuple(replace(row, threads=2) for row in measured().rows))
    assert words(found, kept(measured()))["decode_cpu_s"] == "INCOMPARABLE"


STATIC = Task(replace(make_case(512), path="static"), source())
EAGER = DecodePath("eager", "no compiler")


def test_another_decode_step_than_the_baselines_is_incomparable_in_decode_and_its_memory() -> None:
    found = words(measured(task=STATIC, decode_path=EAGER), kept(measured(task=STATIC)))
    unlike = {name for name, word in found.items() if word == "INCOMPARABLE"}
    assert unlike == {"decode_cpu_s", "cache_bytes", "process_peak_bytes"}
    assert set(found.values()) == {"PASS", "INCOMPARABLE"}


def test_a_baseline_from_before_the_step_was_stored_is_compared_as_it_was() -> None:
    old = kept(measured(task=STATIC))
    old = Baseline({name: replace(entry, step=None) for name, entry in old.entries.items()})
    assert set(words(measured(task=STATIC, decode_path=EAGER), old).values()) == {"PASS"}


def test_a_session_on_another_step_replaces_what_was_accepted() -> None:
    fallen, usual = measured(task=STATIC, decode_path=EAGER), kept(measured(task=STATIC))
    assert not gate_measured.only_times_differ(fallen, usual)
    assert gate_measured.only_times_differ(fallen, kept(fallen))
    assert gate_measured.fallbacks([fallen, fallen]) == [
        f"{STATIC.case.label}: --path static ran eager (no compiler)"
    ]


def test_the_step_is_kept_in_the_file_and_read_where_there_is_none(tmp_path: Path) -> None:
    known = kept(measured(task=STATIC, decode_path=EAGER))
    baseline.write(tmp_path / "base.json", known)
    assert baseline.read(tmp_path / "base.json").entries["cell"].step == "eager"
    content = json.loads((tmp_path / "base.json").read_text())
    del content["cells"]["cell"]["step"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert baseline.read(tmp_path / "old.json").entries["cell"].step is None


def test_a_machine_that_is_slower_itself_gives_no_fail() -> None:
    before = replace(measured(), reference_s=0.010)
    assert words(replace(measured(slowdown=2.0), reference_s=0.010), kept(before))["decode_cpu_s"] == "FAIL"
    assert words(replace(measured(slowdown=2.0), reference_s=0.013), kept(before))["decode_cpu_s"] == "INCONCLUSIVE"


def test_the_reference_work_takes_time_and_repeats() -> None:
    assert 0 < baseline.reference_seconds() < 1
    assert baseline.machine_slower(1.0, 1.0 + baseline.MAX_SLOWER) is None
    assert baseline.machine_slower(None, 5.0) is None


def test_a_new_case_fails() -> None:
    assert words(measured("renamed"), kept(measured())) == {"case": "FAIL"}


def test_a_case_that_is_not_measured_any_more_fails() -> None:
    assert [v.word for v in gate_measured.missing(kept(measured("a"), measured("b")), ["a"])] == ["FAIL"]


def test_a_case_that_failed_fails() -> None:
    found = measured(outcome="oom", reason="no room", samples=())
    assert words(found, kept(measured())) == {"case": "FAIL"}
    assert len(found.rows) == 1  # and nothing more of it was tried


def test_another_case_under_the_same_name_is_incomparable_and_says_what_changed() -> None:
    other = measured(task=Task(make_case(1024), source()))
    (verdict,) = gate_measured.against(other, kept(measured()), RULE, ("decode",))
    assert verdict.word == "INCOMPARABLE"
    assert "context 512 → 1024" in verdict.reason


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    known = kept(measured("a", noise=0.1), replace(measured("b"), reference_s=0.5))
    baseline.write(path, known)
    assert baseline.read(path) == known
    assert set(words(measured("b"), baseline.read(path)).values()) == {"PASS"}


def test_accepted_sessions_of_one_case_add_up_and_another_one_replaces() -> None:
    before = kept(measured())
    assert gate_measured.only_times_differ(measured(), before)
    after = before.accepted({"cell": measured().entry()}, {"cell": True})
    assert len(after.entries["cell"].sessions) == 2
    heavier = measured(memory=replace(measured().rows[0].memory, cache_bytes=7))
    assert not gate_measured.only_times_differ(heavier, before)
    replaced = after.accepted({"cell": heavier.entry()}, {"cell": False})
    assert len(replaced.entries["cell"].sessions) == 1


def test_a_baseline_keeps_its_latest_sessions() -> None:
    known = kept(measured())
    for _ in range(baseline.MAX_SESSIONS + 5):
        known = known.accepted({"cell": measured().entry()}, {"cell": True})
    assert len(known.entries["cell"].sessions) == baseline.MAX_SESSIONS


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "baseline.json"
    baseline.write(path, kept(measured()))
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProfileError, match="No space left"):
        baseline.write(path, kept(measured("other")))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["baseline.json"]


def test_the_file_and_its_folder_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.path.isdir(os.readlink(f"/proc/self/fd/{fd}"))))
    baseline.write(tmp_path / "baseline.json", kept(measured()))
    assert flushed == [False, True]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("real.json")
    known = kept(measured())
    baseline.write(tmp_path / "link.json", known)
    assert (tmp_path / "link.json").is_symlink()
    assert baseline.read(tmp_path / "real.json") == known


def whole() -> dict[str, Any]:
    entry = measured().entry()

    return {"format": baseline.FORMAT, "schema": 1, "cells": {"cell": entry.to_json()}}


SPOILT = {
    "no JSON": "{",
    "half of it": json.dumps(whole())[:300],
    "an array": "[]",
    "another format": json.dumps(whole() | {"format": "x"}),
    "a newer schema": json.dumps(whole() | {"schema": 99}),
    "NaN": json.dumps(whole()).replace("[1.0", "[NaN", 1),
    "a negative time": json.dumps(whole()).replace("[1.0", "[-1.0", 1),
    "a time of no size": json.dumps(whole()).replace("[1.0", "[1e999", 1),
    "a text for a time": json.dumps(whole()).replace("[1.0", '["1"', 1),
    "bytes that are none": json.dumps(whole()).replace('"weights_bytes": 1000', '"weights_bytes": "much"'),
    "a case of a newer version": json.dumps(whole()).replace('"model":', '"colour": 1, "model":', 1),
    "deep nesting": "[" * 100_000,
    "control characters": '{"format": "\x1b[31m"}',
    "a schema before the first": json.dumps(whole() | {"schema": -4}),
    "another clock": json.dumps(whole()).replace('"clock": "cpu"', '"clock": "CPU"'),
    "another phase": json.dumps(whole()).replace('"decode": [', '"decod": [', 1),
}
FORMS = {
    "cells is a list, must be an object": {"cells": []},
    "cell is 5, must be an object": {"cells": {"cell": 5}},
    "facts is null, must be an object": {"cells": {"cell": measured().entry().to_json() | {"facts": None}}},
    "sessions is": {"cells": {"cell": measured().entry().to_json() | {"sessions": {"a": 1}}}},
    "a session is 7, must be an object": {"cells": {"cell": measured().entry().to_json() | {"sessions": [7]}}},
}


@pytest.mark.parametrize("wrong", FORMS)
def test_a_baseline_of_another_form_says_which_part_is_wrong(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(whole() | FORMS[wrong]))
    with pytest.raises(ProfileError, match=wrong):
        baseline.read(path)


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_is_no_baseline_is_one_line_and_no_pass(what: str, tmp_path: Path) -> None:
    assert json.dumps(whole()).count("[1.0") > 1
    path = tmp_path / "baseline.json"
    path.write_text(SPOILT[what])
    with pytest.raises(ProfileError) as error:
        baseline.read(path)
    assert "\n" not in error.value.message
    assert "\x1b" not in str(error.value)


def test_no_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no baseline") as error:
        baseline.read(tmp_path / "none.json")
    assert "--accept" in str(error.value)


def test_a_set_of_passes_is_one() -> None:
    assert worst(gate_measured.against(measured(), kept(measured()), RULE, ("prefill", "decode"))) == "PASS"
