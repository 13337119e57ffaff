"""``profile sweep --backend llama.cpp`` with a real build: its rows against what the programs print and take."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import checkpoints

from profiler.backends.llama_cpp import build
from profiler.cli import main
from profiler.errors import ProfileError

MIB = 1024**2
CONTEXT, STEPS = 64, 16


@pytest.fixture(scope="module")
def found() -> build.Build:
    try:
        return build.find()
    except ProfileError as error:
        pytest.skip(f"{error.message}: see tests/servers/README.md")


@pytest.fixture(scope="module")
def model() -> Path:
    return checkpoints.available(checkpoints.smollm2_gguf)


def swept(model: Path, *arguments: str) -> list[dict[str, Any]]:
    asked = ["sweep", "--backend", "llama.cpp", "-m", str(model), "--device", "cpu", "--threads", "1", "-r", "3"]
    sizes = ["-c", str(CONTEXT), "-n", str(STEPS), "-o", "jsonl"]
    result = CliRunner().invoke(main, [*asked, *sizes, *arguments], catch_exceptions=False)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_rows_are_what_the_programs_print(found: build.Build, model: Path) -> None:
    """The machine may do other things between the two, so rates only have to be of the same size."""
    rows = {row["case"]["batch"]: row for row in swept(model, "-b", "1,2")}
    assert {batch: row["outcome"] for batch, row in rows.items()} == {1: "ok", 2: "ok"}
    memory = rows[1]["memory"]
    assert memory["weights_bytes"] == pytest.approx(92.10 * MIB, abs=0.02 * MIB)
    assert memory["cache_bytes"] == pytest.approx(5.62 * MIB, abs=0.02 * MIB)
    assert memory["process_peak_bytes"] > memory["weights_bytes"] + memory["cache_bytes"]
    sizes = ["-p", "0", "-n", str(STEPS), "-d", str(CONTEXT), "-r", "3", "-t", "1"]
    command = [str(found.bench), "-m", str(model), "-o", "jsonl", *sizes]
    printed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    ratio = median(rows[1]["decode"]["seconds"]) / (median(printed["samples_ns"]) / 1e9)
    assert 0.2 < ratio < 5
    assert rows[1]["environment"]["libraries"]["llama.cpp backends"]
    assert rows[1]["path"]["kernels"] == "llama.cpp on CPU"


def test_the_reason_of_llama_cpp_is_the_reason_of_the_row(found: build.Build, model: Path) -> None:
    if "auto" not in found.options.get("-fa", ""):
        pytest.skip("this build of llama.cpp is too old for the case")
    (row,) = swept(model, "--kv", "q4_0", "--flash-attn", "off")
    assert row["outcome"] == "failed"
    assert "V cache quantization requires flash_attn" in row["reason"]
