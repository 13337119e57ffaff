"""A row that a run reuses is shown with what that run says about its model, by every reader of the store."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import weights
from fakes.tiny import CONFIGS

import profiler
from profiler.results import reading
from profiler.results.store import Store

FAST = ("--backend", "fake", "-c", "128,256", "-n", "4")
RAW = CONFIGS["gemma3"]
BESIDE = "model-00009-of-00009.safetensors"  # a shard that no index names


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """The same weights twice: ``good1``, and ``A`` with a stale shard next to them."""
    for name in ("good1", "A"):
        weights.folder(tmp_path / name, RAW)
    (tmp_path / "A" / BESIDE).write_bytes(weights.content({"a": [1]}))
    return str(tmp_path / "good1"), str(tmp_path / "A")


@pytest.fixture
def runs(profile: Any, folders: tuple[str, str]) -> tuple[str, str]:
    """The ids of two runs: ``good1`` was measured, then ``A`` reused its rows."""
    found = []
    for folder in folders:
        ran = profile("sweep", "-m", folder, *FAST, "-o", "jsonl")
        assert ran.code == 0
        found.append(ran.rows[0]["run"])
    assert "2 of 2 cases reuse stored rows" in ran.err
    return found[0], found[1]


def said(row: dict[str, Any]) -> tuple[str, bool, bool]:
    """Name, caution and checkpoint of a row as far as the two folders differ."""
    codes = [caution["code"] for caution in row["cautions"]]
    return row["case"]["model"], "files-beside" in codes, any(BESIDE in text for text in row["checkpoint"]["beside"])


A, GOOD1 = ("A", True, True), ("good1", False, False)


def without_nulls(value: Any) -> Any:
    """Nulls need not be stored."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return value


@pytest.mark.parametrize("output", ["jsonl", "json"])
def test_rows_of_a_run_are_as_its_own_sweep_printed_them(profile: Any, folders: tuple[str, str], output: str) -> None:
    def rows(text: str) -> list[Any]:
        return list(map(without_nulls, json.loads(text) if output == "json" else map(json.loads, text.splitlines())))

    printed = [rows(profile("sweep", "-m", folder, *FAST, "-o", output).out) for folder in folders]
    assert [rows(profile("runs", "show", each[0]["run"], "-o", output).out) for each in printed] == printed
    assert [set(map(said, each)) for each in printed] == [{GOOD1}, {A}]


def test_tables_of_a_run_name_the_model_as_it_was_asked_for(profile: Any, runs: tuple[str, str]) -> None:
    for output, caution in (("table", BESIDE), ("md", BESIDE), ("csv", "files-beside"), ("llama-bench", "")):
        first, second = (profile("runs", "show", run, "-o", output).out for run in runs)
        assert "good1" in first and "good1" not in second
        assert caution in second and (not caution or caution not in first)


def test_the_list_of_runs_names_the_model_of_each(profile: Any, runs: tuple[str, str]) -> None:
    assert [run["models"] for run in json.loads(profile("runs", "-o", "json").out)] == [["good1"], ["A"]]


@pytest.mark.parametrize("names", [True, False])
def test_a_report_has_the_name_and_the_cautions_of_the_run(
    profile: Any, runs: tuple[str, str], tmp_path: Path, names: bool
) -> None:
    page, text = tmp_path / "page.html", tmp_path / "page.md"
    argument = (runs[1],) if names else ()
    assert profile("report", *argument, "--html", str(page), "--md", str(text)).code == 0
    for written in (page, text):
        cautions = written.read_text(encoding="utf-8").partition("Which cautions apply?")[2]
        assert BESIDE in cautions
    rows = text.read_text(encoding="utf-8").partition("How do I repeat it?")[0]
    assert "good1" not in rows
    profile("report", runs[0], "--md", str(text))
    assert BESIDE not in text.read_text(encoding="utf-8")


def test_a_sweep_writes_the_page_of_its_own_run(profile: Any, folders: tuple[str, str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for folder in folders:
        profile("sweep", "-m", folder, *FAST, "--html", str(page))
    assert BESIDE in page.read_text(encoding="utf-8")


def test_rows_in_python_are_those_of_the_run(runs: tuple[str, str]) -> None:
    first, second = runs
    for found in (profiler.load(), profiler.load(second), profiler.load(newest=True)):
        assert set(map(said, found)) == {A}
    assert set(map(said, profiler.load(first))) == {GOOD1}


def test_a_comparison_and_another_store_have_them_too(profile: Any, runs: tuple[str, str], tmp_path: Path) -> None:
    with Store.open() as store:
        path = store.path
    for found in (reading.named(runs[1], None), reading.named(str(path), None)):
        assert {row.case.model for row in found} == {"A"}
    compared = profile("compare", runs[0], runs[1], "-o", "json")
    assert compared.code == 0
    with Store.open() as store:
        predicted = '{"decode_tps":{"value":1.0,"low":1.0,"high":1.0,"basis":"test"}}'
        store._db.execute(f"UPDATE measurements SET content = json_set(content, '$.expected', json('{predicted}'))")
    for run, model in ((runs[:1], "good1"), (runs[1:], "A"), ((), "A")):
        assert {row["model"] for row in profile("accuracy", *run, "-o", "jsonl").rows} == {model}


def test_the_last_run_that_has_a_row_names_it_among_the_newest(
    profile: Any, runs: tuple[str, str], folders: tuple[str, str]
) -> None:
    profile("sweep", "-m", folders[0], *FAST)
    assert set(map(said, profiler.load(newest=True))) == {GOOD1}


def test_what_was_measured_stays_the_measurements_own(runs: tuple[str, str]) -> None:
    first, second = (profiler.load(run)[0] for run in runs)
    own = {"run", "case", "cautions", "checkpoint"}
    assert {name: value for name, value in first.items() if name not in own} == {
        name: value for name, value in second.items() if name not in own
    }
    assert {name for name in first["case"] if first["case"][name] != second["case"][name]} == {"model"}


def test_a_row_read_again_is_the_same_row(runs: tuple[str, str]) -> None:
    """A report keeps few rows and reads those that it shows once more."""
    with Store.open() as store:
        for rows in (list(store.iter_run(runs[1])), list(store.newest_per_environment())):
            assert [row.reload() for row in rows] == rows
            assert {row.reload().case.model for row in rows} == {"A"}
        first = next(store.iter_run(runs[0]))
        assert first.reload().case.model == "good1"


def test_a_store_of_an_older_version_is_read_as_it_is_and_resumed(
    profile: Any, runs: tuple[str, str], folders: tuple[str, str]
) -> None:
    with Store.open() as store:
        path = store.path
    with closing(sqlite3.connect(path)) as older:
        older.executescript("DROP TABLE run_models; PRAGMA user_version = 3;")
    assert {row["case"]["model"] for row in profiler.load(runs[1])} == {"good1"}, "it does not know better"
    assert [run["models"] for run in json.loads(profile("runs", "-o", "json").out)] == [["good1"], ["good1"]]
    assert profile("report").code == 0
    with closing(sqlite3.connect(path)) as older:
        assert older.execute("PRAGMA user_version").fetchone() == (3,), "reading has changed the file"
    again = profile("sweep", "-m", folders[1], *FAST, "-o", "jsonl")
    assert "2 of 2 cases reuse stored rows" in again.err
    assert set(map(said, profiler.load())) == {A}


def test_an_invalid_description_is_one_line(profile: Any, runs: tuple[str, str]) -> None:
    for content in (
        "x'00'",
        "'[]'",
        "'{}'",
        """'{"cautions":[{"code":1}],"checkpoint":{}}'""",
        """'{"cautions":1}'""",
    ):
        with Store.open() as store:
            store._db.execute(f"UPDATE run_models SET content = {content}")
        ran = profile("runs", "show")
        assert ran.code == 1 and "cannot be read" in ran.err and len(ran.err.splitlines()) == 2


def test_a_name_that_is_a_secret_is_not_stored(profile: Any, folders: tuple[str, str], tmp_path: Path) -> None:
    token = "hf_" + "aB3dE" * 7
    Path(folders[1]).rename(tmp_path / token)
    profile("sweep", "-m", folders[0], *FAST)
    profile("sweep", "-m", str(tmp_path / token), *FAST)
    with Store.open() as store:
        assert token.encode() not in b"".join(
            part.read_bytes() for part in store.path.parent.glob(f"{store.path.name}*")
        )
        (row, _) = store.rows()
    assert row.case.model not in (token, "good1")
