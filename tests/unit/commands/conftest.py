"""The command line in this process, over fake models in folders; workers are real processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes.tiny import CONFIGS

from profiler.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of ``-o jsonl``."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def outcomes(self) -> list[str]:
        return [row["outcome"] for row in self.rows]


Profile = Callable[..., Ran]
MakeModel = Callable[..., str]


@pytest.fixture
def profile() -> Profile:
    def run(*arguments: str) -> Ran:
        result: Result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def sweep(profile: Profile, model: MakeModel) -> Profile:
    """A sweep of a fake model; rows as JSON lines. Its weights are asked to be synthetic, since it has no others."""

    def run(*arguments: str, output: str = "jsonl", **script: Any) -> Ran:
        named = () if {"-m", "--model"} & set(arguments) else ("-m", model(**script))
        weights = () if "--weights" in arguments else ("--weights", "synthetic")
        return profile("sweep", "--backend", "fake", "-o", output, *named, *weights, *arguments)

    return run


@pytest.fixture
def model(tmp_path: Path) -> MakeModel:
    """A folder with a config that the fake backend takes its costs and faults from."""

    def make(name: str = "tiny", **script: Any) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIGS["gemma3"] | {"fake": script}))
        return str(folder)

    return make


@pytest.fixture
def command_line() -> list[str]:
    """The start of a command line for a process of its own."""
    import sys

    return [sys.executable, "-m", "profiler"]


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Any:
    yield
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert not children.exists() or children.read_text().split() == [], "a worker outlived its command"
