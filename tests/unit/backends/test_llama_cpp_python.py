"""Where there is no build of llama.cpp, the library of llama-cpp-python is measured as llama-bench would do it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import stored
from fakes.llama_cpp import install as install_programs
from fakes.llama_cpp_python import VERSION, calls, install

from profiler.backends.llama_cpp import build
from profiler.case import Case
from profiler.cli import main
from profiler.errors import ProfileError

Sweep = Callable[..., dict[str, Any]]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """The row of a case; no program of llama.cpp is on the PATH."""
    model = stored.gguf(tmp_path / "tiny-q8_0.gguf", "q8_0")
    monkeypatch.delenv(build.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: str) -> dict[str, Any]:
        asked = ["sweep", "--backend", "llama.cpp", "-m", str(model), "--device", "cpu", "-o", "jsonl", *arguments]
        result = CliRunner().invoke(main, asked, catch_exceptions=False)
        assert result.exit_code in (0, 1), result.stderr
        return dict(json.loads(result.stdout))

    return run


@pytest.mark.parametrize("batch", [1, 2])
def test_a_row_names_the_package_and_has_its_times(batch: int, sweep: Sweep, tmp_path: Path) -> None:
    install(tmp_path)
    row = sweep("-c", "64", "-n", "16", "-b", str(batch), "-r", "3", "--threads", "1")
    assert (row["outcome"], row["reason"]) == ("ok", None)
    assert row["environment"]["libraries"]["llama.cpp"].startswith(f"llama-cpp-python {VERSION}, files ")
    assert row["environment"]["libraries"]["llama.cpp backends"] == "CPU CUDA"
    assert row["path"]["kernels"] == "llama-cpp-python on CPU"
    assert [len(row[phase]["seconds"]) for phase in ("prefill", "decode")] == [3, 3]
    assert (row["prefill"]["tokens"], row["decode"]["tokens"]) == (batch * 64, batch * 16)
    for phase in ("prefill", "decode"):  # the fake sleeps for 10 µs per token, and each sleep is a little longer
        assert min(row[phase]["seconds"]) >= row[phase]["tokens"] * 1e-5
    assert row["memory"]["cache_bytes"] == round(4.5 * 1024**2)


def driven(package: Path, file: Path, phase: str, batch: int) -> list[dict[str, Any]]:
    """Run one command of the build for a case of 3,000 tokens and 2 steps, and return what was called."""
    found = build.named(str(package))
    case = Case("m", "", "real", "", "", "cpu", "llama.cpp", "eager", 3000, batch, 2, ubatch=512, threads=1)
    command = found.phase(case, file, phase, 2, 1) if batch == 1 else found.both_phases(case, file, 1)
    subprocess.run(command, env=found.environment("cpu"), stdout=subprocess.PIPE, check=True)
    return calls(package)


def test_decode_is_timed_after_its_depth_which_is_computed_once(tmp_path: Path) -> None:
    context, *rest = driven(install(tmp_path, token_s=0.0), tmp_path / "m.gguf", "decode", 1)
    assert (context["context"]["n_ctx"], context["context"]["swa_full"]) == (3002, False)
    assert rest == [
        {"tokens": 1},  # the warm-up
        {"cleared": True},
        {"tokens": 2048},
        {"tokens": 952},
        {"saved": 10},
        *[{"tokens": 1}] * 2,
        {"cleared": True},
        {"restored": 10},
        *[{"tokens": 1}] * 2,
    ]


def test_a_prefill_of_one_sequence_is_warmed_up_and_repeated(tmp_path: Path) -> None:
    _, *rest = driven(install(tmp_path, token_s=0.0), tmp_path / "m.gguf", "prefill", 1)
    whole = [{"tokens": 2048}, {"tokens": 952}]
    assert rest == [*whole, {"cleared": True}, *whole, {"cleared": True}, *whole]


def test_several_sequences_are_prefilled_one_after_the_other_and_decoded_together(tmp_path: Path) -> None:
    context, _, cleared, *parts = driven(install(tmp_path, token_s=0.0), tmp_path / "m.gguf", "prefill", 2)
    assert (context["context"]["n_seq_max"], context["context"]["n_ctx"]) == (2, 2 * 3072)
    assert "cleared" in cleared
    prefill, steps = parts[:3], parts[3:5]
    places = [(place, one[0]) for part in prefill for place, one in zip(part["pos"], part["sequences"], strict=True)]
    assert places == [(place, sequence) for sequence in range(2) for place in range(3000)]
    assert [len(part["pos"]) for part in prefill] == [2048, 2048, 1904]
    wanted = [place for part in prefill for place, one in zip(part["pos"], part["logits"], strict=True) if one]
    assert wanted == [2999, 2999]
    for number, step in enumerate(steps):
        assert step == {"pos": [3000 + number] * 2, "sequences": [[0], [1]], "logits": [1, 1]}


def test_a_build_of_the_programs_comes_first(sweep: Sweep, tmp_path: Path) -> None:
    install(tmp_path)
    assert isinstance(build.find(), build.PythonBuild)
    programs = install_programs(tmp_path)
    assert build.find() == build.Build(programs)


@pytest.mark.parametrize(
    ("arguments", "without", "refused", "reason"),
    [
        (("--n-cpu-moe", "2"), "", None, "llama-cpp-python cannot be measured with -ncmoe"),
        ((), "llama_memory_clear", None, "this llama-cpp-python is too old: it has no llama_memory_clear"),
        ((), "", "unknown model architecture: 'gemma9'", "llama_cpp_python.py ended with code 1: unknown model arch"),
        (("--kv", "iq4_nl"), "", None, "has no cache type iq4_nl"),
    ],
)
def test_what_it_cannot_do_is_the_reason_of_the_row(
    arguments: tuple[str, ...], without: str, refused: str | None, reason: str, sweep: Sweep, tmp_path: Path
) -> None:
    install(tmp_path, without, **({"refused": refused} if refused else {}))
    row = sweep("-c", "64", *arguments)
    assert row["outcome"] == "failed"
    assert reason in row["reason"]


def test_it_has_no_server_for_the_completions_of_a_gate(tmp_path: Path) -> None:
    found = build.named(str(install(tmp_path)))
    case = Case("m", "", "real", "", "", "cpu", "llama.cpp", "eager", 64, 1, 2)
    with pytest.raises(ProfileError, match="llama-cpp-python has no llama-server"):
        found.server(case, tmp_path / "m.gguf", 512)
