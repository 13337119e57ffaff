"""``profile endpoint --tasks`` as people type it, and where the pass rates are shown afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes.openai_server import FakeServer, Script

from profiler.backends.endpoint.client import KEY
from profiler.cli import main

KINDS = "html,arithmetic,extraction,format"
MODELS = "good,poor,other"
RIGHT = {"What is 347 × 86?": "Answer: 29842", "Is 91 a prime": "no", "Six machines": "Answer: 24"}


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["endpoint", *words], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer("vllm", Script()) as found:
        yield found


def solves(server: FakeServer, answers: Mapping[str, str] = RIGHT) -> None:
    """Let the server answer some tasks rightly, and the others with a word."""

    def choose(asked: dict[str, Any], number: int) -> Script:
        text = asked["messages"][-1]["content"]
        return Script(tokens=(next((answers[part] for part in answers if text.startswith(part)), "Bread"),))

    server.choose = choose


def test_tasks_are_solved_and_their_pass_rate_is_shown_with_its_interval(server: FakeServer) -> None:
    solves(server)
    ran = run(server.url, f"--tasks={KINDS}")
    assert ran.exit_code == 0
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert "arithmetic 10 2 20% (6–51) 8 0" in lines
    assert "format 8 1 12% (2–47) 7 0" in lines
    assert "all 38 3 8% (3–21) 35 0" in lines
    assert max(map(len, ran.stdout.splitlines())) <= 80
    text = " ".join(lines)
    assert "38 tasks tell a rate near 50% to ±15 points" in text and "at least 6 tasks" in text
    assert ran.stderr.splitlines()[0].endswith("3 of 38 tasks passed")
    sent = server.requests[-38:]
    assert len({each["messages"][-1]["content"] for each in sent}) == 38
    assert {(each["temperature"], each["seed"], each["max_tokens"]) for each in sent} == {(0, 0, 2048)}
    assert "min_tokens" not in sent[0]


def test_two_runs_of_tasks_ask_the_same_and_are_one_case(server: FakeServer, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "rows.sqlite"))
    prompts, rows = [], []
    for answers in (RIGHT, RIGHT | {"Which decimal number": "Answer: 91"}):
        solves(server, answers)
        ran = run(server.url, "--tasks", "arithmetic", "-n", "64", "-o", "json", *store)
        rows.append(json.loads(ran.stdout)[0])
        prompts.append([each["messages"] for each in server.requests[-10:]])
    assert prompts[0] == prompts[1]
    assert rows[0]["key"] == rows[1]["key"]
    found = [row["serving"]["tasks"] for row in rows]
    case = rows[0]["case"]
    assert (case["steps"], case["options"]) == (64, f"prompt=tasks:{found[0]['hash'][:8]} server=vllm")
    assert [each["passed"] for each in found] == [2, 3]
    assert found[0]["kinds"] == {"arithmetic": {name: found[0][name] for name in ("passed", "answered", "rate")}}
    compared = CliRunner().invoke(main, ["compare", "latest~1", "latest", *store, "-o", "json"])
    (line,) = [each for each in json.loads(compared.stdout) if each["figure"] == "tasks_pass_rate"]
    assert (line["a"], line["b"], line["p"], line["significant"]) == (0.2, 0.3, 1.0, False)
    table = CliRunner().invoke(main, ["compare", "latest~1", "latest", *store]).stdout
    assert re.search(r"tasks passed +20% +30% +1\.50?", table)
    shown = CliRunner().invoke(main, ["runs", "show", "latest", *store]).stdout
    assert "30% (11–60)" in shown
    csv = CliRunner().invoke(main, ["runs", "show", "latest", *store, "-o", "csv"]).stdout.splitlines()
    assert dict(zip(csv[0].split(","), csv[1].split(","), strict=False))["tasks_pass_rate"] == "0.3"
    report = CliRunner().invoke(main, ["report", "latest", *store]).stdout
    assert "Which tasks do the models solve?" in report and "30% (11–60)" in report


def test_a_cut_answer_is_no_wrong_one_and_an_error_of_the_server_no_answer(server: FakeServer) -> None:
    def choose(asked: dict[str, Any], number: int) -> Script:
        text = asked["messages"][-1]["content"]
        if "machines" in text:
            return Script(tokens=("Answer: 24", " and", " so", " on") * 20)
        if "cyclist" in text:
            return Script(fault="error", fault_after=0)
        if "floor" in text:
            return Script(tokens=("Answer: 168",), reasoning=("Answer:", " 12", " or"))
        return Script(tokens=() if "course" in text else ("Answer: 29842",))

    server.choose = choose
    ran = run(server.url, "--tasks=arithmetic", "-n", "16", "-o", "json")
    assert ran.exit_code == 1
    (row,) = json.loads(ran.stdout)
    tasks = row["serving"]["tasks"]
    ended = dict(zip(tasks["name"], zip(tasks["outcome"], tasks["reason"], strict=True), strict=True))
    assert ended["product"] == ended["tiles"] == ("passed", None)
    assert ended["machines"] == ("cut", "it did not end within 16 tokens")
    assert ended["days"] == ("wrong", "the answer is empty")
    assert ended["there-and-back"][0] == "failed" and "CUDA out of memory" in ended["there-and-back"][1]
    assert (tasks["passed"], tasks["answered"]) == (2, 9)
    assert row["outcome"] == "failed" and row["reason"].startswith("1 of 9 requests failed")
    text = " ".join(run(server.url, "--tasks=arithmetic", "-n", "16").stdout.split())
    assert "1 of 10 tasks have no answer that could be checked" in text
    assert "9 tasks tell a rate near 50% to ±27 points" in text  # Wilson's half-width at 4.5 of 9


def test_answers_to_tasks_are_kept_with_their_outcome(server: FakeServer, tmp_path: Path) -> None:
    solves(server)
    run(server.url, "--tasks=arithmetic", "--keep", str(tmp_path))
    page = (tmp_path / "answers.html").read_text()
    assert page.count("<article") == 10 and "arithmetic: machines" in page
    assert page.count("<strong>passed</strong>") == 2
    assert "<strong>wrong</strong>: there is no line &quot;Answer: &quot;" in page
    assert "2 of 10: 20% (6–51)" in page
    (file,) = tmp_path.glob("answers-*.jsonl")
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(each["scenario"], each["task"]) for each in kept} == {("tasks", "passed"), ("tasks", "wrong")}


def test_two_models_are_compared_on_the_tasks_that_one_of_them_passed() -> None:
    with FakeServer("vllm", models=("good", "poor")) as server:
        solves(server)
        tried = server.choose
        assert tried is not None
        server.choose = lambda asked, n: Script(tokens=("Bread",)) if asked["model"] == "poor" else tried(asked, n)
        ran = run(server.url, "-m", "good,poor", "--tasks=arithmetic")
    text = " ".join(ran.stdout.split())
    assert "tasks: both passed 0, only good 2, only poor 0: too few to tell them apart (p = 0.5)" in text


def test_a_third_model_corrects_what_two_models_tell() -> None:
    """Six of ten tasks tell two models apart, but not any two of three."""
    with FakeServer("vllm", models=("good", "poor", "other")) as server:
        right = RIGHT | {"Three notebooks": "Answer: 9.35", "A floor": "Answer: 168", "A price": "Answer: 220.8"}
        solves(server, right | {"A cyclist": "Answer: 15"})
        tried = server.choose
        assert tried is not None
        server.choose = lambda asked, n: tried(asked, n) if asked["model"] == "good" else Script(tokens=("Bread",))
        said = {names: run(server.url, "-m", names, "--tasks=arithmetic").stdout for names in ("good,poor", MODELS)}
    two, three = (" ".join(text.split()) for text in said.values())
    assert "only good 6, only poor 0: they differ (p = 0.031)" in two
    assert "only good 6, only poor 0: too few to tell them apart (p = 0.094, corrected for 3 pairs)" in three


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks=format", "-c", "64"], "--tasks and -c exclude each other"),
        (["--tasks=format", "-r", "2"], "--tasks and -r exclude each other"),
        (["--tasks=format", "--cached"], "--tasks and --cached exclude each other"),
        (["--tasks=format", "--scenario", "code"], "--tasks and --scenario exclude each other"),
        (["--tasks=format", "--concurrency", "1,2"], "--tasks takes one number of streams"),
        (["--tasks=prose"], "unknown kind of tasks: prose"),
    ],
)
def test_tasks_refuse_what_does_not_combine_with_them(server: FakeServer, words: list[str], said: str) -> None:
    ran = run(server.url, *words)
    assert ran.exit_code == 2 and said in ran.stderr and server.requests == []
