"""Many rows: read one after the other, shown as they are read, and no dearer each than few."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from typing import Any

import pytest

from profiler import registry
from profiler.errors import StoreError
from profiler.results import stats
from profiler.results.encoding import collector_paused
from profiler.results.measurement import Caution, Measurement, Repetitions
from profiler.results.reading import grid_places, in_grid_order
from profiler.show.output import rendered, streamed
from profiler.show.report.selection import machines

STREAMING = [name for name in registry.names("show.writers") if streamed(name, None, []) is not None]


@pytest.fixture
def filled(store: Any, make: Any, environment: Any) -> Any:
    """A run whose rows were not stored in the order of the grid."""
    run = store.start_run([], environment)
    rows = [make(context) for context in (512, 128, 1024, 256)]
    rows.append(make(64, outcome="oom", reason="no memory", samples=(), cautions=()))
    store.append_all(run, rows)
    return store


def test_rows_read_one_by_one_equal_rows_read_together_with_their_step_times(filled: Any) -> None:
    at_once = filled.rows()
    assert list(filled.iter_run()) == list(filled.newest_per_environment()) == at_once
    assert [stats.steps(row) for row in filled.iter_run()] == [stats.steps(row) for row in at_once]


def test_samples_of_a_stored_row_are_created_on_access(filled: Any, make: Any) -> None:
    row = next(filled.iter_run())
    assert isinstance(row.samples, Repetitions)
    stats.rate(row, "decode")
    assert row.samples._made is None
    assert row.samples == make(512).samples == tuple(row.samples)
    assert row.samples.of("decode") == make(512).samples.of("decode")
    assert row.to_json() == make(512).to_json()


def test_missing_step_times_are_an_error_in_words(filled: Any) -> None:
    filled._db.execute("UPDATE measurements SET steps = x'00'")
    with pytest.raises(StoreError, match="cannot be read"):
        filled.rows()


@pytest.mark.parametrize("output", STREAMING)
def test_rows_printed_one_by_one_equal_rows_printed_together(filled: Any, output: str) -> None:
    run = filled.find_run()
    at_once, _ = rendered(output, run, in_grid_order(filled.rows()))
    parts = streamed(output, run, filled.in_order(run, grid_places))
    assert parts is not None
    assert "".join(parts) == at_once
    empty = streamed(output, run, [])
    assert empty is not None and "".join(empty) == rendered(output, run, [])[0]


@pytest.mark.parametrize(
    "content", ["'{'", "x'00'", "'[]'", "json_remove(content, '$.case.context')", "json_set(content, '$.case', 1)"]
)
def test_a_row_that_cannot_be_sorted_is_an_error_in_words(filled: Any, content: str) -> None:
    filled._db.execute(f"UPDATE measurements SET content = {content} WHERE id = 2")
    with pytest.raises(StoreError, match=r"a row of .* cannot be read"):
        list(filled.in_order(filled.find_run(), grid_places))


def test_runs_are_listed_without_reading_their_rows(filled: Any) -> None:
    (run,) = filled.runs()
    assert run.outcomes == {"ok": 4, "oom": 1} and run.models == ("gemma-3-270m",)
    assert filled.runs(counted=False) == [replace(run, outcomes={}, models=())]


def test_rows_of_a_report_leave_nothing_to_the_garbage_collector(make: Any) -> None:
    rows = [make(context) for context in range(1, 300)]
    machines(rows)  # what is made once and kept
    gc.collect()
    with collector_paused():
        machines(rows)
        assert gc.collect() < len(rows)


def test_machine_readable_output_is_streamed_row_by_row() -> None:
    assert {"csv", "json", "jsonl"} <= set(STREAMING)


def test_many_rows_are_stored_all_or_none(store: Any, make: Any, environment: Any) -> None:
    run = store.start_run([], environment)
    wrong = make(256, samples=(replace(make(256).samples[0], tokens=0),))
    with pytest.raises(StoreError, match="no tokens"):
        store.append_all(run, [make(128), wrong])
    assert store.rows(run) == []
    ids = store.append_all(run, [make(128), make(256)])
    other = store.start_run([], environment)
    store.reuse(other, *ids)
    assert store.rows(other) == store.rows(run)


def test_an_environment_that_went_with_a_failed_transaction_is_stored_again(
    store: Any, make: Any, environment: Any
) -> None:
    run = store.start_run([], environment)
    changed = environment | {"python": "3.99"}
    with pytest.raises(StoreError):
        store.append("no such run", make(environment=changed))
    store.append(run, make(environment=changed))
    assert store.rows(run)[0].environment == changed


def noted(count: int, make: Any) -> list[Measurement]:
    """Rows of which each has a caution of its own, half of them a reason that another's end explains."""
    rows = []
    for number in range(count):
        row = make(number + 1, cautions=(Caution("own", f"caution of row {number}"),))
        if number % 4 == 1:
            row = replace(row, outcome="oom", reason=f"no memory for row {number}", samples=())
        elif number % 4 == 2:
            why = f"the model ran out of memory: no memory for row {number - 1}"
            row = replace(row, outcome="skipped", reason=why, samples=())
        rows.append(row)
    return rows


@pytest.mark.parametrize("output", ["table", "md"])
def test_a_table_of_many_notes_costs_each_row_what_a_short_one_does(output: str, make: Any) -> None:
    def cpu_s_a_row(count: int) -> float:
        rows = noted(count, make)
        start = time.process_time()
        text, _ = rendered(output, None, rows)
        taken = time.process_time() - start
        assert "see note" in text
        return taken / count

    cpu_s_a_row(50)
    assert cpu_s_a_row(4000) < 2 * min(cpu_s_a_row(200) for _ in range(3))
