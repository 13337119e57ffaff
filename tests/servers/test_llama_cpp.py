"""``profile sweep --backend llama.cpp`` with a real build: its rows against what the programs print and take."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
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
    result = CliRunner().invoke(main, asked(model, *arguments), catch_exceptions=False)
    return [json.loads(line) for line in result.stdout.splitlines()]


def asked(model: Path, *arguments: str, steps: int = STEPS) -> list[str]:
    """The arguments of a sweep of one thread."""
    words = ["sweep", "--backend", "llama.cpp", "-m", str(model), "--device", "cpu", "--threads", "1", "-r", "3"]
    return [*words, "-c", str(CONTEXT), "-n", str(steps), "-o", "jsonl", *arguments]


def test_rows_are_what_the_programs_print(found: build.Build, model: Path) -> None:
    """The machine may do other things between the two, so rates only have to be of the same size."""
    rows = {row["case"]["batch"]: row for row in swept(model, "-b", "1,2")}
    assert {batch: row["outcome"] for batch, row in rows.items()} == {1: "ok", 2: "ok"}
    memory = rows[1]["memory"]
    assert memory["weights_bytes"] == pytest.approx(92.10 * MIB, abs=0.02 * MIB)
    assert memory["cache_bytes"] == pytest.approx(5.62 * MIB, abs=0.02 * MIB)
    assert memory["process_peak_bytes"] > memory["weights_bytes"] + memory["cache_bytes"]
    sizes = ["-p", "0", "-n", str(STEPS), "-d", str(CONTEXT), "-r", "3", "-t", "1"]
    command = [*found.command(build.BENCH), "-m", str(model), "-o", "jsonl", *sizes]
    printed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    ratio = median(rows[1]["decode"]["seconds"]) / (median(printed["samples_ns"]) / 1e9)
    assert 0.2 < ratio < 5
    assert rows[1]["environment"]["libraries"]["llama.cpp backends"]
    assert rows[1]["path"]["kernels"] == f"{found.title} on CPU"


def test_the_reason_of_llama_cpp_is_the_reason_of_the_row(found: build.Build, model: Path) -> None:
    if "auto" not in found.options.get("-fa", ""):
        pytest.skip("this build of llama.cpp is too old for the case")
    (row,) = swept(model, "--kv", "q4_0", "--flash-attn", "off")
    assert row["outcome"] == "failed"
    assert re.search(r"V cache (quantization )?requires flash_attn", row["reason"])  # by the version


# Survival: the first of two files fails, for a reason that the row states, and the second one is measured.


@pytest.fixture(scope="module")
def files(found: build.Build, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a renamed copy, because a sweep measures files of the same content once."""
    if isinstance(found, build.PythonBuild):
        pytest.skip("llama-cpp-python has no programs that could be wrapped or killed: see tests/servers/README.md")
    folder = tmp_path_factory.mktemp("models")
    content = model.read_bytes()
    start = content.index(b"general.name") + len(b"general.name") + 12  # after its type and length
    (folder / "first.gguf").symlink_to(model)
    (folder / "second.gguf").write_bytes(content[:start] + b"?" + content[start + 1 :])
    return folder / "first.gguf", folder / "second.gguf"


def wrapped(found: build.Build, folder: Path, script: str) -> str:
    """A folder with a ``llama-bench`` that runs a line of shell before the real one."""
    folder.mkdir()
    program = folder / "llama-bench"
    program.write_text(f'#!/bin/sh\n{script}\nexec {shlex.quote(str(found.bench))} "$@"\n')
    program.chmod(0o755)
    return str(folder)


def both(files: tuple[Path, Path], *arguments: str) -> dict[str, Any]:
    """The row of the first file; that of the second one is ok."""
    rows = {row["case"]["model"]: row for row in swept(files[0], "-m", str(files[1]), *arguments)}
    assert rows["second"]["outcome"] == "ok", rows["second"]["reason"]
    return dict(rows["first"])


def architecture(content: bytes) -> bytes:
    start = content.index(b"llama", content.index(b"general.architecture"))
    return content[:start] + b"llamx" + content[start + 5 :]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (architecture, "unknown model architecture: 'llamx'"),
        (lambda content: content[: len(content) // 2], "model is corrupted or incomplete"),
    ],
)
def test_a_file_that_the_build_cannot_load_is_a_row(
    edit: Callable[[bytes], bytes], reason: str, found: build.Build, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Our own reader refuses such files before the sweep, so the program gets another file than we read."""
    edited = tmp_path / "edited.gguf"
    edited.write_bytes(edit(files[0].read_bytes()))
    swap = f'for word; do shift; [ "$word" = {files[0]} ] && word={edited}; set -- "$@" "$word"; done'
    row = both(files, "--llama-cpp", wrapped(found, tmp_path / "bin", swap), "-r", "1")
    assert row["outcome"] == "failed"
    assert reason in row["reason"]


def test_a_model_that_does_not_fit_into_the_address_space_is_out_of_memory(
    found: build.Build, files: tuple[Path, Path], tmp_path: Path
) -> None:
    limit = f'case "$*" in *{files[0]}*) ulimit -v 150000;; esac'
    row = both(files, "--llama-cpp", wrapped(found, tmp_path / "bin", limit), "-r", "1")
    assert row["outcome"] == "oom"
    assert "out of memory in load" in row["reason"]


def test_an_option_that_this_build_lacks_is_a_row(
    found: build.Build, files: tuple[Path, Path], tmp_path: Path
) -> None:
    older = f'[ "$1" = --help ] && {{ {shlex.quote(str(found.bench))} --help | grep -v ctv; exit; }}'
    folder = wrapped(found, tmp_path / "bin", older)
    rows = swept(files[0], "--llama-cpp", folder, "--kv", "q8_0,f16", "-r", "1")
    assert {row["outcome"] for row in rows} == {"failed"}
    assert "the llama-bench of this build of llama.cpp has no option -ctv" in rows[0]["reason"]
    assert [row["outcome"] for row in swept(files[0], "--llama-cpp", folder, "-r", "1")] == ["ok"]


def measuring(file: Path) -> list[int]:
    """The programs of llama.cpp that now measure ``file``: not those that only load it, with the verbose log."""
    return [pid for pid, words in programs(file) if b"-v" not in words]


def programs(file: Path) -> list[tuple[int, list[bytes]]]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = process.read_bytes().split(b"\0")
            if os.fsencode(file) in words and words[0].endswith(b"llama-bench"):
                found.append((int(process.parent.name), words))
    return found


def started(files: tuple[Path, Path], *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """A sweep in its own process group, and the program that measures the first file."""
    words = asked(files[0], "-m", str(files[1]), "-r", "1", *arguments, steps=64)
    sweeping = subprocess.Popen(
        [sys.executable, "-m", "profiler", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (found := measuring(files[0])):
        assert sweeping.poll() is None and time.monotonic() < deadline, "no program has started"
        time.sleep(0.01)
    return sweeping, found[0]


@pytest.mark.parametrize(
    ("number", "arguments", "outcome", "reason"),
    [
        (signal.SIGKILL, (), "failed", "llama-bench was killed by SIGKILL"),
        (signal.SIGABRT, (), "failed", "llama-bench was killed by SIGABRT"),
        (signal.SIGSTOP, ("--timeout", "45s"), "timeout", "after 45.0 s; stopped"),
    ],
)
def test_a_program_that_is_killed_or_hangs_while_it_measures_is_a_row(
    number: signal.Signals,
    arguments: tuple[str, ...],
    outcome: str,
    reason: str,
    found: build.Build,
    files: tuple[Path, Path],
) -> None:
    sweeping, program = started(files, *arguments)
    os.kill(program, number)
    printed, _ = sweeping.communicate(timeout=300)
    rows = {row["case"]["model"]: row for row in map(json.loads, printed.splitlines())}
    assert (rows["first"]["outcome"], rows["second"]["outcome"]) == (outcome, "ok")
    assert reason in rows["first"]["reason"]
    assert not programs(files[0])


def test_ctrl_c_leaves_no_program(found: build.Build, files: tuple[Path, Path]) -> None:
    """A terminal sends the signal to every process of the group, twice if the user is in a hurry."""
    sweeping, _ = started(files)
    for _ in range(2):
        os.killpg(sweeping.pid, signal.SIGINT)
        time.sleep(0.3)
    _, said = sweeping.communicate(timeout=60)
    assert sweeping.returncode == 130, said.decode()
    assert not programs(files[0])
