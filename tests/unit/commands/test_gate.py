"""``profile gate`` as a person runs it, over the fake backend."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.variants import LocalBench

from profiler.gate import bench
from profiler.gate import session as gate_session
from profiler.gate.variants import Variant
from profiler.run.process import Launch


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """No processes: what a worker does is done here. A side's name is the JSON of what its machine costs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gate_session, "WorkerBench", LocalBench)
    monkeypatch.setattr(gate_session.variants, "resolve", lambda text, scratch, say: variant(text))
    monkeypatch.setattr(gate_session.variants, "here", lambda: variant("{}"))
    return tmp_path


def variant(text: str) -> Variant:
    facts = {"python": "3.11.9", "executable": "/there/python", "libraries": {"torch": json.loads(text).get("torch")}}
    script = {name: value for name, value in json.loads(text).items() if name != "torch"}
    return Variant(text, Launch(("python",), {"PROFILER_FAKE": json.dumps(script)}), facts)


@pytest.fixture
def gate(profile: Any, model: Any, local: Any) -> Any:
    def run(*arguments: str, **script: Any) -> Any:
        where = ("-m", model(**script), "--backend", "fake", "-c", "64", "-n", "8")
        return profile("gate", *where, *arguments)

    return run


def words(ran: Any) -> dict[str, str]:
    return {row["metric"]: row["word"] for row in map(json.loads, ran.out.splitlines())}


def test_equal_sides_pass(gate: Any) -> None:
    ran = gate("--base", "{}", "--seed", "1")
    assert ran.code == 0
    assert ran.out.startswith("PASS: 7 PASS\n")
    assert "decode_cpu_s" in ran.out
    assert "seed 1" in ran.out
    assert "6 pairs: PASS" in ran.err


def test_a_slower_candidate_fails_with_what_to_do(gate: Any) -> None:
    ran = gate("--base", "{}", "--candidate", '{"step_s": 0.012}', "-o", "jsonl")
    assert ran.code == 1
    assert words(ran)["decode_cpu_s"] == "FAIL"
    assert words(ran)["prefill_cpu_s"] == "PASS"
    told = gate("--base", "{}", "--candidate", '{"step_s": 0.012}').out
    assert "slower in 6 pairs, and again in 10 pairs of new processes (1.200–1.200)" in told
    assert "→ find the change with git bisect" in told


def test_a_larger_cache_fails(gate: Any) -> None:
    ran = gate("--base", "{}", "--candidate", '{"cache_bytes_per_token": 32768}', "-o", "jsonl")
    assert (ran.code, words(ran)["cache_bytes"], words(ran)["decode_cpu_s"]) == (1, "FAIL", "PASS")


def test_a_base_that_cannot_run_the_case_is_incomparable(gate: Any) -> None:
    assert gate("--base", '{"faults": [{"kind": "error", "value": "old"}]}').code == 4


def test_a_candidate_that_cannot_run_the_case_fails(gate: Any) -> None:
    ran = gate("--base", "{}", "--candidate", '{"oom_above_tokens": 1}')
    assert ran.code == 1
    assert "out of memory" in ran.out


def test_what_the_sides_have_of_their_own_is_on_the_page(gate: Any) -> None:
    ran = gate("--base", '{"torch": "2.12.0"}', "--candidate", '{"torch": "2.13.0"}')
    assert "torch 2.12.0 → 2.13.0" in ran.out
    assert "this gate tests itself" in gate("--base", "{}").out


def test_a_side_has_its_repository_on_the_page_and_in_the_record(
    gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = replace(variant("{}"), name="this installation", repository="/src/profile")
    monkeypatch.setattr(gate_session.variants, "here", lambda: side)
    ran = gate("--base", "{}", "--record", str(tmp_path / "gate.json"))
    assert "candidate: this installation of /src/profile; " in ran.out
    sides = json.loads((tmp_path / "gate.json").read_text())["sides"]
    assert (sides["base"]["repository"], sides["candidate"]["repository"]) == (None, "/src/profile")


def test_the_record_has_every_block_with_its_seconds(gate: Any, tmp_path: Path) -> None:
    gate("--base", "{}", "--record", str(tmp_path / "gate.json"), "--seed", "7")
    content = json.loads((tmp_path / "gate.json").read_text())
    assert len(content["blocks"]) == 24  # six pairs of the base with itself, six of both sides
    assert content["blocks"][0]["cpu_seconds"]["decode"] == pytest.approx([0.08] * 5)
    assert (content["word"], content["seed"], content["rule"]["delta"]) == ("PASS", 7, 0.05)
    assert json.loads(gate("--base", "{}", "-o", "json").out)["word"] == "PASS"


def test_noise_is_measured_once_a_week(gate: Any) -> None:
    assert "noise of the base" in gate("--base", "{}").err
    assert "noise of the base" not in gate("--base", "{}").err
    assert "noise of the base" in gate("--base", "{}", "-r", "3").err  # measured otherwise


def test_other_formats_hold_the_same_verdicts(gate: Any) -> None:
    assert gate("--base", "{}", "-o", "csv").out.startswith("cell,metric,word,")
    assert "| tiny fp32 c=64 b=1 | decode_cpu_s" in gate("--base", "{}", "-q", "fp32", "-o", "md").out


def test_one_metric_may_be_chosen(gate: Any) -> None:
    timed = [name for name in words(gate("--base", "{}", "--metric", "decode", "-o", "jsonl")) if name.endswith("_s")]
    assert timed == ["decode_cpu_s"]
    ran = gate("--base", "{}", "--metric", "ttft")
    assert (ran.code, "Known: prefill, decode" in ran.err) == (2, True)


def test_a_baseline_is_made_by_accept_and_moved_by_nothing_else(gate: Any, tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    assert gate("--baseline", str(path)).code == 2
    assert gate("--baseline", str(path), "--accept").code == 0
    before = path.read_bytes()
    assert gate("--baseline", str(path)).code == 0
    assert path.read_bytes() == before
    assert "accepted as one more session" not in before.decode()
    gate("--baseline", str(path), "--accept")
    (entry,) = json.loads(path.read_text())["cells"].values()
    assert len(entry["sessions"]) == 2


def test_a_slow_run_fails_against_a_baseline_and_does_not_move_it(
    gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "base.json"
    gate("--baseline", str(path), "--accept")
    before = path.read_bytes()
    monkeypatch.setattr(gate_session.variants, "here", lambda: variant('{"step_s": 0.03}'))
    for _ in range(2):
        ran = gate("--baseline", str(path))
        assert ran.code == 1
    assert path.read_bytes() == before


def test_a_failed_case_is_not_accepted(gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_session.variants, "here", lambda: variant('{"oom_above_tokens": 1}'))
    assert gate("--baseline", str(tmp_path / "base.json"), "--accept").code == 1
    assert not (tmp_path / "base.json").exists()


def test_inconclusive_may_be_let_through(gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base.json"
    gate("--baseline", str(path), "--accept")
    monkeypatch.setattr(gate_session.variants, "here", lambda: variant('{"step_s": 0.011}'))
    ran = gate("--baseline", str(path))
    assert (ran.code, ran.out.splitlines()[0].partition(":")[0]) == (0, "INCONCLUSIVE")
    assert "That does not fail the command; to make it fail, add --inconclusive fail" in ran.err
    assert gate("--baseline", str(path), "--inconclusive", "fail").code == 3


def test_pairs_that_cannot_decide_exit_with_3_unless_told_otherwise(
    gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_session, "wait_until_quiet", lambda *more: ["the machine runs on battery"])
    assert gate("--base", "{}").code == 3
    assert gate("--base", "{}", "--inconclusive", "warn").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to compare with"),
        (("--backend", "llama.cpp"), "Use --base OLD_BUILD_DIR, the folder of another build,"),
        (("--accept", "--base", "{}"), "--accept writes a baseline"),
        (("--candidate", "{}"), "nothing to compare with"),
        (("--base", "{}", "--delta", "5"), "needs a percent sign"),
        (("--base", "{}", "--delta", "0%"), "more than 0%"),
        (("--base", "{}", "-c", "1-20+1"), "with more than 8"),
        (("--base", "{}", "--metric", ""), "--metric: the list is empty"),
        (("--base", "{}", "--metric", ","), "--metric: the list is empty"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(gate: Any, arguments: tuple[str, ...], said: str) -> None:
    ran = gate(*arguments)
    assert ran.code == 2
    assert said in ran.err


def test_a_model_must_be_named(profile: Any) -> None:
    assert profile("gate", "--base", "{}").code == 2


def test_control_characters_of_names_do_not_reach_the_page(
    profile: Any, model: Any, local: Any, tmp_path: Path
) -> None:
    named = model("evil\x1b[31m|=1")
    ran = profile("gate", "-m", named, "--backend", "fake", "-c", "64", "-n", "8", "--base", "{}", "-o", "md")
    assert ran.code == 0
    assert "\x1b" not in ran.out + ran.err


def test_real_workers_of_two_commands(
    profile: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: probes, processes, slots, confirmation."""
    monkeypatch.setattr(bench, "RESTART", 16)  # two processes for each purpose will do here
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    where = ("-m", model(), "--backend", "fake", "-c", "64", "-n", "8", "--metric", "decode")
    slow = f'env PROFILER_FAKE={{\\"step_s\\":0.012}} {sys.executable}'
    ran = profile("gate", *where, "--base", sys.executable, "--candidate", slow, "-r", "1")
    assert ran.code == 1
    assert re.search(r"decode_cpu_s\s+FAIL\s+1\.200", ran.out)
