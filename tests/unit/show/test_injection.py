"""Text from outside reaches every format as text: no control, no markup, no formula, no secret, no broken row."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import unicodedata

import pytest
from fakes.unseen import unseen

from profiler import registry
from profiler.gate import page
from profiler.show import compare
from profiler.show import output as show_output
from profiler.show.output import rendered

CANARY = "C4naryC4nary"


@pytest.mark.parametrize("output", registry.names("show.writers"))
def test_no_control_character_no_secret_and_no_broken_encoding(output, hostile_rows):
    text, _ = rendered(output, "261124-093015", hostile_rows)
    if len({line.count("\t") for line in text.splitlines()}) == 1:  # tabs between columns, and in no cell
        text = text.replace("\t", " ")
    assert unseen(text) == []
    assert CANARY not in text
    text.encode("utf-8")


def test_json_rows_hold_the_name_itself(hostile, hostile_rows):
    for output in ("json", "jsonl"):
        text, _ = rendered(output, "r", hostile_rows)
        rows = json.loads(text) if output == "json" else [json.loads(line) for line in text.splitlines()]
        assert len(rows) == 3
        expected = "[redacted]" if CANARY in hostile else hostile
        assert rows[0]["case"]["model"] == rows[2]["reason"] == expected


def runs_as_formula(cell: str) -> bool:
    """Whether a spreadsheet may run it: some look past what is not seen, and some know the wide signs."""
    seen = "".join(char for char in cell if unicodedata.category(char) not in ("Cc", "Cf"))
    return unicodedata.normalize("NFKC", seen).lstrip().startswith(("=", "+", "-", "@", "\u2212"))


@pytest.mark.parametrize("command", ["listing", "compare", "gate"])
def test_every_writer_of_csv_has_the_one_guard(command, hostile):
    rows = [{"name": hostile, "list": [hostile], "figure": -1.5}]
    if command == "compare":
        rows = [compare._clean(row, "csv") for row in rows]
    elif command == "gate":
        rows = [page._row(row) for row in rows]
    (_, cells) = csv.reader(io.StringIO(show_output.render(rows, dict, "csv")))
    assert not runs_as_formula(cells[0])
    assert cells[2] == "-1.5"


def test_csv_has_as_many_cells_as_its_header_and_no_formula(hostile_rows):
    text, _ = rendered("csv", "r", hostile_rows)
    rows = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in rows} == {len(rows[0])} and len(rows) == 4
    assert not [cell for row in rows[1:] for cell in row if runs_as_formula(cell)]


def test_csv_and_table_keep_a_name_that_looks_like_a_number(measurements):
    from dataclasses import replace

    for name in ("1e5", "0123"):
        rows = [replace(measurements[0], case=replace(measurements[0].case, model=name, quant=name))]
        assert name in rendered("table", "r", rows)[0].splitlines()
        for output in ("table", "md", "csv"):
            assert len(re.findall(rf"\b{name}\b", rendered(output, "r", rows)[0])) >= 2


def test_a_table_has_one_line_a_case(hostile_rows):
    text, _ = rendered("table", "r", hostile_rows)
    assert len([line for line in text.splitlines() if re.search(r" (ok|failed)\b +\d", line)]) == 3


def test_markdown_rows_keep_their_cells_and_hold_no_active_markup(hostile_rows):
    text, _ = rendered("md", "r", hostile_rows)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert not re.search(r"<|https?://|www\.|@", text)
    assert not re.search(r"(?<!\\)[`#\[\]~$]", html.unescape(text).replace("\\\\", ""))
