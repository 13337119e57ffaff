"""`profile devices` and `profile scenarios`."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from profiler import console, devices
from profiler.commands import accuracy
from profiler.devices import cpu
from profiler.devices.base import DeviceInfo
from profiler.gate import page
from profiler.gate.rule import GateVerdict
from profiler.run import grid
from profiler.show import output as show_output
from profiler.units import GIB

CPU = DeviceInfo("cpu", "cpu", "Some CPU", 24 * GIB, 20 * GIB, "fp32", cores=2, threads=2, physical=2, installed=2)


def test_the_first_device_listed_is_the_default(profile: Any) -> None:
    rows = json.loads(profile("devices", "-o", "json").out)
    assert rows[0]["device"] == devices.find().name
    assert rows[-1]["device"] == "cpu"
    assert rows[-1]["memory_bytes"] >= rows[-1]["free_bytes"] > 0


def test_a_kind_that_is_not_here_is_a_reason_on_stderr(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "listed", lambda: ([CPU], {"cuda": "no driver"}))
    ran = profile("devices")
    assert ran.code == 0
    assert ran.err == "no cuda device: no driver\n"
    assert "no driver" not in ran.out


def test_what_this_process_may_not_use_is_shown(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = "a CPU quota allows 0.5 of 2 cores (cpu.max of the control group /a) and throttles 1 thread"
    limited = replace(CPU, quota=0.5, threads=1, limits=(quota,))
    monkeypatch.setattr(devices, "listed", lambda: ([limited], {}))
    (row,) = json.loads(profile("devices", "-o", "json").out)
    assert (row["cores"], row["cores_installed"], row["threads"], row["limits"]) == (0.5, 2, 1, [quota])
    ran = profile("devices")
    assert "0.5 of 2" in ran.out
    assert ran.err == f"cpu: {quota}\n"
    monkeypatch.setattr(devices, "listed", lambda: ([replace(CPU, cores=1)], {}))
    assert "1 of 2" in profile("devices").out
    monkeypatch.setattr(devices, "listed", lambda: ([CPU], {}))
    assert " of 2" not in profile("devices").out


def test_a_plan_says_what_holds_it_back(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = replace(
        CPU, memory_bytes=8 * GIB, memory_limit="memory.max of the control group /a", limits=("a limit",)
    )
    monkeypatch.setattr(devices, "find", lambda name=None: limited)
    assert "a limit\n" in sweep("--dry-run", output="json").err
    monkeypatch.setattr(devices, "find", lambda name=None: replace(limited, free_bytes=1))
    (row,) = json.loads(sweep("--dry-run", output="json").out)
    assert row["reason"].endswith("; memory.max of the control group /a allows 8.00 GiB")


def test_the_catalog_gives_a_source_for_its_figures(profile: Any) -> None:
    rows = json.loads(profile("devices", "--catalog", "-o", "json").out)
    assert len(rows) > 60
    for row in rows:
        assert row["sources"] and all(row["sources"].values()), row["device"]
        assert row["standing"], row["device"]


@pytest.mark.parametrize("command", [["devices"], ["devices", "--catalog"], ["scenarios"]])
@pytest.mark.parametrize("output", show_output.FORMATS)
def test_a_list_is_in_every_format(profile: Any, command: list[str], output: str) -> None:
    ran = profile(*command, "-o", output)
    assert ran.code == 0
    if output == "json":
        assert json.loads(ran.out)
    elif output == "jsonl":
        assert all(json.loads(line) for line in ran.out.splitlines())
    elif output == "csv":
        rows = list(csv.reader(io.StringIO(ran.out)))
        assert len({len(row) for row in rows}) == 1
    else:
        assert len(ran.out.splitlines()) > 2


def test_every_scenario_is_listed_with_its_description(profile: Any) -> None:
    rows = json.loads(profile("scenarios", "-o", "json").out)
    assert [row["name"] for row in rows] == grid.names()
    assert all(row["description"] for row in rows)
    shown = profile("scenarios").out
    assert all(row["stands_for"] in shown for row in rows)
    assert max(map(len, shown.splitlines())) <= 120


def test_a_list_escapes_what_would_break_a_cell() -> None:
    rows = [{"name": "a|b"}]
    assert "a\\|b" in show_output.render(rows, lambda row: {"name": row["name"]}, "md")
    assert "a|b" in show_output.render(rows, lambda row: {"name": row["name"]}, "table")


def test_an_empty_list_is_empty_in_every_format() -> None:
    for output in show_output.FORMATS:
        assert show_output.render([], dict, output).strip() in ("", "[]")


def test_a_scenario_by_name_is_its_file_to_copy(profile: Any, tmp_path: Any) -> None:
    ran = profile("scenarios", "chat")
    (tmp_path / "chat.toml").write_text(ran.out)
    assert grid.load(str(tmp_path / "chat.toml")) == grid.load("chat")
    (row,) = json.loads(profile("scenarios", "chat", "-o", "json").out)
    assert (row["name"], row["contexts"]) == ("chat", list(grid.load("chat").contexts))
    assert profile("scenarios", "chats").code == 2


def test_a_file_of_ones_own_is_printed_without_terminal_control(profile: Any, tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('# left\u202eto right\ndescription = "mine"\ncontexts = 1\nbatches = 1\nsteps = 1\n')
    assert profile("scenarios", str(path)).out.splitlines()[:2] == ["# leftto right", 'description = "mine"']


def test_the_catalog_shows_the_figures_of_data_sheets(profile: Any) -> None:
    lines = profile("devices", "--catalog").out.splitlines()
    (line,) = [re.split(r" {2,}", line) for line in lines if line.startswith("RTX 4090  ")]
    assert line[2:7] == ["24.0 GiB", "1,008", "165.2", "660.6", "450"]


NARROW = [
    (["models"], "model params KV/token"),
    (["devices"], "device memory free"),
    (["devices", "--catalog"], "device memory GB/s source"),
    (["scenarios"], "scenario contexts batches use"),
    (["fit", "llama-4-scout-17b-16e", "--on", "rtx 4090", "-c", "4k,32k"], "model quant peak decode TTFT"),
    (["fit", "gemma-4-e4b", "--on", "2x3090", "--goal", "5 tok/s at 8k"], "model quant peak decode TTFT goal"),
    (["explain", "gemma-4-e4b", "--on", "rtx 4090"], "part predicted share limited"),
]
STORED = [
    (["runs"], "run cases command"),
    (["compare", "latest~1", "latest"], "model quant figure A B ÷"),
    (["sweep", "--dry-run", "-m", "gemma-3-270m,gemma-3-1b", "-c", "128,512k"], "model quant plan peak reason"),
    (["sweep", "--dry-run", "-m", "gemma-4-26b-a4b", "-q", "bf16,nf4", "-b", "1,4"], "model quant batch plan reason"),
]


@pytest.mark.parametrize(("command", "titles"), NARROW)
def test_a_table_fits_a_narrow_terminal_and_is_whole_elsewhere(
    profile: Any, monkeypatch: pytest.MonkeyPatch, command: list[str], titles: str
) -> None:
    _fits(profile, monkeypatch, command, titles)


def test_a_processor_with_every_feature_fits_a_narrow_terminal(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    features = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    found = DeviceInfo(
        "cpu",
        "cpu",
        "Intel(R) Xeon(R) Processor",
        24 * GIB,
        22 * GIB,
        "bf16",
        cores=2,
        features=features,
        installed=64,
    )
    monkeypatch.setattr(cpu, "find", lambda: [found])
    _fits(profile, monkeypatch, ["devices"], "device memory free")


def test_tables_of_stored_rows_fit_a_narrow_terminal(profile: Any, sweep: Any, monkeypatch: Any, model: Any) -> None:
    name = model("a-model-of-an-unusually-long-name-that-somebody-chose-Instruct-2507")
    for _ in range(2):
        assert sweep("-m", name, "-c", "16,32", "-b", "1,2", "-n", "4", "-r", "3", "--fresh").code == 0
    for command, titles in STORED:
        _fits(profile, monkeypatch, command, titles)


def test_the_errors_of_predictions_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", lambda: 80)
    case = {"model": "Qwen3-30B-A3B-Instruct-2507", "quant": "q4_k_m", "context": 131072, "basis": "calibrated"}
    figures = {"predicted": 2.5 * GIB, "low": 2.0 * GIB, "high": 3.1 * GIB, "measured": 2.25 * GIB, "error": 0.11}
    rows = [
        case | figures | {"figure": figure, "batch": batch, "machine": machine}
        for figure, batch, machine in (
            ("peak_bytes", 1, "NVIDIA GeForce RTX 4090"),
            ("load_peak_bytes", 16, "AMD EPYC"),
        )
    ]
    lines = accuracy.render(rows, "table").splitlines()
    assert max(map(len, lines)) <= 80
    assert all(title in lines[0] for title in ("model", "figure", "measured", "error"))


def test_the_verdicts_of_a_gate_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", lambda: 80)
    case = "tests/perf/test_decode.py::test_a_step_of_the_cache[gemma-3-270m-fp32-c=4096-b=1]"
    figures = {"ratio": 1.0123, "low": 0.9876, "high": 1.0345, "pairs": 12, "delta": 0.05, "noise": 0.01}
    verdict = GateVerdict(case, "decode", "PASS", "", detectable=0.04, **figures)
    titles, line = page.table([verdict])
    assert max(len(titles), len(line)) <= 80
    assert "PASS" in line and "0.9876–1.034" in line and "…" in line


def _fits(profile: Any, monkeypatch: pytest.MonkeyPatch, command: list[str], titles: str) -> None:
    found = cpu.find()
    monkeypatch.setattr(cpu, "find", lambda: found)  # its free memory changes from call to call
    whole = profile(*command).out
    for columns in (80, 100):
        with monkeypatch.context() as patched:
            patched.setattr(console, "width", lambda columns=columns: columns)
            lines = profile(*command).out.splitlines()
        head = next(line for line in lines if all(title in line for title in titles.split()))
        table = lines[lines.index(head) :]
        table = table[: table.index("")] if "" in table else table
        assert max(map(len, table)) <= columns, "\n".join(table)
    assert profile(*command).out == whole


def test_a_name_is_shortened_in_the_middle_and_figures_stay_whole() -> None:
    columns = {"model": ["Qwen3-30B-A3B-Instruct-2507-Q4_K_M"], "decode t/s": ["1,234 (1,100–1,400)"], "basis": ["x"]}
    shown = show_output.fitted(columns, 40, ("basis",))
    assert shown == {"model": ["Qwen3-30B…07-Q4_K_M"], "decode t/s": columns["decode t/s"]}
    assert show_output.fitted(columns, None, ("basis",)) == columns
