"""Named grids, shipped and one's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiler import registry
from profiler.errors import NotFound, ProfileError
from profiler.run import grid

GOOD = 'description = "mine"\ncontexts = "1k-4k*2"\nbatches = [1, 2]\nsteps = 8\n'


def test_the_device_catalog_is_no_scenario() -> None:
    assert "devices" not in grid.names()
    assert {"quick", "chat", "code", "batch", "long-context"} <= set(grid.names())


@pytest.mark.parametrize("name", grid.names())
def test_shipped_scenarios_name_only_known_quantizations(name: str) -> None:
    found = grid.load(name)
    assert set(found.quants) <= set(registry.names("quants"))
    assert found.contexts and found.batches and found.steps


def test_long_context_goes_to_128k_without_a_prefill() -> None:
    found = grid.load("long-context")
    assert found.contexts[-1] == 131072
    assert found.fill == "synthetic"


def test_a_users_file_is_read_like_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + 'quants = "bf16,nf4"\nmodels = ["gemma-3-1b"]\nfill = "synthetic"\n')
    found = grid.load(str(path))
    assert found == grid.Scenario(
        "mine", "mine", (1024, 2048, 4096), (1, 2), (8,), ("bf16", "nf4"), ("gemma-3-1b",), "synthetic"
    )


def test_prompts_answer_and_purpose_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + 'prompts = ["a.md", "b.md"]\nanswer_tokens = "2k"\nstands_for = "me"\n')
    found = grid.load(str(path))
    assert (found.prompts, found.answer_tokens, found.stands_for) == (("a.md", "b.md"), 2048, "me")


def test_an_unknown_scenario_names_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        grid.load("chats")
    assert "Did you mean chat?" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("contexts = [", "is not valid TOML"),
        (GOOD + "batch = 1\n", "unknown key in scenario"),
        (GOOD.replace("steps = 8", ""), "has no steps"),
        (GOOD.replace("steps = 8", "steps = 0"), "steps: "),
        (GOOD.replace("[1, 2]", "[]"), "batches: the list is empty"),
        (GOOD.replace("[1, 2]", "[1.5]"), "batches: "),
        (GOOD + 'fill = "magic"\n', "fill is 'magic'"),
        ("x" * 100_000, "is larger than 64.0 KiB"),
        (GOOD + "fill = ''\n", "fill is ''"),
        (GOOD + "quants = [5]\n", "quants contains 5, but must be text"),
        (GOOD + "models = {a = 1}\n", "models contains {'a': 1}, but must be text"),
        (GOOD.replace('"mine"', "5"), "description is 5, but must be text"),
        (GOOD + "stands_for = 5\n", "stands_for is 5, but must be text"),
        (GOOD + "prompts = [5]\n", "prompts contains 5, but must be text"),
        (GOOD + "answer_tokens = 0\n", "answer_tokens: "),
        (GOOD + "answer_tokens = [1, 2]\n", "answer_tokens must be one number up to 1,048,576"),
        (GOOD + "answer_tokens = 2000000\n", "answer_tokens must be one number up to 1,048,576"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        grid.load(str(path))
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert grid.load(str(path)).steps == (8,)


@pytest.mark.parametrize("name", ["no/such.toml", "./x.toml", "."])
def test_a_missing_file_is_one_clear_line(name: str) -> None:
    with pytest.raises(ProfileError):
        grid.load(name)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ProfileError, match="is a pipe, not a regular file"):
        grid.load(str(tmp_path / "pipe.toml"))
