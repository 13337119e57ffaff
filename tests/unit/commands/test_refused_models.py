"""One refused model of a list does not stop the others; what is wrong with it is said with its name."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.tiny import CONFIGS
from fakes.variants import LocalBench

from profiler.errors import NotFound, ProfileError
from profiler.gate import session as gate_session
from profiler.gate.variants import Variant
from profiler.run import plan
from profiler.run.process import Launch
from profiler.run.refusal import Refusal, accepted, combined_error


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is shown whole; with -n, pytest's own have long ones."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def bad(short_path: Path) -> dict[str, str]:
    """Models that cannot be used, by what is wrong with them."""
    made = {}
    for name, content in {
        "unsupported": {"model_type": "mamba9"},
        "incomplete": CONFIGS["gemma3"] | {"hidden_size": 0},
        "empty": None,
    }.items():
        folder = short_path / name
        folder.mkdir()
        if content is not None:
            (folder / "config.json").write_text(json.dumps(content))
        made[name] = str(folder)
    (short_path / "broken.gguf").write_bytes(b"GGUF")
    return made | {"broken.gguf": str(short_path / "broken.gguf"), "misspelt": "no-such-model"}


REASONS = {
    "unsupported": "mamba9",
    "incomplete": "hidden_size",
    "empty": "config.json",
    "broken.gguf": "GGUF",
    "misspelt": "unknown model",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_sweep_goes_on_without_a_refused_model(name: str, bad: dict[str, str], sweep: Any, model: Any) -> None:
    ran = sweep("-m", f"{model('first')},{bad[name]}", "-m", model("second", step_s=0.02), "-c", "64", "-n", "2")
    assert [row["case"]["model"] for row in ran.rows] == ["first", "second"]
    assert ran.outcomes == ["ok", "ok"]
    assert ran.code == 1
    (line,) = [line for line in ran.err.splitlines() if line.startswith("refused: ")]
    assert bad[name] in line
    assert REASONS[name] in line
    assert f"no rows for {bad[name]}: refused, see above" in ran.err


def test_a_sweep_of_refused_models_alone_is_a_usage_error_that_names_each(bad: dict[str, str], sweep: Any) -> None:
    ran = sweep("-m", f"{bad['unsupported']},{bad['incomplete']}")
    assert ran.code == 2
    (line,) = [line for line in ran.err.splitlines() if line.startswith("Error: ")]
    assert line.startswith("Error: none of the 2 models can be used: ")
    for name in ("unsupported", "incomplete"):
        assert bad[name] in line
        assert REASONS[name] in line


def test_one_refused_model_alone_keeps_its_own_error(bad: dict[str, str], sweep: Any) -> None:
    ran = sweep("-m", bad["misspelt"])
    assert (ran.code, ran.err.splitlines()[0]) == (2, "Error: unknown model: no-such-model")


def test_models_of_a_scenario_are_a_list_too(bad: dict[str, str], profile: Any, model: Any, tmp_path: Path) -> None:
    named = json.dumps([model("first"), bad["incomplete"]])
    (tmp_path / "mine.toml").write_text(
        f'description = "x"\ncontexts = 64\nbatches = 1\nsteps = 2\nmodels = {named}\n'
    )
    ran = profile("sweep", "--scenario", str(tmp_path / "mine.toml"), "--backend", "fake", "-o", "jsonl")
    assert (ran.code, ran.outcomes) == (1, ["ok"])
    assert "refused: " in ran.err


def test_a_plan_says_it_too(bad: dict[str, str], sweep: Any, model: Any) -> None:
    ran = sweep("-m", f"{model('first')},{bad['empty']}", "-c", "64", "--dry-run", output="json")
    assert [row["model"] for row in json.loads(ran.out)] == ["first"]
    assert (ran.code, "refused: " in ran.err) == (1, True)


def test_a_prediction_that_cannot_be_made_leaves_out_its_cases_alone(
    sweep: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_case = plan.plan_case

    def refuse(task: Any, *others: Any) -> Any:
        if task.case.model == "first":
            raise ProfileError("first: no rule for such a layer")
        return plan_case(task, *others)

    monkeypatch.setattr(plan, "plan_case", refuse)
    ran = sweep("-m", f"{model('first')},{model('second', step_s=0.02)}", "-c", "64", "-n", "2")
    assert {row["case"]["model"]: row["outcome"] for row in ran.rows} == {"first": "skipped", "second": "ok"}


@pytest.mark.parametrize("mapped", [(), ("--map",)])
def test_fit_goes_on_without_a_refused_model(bad: dict[str, str], profile: Any, mapped: tuple[str, ...]) -> None:
    ran = profile("fit", "qwen3-0.6b", bad["incomplete"], "qwen3-1.7b", "-o", "json", "--on", "4090", *mapped)
    assert {row["model"] for row in json.loads(ran.out)} == {"qwen3-0.6b", "qwen3-1.7b"}
    assert ran.code == 1
    assert "refused: " in ran.err and bad["incomplete"] in ran.err
    assert profile("fit", bad["incomplete"], bad["empty"]).code == 2


def test_fit_leaves_out_a_model_that_does_not_reach_the_context(profile: Any) -> None:
    ran = profile("fit", "gemma-3-270m", "qwen3.5-9b", "-c", "100k", "-o", "json", "--on", "4090")
    assert {row["model"] for row in json.loads(ran.out)} == {"qwen3.5-9b"}
    assert ran.code == 1
    assert "refused: gemma-3-270m supports at most 32,768 tokens, not 102,400" in ran.err


def test_fit_says_a_mistake_of_all_models_once(profile: Any) -> None:
    ran = profile("fit", "qwen3-0.6b", "qwen3-8b", "--engine", "llama.cpp", "--kv", "q2")
    assert ran.code == 2
    assert ran.err.startswith("Error: unknown KV cache type of llama.cpp: q2\n")


@pytest.fixture
def gate(profile: Any, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gate_session, "WorkerBench", LocalBench)
    here = Variant("here", Launch(("python",)), {"python": "3.11.9", "executable": "/python", "libraries": {}})
    monkeypatch.setattr(gate_session.variants, "resolve", lambda text, scratch, say: here)
    monkeypatch.setattr(gate_session.variants, "here", lambda: here)

    def run(*arguments: str) -> Any:
        return profile("gate", "--backend", "fake", "-c", "64", "-n", "8", *arguments)

    return run


def test_a_gate_judges_the_others_and_is_incomparable(gate: Any, bad: dict[str, str], model: Any) -> None:
    ran = gate("--base", "x", "-m", f"{model('first')},{bad['incomplete']}", "-o", "jsonl")
    words = {(row["cell"], row["metric"]): row["word"] for row in map(json.loads, ran.out.splitlines())}
    assert words.pop((bad["incomplete"], "case")) == "INCOMPARABLE"
    assert set(words.values()) == {"PASS"}
    assert ran.code == 4
    assert gate("--base", "x", "-m", bad["incomplete"]).code == 2


def test_a_baseline_is_not_made_without_a_model_that_was_named(
    gate: Any, bad: dict[str, str], model: Any, tmp_path: Path
) -> None:
    ran = gate("--baseline", str(tmp_path / "b.json"), "--accept", "-m", f"{model('first')},{bad['incomplete']}")
    assert ran.code == 2
    assert not (tmp_path / "b.json").exists()


def test_a_refusal_names_the_model_once_and_as_it_was_typed() -> None:
    assert Refusal("./x/a", ProfileError("a: vocab_size is missing")).text == "./x/a: vocab_size is missing"
    assert Refusal("a.gguf", ProfileError("a: cut short", "Copy it.")).text == "a.gguf: cut short. Copy it."
    assert Refusal("trunc", ProfileError("model.safetensors is truncated")).text.startswith("trunc: model.")
    assert Refusal("gemma", NotFound("unknown model: gemma")).text == "unknown model: gemma"


def test_an_error_that_all_share_is_said_once() -> None:
    def refuse(name: str) -> str:
        raise ProfileError("no disk")

    with pytest.raises(ProfileError, match=r"^no disk$"):
        accepted(["a", "b"], refuse)
    assert combined_error([Refusal("a", ProfileError("x")), Refusal("b", ProfileError("y"))]).message == (
        "none of the 2 models can be used: a: x; b: y"
    )
    assert accepted([], refuse) == ([], ())
