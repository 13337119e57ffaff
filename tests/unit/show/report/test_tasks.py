"""The report's section on tasks: what it says of rates that lack failed requests, and of which models differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fakes.reported import measured

from profiler.results.measurement import Measurement
from profiler.show.report import tasks
from profiler.show.report.blocks import Listing, Table
from profiler.show.report.selection import machines


def row(model: str, outcomes: list[str], name: str = "profile-tasks-2") -> Measurement:
    """A row of a server's model whose tasks, all of one kind, ended like this."""
    count = len(outcomes)
    stored: dict[str, Any] = {
        "set": name,
        "hash": name,
        "kind": ["code"] * count,
        "name": list(map(str, range(count))),
        "outcome": outcomes,
        "reason": [None] * count,
    }
    found = measured(model=model, backend="endpoint", device="remote", options=f"prompt=tasks:{name} server=ollama")
    return replace(found, serving={"tasks": stored})


def blocks(*rows: Measurement) -> tuple[list[Table], list[str]]:
    (section,) = tasks.sections(machines(rows))
    tables = [each for each in section.blocks if isinstance(each, Table)]
    return tables, [item for each in section.blocks if isinstance(each, Listing) for item in each.items]


def test_failed_requests_have_a_column_and_a_caution() -> None:
    steady, late = ["passed"] * 35 + ["wrong"] * 15, ["passed"] * 18 + ["wrong"] * 2 + ["failed"] * 30
    (table,), lines = blocks(row("steady", steady), row("times-out", late))
    assert [head.title for head in table.columns] == ["model", "setting", "passed", "all", "code", "cut", "failed"]
    assert [(cells[0], cells[2], cells[-1]) for cells in table.rows] == [
        ("steady", "35 of 50", "0"),
        ("times-out", "18 of 20", "30"),
    ]
    assert table.caption == "profile-tasks-2: 50 tasks with exact checkers"
    assert lines[0].startswith("times-out: 30 of 50 tasks have no answer that could be checked.")


def test_models_are_compared_in_the_words_of_the_table_of_a_run() -> None:
    _, lines = blocks(row("good", ["passed"] * 8), row("poor", ["wrong"] * 8))
    assert lines == ["tasks: both passed 0, only good 8, only poor 0: they differ (p = 0.0078)"]


def test_rows_of_an_older_set_have_a_table_of_their_own_and_are_not_compared() -> None:
    tables, lines = blocks(row("good", ["passed"] * 8), row("poor", ["wrong"] * 8, "profile-tasks-1"))
    assert [table.caption.partition(":")[0] for table in tables if table.caption] == [
        "profile-tasks-2",
        "profile-tasks-1",
    ]
    assert lines == []
