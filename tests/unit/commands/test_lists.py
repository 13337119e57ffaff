"""`profile devices` and `profile scenarios`."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from profiler import devices
from profiler.commands import listing
from profiler.plan import scenario


def test_the_first_device_listed_is_the_default(profile: Any) -> None:
    rows = json.loads(profile("devices", "-o", "json").out)
    assert rows[0]["device"] == devices.find().name
    assert rows[-1]["device"] == "cpu"
    assert rows[-1]["memory_bytes"] >= rows[-1]["free_bytes"] > 0


def test_a_kind_that_is_not_here_is_a_reason_on_stderr(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "unavailable", lambda: {"cuda": "no driver"})
    ran = profile("devices")
    assert ran.code == 0
    assert ran.err == "no cuda device: no driver\n"
    assert "no driver" not in ran.out


def test_the_catalog_gives_a_source_for_its_figures(profile: Any) -> None:
    rows = json.loads(profile("devices", "--catalog", "-o", "json").out)
    assert len(rows) > 60
    for row in rows:
        assert row["sources"] and all(row["sources"].values()), row["device"]
        assert row["standing"], row["device"]


@pytest.mark.parametrize("command", [["devices"], ["devices", "--catalog"], ["scenarios"]])
@pytest.mark.parametrize("output", listing.FORMATS)
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
    assert [row["name"] for row in rows] == scenario.names()
    assert all(row["description"] for row in rows)


def test_a_list_escapes_what_would_break_a_cell() -> None:
    rows = [{"name": "a|b"}]
    assert "a\\|b" in listing.render(rows, lambda row: {"name": row["name"]}, "md")
    assert "a|b" in listing.render(rows, lambda row: {"name": row["name"]}, "table")


def test_an_empty_list_is_empty_in_every_format() -> None:
    for output in listing.FORMATS:
        assert listing.render([], dict, output).strip() in ("", "[]")
