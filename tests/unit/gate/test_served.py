"""A server before and after an update: its stored rows against a baseline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes.openai_server import FakeServer, Script

from profiler.backends.endpoint.client import KEY
from profiler.cli import main

FAST, SLOW = Script(first_s=0.03, gap_s=0.004), Script(first_s=0.15, gap_s=0.02)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words, catch_exceptions=False)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script, str], None]:
    """Measure a server of a version into the store."""
    monkeypatch.delenv(KEY, raising=False)

    def measured(script: Script, version: str) -> None:
        with FakeServer("vllm", script) as server:
            known = server._get_vllm
            server._get_vllm = lambda path: {"version": version} if path == "/version" else known(path)  # type: ignore
            assert run("endpoint", server.url, "-c", "64", "-n", "12", "-r", "6").exit_code == 0

    return measured


def judged(baseline: Path, *more: str) -> tuple[int, dict[str, Any]]:
    found = run("gate", "--baseline", str(baseline), "--rows", "latest", "-o", "json", *more)
    return found.exit_code, json.loads(found.stdout)


def test_an_update_that_makes_a_server_slower_fails(measure: Callable[[Script, str], None], tmp_path: Path) -> None:
    baseline = tmp_path / "server.json"
    measure(FAST, "0.19.2")
    assert judged(baseline, "--accept")[0] == 0
    measure(SLOW, "0.20.0")
    code, content = judged(baseline)
    assert (code, content["word"]) == (1, "FAIL")
    assert {verdict["metric"] for verdict in content["verdicts"]} == {"prefill_wall_s", "decode_wall_s"}
    assert "server version 0.19.2 → 0.20.0" in content["notes"]
    for verdict in content["verdicts"]:
        assert 2 < verdict["ratio"] < 8
    assert judged(baseline, "--metric", "decode")[1]["verdicts"][0]["metric"] == "decode_wall_s"


def test_a_server_that_was_updated_and_is_as_fast_does_not_fail(
    measure: Callable[[Script, str], None], tmp_path: Path
) -> None:
    baseline = tmp_path / "server.json"
    for version in ("0.19.2", "0.20.0"):
        measure(FAST, version)
        code, content = judged(baseline, *(() if baseline.exists() else ("--accept",)))
        assert code in (0, 3), content["verdicts"]  # a busy machine may leave it open
    assert judged(baseline, "--accept")[1]["verdicts"][0]["reason"] == "accepted"  # not a session of the old version
    measure(FAST, "0.20.0")
    assert judged(baseline, "--accept")[1]["verdicts"][0]["reason"] == "accepted as one more session"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rows", "latest"), "it needs --baseline FILE and no --base"),
        (("--rows", "latest", "--baseline", "b.json", "--base", "HEAD"), "it needs --baseline FILE and no --base"),
        (("--rows", "latest", "--baseline", "b.json", "-m", "gemma-3-270m"), "--rows has its cases already"),
    ],
)
def test_rows_go_with_a_baseline_only(words: tuple[str, ...], said: str) -> None:
    refused = run("gate", *words)
    assert refused.exit_code == 2
    assert said in refused.stderr


def test_rows_of_a_sweep_are_measured_again_instead(tmp_path: Path) -> None:
    swept = run("sweep", "-m", "gemma-3-270m", "--backend", "fake", "-c", "16", "-n", "2", "-r", "1")
    assert swept.exit_code == 0, swept.output
    refused = run("gate", "--baseline", str(tmp_path / "b.json"), "--accept", "--rows", "latest")
    assert refused.exit_code == 2
    assert "was not measured by profile endpoint" in refused.stderr
    assert not (tmp_path / "b.json").exists()
