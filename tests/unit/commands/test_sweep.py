"""`profile sweep` from options to rows and exit code, with the fake backend in real workers."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profiler import devices
from profiler.case import Task
from profiler.errors import StoreError
from profiler.results.store import Store
from profiler.run import plan as run_plan


def shapes(ran: Any) -> list[tuple[str, int, int]]:
    return [(row["case"]["quant"], row["case"]["context"], row["case"]["batch"]) for row in ran.rows]


def test_a_grid_gives_a_row_for_every_combination(sweep: Any) -> None:
    ran = sweep("-q", "fp32,nf4", "-c", "128,512", "-b", "1", "-b", "2", "-n", "4", "-r", "2")
    assert ran.code == 0
    assert ran.outcomes == ["ok"] * 8
    each = [(128, 1), (128, 2), (512, 1), (512, 2)]
    assert shapes(ran) == [("fp32", *shape) for shape in each] + [("nf4", *shape) for shape in each]


def test_figures_are_those_the_device_took(sweep: Any) -> None:
    ran = sweep("-c", "1k", "-b", "2", "-n", "4", "-r", "3", prefill_s_per_token=0.001, step_s=0.02, load_s=7)
    (row,) = ran.rows
    assert row["prefill"]["tokens"] == 2048
    assert row["prefill"]["seconds"] == pytest.approx([2.048] * 3)
    assert row["prefill"]["tps"] == pytest.approx(1000)
    assert row["decode"]["tokens"] == 8
    assert row["decode"]["tps"] == pytest.approx(100)
    assert row["load_s"] == pytest.approx(7)


def test_defaults_are_what_the_help_says(sweep: Any) -> None:
    (row,) = sweep().rows
    dtype = devices.find("cpu").default_dtype
    case = {name: row["case"][name] for name in ("quant", "dtype", "context", "batch", "steps", "fill", "ubatch")}
    assert case == {
        "quant": dtype,
        "dtype": dtype,
        "context": 512,
        "batch": 1,
        "steps": 32,
        "fill": "prefill",
        "ubatch": 512,
    }
    assert row["asked"]["precision"] == 0.02
    assert (row["decode"]["stopped"], len(row["decode"]["seconds"])) == ("precision", 5)
    assert row["case"]["weights"] == "synthetic"  # a folder without weights


def test_a_second_sweep_measures_exactly_what_is_missing(sweep: Any) -> None:
    first = sweep("-c", "128,512", "-n", "4")
    second = sweep("-c", "128,256,512", "-n", "4")
    assert second.err.splitlines() == ["2 of 3 cases reuse stored rows; --fresh measures them again"]
    old = {row["case"]["context"]: row["started_at"] for row in first.rows}
    new = {row["case"]["context"]: row["started_at"] for row in second.rows}
    assert {context: new[context] for context in old} == old
    assert set(new) == {128, 256, 512}
    with Store.open() as store:
        assert [run.outcomes for run in store.runs()] == [{"ok": 2}, {"ok": 3}]


def test_fresh_measures_everything_again(sweep: Any) -> None:
    first, second = sweep("-c", "128", "-n", "4"), sweep("-c", "128", "-n", "4", "--fresh")
    assert first.rows[0]["started_at"] != second.rows[0]["started_at"]
    assert second.err == ""


@pytest.mark.parametrize("more", [("-r", "4"), ("--max-phase", "61s"), ("--seed", "1"), ("--threads", "1")])
def test_a_row_that_is_not_what_was_asked_is_measured_again(sweep: Any, more: tuple[str, str]) -> None:
    first = sweep("-c", "128", "-n", "4", "-r", "3")
    assert sweep("-c", "128", "-n", "4", "-r", "3", *more).rows[0]["started_at"] != first.rows[0]["started_at"]


def test_fewer_repetitions_than_stored_are_there_already(sweep: Any) -> None:
    first = sweep("-c", "128", "-n", "4", "-r", "3")
    assert sweep("-c", "128", "-n", "4", "-r", "2").rows[0]["started_at"] == first.rows[0]["started_at"]


def test_a_row_from_another_environment_is_measured_again(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep("-c", "128", "-n", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert sweep("-c", "128", "-n", "4").rows[0]["started_at"] != first.rows[0]["started_at"]


def test_a_failed_case_is_tried_again_and_a_good_one_is_not(sweep: Any, model: Any) -> None:
    broken = [{"kind": "error", "value": "no luck", "context": 256}]
    first = sweep("-m", model(faults=broken), "-c", "128,256", "-n", "4")
    second = sweep("-m", model(faults=broken), "-c", "128,256", "-n", "4")
    assert first.outcomes == second.outcomes == ["ok", "failed"]
    assert first.rows[0]["started_at"] == second.rows[0]["started_at"]
    assert first.rows[1]["started_at"] != second.rows[1]["started_at"]


def test_out_of_memory_is_a_row_and_larger_cases_are_not_tried(sweep: Any) -> None:
    ran = sweep("-c", "128,512,1k", "-n", "4", oom_above_tokens=400)
    assert ran.code == 1
    assert ran.outcomes == ["ok", "oom", "skipped"]
    assert ran.rows[2]["reason"].startswith("the smaller case c=512 b=1")
    assert "warning: tiny" in ran.err
    assert "oom" in ran.err


@pytest.mark.parametrize(("kind", "value"), [("signal", 11), ("exit", 3), ("error", "broken")])
def test_a_case_that_dies_is_a_row_and_the_rest_goes_on(sweep: Any, kind: str, value: object) -> None:
    fault = {"kind": kind, "value": value, "context": 128, "when": "decode"}
    ran = sweep("-c", "128,512", "-n", "4", faults=[fault])
    assert ran.code == 1
    assert ran.outcomes == ["failed", "ok"]


def test_a_case_over_its_time_is_a_row(sweep: Any) -> None:
    ran = sweep("-c", "128", "-n", "4", "--timeout", "1s", pause_s=30)
    assert (ran.code, ran.outcomes) == (1, ["timeout"])


def test_a_case_that_the_plan_leaves_out_is_a_row_but_no_failure(sweep: Any) -> None:
    ran = sweep("-c", "128,8k", "-n", "4")
    assert ran.code == 0
    reasons = {row["case"]["context"]: (row["outcome"], row["reason"]) for row in ran.rows}
    assert reasons == {128: ("ok", None), 8192: ("skipped", "the model supports at most 4,096 tokens")}


def test_a_case_that_cannot_fit_the_memory_limit_is_not_tried(sweep: Any) -> None:
    (row,) = sweep("-c", "128", "-n", "4", "--max-memory", "100MiB").rows
    assert row["outcome"] == "skipped"
    assert "needs at least" in row["reason"] and row["reason"].endswith("has 100 MiB")


def test_a_table_lists_rows_in_the_order_of_the_grid(sweep: Any) -> None:
    ran = sweep("-c", "512,128", "-n", "4", output="csv")
    assert [line.split(",")[9] for line in ran.out.splitlines()] == ["context", "512", "128"]


def test_rows_stream_in_the_order_they_are_measured(sweep: Any) -> None:
    assert [context for _, context, _ in shapes(sweep("-c", "512,128", "-n", "4"))] == [128, 512]


@pytest.mark.parametrize("output", ["table", "md", "csv", "json", "jsonl", "llama-bench"])
def test_nothing_but_rows_is_on_stdout_in_any_format(sweep: Any, output: str) -> None:
    ran = sweep("-c", "128,256", "-n", "4", output=output, faults=[{"kind": "print", "value": 1}])
    assert (ran.code, ran.err) == (0, "")
    if output in ("json", "llama-bench"):
        assert len(json.loads(ran.out)) == (2 if output == "json" else 4)
    if output == "jsonl":
        assert len(ran.rows) == 2


HOSTILE = "evil\x1b[31m|name\u202e\nX"


@pytest.mark.parametrize("output", ["table", "md", "csv", "json", "jsonl", "llama-bench"])
def test_a_hostile_model_name_breaks_no_output(sweep: Any, model: Any, output: str) -> None:
    ran = sweep("-m", model(HOSTILE, oom_above_tokens=200), "-c", "128,256", "-n", "4", output=output)
    assert ran.code == 1
    assert not set(ran.out + ran.err) & {"\x1b", "\u202e"}
    if output == "md":
        widths = {len(line.replace("\\|", "").split("|")) for line in ran.out.splitlines() if line.startswith("|")}
        assert len(widths) == 1


def test_a_hostile_model_name_breaks_no_plan(sweep: Any, model: Any) -> None:
    for output in ("table", "md", "json"):
        ran = sweep("-m", model(HOSTILE), "-c", "128", "--dry-run", output=output)
        assert ran.code == 0
        assert not set(ran.out + ran.err) & {"\x1b", "\u202e"}


def test_a_dry_run_measures_nothing_and_makes_no_store(sweep: Any, tmp_path: Path) -> None:
    store = tmp_path / "new" / "store.sqlite"
    ran = sweep("-q", "fp32,nf4", "-c", "512,128,8k", "--dry-run", "--store", str(store))
    assert ran.code == 0
    assert not store.parent.exists()
    plan = [(row["action"], row["quant"], row["context"]) for row in ran.rows]
    assert plan == [
        ("run", "fp32", 128),
        ("run", "fp32", 512),
        ("run", "nf4", 128),
        ("run", "nf4", 512),
        ("skip", "fp32", 8192),
        ("skip", "nf4", 8192),
    ]
    assert ran.rows[4]["reason"] == "the model supports at most 4,096 tokens"
    for row in ran.rows[:4]:
        assert row["load_s"] > 0 and row["run_s"] > 0 and row["weights_bytes"] > 0
        assert row["peak_bytes"]["low"] <= row["peak_bytes"]["value"] <= row["peak_bytes"]["high"]
    assert ran.err.startswith("4 cases to run, 2 model loads, about ")


def test_a_dry_run_knows_what_is_stored(sweep: Any) -> None:
    sweep("-c", "128", "-n", "4")
    ran = sweep("-c", "128,256", "-n", "4", "--dry-run")
    assert {row["context"]: row["action"] for row in ran.rows} == {128: "stored", 256: "run"}
    stored = next(row for row in ran.rows if row["action"] == "stored")
    assert stored["weights_bytes"] == 1024**3  # as the fake model has it
    assert stored["peak_bytes"]["low"] == stored["peak_bytes"]["high"] and stored["peak_bytes"]["basis"] == "measured"
    fresh = sweep("-c", "128,256", "-n", "4", "--dry-run", "--fresh")
    assert {row["action"] for row in fresh.rows} == {"run"}


def test_a_dry_run_says_what_may_not_fit_and_how_large_what_is_left_out_is(sweep: Any) -> None:
    """The tiny model takes 250 MiB at least, of which its libraries are nearly all, and 1.2 GiB at most."""
    arguments = ("-c", "128,8k", "--dry-run", "--max-memory", "700MiB")
    fits, skipped = sweep(*arguments).rows
    assert (fits["action"], fits["may_not_fit"]) == ("run", True)
    assert fits["peak_bytes"]["low"] < 700 * 1024**2 < fits["peak_bytes"]["high"]
    assert (skipped["action"], skipped["may_not_fit"]) == ("skip", False)
    assert skipped["cache_bytes"] > fits["cache_bytes"] and skipped["peak_bytes"]["low"] > fits["peak_bytes"]["low"]
    assert "run (may not fit)" in sweep(*arguments, output="table").out


def test_a_dry_run_says_what_a_quantization_leaves(profile: Any) -> None:
    ran = profile("sweep", "-m", "gemma-4-e2b", "-q", "nf4,fp32", "--dry-run", "-o", "jsonl", "--device", "cpu")
    dtype = devices.find("cpu").default_dtype
    words = {row["quant"]: row["note"] or row["reason"] for row in ran.rows}
    size = {"fp32": "10.3 GiB", "bf16": "5.13 GiB"}[dtype]
    assert f"nf4 leaves {size} of embeddings and output head in {dtype}" in words["nf4"]
    assert "leaves" not in (words["fp32"] or "")


def test_a_plan_without_cases_is_said(sweep: Any) -> None:
    assert sweep("-c", "8k", "--dry-run").err == "nothing to run\n"


def test_a_dry_run_as_a_table_has_sizes_and_estimates(sweep: Any) -> None:
    ran = sweep("-c", "128", "--dry-run", output="table")
    head, _, line = ran.out.splitlines()
    for title in ("plan", "source", "weights", "cache", "peak", "load", "run"):
        assert title in head
    assert "MiB" in line and " s" in line


def test_a_dry_run_of_two_paths_tells_them_apart_and_says_what_is_paid_once(sweep: Any) -> None:
    head, _, *lines = sweep("-c", "128,256", "--path", "eager,static", "--dry-run", output="table").out.splitlines()
    cells = [dict(zip(re.split(r" {2,}", head), re.split(r" {2,}", line), strict=False)) for line in lines[:4]]
    assert sorted((row["path"], row["context"]) for row in cells) == [
        (path, context) for path in ("eager", "static") for context in ("128", "256")
    ]
    assert "load: paid once by cases that share a worker." in lines
    alone = sweep("-c", "128", "--path", "eager", "--dry-run", output="table").out
    assert "path" not in alone and "load:" not in alone
    assert "load:" not in sweep("-c", "128,256", "--dry-run", output="csv").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-c", "x"], "-c: 'x'"),
        (["-b", "0"], "-b: '0'"),
        (["-n", "1-8"], "-n: '1-8'"),
        (["-c", "8-1+1"], "-c: '8-1+1'"),
        (["-c", ","], "-c: the list is empty"),
        (["-q", "nf5"], "unknown quantization: nf5"),
        (["-m", ","], "-m: the list is empty"),
        (["-m", "gemma-5"], "unknown model: gemma-5"),
        (["-m", "/no/such"], "no such file, folder or Hugging Face id"),
        (["-r", "0"], "--reps"),
        (["-r", "many"], "--reps"),
        (["--precision", "2"], "'2' needs a percent sign: 2%"),
        (["--precision", "0%"], "more than 0% and less than 100%"),
        (["--precision", "2%", "-r", "3"], "-r and --precision contradict each other"),
        (["--budget", "0s"], "--budget"),
        (["--budget", "soon"], "--budget"),
        (["--max-phase", "1d"], "--max-phase"),
        (["--max-memory", "8 bananas"], "--max-memory"),
        (["--max-memory", "0"], "--max-memory"),
        (["--timeout", "-1"], "--timeout"),
        (["--ubatch", "0"], "--ubatch"),
        (["--threads", "1.5"], "--threads"),
        (["--seed", "-1"], "--seed"),
        (["--device", "tpu"], "unknown device: tpu"),
        (["--device", "cpu:1"], "there is no device cpu:1"),
        (["--backend", "vllm"], "a sweep cannot run vllm"),
        (["--scenario", "chats"], "unknown scenario: chats"),
        (["--path", "graf"], "unknown decode path: graf"),
        (["--weights", "fake"], "--weights"),
        (["--weights", "real"], "no real weights"),
        (["--fill", "zero"], "--fill"),
        (["--store", "/"], "--store"),
        (["--store", ""], "Invalid value for '--store': it is empty"),
        (["--html", ""], "Invalid value for '--html': it is empty"),
        (["--no-such-option"], "--no-such-option"),
        (["gemma-3-1b"], "models are named with -m: -m gemma-3-1b"),
        (["-p", "512"], "No such option: -p; the tokens of a prefill are -c"),
        (["-c", "4k-1k*2"], "counts down, but ranges must go up: 1k-4k*2"),
        (["-c", "128k-1k"], "counts down, but ranges must go up: 1k-128k*2"),
        (["-q", "q4_k_m"], "q4_k_m, which is a type of GGUF files"),
        (["--max-memory", "8"], "'8' has no unit, such as 8GiB"),
        (["--budget", "5"], "'5' has no unit, such as 5s, 5m or 5h"),
        (["-c", "1-9999+1", "-b", "1-99+1"], "the grid has"),
        (["--dry-run", "-o", "llama-bench"], "--dry-run does not support -o llama-bench"),
    ],
)
def test_a_mistake_is_one_clear_line_and_a_hint(sweep: Any, arguments: list[str], said: str) -> None:
    ran = sweep(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    first, *more = ran.err.splitlines()
    assert first.startswith("Error: ") and said in first
    assert len(more) <= 1
    assert not Path(os.environ["PROFILER_STORE"]).exists()


def test_more_threads_than_cores_are_a_caution_with_their_number(sweep: Any) -> None:
    cores = devices.find("cpu").cores
    assert cores is not None
    said = f"--threads {cores + 1} is more than the {cores} core"
    ran = sweep("-c", "64", "-n", "1", "-r", "1", "--threads", str(cores + 1))
    (caution,) = [caution for caution in ran.rows[0]["cautions"] if caution["code"] == "too-many-threads"]
    assert ran.code == 0 and caution["text"].startswith(said)
    assert said in sweep("-c", "64", "--threads", str(cores + 1), "--dry-run", output="table").err
    again = sweep("-c", "64", "-n", "1", "-r", "1", "--threads", str(cores))
    assert not [caution for caution in again.rows[0]["cautions"] if caution["code"] == "too-many-threads"]


def test_an_unknown_quantization_of_a_scenario_names_the_scenario(sweep: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "x"\ncontexts = 64\nbatches = 1\nsteps = 1\nquants = ["zz"]\n')
    ran = sweep("--scenario", str(path))
    assert ran.code == 2
    assert ran.err.startswith(f"Error: scenario {path}: quants: unknown quantization: zz\n")
    assert sweep("--scenario", str(path), "-q", "bf16").code == 0


def test_names_are_known_in_any_case(sweep: Any) -> None:
    arguments = ("-q", "NF4", "--device", "CPU", "--weights", "Auto", "-c", "64", "-n", "1", "-r", "1")
    (row,) = sweep(*arguments, output="JSONL").rows
    assert (row["case"]["quant"], row["case"]["device"]) == ("nf4", "cpu")


def test_a_time_may_have_several_units(sweep: Any) -> None:
    assert sweep("-c", "64", "-n", "1", "--budget", "1h30m", "--dry-run").code == 0


def test_one_stored_case_is_said_in_the_singular(sweep: Any) -> None:
    sweep("-c", "64", "-n", "1")
    assert sweep("-c", "64", "-n", "1").err == "1 of 1 case reuses a stored row; --fresh measures it again\n"


def test_an_unknown_format_lists_the_known(profile: Any) -> None:
    ran = profile("sweep", "-o", "tabel")
    assert ran.code == 2
    assert "Did you mean table?" in ran.err


def test_a_named_grid_is_measured_and_options_go_first(sweep: Any) -> None:
    (row,) = sweep("--scenario", "quick", "-n", "4").rows
    assert (row["case"]["context"], row["case"]["batch"], row["case"]["steps"]) == (128, 1, 4)


def test_a_scenario_file_gives_model_quants_and_fill(sweep: Any, profile: Any, model: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    grid = f'models = "{model()}"\nquants = "fp32,bf16"\nfill = "synthetic"\n'
    file.write_text('description = "mine"\ncontexts = 256\nbatches = 1\nsteps = 4\n' + grid)
    ran = profile("sweep", "--backend", "fake", "-o", "jsonl", "--scenario", str(file))
    assert ran.outcomes == ["ok", "ok"]
    assert {row["case"]["quant"] for row in ran.rows} == {"fp32", "bf16"}
    assert [row["prefill"] for row in ran.rows] == [None, None]
    assert all(row["decode"] for row in ran.rows)


def test_without_a_model_the_headline_pair_is_measured(profile: Any) -> None:
    ran = profile("sweep", "--backend", "fake", "-o", "jsonl")
    assert ran.code == 0
    models = {row["case"]["model"] for row in ran.rows}
    assert len(models) == 2
    assert any(name.startswith("gemma-4-") for name in models)
    assert any(name.startswith("qwen3.5-") for name in models)
    assert len([line for line in ran.err.splitlines() if line.startswith("without -m, this sweep measures ")]) == 1


def test_what_a_model_leaves_out_is_a_caution_on_its_rows(profile: Any) -> None:
    ran = profile("sweep", "--backend", "fake", "-o", "jsonl", "-m", "gemma-4-e2b", "-c", "128", "-n", "4")
    assert "text tower only" in " ".join(caution["text"] for caution in ran.rows[0]["cautions"])


def test_a_budget_leaves_out_what_is_estimated_not_to_fit(sweep: Any) -> None:
    ran = sweep("-c", "128,512", "-n", "4", "--budget", "1s")
    assert ran.code == 1
    assert ran.outcomes == ["skipped", "skipped"]
    assert all("does not fit the budget of 1.00 s" in row["reason"] for row in ran.rows)


def test_a_budget_holds_when_the_estimates_were_too_low(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true_plan = run_plan.plan_case

    def optimistic(*arguments: Any) -> Task:
        return replace(true_plan(*arguments), load_s=0.2, run_s=0.05)

    monkeypatch.setattr(run_plan, "plan_case", optimistic)
    ran = sweep("-c", "128,256,384,512", "-n", "2", "-r", "1", "--budget", "1s", pause_s=0.06)
    assert ran.code == 0
    assert ran.outcomes[0] == "ok"
    assert ran.outcomes[-1] == "skipped"
    assert "does not fit the budget of 1.00 s" in ran.rows[-1]["reason"]


@pytest.mark.parametrize(("output", "lines"), [("jsonl", 2), ("csv", 3)])
def test_a_store_that_fills_up_ends_the_sweep_with_one_line_and_what_was_measured_is_shown(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, output: str, lines: int
) -> None:
    append = Store.append

    def full(self: Store, run: str, row: Any) -> int:
        if row.case.context > 128:
            raise StoreError("the store has no space left on its disk", "Rows stored earlier are safe.")
        return append(self, run, row)

    monkeypatch.setattr(Store, "append", full)
    ran = sweep("-c", "128,256,512", "-n", "4", output=output)
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "Error: the store has no space left on its disk",
        "  Rows stored earlier are safe.",
    ]
    assert len(ran.out.splitlines()) == lines  # the row that could not be stored is among them
    with Store.open() as store:
        assert [row.case.context for row in store.rows()] == [128]


def test_a_store_that_fills_up_at_the_very_end_costs_no_row(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, run: str, how: str) -> None:
        raise StoreError("the store has no space left on its disk")

    monkeypatch.setattr(Store, "finish_run", full)
    ran = sweep("-c", "128", "-n", "4", output="csv")
    assert (ran.code, len(ran.out.splitlines())) == (1, 2)


NINES = "9" * 310


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("-r", NINES, "is too large"),
        ("-c", NINES, "is too large"),
        ("--ubatch", NINES, "is too large"),
        ("--max-phase", NINES + "s", "is longer than a year"),
        ("--budget", NINES + "h", "is longer than a year"),
        ("--timeout", "9000h", "is longer than a year"),
        ("--max-memory", NINES + "GiB", "is larger than any memory"),
        ("--max-memory", "9999999TiB", "is larger than any memory"),
        ("--threads", "1000000", "it must be at most 4,096"),
        ("--threads", NINES, "is too large"),
    ],
)
def test_a_number_beyond_reason_is_one_clear_line(sweep: Any, option: str, value: str, said: str) -> None:
    ran = sweep(option, value)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Error: ") and said in ran.err
    assert "unexpected" not in ran.err and len(ran.err) < 300


def test_the_largest_numbers_that_are_taken_overflow_nowhere(sweep: Any) -> None:
    largest = ("-r", "9" * 12, "--max-phase", "8784h", "--timeout", "8784h", "--budget", "8784h", "--threads", "4096")
    more = ("--max-memory", f"{2**20}TiB", "--ubatch", "9" * 12, "-n", "2")
    ran = sweep("-c", "128", *largest, *more, "--dry-run")
    assert ran.code == 0, ran.err
    (row,) = sweep("-c", "128", "--timeout", "8784h", "-r", "2", *more).rows
    assert row["outcome"] == "ok"


def test_a_store_that_cannot_be_made_is_one_line_before_anything_runs(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = sweep("-c", "128", "--store", str(tmp_path / "file" / "store.sqlite"))
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("Error: the store ")


def test_real_weights_of_a_catalog_model_are_refused_in_words(profile: Any) -> None:
    ran = profile("sweep", "-m", "gemma-3-1b", "--weights", "real")
    assert ran.code == 2
    assert "a catalog entry has no weights" in ran.err


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10_000},
        {"num_attention_heads": 0},
        {"model_type": "nobody\x1b[31m"},
        {"vocab_size": 10**40},
    ],
)
def test_a_hostile_config_is_one_clear_line(sweep: Any, model: Any, change: dict[str, Any]) -> None:
    folder = model("hostile")
    config = Path(folder, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    ran = sweep("-m", folder)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("Error: hostile") and "Traceback" not in ran.err
    assert "\x1b" not in ran.err


def test_a_row_says_why_each_phase_ended_and_keeps_what_does_not_count(sweep: Any, model: Any) -> None:
    throttled = {"kind": "throttle", "value": 1.0, "when": "prefill", "calls": [6, 6]}
    (row,) = sweep("-m", model(faults=[throttled]), "-c", "128", "-n", "4").rows
    for phase, invalid in (("prefill", 1), ("decode", 0)):
        found = row[phase]
        assert (found["stopped"], found["steady"]) == ("precision", True)
        assert len(found["warmup_seconds"]) == len(found["seconds"]) == 5
        assert [entry["reason"] for entry in found["invalid"]] == ["thermal slowdown"] * invalid
    assert [caution["code"] for caution in row["cautions"]] == ["prefill-invalid"]
    assert row["memory"]["unaccounted_bytes"] == 0


def test_a_folder_whose_name_is_not_utf8_is_measured_stored_and_shown(
    profile: Any, model: Any, tmp_path: Path
) -> None:
    folder = Path(model()).rename(tmp_path / "m\udcff\udce9")
    arguments = ("--store", str(tmp_path / "s\udcfe.sqlite"))
    ran = profile("sweep", "--backend", "fake", "-m", str(folder), "-c", "16", "-n", "2", "-o", "jsonl", *arguments)
    assert (ran.code, ran.outcomes) == (0, ["ok"])
    for command in (["runs"], ["runs", "show"], ["runs", "show", "-o", "csv"], ["report"], ["fit", str(folder)]):
        shown = profile(*command, *(arguments if command[0] != "fit" else ()))
        assert shown.code == 0 and "unexpected" not in shown.err
    rows = tmp_path / "rows\udcff.jsonl"
    rows.write_text(ran.out)
    assert profile("compare", str(rows), arguments[1]).code == 0
