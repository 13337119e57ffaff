"""``profile explain``, ``profile accuracy`` and ``profile calibrate --show`` from the command line."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fakes.ceilings import MEASURED

from profiler import console, devices
from profiler.case import Case
from profiler.cli import main
from profiler.commands import accuracy
from profiler.devices import calibration
from profiler.models.resolve import resolve
from profiler.results import environment
from profiler.results.measurement import Caution, DecodePath, Measurement, Memory, Sample
from profiler.results.store import Store


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "results.sqlite"))
    return tmp_path / "results.sqlite"


def measured(decode_s: float) -> Measurement:
    case = Case(
        "gemma-3-270m", resolve("gemma-3-270m").model_id, "synthetic", "fp32", "fp32", "cpu", "hf", "eager", 128, 1, 8
    )
    beside = {
        "prefill_tps": {"value": 130.0, "low": 60.0, "high": 260.0, "basis": "prior"},
        "decode_tps": {"value": 8.0, "low": 6.0, "high": 9.0, "basis": "prior"},
        "peak_bytes": {"value": 1.5e9, "low": 1.4e9, "high": 1.7e9, "basis": "prior"},
    }
    samples = (Sample("prefill", 1.0, 128), Sample("decode", decode_s, 8))
    return Measurement(case, {}, "ok", samples=samples, memory=Memory(prefill_peak_bytes=1_600_000_000),
                       started_at="2026-11-24T04:00:00Z", expected=beside)  # fmt: skip


def keep(store: Path, row: Measurement, **elsewhere: object) -> None:
    """Store a row of this machine, or of one that differs from it in parts of its environment."""
    content = environment.snapshot(devices.find("cpu")) | elsewhere
    with Store.open(store) as opened:
        opened.append(opened.start_run(["sweep"], content), replace(row, environment=content))


@pytest.mark.parametrize(
    ("engine", "option"),
    [("llama.cpp", "-ub"), ("vllm", "--max-num-batched-tokens"), ("transformers", "profile sweep --ubatch")],
)
def test_smaller_chunks_are_an_option_of_the_program_that_would_run_the_model(engine: str, option: str) -> None:
    page = CliRunner().invoke(main, ["explain", "qwen3.5-2b", "--on", "rtx 4090", "--engine", engine]).stdout
    assert f"a prefill in smaller chunks ({option} 256) frees" in page


def test_a_page_names_parts_gap_and_memory() -> None:
    text = run("explain", "gemma-4-26b-a4b", "--on", "rtx 4090", "--engine", "llama.cpp", "-c", "32k").stdout
    for word in ("1 sequence of 32,768 tokens", "prefill, 64 chunks: at best", "decode, one step: at best",
                 "% of the best speed", "experts", "output head", "cache, full layers", "% of the lost time",
                 "memory: loaded", "→ prefill", "→ decode",
                 "to free the most memory: a smaller quantization (-q q4_k_s)",
                 "of host memory (not counted in the peak)"):  # fmt: skip
        assert word in text
    assert len(text.splitlines()) < 50


def test_rows_are_plain_json() -> None:
    rows = json.loads(run("explain", "qwen3.5-9b", "--on", "h100", "--engine", "vllm", "-o", "json").stdout)
    assert {row["phase"] for row in rows} == {"prefill", "decode", "memory"}
    assert all(row["predicted_s"] >= row["ceiling_s"] for row in rows if row["phase"] != "memory")


def test_what_was_measured_here_stands_beside(store: Path) -> None:
    keep(store, measured(decode_s=0.8))
    words = ("explain", "gemma-3-270m", "-q", "fp32", "--on", "cpu", "--path", "eager", "-c")
    assert "measured 100 ms" in run(*words, "128").stdout
    assert "measured" not in run(*words, "256").stdout


def test_a_disturbed_measurement_is_said_to_be_one_and_not_compared(store: Path) -> None:
    disturbed = Caution("decode-busy", "decode: the CPU was busy", "--fresh on a quieter machine")
    keep(store, replace(measured(80.0), cautions=(disturbed,)))
    words = ("explain", "gemma-3-270m", "-q", "fp32", "-c", "128", "--path", "eager")
    (heading,) = [line for line in run(*words).stdout.splitlines() if line.startswith("decode, one step")]
    assert heading.endswith("measured, but not to be compared: other processes held the CPU")
    rows = json.loads(run(*words, "-o", "json").stdout)
    assert {row["phase_measured_s"] for row in rows if row["phase"] == "decode"} == {None}
    assert {row["phase_measured_s"] for row in rows if row["phase"] == "prefill"} == {1.0}


@pytest.mark.parametrize("limits", [{}, {"cores": 0.5, "cpus": [0]}])
def test_what_another_machine_or_limit_measured_does_not_stand_for_this_one(store: Path, limits: dict) -> None:
    keep(store, measured(decode_s=0.8), **({"limits": limits} if limits else {"cpu": {"title": "Other CPU"}}))
    result = run("explain", "gemma-3-270m", "-q", "fp32", "--on", "cpu", "--path", "eager", "-c", "128")
    assert "measured" not in result.stdout
    assert "this case was measured only on another machine or with other software: " in result.stderr
    assert ("CPU time allowed 0.5 → " if limits else "Other CPU → ") in result.stderr


@pytest.mark.parametrize("other", [{"backend": "fake"}, {"threads": 7}])
def test_made_up_figures_and_other_threads_are_no_measurement_of_the_case(store: Path, other: dict) -> None:
    row = measured(decode_s=0.8)
    keep(store, replace(row, case=replace(row.case, **other)))
    words = ("explain", "gemma-3-270m", "-q", "fp32", "--on", "cpu", "--path", "eager", "-c", "128")
    assert "measured" not in run(*words).output


def test_another_path_is_told_apart_from_what_was_predicted(store: Path) -> None:
    shipped = measured(decode_s=0.8)
    how = DecodePath("static", cache_needed_bytes=2**20, cache_read_bytes=3 * 2**19)
    samples = (Sample("decode", 0.2, 8),)
    keep(store, shipped)
    keep(store, replace(shipped, case=replace(shipped.case, path="static"), samples=samples, decode_path=how,
                        started_at="2026-11-24T05:00:00Z"))  # fmt: skip
    words = ("explain", "gemma-3-270m", "-q", "fp32", "-c", "128", "--on", "cpu", "--path")
    text = run(*words, "eager").stdout
    assert "measured 100 ms" in text and "measured 25" not in text
    assert "static: decodes 4.0 × as fast as eager (measured once)" in text
    assert "reads 1.50 MiB of the cache, 1.50 × what attention needs; 25.0 ms per step" in " ".join(text.split())
    other = run(*words, "static").stdout
    assert "measured 25.0 ms" in other and "measured 100" not in other
    assert "eager; 100 ms per step" in other


def test_a_page_fits_the_terminal_except_for_its_commands(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = measured(decode_s=0.8)
    for path in ("eager", "static"):
        keep(store, replace(row, case=replace(row.case, path=path)))
    monkeypatch.setattr(console, "width", lambda: 80)
    for words in (("gemma-3-270m", "-q", "fp32", "-c", "128", "--path", "eager"), ("gemma-4-26b-a4b", "-q", "nf4")):
        text = run("explain", *words, "--on", "cpu").stdout
        lines = [line for line in text.splitlines() if not line.startswith(("  profile", "  llama", "  #"))]
        assert max(map(len, lines)) <= 80


def test_faster_than_a_measured_ceiling_is_our_bug_and_a_guessed_one_is_to_be_measured(store: Path) -> None:
    keep(store, measured(decode_s=1e-4))
    words = ("explain", "gemma-3-270m", "-q", "fp32", "-c", "128", "--on", "cpu", "--path", "eager")
    guessed = run(*words).stdout
    assert "(a guess)" in guessed and "a bug in profile" not in guessed
    assert "faster than the best time: profile calibrate can measure it" in guessed
    calibration.save(replace(MEASURED, fingerprint=calibration.fingerprint(devices.find("cpu"))))
    known = run(*words).stdout
    assert "a guess" not in known and "this is a bug in profile" in known


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gemma-3-270m", "-c", "1k,2k"], "explain takes one case"),
        (["gemma-3-270m", "-q", "fp32,bf16"], "explain takes one case"),
        (["nosuch"], "unknown model"),
        (["gemma-4-e2b", "-c", "256k"], "supports at most 131,072 tokens"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], said: str) -> None:
    result = run("explain", *words)
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[0]


def test_an_offload_verdict_is_explained_with_host_memory_apart() -> None:
    words = ("gemma-4-31b", "--on", "rtx 4090", "-q", "bf16")
    assert ": no, " in run("explain", *words).stdout
    text = run("explain", *words, "--ram", "64GiB").stdout
    assert ": offload, 38.3 GiB of weights in host memory" in text
    assert "of the lost time is spent on weights in host memory." in text
    assert "  the peak is in prefill: 23.5 GiB (" in text
    assert "  plus 38.3 GiB of weights and 1.46 GiB of host memory (not counted in the peak)" in text
    slower = run("explain", *words, "--ram", "64GiB", "--ram-bandwidth", "10", "--engine", "llama.cpp", "-q", "bf16")
    assert slower.exit_code == 0


def test_buffers_are_named_by_what_the_model_and_the_device_have() -> None:
    quantized = run("explain", "qwen3.5-4b", "-q", "nf4", "--on", "cpu").stdout
    assert "for multiplying quantized weights\n" in quantized and "logits" not in quantized
    assert "sliding" not in quantized
    assert "for logits\n" in run("explain", "qwen3.5-4b", "-q", "bf16", "--on", "rtx 4090").stdout
    assert "in sliding-window layers" in run("explain", "gemma-3-270m", "--on", "rtx 4090").stdout


def test_another_engine_is_not_told_what_transformers_took(store: Path) -> None:
    keep(store, measured(decode_s=0.8))
    words = ("explain", "gemma-3-270m", "-q", "bf16", "-c", "128", "--on", "cpu", "--engine", "llama.cpp")
    assert "measured" not in run(*words).stdout


def test_accuracy_lists_predicted_beside_measured_and_counts_what_is_covered(store: Path) -> None:
    keep(store, measured(decode_s=0.8))
    result = run("accuracy")
    lines = result.output.splitlines()
    assert "decode t/s: 1 case, off by 20.0% on average (median -20.0%), 0% within the predicted range" in lines
    assert (
        "peak after loading: 1 case, off by 6.2% on average (median -6.2%), 100% within the predicted range" in lines
    )
    rows = json.loads(run("accuracy", "-o", "json").stdout)
    assert [row["figure"] for row in rows] == ["decode_tps", "peak_bytes", "prefill_tps"]  # furthest off first


def test_accuracy_counts_a_case_on_each_machine_that_measured_it(store: Path) -> None:
    keep(store, measured(decode_s=0.8))
    keep(store, measured(decode_s=0.4), device={"name": "cpu", "kind": "cpu", "title": "Other CPU"})
    result = run("accuracy")
    assert "decode t/s: 2 cases, off by 40.0% on average" in result.output
    assert "Other CPU" in result.output
    titles = {row["machine"] for row in json.loads(run("accuracy", "-o", "json").stdout)}
    assert titles == {"Other CPU", devices.find("cpu").title}


def test_accuracy_leaves_out_a_speed_that_says_it_was_disturbed(store: Path) -> None:
    pressed = Caution("decode-cpu-pressure", "decode: other work held the CPU for 40% of the time")
    keep(store, replace(measured(decode_s=0.8), cautions=(pressed,)))
    result = run("accuracy")
    assert "decode t/s" not in result.output
    assert "prefill t/s: 1 case," in result.output
    assert "1 speed is left out because other processes disturbed" in result.output


def test_a_device_that_was_not_calibrated_says_so(store: Path) -> None:
    result = run("calibrate", "--show", "--device", "cpu")
    assert result.exit_code == 2
    assert "there is no calibration of cpu" in result.stderr


def test_accuracy_is_summed_up_for_each_backend_if_there_are_several() -> None:
    row = {"figure": "decode_tps", "error": 0.5, "covered": True, "learned_error": None}
    rows = [row | {"backend": "hf"}, row | {"backend": "llama.cpp", "error": -0.2}]
    assert [line.partition(", off")[0] for line in accuracy.summary(rows)] == [
        "hf, decode t/s: 1 case",
        "llama.cpp, decode t/s: 1 case",
    ]
    assert accuracy.summary(rows[:1])[0].startswith("decode t/s: 1 case, off by 50.0%")


def test_accuracy_of_nothing_is_an_empty_list_of_json(store: Path) -> None:
    keep(store, replace(measured(decode_s=0.8), expected={}))
    result = run("accuracy", "-o", "json")
    assert json.loads(result.stdout) == []
    assert "no stored row has a prediction" in result.stderr


def test_accuracy_of_an_empty_name_is_usage(store: Path) -> None:
    keep(store, measured(decode_s=0.8))
    assert run("accuracy", "").exit_code == 2


def test_a_named_store_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    ended = run("explain", "gemma-3-270m", "--on", "cpu", "--store", str(tmp_path / "none.sqlite"))
    assert ended.exit_code == 2 and "none.sqlite" in ended.stderr


def test_a_model_of_fewer_tokens_than_the_default_is_explained_at_its_maximum(tmp_path: Path) -> None:
    raw = resolve("gemma-3-270m").source.config | {"max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ended = run("explain", str(tmp_path), "--on", "rtx 4090")
    assert ended.exit_code == 0 and "4,096" in ended.stdout, ended.output


def test_a_mixture_in_four_bits_says_what_stays_unpacked_and_what_fits_instead() -> None:
    text = run("explain", "qwen3.5-35b-a3b", "--on", "rtx 4090", "-q", "nf4").stdout
    assert "nf4 leaves 61.9 GiB of fused experts in bf16\n" in text
    assert "instead, q4_k_m in llama.cpp needs 20.3 GiB and decodes at " in text
    typed = "profile explain qwen3.5-35b-a3b --engine llama.cpp -q q4_k_m -c 8192 --on 'rtx 4090'"
    assert f"\n  {typed}\n" in text
    words = shlex.split(typed)[1:]
    assert "1 sequence of 8,192 tokens: fits" in run(*words).stdout
    on_h100 = run("explain", "qwen3.5-35b-a3b", "--on", "h100", "-q", "nf4").stdout
    assert ": fits" in on_h100 and "instead, q4_k_m in llama.cpp" in on_h100


def test_what_does_not_fit_at_all_leads_to_what_does() -> None:
    text = run("explain", "qwen3.5-122b-a10b", "--on", "rtx 4090", "-q", "nf4").stdout
    assert (
        "no quantization of this model with 4 bits or more fits; what fits here:\n  profile --on 'rtx 4090'\n" in text
    )


@pytest.mark.parametrize("words", [("gemma-4-31b", "-q", "nf4"), ("gemma-4-e2b", "-q", "nf4"), ("qwen3.5-9b",)])
def test_what_fits_and_shrinks_has_no_alternative(words: tuple[str, ...]) -> None:
    assert "instead" not in run("explain", *words, "--on", "h100").stdout
