"""Text from outside reaches every format as text: no control, no markup, no formula, no secret, no broken row."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import pytest

from profiler import registry
from profiler.reports.base import rendered

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
CANARY = "C4naryC4nary"


@pytest.mark.parametrize("output", registry.names("reports"))
def test_no_control_character_no_secret_and_no_broken_encoding(output, hostile_rows):
    text, _ = rendered(output, "261124-093015", hostile_rows)
    assert not CONTROL.search(text)
    assert CANARY not in text
    text.encode("utf-8")


def test_json_rows_hold_the_name_itself(hostile, hostile_rows):
    for output in ("json", "jsonl"):
        text, _ = rendered(output, "r", hostile_rows)
        rows = json.loads(text) if output == "json" else [json.loads(line) for line in text.splitlines()]
        assert len(rows) == 3
        expected = "[redacted]" if CANARY in hostile else hostile
        assert rows[0]["case"]["model"] == rows[2]["reason"] == expected


def test_csv_has_as_many_cells_as_its_header_and_no_formula(hostile_rows):
    text, _ = rendered("csv", "r", hostile_rows)
    rows = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in rows} == {len(rows[0])} and len(rows) == 4
    assert not [cell for row in rows[1:] for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


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
