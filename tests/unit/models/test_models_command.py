"""``profile models``: true rows in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import CliRunner

from profiler.commands.models import models
from profiler.models import hub


def output(kind: str) -> str:
    result = CliRunner().invoke(models, ["-o", kind], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_rows_hold_whole_numbers_for_the_whole_catalog() -> None:
    rows = json.loads(output("json"))
    assert [row["model"] for row in rows] == list(hub.names())
    e2b = next(row for row in rows if row["model"] == "gemma-4-e2b")
    assert e2b == {
        "model": "gemma-4-e2b",
        "parameters": 4628569379,
        "active_parameters": 2279759139,
        "layers": {"sliding": 12, "full": 3, "shared sliding": 16, "shared full": 4},
        "cache_bytes_per_token": 6144,
        "window_bytes_per_sequence": 6291456,
        "state_bytes_per_sequence": 0,
        "max_context": 131072,
    }
    assert [json.loads(line) for line in output("jsonl").splitlines()] == rows


def test_csv_has_a_row_a_model() -> None:
    rows = list(csv.DictReader(io.StringIO(output("csv"))))
    assert [row["model"] for row in rows] == list(hub.names())
    assert all(int(row["parameters"]) >= int(row["active_parameters"]) > 0 for row in rows)


@pytest.mark.parametrize("kind", ["table", "md"])
def test_people_read_units_and_layers_by_kind(kind: str) -> None:
    text = output(kind)
    line = next(line for line in text.splitlines() if "qwen3.5-35b-a3b" in line)
    for piece in ("34.7 B", "2.95 B", "30 gated delta + 10 full", "20.0 KiB", "61.9 MiB", "262,144"):
        assert piece in line
    assert "28 sliding + 7 full, 20 shared" in next(line for line in text.splitlines() if "gemma-4-e2b" in line)


def test_the_table_fits_a_usual_terminal() -> None:
    assert max(map(len, output("table").splitlines())) <= 120


def test_help_says_what_the_columns_mean() -> None:
    result = CliRunner().invoke(models, ["--help"])
    assert result.exit_code == 0 and "recurrent state" in result.stdout
