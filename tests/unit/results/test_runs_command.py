from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from profiler import console
from profiler.commands.runs import runs
from profiler.errors import NotFound, StoreError
from profiler.results.measurement import SHARED_PREFILL, Caution, Sample
from profiler.results.store import Store
from profiler.show import durations


@pytest.fixture
def stored(tmp_path, make, environment):
    path = tmp_path / "s.sqlite"
    with Store.open(path) as store:
        first = store.start_run(["sweep", "-m", "gemma-3-270m", "--token", "opaque"], environment)
        store.append(first, make())
        store.append(first, make(256, outcome="oom", reason="no memory", samples=(), cautions=()))
        store.finish_run(first, "finished")
        second = store.start_run(["sweep", "-b", "2"], environment)
        store.append(second, make(case=replace(make().case, batch=2)))
    return path, first, second


def call(path, *arguments):
    return CliRunner().invoke(runs, ["--store", str(path), *arguments], catch_exceptions=False)


def test_runs_lists_every_run_with_its_outcomes(stored):
    path, first, second = stored
    header, _, *lines = call(path).stdout.splitlines()
    assert header.split() == ["run", "started", "(UTC)", "ended", "cases", "device", "models", "command"]
    assert [line.split()[0] for line in lines] == [first, second]
    assert "finished  1 ok, 1 oom  Example CPU  gemma-3-270m  profile sweep -m gemma-3-270m" in lines[0]
    assert lines[0].endswith("--token '[redacted]'")
    assert " – " in lines[1]


def test_runs_as_json_have_complete_command_lines(stored):
    path, first, _ = stored
    listed = [json.loads(line) for line in call(path, "-o", "jsonl").stdout.splitlines()]
    assert listed[0]["run"] == first
    assert listed[0]["argv"] == ["sweep", "-m", "gemma-3-270m", "--token", "[redacted]"]
    assert listed[0]["outcomes"] == {"ok": 1, "oom": 1}
    assert listed[1]["finished_at"] is None


def test_runs_show_prints_the_latest_run_or_the_one_named(stored):
    path, first, second = stored
    latest = [json.loads(line) for line in call(path, "show", "-o", "jsonl").stdout.splitlines()]
    assert [(row["run"], row["case"]["batch"]) for row in latest] == [(second, 2)]
    named = json.loads(call(path, "show", first, "-o", "json").stdout)
    assert [row["outcome"] for row in named] == ["ok", "oom"]


def test_runs_show_says_on_stderr_what_a_format_leaves_out(stored):
    path, _, _ = stored
    result = call(path, "show", "-o", "llama-bench")
    assert json.loads(result.stdout) == []
    assert "1 case of batch > 1" in result.stderr


def test_an_unknown_format_lists_the_known_ones(stored):
    with pytest.raises(NotFound) as error:
        call(stored[0], "show", "-o", "jsn")
    assert "Did you mean json" in error.value.hint and "llama-bench" in error.value.hint


@pytest.mark.parametrize("arguments", [(), ("-o", "json"), ("show",)])
def test_a_named_store_that_does_not_exist_is_a_usage_error_and_is_not_made(tmp_path, arguments):
    path = tmp_path / "none.sqlite"
    with pytest.raises(StoreError, match="there is no store") as error:
        call(path, *arguments)
    assert error.value.exit_code == 2 and f"profile sweep --store {path}" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_without_a_named_store_there_are_no_runs_yet(tmp_path, monkeypatch):
    monkeypatch.delenv("PROFILER_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    listed = CliRunner().invoke(runs, ["-o", "json"], catch_exceptions=False)
    assert (listed.exit_code, listed.stdout) == (0, "[]\n")
    assert listed.stderr == f"no run is stored in {tmp_path}/profile/results.sqlite yet; profile sweep measures one\n"


def test_a_store_that_the_environment_names_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "none.sqlite"))
    with pytest.raises(StoreError, match="there is no store"):
        CliRunner().invoke(runs, [], catch_exceptions=False)


def test_runs_show_has_the_rows_in_the_order_of_the_grid(tmp_path, make, environment):
    path = tmp_path / "s.sqlite"
    base = make().case
    order = [("nf4", 512, 1), ("fp32", 128, 1), ("nf4", 128, 4), ("nf4", 128, 1), ("fp32", 64, 1)]
    with Store.open(path) as store:
        run = store.start_run(["sweep"], environment)
        for quant, context, batch in order:
            store.append(run, make(case=replace(base, quant=quant, context=context, batch=batch)))
        store.append(run, make(case=replace(base, model="other", model_id="o", context=1)))
        store.append(run, make(case=replace(base, context=64)))
    shown = [json.loads(line)["case"] for line in call(path, "show", "-o", "jsonl").stdout.splitlines()]
    assert [(row["model_id"] == "o", row["quant"], row["context"], row["batch"]) for row in shown] == [
        (False, "nf4", 64, 1),
        (False, "nf4", 128, 1),
        (False, "nf4", 128, 4),
        (False, "nf4", 512, 1),
        (False, "fp32", 64, 1),
        (False, "fp32", 128, 1),
        (True, "nf4", 1, 1),
    ]


def test_where_the_time_of_each_case_went(tmp_path, make, environment, monkeypatch):
    """By parts that add up to the case; what follows until the next case is the store's."""
    path = tmp_path / "t.sqlite"
    warmup = Sample("prefill", 0.5, 128, warmup=True)
    first = make(samples=(warmup, *make().samples), load_s=2.0, start_s=5.0, case_s=10.0, started_at=at(0))
    second = make(256, load_s=2.0, case_s=4.0, started_at=at(10.25))
    shared = make(300, case_s=1.0, started_at=at(15), cautions=(Caution(SHARED_PREFILL, "measured before"),))
    with Store.open(path) as store:
        run = store.start_run(["sweep"], environment)
        for row in (first, second, shared, make(512)):  # the last one is from before there were times
            store.append(run, row)
    *rows, other, total = map(json.loads, call(path, "show", "--time", "-o", "jsonl").stdout.splitlines())
    assert [(row["context"], row["start"], row["load"], row["warm-up"]) for row in rows] == [
        (128, 5.0, 2.0, 0.5),
        (256, None, None, 0),
    ]
    assert rows[0]["store"] == pytest.approx(0.25) and rows[1]["store"] == pytest.approx(0.75)
    assert (other["prefill"], other["store"]) == (0, None)  # its prefill took no time of its own
    for row in rows:
        parts = [row[name] or 0 for name in ("start", "load", "warm-up", "prefill", "decode", "other")]
        assert sum(parts) == pytest.approx(row["total"]) and row["prefill"] == pytest.approx(0.33)
    assert total["model"] == "all cases" and total["total"] == 15.0
    assert "all cases" in call(path, "show", "--time").stdout
    monkeypatch.setattr(console, "width", lambda: 80)
    shown = replace(first, load_s=None, samples=first.samples[1:])
    heads = {}
    for name, row in (("warm", first), ("cold", shown)):
        heads[name] = durations.render([replace(row, case=replace(row.case, model="a" * 60))], None, "table")
    assert " other" in heads["warm"] and " warm-up" in heads["warm"]
    assert " other" in heads["cold"] and " warm-up" not in heads["cold"] and " load" not in heads["cold"]
    assert call(path, "show", "--time", "-o", "csv").stdout.startswith("model,quant,context,batch,total,start,load")
    refused = CliRunner().invoke(runs, ["--store", str(path), "show", "--time", "-o", "llama-bench"])
    assert "--time has no format llama-bench" in str(refused.exception.message)


def at(seconds):
    return f"2026-11-24T09:30:{15 + seconds:06.3f}+00:00"
