"""Whatever a row, a store, a baseline or a scenario holds: refused in words, or all that is made of it works."""

from __future__ import annotations

import copy
import json
import math
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.commands import accuracy
from profiler.cost.learned import PLAIN_VERSION
from profiler.errors import ProfileError
from profiler.gate import baseline
from profiler.results import comparison, encoding, reading
from profiler.results.encoding import decode, encode
from profiler.results.measurement import DecodePath, Energy, Measurement, Memory, PhaseEnergy
from profiler.results.row import dumps, row
from profiler.results.store import Store
from profiler.run import grid
from profiler.run.prompts import prompts
from profiler.show import compare as show_compare
from profiler.show import output as show_output
from profiler.show.output import rendered
from profiler.show.report import page as report_page
from profiler.show.report import quality
from profiler.show.writers import md
from profiler.show.writers import table as writers_table

QUICK = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NASTY = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            "",
            "x",
            "cuda:x",
            "fp16",
            "nf4",
            "graph",
            "skipped",
            "é\u202e\ud800",
            "q" * 70_000,
            [],
            {},
            [[]],
            {"a": {}},
            ["x"],
            [1, None],
        ),
        *(0, -1, -4, 1, 2**31, 2**53, 2**63, 10**30, 10**200, 1.5, -0.0, 1e-9, 1e-320, 1e18, 1e308),
        *(math.nan, math.inf, -math.inf),
    ]
)
FIGURE = {"value": 1.0, "low": 0.5, "high": 2.0, "basis": "measured"}


def full(make: Any) -> Measurement:
    """A row with every part that a row can have."""
    energy = PhaseEnergy(3, 30.0, 30.0, 384, counter_j=300.0, power_j=310.0)
    return replace(
        make(),
        memory=Memory(**dict.fromkeys((name for name in Memory.__dataclass_fields__), 2**20)),
        energy=Energy("nvml-counter", "gpu-board", energy, energy, idle_w=5.0),
        stopped={"prefill": "steady", "decode": "steady"},
        load_s=1.0,
        threads=2,
        decode_path=DecodePath("eager", "because", cache_needed_bytes=5, cache_read_bytes=9),
        expected={
            **dict.fromkeys(("peak_bytes", "prefill_tps", "decode_tps"), FIGURE),
            "between": {"prefill": 0.01, "decode": 0.02, "basis": "prior"},
            "ceiling_s": {"prefill": 0.1, "step": 0.01},
            "decode_bound": "bandwidth",
            "plain": {
                **dict.fromkeys(("peak_bytes", "rest_bytes", "prefill_tps", "decode_tps"), FIGURE),
                "parameters": 1,
                "version": PLAIN_VERSION,
                "calibrated": False,
                "bytes_s": 1.0,
                "flop_s": 1.0,
            },
        },
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, child in value.items():
            yield from places(child, (*path, name))
    elif isinstance(value, list):
        for number, child in enumerate(value[:3]):
            yield from places(child, (*path, number))


def changed(whole: Any, data: st.DataObject) -> Any:
    """``whole`` with up to three of its parts replaced, taken out or joined by another."""
    whole = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(list(places(whole))))
        holder = whole
        for step in way:
            holder = holder[step]
        what = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if what == "remove":
            del holder[last]
        elif what == "add" and isinstance(holder, dict):
            holder["more"] = copy.deepcopy(data.draw(NASTY))  # or one may be put into itself
        else:
            holder[last] = copy.deepcopy(data.draw(NASTY))
        if not list(places(whole)):
            break
    return whole


def use(rows: list[Measurement]) -> None:
    """Everything that is made of rows."""
    compare = comparison.compare(rows, rows)
    for output in show_compare.FORMATS:
        show_compare.render(compare, ("a", "b"), output).encode()
    for output in ("table", "md", "csv", "json", "jsonl", "llama-bench"):
        rendered(output, "r", rows)[0].encode()
    page = report_page.page(rows, "r")
    writers_table.terminal(page).encode()
    md.markdown(page, {}).encode()
    found = accuracy.with_learned(accuracy.rows(rows), rows)
    accuracy.summary(found)
    for output in show_output.FORMATS:
        show_output.render(found, lambda row: accuracy._cells(row, True, True), output).encode()


def accepted(read: Callable[[], list[Measurement]]) -> bool:
    try:
        rows = read()
    except ProfileError as error:
        assert "\n" not in error.message and len(error.message) < 1500
        return False
    use(rows)
    return True


@QUICK
@given(st.data())
def test_any_row_of_a_file(tmp_path: Path, make: Any, data: st.DataObject) -> None:
    whole = json.loads(dumps(row("r", full(make))))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(changed(whole, data)) + "\n")
    accepted(lambda: reading.read(path))


@QUICK
@given(st.data())
def test_any_text_of_a_file_of_rows(tmp_path: Path, make: Any, data: st.DataObject) -> None:
    text = dumps(row("r", full(make))).encode()
    at, piece = data.draw(st.integers(0, len(text))), data.draw(st.binary(max_size=6))
    (tmp_path / "rows.jsonl").write_bytes(text[:at] + piece + text[at + data.draw(st.integers(0, 9)) :])
    accepted(lambda: reading.read(tmp_path / "rows.jsonl"))


@pytest.fixture
def stored(tmp_path: Path, make: Any, environment: Any) -> Path:
    path = tmp_path / "theirs.sqlite"
    with Store.open(path) as store:
        store.append(store.start_run(["sweep"], environment), full(make))
    return path


@QUICK
@given(st.data())
def test_any_content_of_a_store(stored: Path, data: st.DataObject) -> None:
    table = data.draw(st.sampled_from(["measurements", "measurements", "environments"]))
    db = sqlite3.connect(stored, isolation_level=None)
    ((text,),) = db.execute(f"SELECT content FROM {table}").fetchall()
    new = json.dumps(changed(json.loads(text), data))
    try:
        db.execute(f"UPDATE {table} SET content = ?", (new,))
        accepted(lambda: reading.read(stored))
    finally:  # the next example begins with it
        db.execute(f"UPDATE {table} SET content = ?", (text,))
        db.close()


def test_what_is_fuzzed_is_good_before_it_is_changed(stored: Path, tmp_path: Path, make: Any) -> None:
    (tmp_path / "rows.jsonl").write_text(dumps(row("r", full(make))))
    assert accepted(lambda: reading.read(stored))
    assert accepted(lambda: reading.read(tmp_path / "rows.jsonl"))


@settings(QUICK, max_examples=60)
@given(st.data())
def test_any_bytes_in_the_file_of_a_store(stored: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(stored.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + 4] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path / "broken.sqlite"
    path.write_bytes(whole)
    accepted(lambda: reading.read(path))


@QUICK
@given(st.data())
def test_any_baseline(tmp_path: Path, make: Any, environment: Any, data: st.DataObject) -> None:
    session = baseline.BaselineSession("2026-11-24T09:30:15", "cpu", {"prefill": (1.0, 1.1), "decode": (0.5,)}, 0.01)
    entry = baseline.BaselineEntry(make().case, {"weights_bytes": 1000}, environment, 2, (session,))
    baseline.write(tmp_path / "good.json", baseline.Baseline({"cell": entry}))
    whole = json.loads((tmp_path / "good.json").read_text())
    path = tmp_path / "b.json"
    path.write_text(json.dumps(changed(whole, data)))
    try:
        found = baseline.read(path)
    except ProfileError as error:
        assert "\n" not in error.message
        return
    baseline.write(path, found)


TOML = st.sampled_from(
    [
        "1",
        "[1, 2]",
        '"1k-4k*2"',
        '["nf4"]',
        "1.5",
        "nan",
        "-inf",
        "true",
        "1979-05-27",
        "[[1]]",
        "{}",
        "0",
        '"\\u0000"',
    ]
)
NAMES = [*sorted(grid.KNOWN), "other"]


@QUICK
@given(st.dictionaries(st.sampled_from(NAMES), TOML) | st.text(max_size=40))
def test_any_scenario_and_any_scores(tmp_path: Path, content: dict[str, str] | str) -> None:
    lines = content if isinstance(content, str) else "".join(f"{name} = {value}\n" for name, value in content.items())
    path = tmp_path / "s.toml"
    path.write_text(lines, encoding="utf-8", errors="replace")
    named = str(path)
    reads = (lambda: grid.load(named), lambda: grid.source(named), lambda: prompts(named), lambda: quality.read(path))
    for read in reads:
        try:
            read()
        except ProfileError as error:
            assert "\n" not in error.message


@QUICK
@given(st.data())
def test_what_is_decoded_at_once_is_what_a_look_at_each_field_takes(make: Any, data: st.DataObject) -> None:
    whole = json.loads(encode(full(make))[0])
    content = json.dumps(changed(whole, data) if data.draw(st.booleans()) else whole)
    steps = encode(full(make))[1]
    with patch.object(encoding, "typed_rows", return_value=None):
        slowly = outcome(lambda: decode([(content, steps, {})]))
    assert outcome(lambda: decode([(content, steps, {})])) == slowly
    assert (encoding.typed_rows(f"[{content}]") is not None) or content != json.dumps(whole)


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (TypeError, KeyError, ValueError, AttributeError, struct.error):
        return "refused"  # which of several faults is found first may differ
