"""Backend llama.cpp against what three versions of its programs print: rows, commands, faults, and no orphans."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import llama_cpp, stored
from fakes.llama_cpp import PREFILL_S, STEP_S, VERSIONS, calls, fault, install
from fakes.tiny import CONFIGS

import profiler
from profiler import backends, folders
from profiler.backends.llama_cpp import build, program
from profiler.cli import main
from profiler.errors import ProfileError
from profiler.models.resolve import resolve
from profiler.results.environment import HEAP
from profiler.results.store import Store
from profiler.run import gguf_files

MIB = 1024**2
ASSERTION = "/src/ggml/src/ggml-cpu/ops.cpp:4321: GGML_ASSERT(ne00 == ne10) failed"
UNKNOWN = (
    "llama_model_load: error loading model: error loading model architecture: unknown model architecture: 'gemma9'",
    "llama_model_load_from_file_impl: failed to load model",
    "llama_bench: error: failed to load model 'm.gguf'",
)
REFUSED = "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9"
CUDA_REFUSED = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9 MiB: cudaMalloc failed: out of memory"

Sweep = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return stored.gguf(tmp_path / "tiny-q8_0.gguf", "q8_0")


@pytest.fixture
def sweep(model: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Rows of a sweep with a build; the code of the last one is ``sweep.code``."""
    monkeypatch.delenv(build.VARIABLE, raising=False)

    def run(folder: Path, *arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setenv(build.VARIABLE, str(folder))
        named = () if "-m" in arguments else ("-m", str(model))
        asked = ["sweep", "--backend", "llama.cpp", "--device", "cpu", "-o", "jsonl", *named, *arguments]
        result = CliRunner().invoke(main, asked, catch_exceptions=False)
        assert result.exit_code in (0, 1), result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    return run


def test_a_prefill_that_takes_all_the_time_leaves_a_decode(sweep: Sweep, tmp_path: Path) -> None:
    """Both come from one run of llama-batched-bench, whose first line is the warm-up of both."""
    asked = ("-c", "512", "-b", "4", "-n", "1", "--max-phase", f"{4 * 512 * PREFILL_S / 2}s")
    (row,) = sweep(install(tmp_path / "bin"), *asked)
    assert row["outcome"] == "ok" and row["prefill"]["tps"]
    assert row["decode"]["seconds"] == pytest.approx([STEP_S], rel=0.01)
    assert {"prefill-cold", "decode-cold"} <= {caution["code"] for caution in row["cautions"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_row_has_the_seconds_that_the_program_printed(
    version: str, batch: int, sweep: Sweep, tmp_path: Path
) -> None:
    (row,) = sweep(install(tmp_path / "bin", version), "-c", "128", "-b", str(batch), "-n", "32", "-r", "3")
    assert (row["outcome"], row["reason"]) == ("ok", None)
    assert row["case"]["quant"] == "q8_0" and row["case"]["backend"] == "llama.cpp"
    prefill_s, decode_s = batch * 128 * PREFILL_S, 32 * STEP_S
    assert row["prefill"]["seconds"] == pytest.approx([prefill_s] * 3, rel=0.01)
    assert row["decode"]["seconds"] == pytest.approx([decode_s] * 3, rel=0.01)
    assert (row["prefill"]["tokens"], row["decode"]["tokens"]) == (batch * 128, batch * 32)
    memory = row["memory"]
    assert memory["weights_bytes"] == round(235.16 * MIB)
    assert memory["cache_bytes"] == round(4.5 * MIB)
    assert memory["decode_activation_bytes"] == round(65.27 * MIB)
    assert memory["process_peak_bytes"] > MIB
    libraries = row["environment"]["libraries"]
    assert libraries["llama.cpp"].startswith(f"{version} (0123abcd), files ")
    assert libraries["llama.cpp backends"] == "CPU"
    assert row["predicted"]["decode_tps"]["value"] > 0
    assert row["load_s"] > 0
    if batch == 1 and version != "b3800":  # the table of llama-batched-bench has no threads
        assert row["threads"] == 2


def test_a_table_says_neither_a_compute_dtype_nor_a_path_that_llama_cpp_does_not_know(
    sweep: Sweep, model: Path, tmp_path: Path
) -> None:
    sweep(install(tmp_path / "bin"), "-c", "128", "-n", "32", "-r", "3")
    words = ("sweep", "--backend", "llama.cpp", "-m", str(model), "-c", "256", "--dry-run")
    for command in (("runs", "show"), ("runs", "show", "-o", "md"), words):
        shown = CliRunner().invoke(main, command, catch_exceptions=False).stdout
        assert "q8" in shown
        assert "eager" not in shown and "bf16" not in shown and "fp32" not in shown
    listed = CliRunner().invoke(main, ["report"], catch_exceptions=False).stdout
    assert "eager" not in listed


def test_rows_teach_later_predictions_and_accuracy_shows_what(
    sweep: Sweep, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiler.results.cautions.cautions", lambda row, centres=None: ())  # busy or not
    monkeypatch.setattr("profiler.commands.accuracy.disturbed", lambda row, figure: False)

    def asked(*words: str) -> str:
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    folder, case = install(tmp_path / "bin"), ("-c", "256")
    taught = sweep(folder, "-c", "64,128,512,1024", "-n", "32", "-r", "3")
    assert {row["predicted"]["decode_tps"]["basis"] for row in taught} == {"prior"}
    fit = ("fit", str(model), *case, "-o", "jsonl")
    after, before = (json.loads(asked(*fit, *more))["decode"]["tps"] for more in ((), ("--no-learned",)))
    assert (after["basis"], after["rows"], before["basis"]) == ("learned", 4, "prior")
    assert abs(after["value"] * STEP_S - 1) < 0.2 < abs(before["value"] * STEP_S - 1)
    assert "learned: corrected by 4 rows of similar cases measured here" in asked("fit", str(model), *case)
    assert "learned from 4 rows here" in asked("explain", str(model), *case)
    assert "learned" not in asked("explain", str(model), *case, "--no-learned")
    (row,) = sweep(folder, *case, "-n", "32", "-r", "3")
    assert row["predicted"]["decode_tps"]["rows"] == 4
    for known in (True, False):  # without a build, there is nothing to compare the row's with
        monkeypatch.setenv(build.VARIABLE, str(folder if known else tmp_path))
        explained = CliRunner().invoke(main, ["explain", str(model), *case], catch_exceptions=False)
        assert "measured" in explained.stdout and "only on another machine" not in explained.stderr
    (plain,) = sweep(folder, "-c", "300", "-n", "32", "-r", "3", "--no-learned")
    assert plain["predicted"]["decode_tps"]["basis"] == "prior"
    found = [json.loads(line) for line in asked("accuracy", "-o", "jsonl").splitlines()]
    decode = [row for row in found if row["figure"] == "decode_tps"]
    assert all(abs(row["learned_error"]) < 0.2 < abs(row["plain_error"]) for row in decode)
    assert {row["learned"]["basis"] for row in decode} == {"learned"}


def test_a_phase_is_measured_as_llama_bench_would_measure_it_alone(sweep: Sweep, tmp_path: Path) -> None:
    folder = install(tmp_path / "bin")
    sweep(folder, "-c", "512", "-n", "32", "-r", "5", "--threads", "3")
    loading, prefill, decode = calls(folder)
    assert loading[-1] == "-v" and "-v" not in prefill + decode
    words = " ".join(prefill)
    assert "-r 5 -o jsonl --progress -p 512,512,512,512 -n 0 -d 0 -t 3 -dev none" in words
    assert "-p 0 -n 32,32,32,32 -d 512" in " ".join(decode)


def test_repetitions_go_on_until_the_rate_is_precise(sweep: Sweep, tmp_path: Path) -> None:
    (row,) = sweep(install(tmp_path / "bin"), "-c", "128")
    assert [row[phase]["stopped"] for phase in ("prefill", "decode")] == ["precision", "precision"]
    assert len(row["prefill"]["seconds"]) == 5


def test_a_slow_phase_is_started_again_with_fewer_repetitions(sweep: Sweep, tmp_path: Path) -> None:
    folder = install(tmp_path / "bin", "b9993", fault("repetition", "sleep", 0.3))
    (row,) = sweep(folder, "-c", "128", "--max-phase", "0.5s")
    assert row["outcome"] == "ok"
    reps = [call[call.index("-r") + 1] for call in calls(folder) if "-v" not in call]
    assert reps == ["5", "2", "5", "2"]


@pytest.mark.parametrize(("version", "reps"), [("b5900", ["5", "5", "2"]), ("b9993", ["5", "5"])])
def test_a_depth_that_is_computed_for_each_repetition_counts(
    version: str, reps: list[str], sweep: Sweep, tmp_path: Path
) -> None:
    folder = install(tmp_path / "bin", version, fault("depth", "sleep", 0.3))
    sweep(folder, "-c", "128", "--max-phase", "0.5s")
    assert [call[call.index("-r") + 1] for call in calls(folder) if "-v" not in call] == reps


@pytest.mark.usefixtures("fresh_interpreters")  # a fork of this process starts with a larger peak than the program
def test_the_peak_is_that_of_the_program(sweep: Sweep, tmp_path: Path) -> None:
    held = [fault("prefill", "hold", 100, verbose=False), fault("decode", "hold", 200, verbose=False)]
    (row,) = sweep(install(tmp_path / "bin", "b9993", *held), "-c", "128", "-r", "2")
    memory = row["memory"]
    assert 100 * MIB < memory["prefill_peak_bytes"] < 140 * MIB
    assert 200 * MIB < memory["decode_peak_bytes"] == memory["process_peak_bytes"] < 240 * MIB


# Options


def test_options_are_axes_of_the_case(sweep: Sweep, tmp_path: Path) -> None:
    folder = install(tmp_path / "bin")
    asked = ("-c", "128", "-r", "2", "--kv", "f16,q8_0", "--flash-attn", "on", "--n-cpu-moe", "3", "--ubatch", "64")
    rows = sweep(folder, *asked)
    assert [row["case"]["options"] for row in rows] == [
        "flash-attn=on kv=f16 n-cpu-moe=3",
        "flash-attn=on kv=q8_0 n-cpu-moe=3",
    ]
    assert len({row["key"] for row in rows}) == 2
    assert "-ub 64 -ctk q8_0 -ctv q8_0 -fa on -ncmoe 3" in " ".join(calls(folder)[-1])
    assert [row["started_at"] for row in sweep(folder, *asked)] == [row["started_at"] for row in rows]


@pytest.mark.parametrize(
    ("version", "batch", "expected"),
    [("b5900", 1, "-fa 1"), ("b5900", 2, "-fa"), ("b9993", 1, "-fa on"), ("b9993", 2, "-fa on")],
)
def test_flash_attention_in_the_words_of_the_build(
    version: str, batch: int, expected: str, sweep: Sweep, tmp_path: Path
) -> None:
    folder = install(tmp_path / "bin", version)
    (row,) = sweep(folder, "-c", "128", "-r", "2", "-b", str(batch), "--flash-attn", "on")
    assert row["outcome"] == "ok"
    assert f"{expected} " in " ".join(calls(folder)[-1]) + " "


def test_shares_of_gpus_in_the_words_of_each_program(tmp_path: Path) -> None:
    found = build.Build(install(tmp_path / "bin"))
    from fakes.lab import make_case

    case = make_case(backend="llama.cpp", device="cuda:0", options="tensor-split=3/1")
    assert "-ts 3/1" in " ".join(found.phase(case, Path("m.gguf"), "decode", 5, 1))
    assert "-ts 3,1" in " ".join(found.both_phases(case, Path("m.gguf"), 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "hf", "--kv", "q8_0"), "--kv: backend hf has no such option"),
        (("--backend", "fake", "--n-cpu-moe", "2"), "--backend llama.cpp has it."),
        (("--backend", "llama.cpp", "--kv", "q7"), "--kv: 'q7' is not one of f16"),
        (("--backend", "llama.cpp", "--flash-attn", "maybe"), "--flash-attn: 'maybe' is not on, off or auto"),
        (("--backend", "llama.cpp", "--gpu-layers", "all"), "is not a number of layers"),
        (("--backend", "llama.cpp", "--gpu-layers", "0,10", "--device", "cpu"), "--gpu-layers 0,10: the device is"),
        (("--backend", "llama.cpp", "--path", "eager"), "--path: llama.cpp has a single decode path"),
    ],
)
def test_an_option_that_the_backend_does_not_have_is_one_line(
    arguments: tuple[str, ...], message: str, model: Path
) -> None:
    result = CliRunner().invoke(main, ["sweep", "-m", str(model), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_the_options_are_arguments_in_python_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.VARIABLE, "/nowhere")  # what a call names comes first, for that call only
    asked: dict[str, Any] = {"backend": "LLAMA.CPP", "device": "cpu", "contexts": 128, "reps": 2}
    folder = install(tmp_path / "bin")
    rows = profiler.sweep(model, llama_cpp=folder, kv=["f16", "q8_0"], gpu_layers=0, **asked)
    assert [row["case"]["options"] for row in rows] == ["gpu-layers=0 kv=f16", "gpu-layers=0 kv=q8_0"]
    assert [row["outcome"] for row in rows] == ["ok", "ok"]
    assert [row["predicted"] for row in rows] == [None, None]  # nobody knows what is where
    assert os.environ[build.VARIABLE] == "/nowhere"
    with Store.open() as store:
        (run,) = store.runs()
    assert {"--llama-cpp", "--kv", "--gpu-layers"} <= set(run.argv)


# Files


def test_a_folder_is_swept_by_quantization_without_its_projector(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for kind in ("q8_0", "q4_0", "f16"):
        stored.gguf(folder / f"tiny-{kind}.gguf", kind)
    (folder / "mmproj-tiny.gguf").write_bytes(b"GGUF")
    rows = sweep(install(tmp_path / "bin"), "-m", str(folder), "-c", "128", "-r", "2", "-q", "q8_0,Q4_0")
    assert [(row["case"]["model"], row["case"]["quant"]) for row in rows] == [
        ("tiny-q4_0", "q4_0"),
        ("tiny-q8_0", "q8_0"),
    ]


def test_a_file_in_another_quantization_is_not_refused_for_its_quality(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    stored.gguf(folder / "tiny-f16.gguf", "f16")
    stored.gguf(folder / "other-q8_0.gguf", "q8_0", context_length=4096)  # no plain file of it is there
    asked = ("sweep", "--backend", "llama.cpp", "--llama-cpp", str(install(tmp_path / "bin")), "-m", str(folder))
    for quants, refused in (("f16", 0), ("f16,q8_0", 1)):
        ran = CliRunner().invoke(main, [*asked, "--quality", "--dry-run", "-q", quants])
        assert ran.exit_code == ran.stderr.count("refused: ") == refused, ran.stderr


def test_a_folder_lists_the_first_part_of_a_split_model_and_no_projector(tmp_path: Path) -> None:
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf", "mmproj-b-f16.gguf", "c.safetensors"):
        (tmp_path / name).touch()
    found = gguf_files.of_folder(str(tmp_path))
    assert [Path(name).name for name in found] == ["a-00001-of-00002.gguf", "b.gguf"]
    assert gguf_files.of_folder("gemma-4-e2b") == ["gemma-4-e2b"]


def test_a_quantization_that_no_file_has_is_named_with_those_that_are_there(model: Path, tmp_path: Path) -> None:
    asked = ["sweep", "--backend", "llama.cpp", "--llama-cpp", str(install(tmp_path / "bin")), "-m", str(model)]
    result = CliRunner().invoke(main, [*asked, "-q", "q4_k_m"])
    assert result.exit_code == 2
    assert "q4_k_m" in result.stderr and "Known: q8_0" in result.stderr


def test_the_quantizations_of_a_scenario_are_those_of_pytorch_and_choose_no_file(
    sweep: Sweep, tmp_path: Path
) -> None:
    scenario = tmp_path / "mine.toml"
    scenario.write_text('description = "mine"\ncontexts = [128]\nbatches = 1\nsteps = 8\nquants = ["bf16", "nf4"]\n')
    rows = sweep(install(tmp_path / "bin"), "--scenario", str(scenario), "-r", "2")
    assert [(row["case"]["quant"], row["case"]["steps"]) for row in rows] == [("q8_0", 8)]


def test_real_weights_that_are_in_no_gguf_file_are_refused(tmp_path: Path) -> None:
    asked = ["sweep", "--backend", "llama.cpp", "--llama-cpp", str(install(tmp_path / "bin")), "-m", "gemma-4-e2b"]
    result = CliRunner().invoke(main, [*asked, "--weights", "real"])
    assert result.exit_code == 2
    assert "reads real weights from GGUF files only" in result.stderr and "--weights synthetic" in result.stderr


# Synthetic weights


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has a config and no weights."""
    monkeypatch.setenv(folders.CACHE, str(tmp_path / "cache"))
    folder = tmp_path / "described"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["gemma3"] | {"vocab_size": 512}))
    return folder


def test_a_model_without_a_file_is_measured_in_several_quantizations_of_random_weights(
    sweep: Sweep, described: Path, tmp_path: Path
) -> None:
    bin_folder = install(tmp_path / "bin")
    rows = sweep(bin_folder, "-m", str(described), "-q", "Q4_K_M,q8_0", "-c", "128", "-r", "2")
    cases = [row["case"] for row in rows]
    assert [(case["quant"], case["weights"]) for case in cases] == [("q4_k_m", "synthetic"), ("q8_0", "synthetic")]
    assert [row["outcome"] for row in rows] == ["ok", "ok"]
    for row in rows:
        assert row["memory"]["weights_bytes"] > 0
        assert "synthetic-weights" in [caution["code"] for caution in row["cautions"]]
    ran = {words[words.index("-m") + 1] for words in calls(bin_folder)}
    assert len(ran) == 2 and {resolve(path).stored.quant for path in ran} == {"q4_k_m", "q8_0"}  # type: ignore[union-attr]


def test_the_plan_knows_the_bytes_of_a_file_that_is_announced_and_not_yet_written(
    described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.VARIABLE, str(install(tmp_path / "bin")))
    asked = ["sweep", "--backend", "llama.cpp", "--device", "cpu", "--dry-run", "-o", "json", "-m"]
    result = CliRunner().invoke(main, [*asked, "gemma-3-270m"], catch_exceptions=False)
    assert "gemma-3-270m q4_k_m: runs from a GGUF file of random weights, 235 MiB in" in result.stderr
    (planned,) = json.loads(result.stdout)
    assert planned["weights_bytes"] == pytest.approx(235 * MIB, rel=0.06)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_synthetic_file_that_cannot_be_written_is_a_row_with_the_reason(
    sweep: Sweep, described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("-m", str(described), "-c", "128", "-r", "2", "--fresh")
    monkeypatch.setenv("PROFILER_SYNTHETIC_LIMIT", "1KiB")
    (row,) = sweep(install(tmp_path / "bin"), *asked)
    assert row["outcome"] == "failed" and "synthetic GGUF files may take 1.00 KiB" in row["reason"]
    (described / "config.json").write_text(json.dumps(CONFIGS["llama4"]))
    (row,) = sweep(install(tmp_path / "bin2"), *asked)
    assert row["outcome"] == "skipped" and "cannot be written yet" in row["reason"]


def test_a_repetition_has_the_cpu_time_of_the_program(sweep: Sweep, tmp_path: Path) -> None:
    folder = install(tmp_path / "bin", "b9993", fault("repetition", "spin", 0.1))
    (row,) = sweep(folder, "-c", "128", "-n", "16", "-r", "2")
    for phase in ("prefill", "decode"):
        assert all(0.08 < spent < 0.2 for spent in row[phase]["cpu_seconds"]), row[phase]["cpu_seconds"]
    (row,) = sweep(install(tmp_path / "idle", "b9993", fault("repetition", "sleep", 0.3)), "-c", "64", "-r", "2")
    assert all(spent < 0.1 for spent in row["decode"]["cpu_seconds"])
    (row,) = sweep(install(tmp_path / "old", "b3800"), "-c", "128", "-r", "2")  # without --progress
    # Between two lines of llama-batched-bench, which end so soon that the second may find no process to ask.
    assert all(spent is None or spent < 0.1 for spent in row["decode"]["cpu_seconds"])


def test_the_cpu_time_of_several_sequences_is_divided_between_the_phases(sweep: Sweep, tmp_path: Path) -> None:
    """llama-batched-bench prints one line for both, so a busy machine is noticed in both."""
    cores = {}
    for kind in ("spin", "sleep"):
        folder = install(tmp_path / kind, "b9993", fault("run", kind, 0.3))
        (row,) = sweep(folder, "-c", "128", "-n", "16", "-b", "2", "-r", "2", "--fresh")
        shares = [
            [spent / seconds for spent, seconds in zip(row[phase]["cpu_seconds"], row[phase]["seconds"], strict=True)]
            for phase in ("prefill", "decode")
        ]
        assert shares[0] == pytest.approx(shares[1])
        cores[kind] = min(shares[0])
    assert 0 <= cores["sleep"] < cores["spin"] / 2 <= 0.6


def test_a_copied_build_loads_its_own_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cmake writes the absolute path of the original's libraries into the programs."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    copied = build.named(str(install(tmp_path / "copy")))
    assert copied.environment("cpu")["LD_LIBRARY_PATH"] == "/opt/lib"  # nothing beside the programs
    (copied.folder / "libggml-base.so").touch()
    assert copied.environment("cpu")["LD_LIBRARY_PATH"] == f"{copied.folder}:/opt/lib"


def test_files_and_random_weights_share_a_list_of_quantizations(
    sweep: Sweep, described: Path, model: Path, tmp_path: Path
) -> None:
    rows = sweep(install(tmp_path / "bin"), "-m", f"{model},{described}", "-q", "q8_0,q4_0", "-c", "128", "-r", "2")
    assert [(row["case"]["quant"], row["case"]["weights"]) for row in rows] == [
        ("q8_0", "real"),
        ("q8_0", "synthetic"),
        ("q4_0", "synthetic"),
    ]


def test_a_program_gets_the_users_heap_and_no_gpu_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HEAP.items():
        monkeypatch.setenv(name, value)
    assert not HEAP.keys() & build.environment("cpu").keys()
    assert build.environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert build.environment("cuda:0")["MALLOC_TRIM_THRESHOLD_"] == "1"


# Finding a build


@pytest.mark.parametrize("inside", ["", "bin", "build/bin"])
def test_a_build_is_found_in_its_folder_above_it_and_in_a_source_tree(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / inside)
    monkeypatch.setenv(build.VARIABLE, str(tmp_path))
    assert build.find().bench == tmp_path / inside / "llama-bench"
    monkeypatch.delenv(build.VARIABLE)
    monkeypatch.setenv("PATH", str(tmp_path / inside))
    assert build.find().folder == tmp_path / inside


def test_without_a_build_one_line_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(build.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProfileError, match="neither LLAMA_CPP_DIR nor the PATH has llama-bench") as caught:
        build.find()
    assert "cmake -B build" in str(caught.value.hint)
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('another module of that name, which nobody imports')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ProfileError, match="and llama-cpp-python is not installed"):
        build.find()
    monkeypatch.setenv(build.VARIABLE, str(tmp_path))
    with pytest.raises(ProfileError, match="there is no llama-bench in"):
        build.find()


def test_two_builds_of_one_commit_are_two_environments(tmp_path: Path) -> None:
    first, second = (build.Build(install(tmp_path / name)) for name in ("a", "b"))
    assert first.versions() == second.versions()
    (tmp_path / "b" / "libggml-cpu.so").write_bytes(b"without vector instructions")
    assert first.versions()["llama.cpp"] != second.versions()["llama.cpp"]
    (tmp_path / "b" / "libggml-cuda.so").touch()
    assert second.versions()["llama.cpp backends"] == "CPU CUDA"


# Survival


@pytest.mark.parametrize(
    ("found", "outcome", "reason"),
    [
        (fault("load", "exit", 1, *UNKNOWN), "failed", "unknown model architecture: 'gemma9'"),
        (fault("prefill", "signal", signal.SIGABRT, ASSERTION), "failed", f"was killed by SIGABRT: {ASSERTION}"),
        (fault("prefill", "signal", signal.SIGILL, ASSERTION), "failed", "killed by SIGILL: this machine cannot run"),
        (
            fault("context", "exit", 1, REFUSED),
            "oom",
            "out of memory in load",
        ),
        (
            fault("decode", "exit", 1, CUDA_REFUSED),
            "oom",
            "out of memory in decode",
        ),
        (fault("prefill", "exit", 0), "failed", "llama-bench ended without a result"),
        (fault("decode", "garbage", '{"samples_ns": [1.5]}'), "failed", "printed a line that is not its result"),
        (fault("decode", "exit", 0), "failed", "llama-bench ended without a result"),
        (fault("decode", "exit", 3), "failed", "llama-bench ended with code 3"),
    ],
)
def test_a_failure_is_a_row_with_its_reason_and_the_other_file_goes_on(
    found: dict[str, Any], outcome: str, reason: str, sweep: Sweep, tmp_path: Path
) -> None:
    folder = install(tmp_path / "bin", "b9993", found)
    rows = sweep(folder, "-c", "128", "-r", "2")
    assert [row["outcome"] for row in rows] == [outcome]
    assert reason in rows[0]["reason"]
    install(folder)
    assert [row["outcome"] for row in sweep(folder, "-c", "128", "-r", "2")] == ["ok"]


def test_a_case_without_memory_does_not_stop_smaller_ones_and_skips_larger_ones(sweep: Sweep, tmp_path: Path) -> None:
    words = "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"
    folder = install(tmp_path / "bin", "b9993", fault("run", "exit", 1, words))
    rows = sweep(folder, "-c", "128", "-b", "1,2,4", "-r", "2")
    assert [row["outcome"] for row in rows] == ["ok", "oom", "skipped"]
    assert "the smaller case c=128 b=2 ran out of memory" in rows[2]["reason"]


def test_a_build_without_the_batched_program_measures_single_sequences(sweep: Sweep, tmp_path: Path) -> None:
    rows = sweep(install(tmp_path / "bin", batched=False), "-c", "128", "-b", "2,1", "-r", "2")
    assert {row["case"]["batch"]: row["outcome"] for row in rows} == {1: "ok", 2: "failed"}
    assert "several sequences need llama-batched-bench" in next(row["reason"] for row in rows if row["reason"])


def test_an_option_that_the_build_is_too_old_for_is_the_reason(sweep: Sweep, tmp_path: Path) -> None:
    (row,) = sweep(install(tmp_path / "bin", "b5900"), "-c", "128", "--n-cpu-moe", "2")
    assert row["outcome"] == "failed"
    assert "the llama-bench of this build of llama.cpp has no option -ncmoe" in row["reason"]


@pytest.mark.parametrize("text", ["#!/bin/sh\necho hello\n", "not a program"])
def test_a_program_that_is_not_llama_bench_is_a_row(text: str, sweep: Sweep, tmp_path: Path) -> None:
    other = tmp_path / "bin" / "llama-bench"
    other.parent.mkdir()
    other.write_text(text)
    other.chmod(0o755)
    (row,) = sweep(other.parent, "-c", "128")
    assert row["outcome"] == "failed"
    assert "is not a program of llama.cpp" in row["reason"] or "cannot be started" in row["reason"]


def test_a_program_that_is_not_executable_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install(tmp_path)
    (folder / "llama-bench").chmod(stat.S_IRUSR)
    monkeypatch.setenv(build.VARIABLE, str(folder))
    with pytest.raises(ProfileError, match="is not executable"):
        build.find()


def test_a_build_without_the_gpus_backend_says_so(tmp_path: Path, model: Path) -> None:
    from fakes.lab import make_case

    from profiler.backends.llama_cpp.session import LlamaSession, Reserved

    session = LlamaSession.__new__(LlamaSession)
    session._device = backends_device()
    with pytest.raises(ProfileError, match="does not use cuda:0: all weights are in the host's memory"):
        session._check_device(Reserved(buffers={("CPU_Mapped", "model"): 1.0}), make_case(device="cuda:0"))
    session._check_device(Reserved(buffers={("CUDA0", "model"): 1.0}), make_case(device="cuda:0"))


def backends_device() -> Any:
    from profiler.devices.base import DeviceInfo

    return DeviceInfo("cuda:0", "cuda", "NVIDIA H200", 2**37, 2**37, "bf16", uuid="GPU-1")


def test_a_program_that_hangs_is_ended(sweep: Sweep, tmp_path: Path) -> None:
    folder = install(tmp_path / "bin", "b9993", fault("decode", "hang", verbose=False))
    (row,) = sweep(folder, "-c", "128", "-r", "2", "--timeout", "1s")
    assert row["outcome"] == "timeout"
    assert "still in decode after 1.00 s" in row["reason"]
    assert not running(folder)


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM], [signal.SIGKILL]])
def test_no_program_is_left_when_the_sweep_is_ended(signals: list[int], model: Path, tmp_path: Path) -> None:
    folder = install(tmp_path / "bin", "b9993", fault("prefill", "hang", verbose=False))
    asked = ["sweep", "--backend", "llama.cpp", "--llama-cpp", str(folder), "--device", "cpu", "-m", str(model)]
    command = [sys.executable, "-m", "profiler", *asked, "-c", "128"]
    sweeping = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any("-p" in call for call in calls(folder)[1:]))
    assert running(folder)
    for number in signals:
        sweeping.send_signal(number)
        time.sleep(0.3)
    assert sweeping.wait(20) != 0
    wait_until(lambda: not running(folder))


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def running(folder: Path) -> list[str]:
    """The programs of a build that run now."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = process.read_bytes().split(b"\0")
            found += [process.parent.name for word in words[:4] if word.startswith(os.fsencode(folder))]
    return found


def test_the_program_dies_with_its_worker(tmp_path: Path) -> None:
    """By the kernel, even if the worker itself is killed with SIGKILL."""
    reading, writing = os.pipe()
    worker = os.fork()
    if worker == 0:
        started = program.Program(["sleep", "60"], os.environ)
        os.write(writing, str(started._process.pid).encode())
        signal.pause()
    child = int(os.read(reading, 20))
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    os.close(reading)
    os.close(writing)
    for _ in range(200):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        signal.sigtimedwait([], 0.01)
    pytest.fail("the program outlived its worker")


def test_the_cause_is_the_first_line_that_says_most() -> None:
    assert program.cause_of(["", "llama_model_loader: - kv 0: error", *UNKNOWN]) == UNKNOWN[0]
    assert program.cause_of(["terminate called", "  what():  bad"]) == "  what():  bad"
    assert program.cause_of(["a", "b"]) == "b"
    assert program.cause_of([]) is None


def test_the_backend_can_be_spelled_in_any_way() -> None:
    assert backends.find("llama-cpp") is backends.find("LLAMA_CPP".casefold()) is backends.find("llama.cpp")
    assert llama_cpp.VERSIONS == VERSIONS
