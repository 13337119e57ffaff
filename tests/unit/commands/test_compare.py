"""``profile compare``: the same cases on both sides, ratios with intervals, and what is missing."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.reported import scored

from profiler.case import Case
from profiler.results import comparison
from profiler.results.measurement import Caution, DecodePath, Measurement, Memory, Sample
from profiler.results.row import dumps, row
from profiler.results.store import Store
from profiler.show import compare

CASE = Case("gemma-3-270m", "ab12", "real", "nf4", "fp32", "cpu", "hf", "eager", 128, 1, 4)
APART = {"between": {"prefill": 0.02, "decode": 0.03, "basis": "calibrated"}}
HERE: dict[str, Any] = {"cpu": {"title": "Example CPU"}, "libraries": {"torch": "2.12.0"}, "device": {}}


def measured(context: int = 128, slower: float = 1.0, **changes: Any) -> Measurement:
    samples = [Sample("prefill", (1 + n / 100) * slower, context) for n in range(3)]
    samples += [Sample("decode", (0.4 + n / 100) * slower, 4) for n in range(3)]
    whole: dict[str, Any] = {"outcome": "ok", "samples": tuple(samples), "environment": HERE}
    memory = Memory(process_peak_bytes=2**30)
    return Measurement(case=replace(CASE, context=context), **(whole | {"memory": memory} | changes))


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    """Store two lists of rows as two runs; their ids and the option that names the store."""

    def keep(a: list[Measurement], b: list[Measurement]) -> tuple[str, ...]:
        path = tmp_path / "runs.sqlite"
        with Store.open(path) as store:
            ids = []
            for rows in (a, b):
                ids.append(store.start_run(["sweep"], HERE))
                for each in rows:
                    store.append(ids[-1], each)
        return (*ids, "--store", str(path))

    return keep


def compared(profile: Any, arguments: tuple[str, ...]) -> list[dict[str, Any]]:
    ran = profile("compare", *arguments, "-o", "jsonl")
    return [json.loads(line) for line in ran.out.splitlines()]


def test_a_page_names_the_runs_that_latest_stands_for(profile: Any, runs: Any) -> None:
    first, last, *options = runs([measured()], [measured()])
    assert profile("compare", "latest~1", last, *options).out.startswith(f"A {first} (latest~1)\nB {last}\n")


def test_a_run_without_rows_is_named(profile: Any, runs: Any) -> None:
    assert "no case in common: B has no rows" in profile("compare", *runs([measured()], [])).err


def test_a_ratio_is_that_of_the_medians_b_over_a(profile: Any, runs: Any) -> None:
    prefill, decode, peak = compared(profile, runs([measured()], [measured(slower=2.0)]))
    assert (prefill["figure"], decode["figure"], peak["figure"]) == ("prefill_tps", "decode_tps", "peak_bytes")
    assert decode["ratio"] == pytest.approx(0.5)
    assert decode["a"] == pytest.approx(4 / 0.41)
    assert decode["low"] < 0.5 < decode["high"]
    assert decode["significant"] is True
    assert (peak["ratio"], peak["low"]) == (1.0, None)


def test_a_difference_within_the_repetitions_is_not_significant(profile: Any, runs: Any) -> None:
    decode = compared(profile, runs([measured()], [measured(slower=1.01)]))[1]
    assert decode["significant"] is False
    assert decode["low"] < 1 < decode["high"]


def test_what_processes_differ_by_widens_a_ratio_also_from_a_file_of_rows(
    profile: Any, runs: Any, tmp_path: Path
) -> None:
    a, b = measured(expected=APART), measured(slower=1.1, expected=APART)
    _, decode, _ = compared(profile, runs([a], [b]))
    _, alone, _ = compared(profile, runs([measured()], [measured(slower=1.1)]))
    assert decode["ratio"] == alone["ratio"]
    assert math.log(decode["high"] / decode["ratio"]) > 1.96 * math.hypot(0.03, 0.03)
    assert decode["high"] - decode["low"] > alone["high"] - alone["low"]
    files = []
    for name, each in (("a", a), ("b", b)):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text(dumps(row(None, each)) + "\n")
    assert compared(profile, tuple(map(str, files)))[1] == decode


def test_a_page_says_where_processes_may_differ_by_more_than_it_knows(profile: Any, runs: Any) -> None:
    assert "too narrow" not in profile("compare", *runs([measured(expected=APART)], [measured(expected=APART)])).out
    page = profile("compare", *runs([measured()], [measured(expected=APART)])).out
    assert "Process-to-process variation is unknown for 2 of 4 rates: their intervals are too narrow." in page
    assert "decode: geometric mean of B ÷ A 1.000, 1 case\n" in page


def test_one_repetition_has_a_ratio_and_no_interval(profile: Any, runs: Any) -> None:
    once = measured(samples=(Sample("prefill", 1.0, 128), Sample("decode", 0.4, 4)))
    decode = compared(profile, runs([measured()], [once]))[1]
    assert decode["ratio"] == pytest.approx(0.41 / 0.4)
    assert decode["low"] is decode["significant"] is None


def test_missing_and_failed_cases_are_listed(profile: Any, runs: Any) -> None:
    failed = measured(512, outcome="oom", reason="no room", samples=(), memory=Memory())
    stored = runs([measured(), measured(256), measured(512)], [measured(), failed, measured(1024)])
    ran = profile("compare", *stored)
    assert ran.code == 0
    assert "only in A: 1\n  gemma-3-270m nf4 c=256 b=1" in ran.out
    assert "only in B: 1\n  gemma-3-270m nf4 c=1024 b=1" in ran.out
    assert "gemma-3-270m nf4 c=512 b=1 (A ok, B oom)" in ran.out
    outcomes = [(row["outcome_a"], row["outcome_b"]) for row in compared(profile, stored) if row["figure"] is None]
    assert outcomes == [("ok", "oom"), ("ok", None), (None, "ok")]


def test_what_the_machines_differ_in_is_said_once(profile: Any, runs: Any) -> None:
    other = HERE | {"libraries": {"torch": "2.13.0"}}
    b = [measured(context, environment=other) for context in (128, 256)]
    ran = profile("compare", *runs([measured(), measured(256)], b))
    assert ran.out.count("torch 2.12.0 → 2.13.0") == 1


def test_a_decode_step_that_fell_back_on_one_side_is_said_with_the_reason(profile: Any, runs: Any) -> None:
    case = replace(CASE, path="static")
    fallen = replace(measured(), case=case, decode_path=DecodePath("eager", "no C++ compiler"))
    usual = replace(measured(), case=case, decode_path=DecodePath("static"))
    said = "different decode steps ran: A static, B eager (no C++ compiler)"
    assert said in " ".join(profile("compare", *runs([usual], [fallen])).out.split())
    assert "different decode steps" not in profile("compare", *runs([fallen], [fallen])).out


@pytest.mark.parametrize("names", [("", "2"), ("2", " ")])
def test_an_empty_name_is_usage_as_where_a_variable_of_a_script_is_not_set(
    profile: Any, runs: Any, names: tuple[str, ...]
) -> None:
    _, _, *store = runs([measured()], [measured()])
    ran = profile("compare", *names, *store)
    assert ran.code == 2
    assert "is empty" in ran.err or "2 runs start" in ran.err


def test_nothing_in_common_ends_with_four_and_says_why(profile: Any, runs: Any) -> None:
    b = [replace(measured(), case=replace(CASE, device="cuda:0", quant="int8"))]
    ran = profile("compare", *runs([measured()], b))
    assert ran.code == 4
    assert "their cases differ in quant, device" in ran.err


def test_files_of_rows_and_other_stores_can_be_compared(profile: Any, runs: Any, tmp_path: Path) -> None:
    stored = runs([measured()], [measured(slower=2.0)])
    lines, array = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text(dumps(row(None, measured())) + "\n")
    array.write_text(f"[{dumps(row('r', measured(slower=2.0)))}]")
    assert compared(profile, (str(lines), str(array))) == compared(profile, stored)
    assert compared(profile, (str(lines), stored[3])) == compared(profile, stored)


def test_a_case_that_is_twice_in_a_file_counts_once_and_is_said(profile: Any, tmp_path: Path) -> None:
    """As where the rows of two runs were put together."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(dumps(row(None, measured())) + "\n")
    two.write_text(one.read_text() + dumps(row(None, measured(slower=2.0))) + "\n")
    ran = profile("compare", str(one), str(two))
    assert "B has 1 more row of cases that it already contains: the last of each counts" in ran.out
    assert "already contains" not in profile("compare", str(one), str(one)).out


def test_a_file_with_the_mark_of_an_editor_is_read_and_utf_16_is_named(profile: Any, tmp_path: Path) -> None:
    plain, marked, wide = (tmp_path / f"{name}.json" for name in ("plain", "marked", "wide"))
    plain.write_text(f"[{dumps(row(None, measured()))}]")
    marked.write_text(plain.read_text(), encoding="utf-8-sig")
    wide.write_text(plain.read_text(), encoding="utf-16")
    assert profile("compare", str(plain), str(marked)).code == 0
    ran = profile("compare", str(plain), str(wide))
    assert ran.code == 2 and "wide.json is UTF-16 text, but rows must be UTF-8" in ran.err


def changed(old: str, new: str) -> str:
    """A row of a file with one thing changed."""
    text = dumps(row(None, measured()))
    assert old in text
    return text.replace(old, new, 1)


IMPOSSIBLE = [  # what no row of ours holds, and what is said of it
    (('"batch": 1', '"batch": -4'), "case.batch is -4, must be a whole number from 1"),
    (('"batch": 1', '"batch": 1.5'), "case.batch is 1.5"),
    (('"batch": 1', '"batch": true'), "case.batch is True"),
    (('"batch": 1', '"batch": null'), "case.batch is null"),
    (('"steps": 4', '"steps": 0'), "case.steps is 0"),
    (('"quant": "nf4"', '"quant": ["nf4"]'), "case.quant is a list"),
    (('"quant": "nf4"', f'"quant": "{"q" * 100_000}"'), "case.quant is 'qqqq"),
    (('"quant": "nf4"', '"quant": "nf4", "colour": 1'), "case.colour is not a field"),
    (('"process_peak_bytes": 1073741824', '"process_peak_bytes": -1'), "memory.process_peak_bytes is -1"),
    (('"process_peak_bytes": 1073741824', '"process_peak_bytes": NaN'), "memory.process_peak_bytes is NaN"),
    (('"process_peak_bytes": 1073741824', f'"process_peak_bytes": 1{"0" * 400}'), "is a number of 401 characters"),
    (('"process_peak_bytes": 1073741824', '"process_peak_bytes": "1 GiB"'), "memory.process_peak_bytes is '1 GiB'"),
    (('"seconds": [1.0', '"seconds": [1e-320'), "prefill.seconds contains"),
    (('"seconds": [1.0', '"seconds": [Infinity'), "prefill.seconds[0] is Infinity"),
    (('"seconds": [1.0', '"seconds": ["1.0"'), "prefill.seconds contains '1.0'"),
    (('"tokens": 128', '"tokens": -128'), "prefill.tokens contains -128"),
    (('"tokens": 128', '"tokens": 129'), "prefill has repetitions of 129 tokens"),
    (('"context": 128', '"context": 64'), "prefill has repetitions of 128 tokens"),
    (('"cpu_seconds": [', '"cpu_seconds": [1, '), "prefill has columns"),
    (('"outcome": "ok"', '"outcome": "fine"'), "outcome is 'fine'"),
    (('"load_s": null', '"load_s": -1e999'), "load_s is -1e999"),
    (('"threads": null', '"threads": 0'), "threads is 0"),
    (('"device": {}', '"device": "cpu"'), "environment.device is 'cpu', must be an object"),
    (('"device": {}', '"device": {"power_limit_w": "x"}'), "environment.device.power_limit_w is 'x'"),
    (('"device": {}', f'"more": {"[" * 12}{"]" * 12}'), "environment.more is nested too deeply"),
    (('"cautions": []', '"cautions": ["x"]'), "cautions is 'x', must be an object"),
    (('"schema": 1', '"schema": "1"'), "newer version"),
]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "it has no 'schema'"),
        ("{", "not JSON"),
        ('"text"', "not a result row"),
        ("[1]", "not a result row"),
        (dumps(row(None, measured())).replace('"schema": 1', '"schema": 99'), "newer version"),
        (
            dumps(row(None, measured())).replace('"seconds": [1.0', '"seconds": [-1.0'),
            "prefill.seconds contains -1.0",
        ),
        (
            dumps(row(None, measured())).replace('"context": 128', '"context": "x"'),
            "case.context is 'x', must be a whole number",
        ),
        *((changed(*edit), said) for edit, said in IMPOSSIBLE),
        (
            dumps(row(None, measured(expected=APART))).replace('"tps_between": 0.02', '"tps_between": 1000'),
            "not a number from 0 to 1",
        ),
        (
            dumps(row(None, measured(expected=APART))).replace('"tps_between": 0.02', '"tps_between": true'),
            "not a number from 0 to 1",
        ),
        (
            dumps(row(None, measured(expected=APART))).replace('"tps_between": 0.02', '"tps_between": 1e999'),
            "tps_between is 1e999",
        ),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_holds_no_rows_is_one_line(profile: Any, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    ran = profile("compare", str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl"))
    assert ran.code == 2
    assert said in ran.err


def test_a_file_that_is_not_there_is_said(profile: Any) -> None:
    ran = profile("compare", "nowhere.jsonl", "nowhere.jsonl")
    assert (ran.code, "there is no file nowhere.jsonl" in ran.err) == (2, True)
    below = profile("compare", "some/where", "some/where")
    assert (below.code, "there is no file some/where" in below.err) == (2, True)
    empty = profile("compare", "", "")
    assert (empty.code, empty.err.startswith("Error: one of the two names is empty")) == (2, True)


def test_the_page_for_people(profile: Any, runs: Any) -> None:
    more = Memory(process_peak_bytes=2**31)
    stored = runs([measured(), measured(256)], [measured(slower=2.0, memory=more), measured(256)])
    assert [line.rstrip() for line in profile("compare", *stored).out.splitlines()[3:10]] == [
        "model         quant  context  batch  figure              A         B  B ÷ A     interval",
        "gemma-3-270m  nf4        128      1  prefill t/s       127      63.4  0.500  0.489–0.511  slower",
        "gemma-3-270m  nf4        128      1  decode t/s        9.8       4.9  0.500  0.473–0.528  slower",
        "gemma-3-270m  nf4        128      1  peak         1.00 GiB  2.00 GiB  2.000               more",
        "gemma-3-270m  nf4        256      1  prefill t/s       253       253  1.000  0.978–1.023",
        "gemma-3-270m  nf4        256      1  decode t/s        9.8       9.8   1.00  0.946–1.057",
        "gemma-3-270m  nf4        256      1  peak         1.00 GiB  1.00 GiB  1.000",
    ]


def test_divergences_of_one_scale_have_a_ratio_with_its_interval(profile: Any, runs: Any) -> None:
    stored = runs([scored(measured(), 0.02)], [scored(measured(), 0.03)])
    (found,) = [row for row in compared(profile, stored) if row["figure"] == "kl"]
    assert (found["a"], found["b"], found["ratio"]) == pytest.approx((0.02, 0.03, 1.5))
    assert found["low"] <= 1.5 <= found["high"] and found["significant"] and found["n_a"] == 12
    out = profile("compare", *stored).out
    (line,) = [line for line in out.splitlines() if "KL, nats" in line and line.endswith("more")]
    assert line.split("KL, nats")[1].split()[:3] == ["0.020", "0.030", "1.500"]
    assert "its interval is that of other texts of the same kinds" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 110


def test_divergences_of_unlike_scales_have_none_and_the_page_says_why(profile: Any, runs: Any) -> None:
    stored = runs([scored(measured(), 0.02)], [scored(measured(), 0.03, texts="4567")])
    assert not [row for row in compared(profile, stored) if row["figure"] == "kl"]
    assert "not compared, because A and B differ in the texts" in " ".join(profile("compare", *stored).out.split())
    stored = runs([scored(measured(), 0.0)], [scored(measured(), 0.03)])
    assert "the KL divergence is 0 in A and 0.030 in B" in profile("compare", *stored).out


def test_a_row_that_a_run_reused_is_no_second_measurement(profile: Any, runs: Any) -> None:
    start = "2026-11-29T12:00:00Z"
    reused, again = measured(started_at=start), measured(256, started_at=start)
    stored = runs([reused, again], [reused, measured(256, slower=1.01, started_at=start)])
    assert "1 of 2 cases have the same row in A and B" in profile("compare", *stored).out
    assert "same row" not in profile("compare", *runs([measured()], [measured()])).out


def test_repetitions_that_differ_too_much_have_no_ratio(profile: Any, runs: Any) -> None:
    noisy = replace(measured(), samples=tuple(Sample("decode", seconds, 16) for seconds in (0.01, 9.0, 1.0)))
    stored = runs([noisy], [measured(slower=2.0)])
    out = profile("compare", *stored).out
    line = next(line for line in out.splitlines() if "decode t/s" in line)
    assert line.split("decode t/s")[1].split() == ["too", "noisy:", "1.8–1,600", "4.9", "too", "noisy"]
    assert "decode: geometric mean" not in out
    busy = replace(measured(), cautions=(Caution("decode-busy", "decode: the CPU was busy"),))
    out = profile("compare", *runs([busy], [measured(slower=2.0)])).out
    line = next(line for line in out.splitlines() if "decode t/s" in line)
    assert line.split()[-1] == "busy" and "too noisy" not in line


def test_a_long_page_shows_what_differs() -> None:
    contexts = range(1, 261)
    b = [measured(context, slower=2.0 if context == 7 else 1.0) for context in contexts]
    found = comparison.compare([measured(context) for context in contexts], b)
    out = compare.render(found, ("a", "b"), "table")
    assert "259 cases without a difference are omitted" in out
    assert out.count("decode t/s") == 1
    assert "1 differ; by chance alone, about 13 would" in out
    assert compare.render(found, ("a", "b"), "csv").count("decode_tps") == 260


def test_benchstat_text_reads_as_that_tools(profile: Any, runs: Any) -> None:
    stored = runs([measured(), measured(256)], [measured(slower=2.0), measured(256)])
    out = profile("compare", *stored, "-o", "benchstat").out
    head, units, first, second, mean, *_ = out.splitlines()
    assert "│" in head and "vs base" in units and "prefill tok/s" in units
    assert first.split() == ["gemma-3-270m/nf4/c=128/b=1", "126.7", "±", "2%", "63.37", "±", "2%", "-50.00%",
                             "(p=0.000", "n=3)"]  # fmt: skip
    assert second.split()[-3:] == ["~", "(p=1.000", "n=3)"]
    assert mean.split()[0] == "geomean"
    assert mean.split()[-1] == "-29.29%"  # √½


def test_hostile_names_stay_text(profile: Any, runs: Any) -> None:
    named = replace(CASE, model="=cmd()\x1b[31m|<script>")
    stored = runs([replace(measured(), case=named)], [replace(measured(), case=named)])
    for output in ("table", "md", "csv", "benchstat"):
        assert "\x1b" not in profile("compare", *stored, "-o", output).out
    cells = list(csv.reader(io.StringIO(profile("compare", *stored, "-o", "csv").out)))
    assert {len(row) for row in cells} == {len(cells[0])}
    assert cells[1][1].startswith("'=cmd()")
    assert r"=cmd()\|&lt;script>" in profile("compare", *stored, "-o", "md").out


def test_ten_thousand_cases_are_compared_in_seconds() -> None:
    rows = [measured(context) for context in range(1, 2001)]
    start = time.process_time()
    assert len(comparison.compare(rows, rows).pairs) == 2000
    assert time.process_time() - start < 1.0  # a fifth of the cases, with room for a slow machine: it takes 0.2 s
