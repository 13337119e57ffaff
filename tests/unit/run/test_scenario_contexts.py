"""The contexts of a scenario for one model: counted by its own tokenizer where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import tiny

from profiler.case import Source
from profiler.cli import main
from profiler.errors import ProfileError
from profiler.run import grid
from profiler.run.prompts import _groups, contexts_of, prompts


def tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer that takes every character for a token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    folder.mkdir(exist_ok=True)
    made = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")
    made.save(str(folder / "tokenizer.json"))
    return folder


def source(folder: Path) -> Source:
    return Source("folder", str(folder), None, {})


def rows(*words: str) -> list[dict[str, Any]]:
    ran = CliRunner().invoke(main, [*words, "-o", "jsonl"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_models_own_tokenizer_counts_the_prompts(tmp_path: Path) -> None:
    contexts, note = contexts_of("chat", source(tokenizer(tmp_path)))
    assert contexts == tuple(sorted(len(prompt.text) for prompt in prompts("chat")))
    assert note == "the contexts of scenario chat are counted by the model's own tokenizer"


@pytest.mark.parametrize("name", [name for name in grid.names() if grid.load(name).prompts and "128k" not in name])
def test_there_are_no_more_contexts_than_the_scenario_states(name: str, tmp_path: Path) -> None:
    contexts, _ = contexts_of(name, source(tokenizer(tmp_path)))
    assert 1 <= len(contexts) <= len(grid.load(name).contexts)
    assert list(contexts) == sorted(set(contexts))


def test_prompts_of_about_the_same_length_are_a_group() -> None:
    assert _groups([100, 110, 400, 420, 2000], 3) == [[100, 110], [400, 420], [2000]]
    assert _groups([5], 1) == [[5]]
    assert _groups([5, 5, 5], 2) == [[5], [5, 5]]


def test_without_a_tokenizer_the_stated_counts_hold_and_are_called_so(tmp_path: Path) -> None:
    for each in (source(tmp_path), Source("catalog", "gemma-3-270m", None, {})):
        contexts, note = contexts_of("chat", each)
        assert contexts == grid.load("chat").contexts
        assert note == "the contexts of scenario chat are as it states them: no tokenizer.json is here"
    assert contexts_of("quick", source(tmp_path)) == (grid.load("quick").contexts, None)


def test_a_damaged_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ProfileError, match=r"tokenizer\.json is not a tokenizer"):
        contexts_of("chat", source(tmp_path))


def test_sweep_and_fit_use_each_models_own_contexts_and_rows_say_so(tmp_path: Path) -> None:
    model = tokenizer(tmp_path / "tiny")
    config = tiny.CONFIGS["gemma3"] | {"fake": {}, "max_position_embeddings": 100_000}
    (model / "config.json").write_text(json.dumps(config))
    own, note = contexts_of("code", source(model))
    asked = ("--scenario", "code", "-q", "fp32")
    few = ("-n", "2", "-r", "1", "--backend", "fake")
    swept = rows("sweep", "-m", f"{model},gemma-3-270m", *few, *asked)
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in swept:
        by_model.setdefault(row["case"]["model"], []).append(row)
    assert [row["case"]["context"] for row in by_model["tiny"]] == list(own)
    assert [row["case"]["context"] for row in by_model["gemma-3-270m"]] == list(grid.load("code").contexts)
    for row in by_model["tiny"]:
        assert note in [caution["text"] for caution in row["cautions"] if caution["code"] == "scenario-contexts"]
    predicted = rows("fit", str(model), *asked)
    assert [row["context"] for row in predicted] == list(own)
    assert all(note in row["cautions"] for row in predicted)
    assert [row["context"] for row in rows("fit", str(model), "--scenario", "code", "-c", "512", "-q", "fp32")] == [
        512
    ]
