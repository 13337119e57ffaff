"""Defaults from ``profile.toml``: which file counts, what an option overrides, and what is wrong with a file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from profiler import folders, settings
from profiler.results.store import Store, default_path

PLAN = ("sweep", "--backend", "fake", "--dry-run", "-o", "jsonl", "-c", "64")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the user's file, or that of a folder; the current folder is ``project/inner``."""
    (tmp_path / "project" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "inner")
    monkeypatch.delenv(settings.VARIABLE)
    monkeypatch.setattr(folders, "config", lambda: tmp_path / "user")

    def write_file(folder: str, text: str) -> Path:
        path = tmp_path / folder / settings.FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def planned(ran: Any, field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in ran.rows))


def test_an_option_wins_over_the_projects_file_and_that_over_the_users(profile: Any, write: Write) -> None:
    user = write("user", 'models = "gemma-3-270m"\nquants = ["fp32"]')
    ran = profile(*PLAN)
    assert (planned(ran, "model"), planned(ran, "quant")) == (["gemma-3-270m"], ["fp32"])
    project = write("project", 'models = ["gemma-3-1b", "qwen3-0.6b"]')
    ran = profile(*PLAN)
    assert (planned(ran, "model"), planned(ran, "quant")) == (["gemma-3-1b", "qwen3-0.6b"], ["fp32"])
    assert f"models gemma-3-1b,qwen3-0.6b (from {project})" in ran.err and f"quants fp32 (from {user})" in ran.err
    ran = profile(*PLAN, "-m", "gemma-3-270m", "-q", "bf16")
    assert (planned(ran, "model"), planned(ran, "quant")) == (["gemma-3-270m"], ["bf16"])
    assert "(from " not in ran.err


def test_the_nearest_folder_has_the_projects_file(profile: Any, write: Write) -> None:
    write("project", 'models = "gemma-3-1b"\nquants = "fp32"')
    write("project/inner", 'models = "gemma-3-270m"')
    ran = profile("fit", "-o", "jsonl")
    assert planned(ran, "model") == ["gemma-3-270m"]
    assert "quants" not in ran.err


def test_the_variable_names_one_file_or_none(profile: Any, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("project", 'models = "gemma-3-1b"')
    monkeypatch.setenv(settings.VARIABLE, str(write("elsewhere", 'models = "gemma-3-270m"')))
    assert planned(profile(*PLAN), "model") == ["gemma-3-270m"]
    monkeypatch.setenv(settings.VARIABLE, "")
    assert settings.load() == {}


def test_a_scenarios_own_models_win_over_those_of_a_file(profile: Any, write: Write) -> None:
    write("project", 'models = "gemma-3-270m"\nquants = "fp32"')
    mine = write("scenarios", 'description = "x"\ncontexts = 64\nbatches = 1\nsteps = 8\nmodels = "gemma-3-1b"')
    ran = profile(*PLAN[:-2], "--scenario", str(mine))
    assert (planned(ran, "model"), planned(ran, "quant")) == (["gemma-3-1b"], ["fp32"])


def test_paths_are_relative_to_the_file_and_a_stored_run_does_not_depend_on_it(
    profile: Any, write: Write, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROFILER_STORE")
    model("project/tiny")
    write("project", 'models = "./tiny"\nstore = "rows.sqlite"')
    assert default_path() == tmp_path / "project" / "rows.sqlite"
    ran = profile("sweep", "--backend", "fake", "-c", "64", "-n", "2", "-r", "1", "--weights", "synthetic")
    assert ran.code == 0, ran.err
    with Store.open(create=False) as opened:
        (run,) = opened.runs()
    assert list(run.argv[-2:]) == ["-m", f"{tmp_path / 'project'}/tiny"]
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "other.sqlite"))
    assert default_path() == tmp_path / "other.sqlite"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modles = "x"', "unknown key in {file}: modles\n  Did you mean models?"),
        ("models = 3", '{file}: models is 3, but must be text\n  Write models = ["NAME"].'),
        ("quants = []", "{file}: quants is [], but must be text"),
        ('device = ["cpu"]', "{file}: device is ['cpu'], but must be text\n  Write device = \"NAME\"."),
        ('store = ""', "{file}: store is , but must be text"),
        ("models = [", "{file} is not valid TOML: "),
        ("x" * 100_000, "{file} is larger than 64.0 KiB"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_but_help_works(
    text: str, message: str, profile: Any, write: Write
) -> None:
    file = write("project", text)
    for command in ((), ("fit",), PLAN, ("runs",)):
        ran = profile(*command)
        assert ran.code == 2 and ran.err.startswith(f"Error: {message.format(file=file)}"), ran.err
    assert profile("sweep", "--help").code == 0
    assert profile("--help").code == 0


def test_a_wrong_device_is_named_with_its_file(profile: Any, write: Write) -> None:
    file = write("project", 'device = "tpu"')
    ran = profile(*PLAN, "-m", "gemma-3-270m")
    assert ran.code == 2 and f"device tpu (from {file})" in ran.err and "tpu" in ran.err.splitlines()[-2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str, command_line: list[str]) -> None:
    environ = os.environ | {"_PROFILE_COMPLETE": f"{shell}_source"}
    ran = subprocess.run(command_line, env=environ, capture_output=True, text=True, check=False)
    assert "_PROFILE_COMPLETE" in ran.stdout, ran.stderr
    words = {"COMP_WORDS": "profile sweep --weights ", "COMP_CWORD": "" if shell == "fish" else "3"}
    environ |= {"_PROFILE_COMPLETE": f"{shell}_complete"} | words
    ran = subprocess.run(command_line, env=environ, capture_output=True, text=True, check=False)
    assert "synthetic" in ran.stdout, ran.stderr
