from __future__ import annotations

import csv
import io
import json
import math
import statistics
import subprocess
import sys

import pytest

from profiler.results.measurement import Caution
from profiler.results.row import dumps, row
from profiler.show import endpoint
from profiler.show.report.blocks import Listing
from profiler.show.writers import csv as csv_report
from profiler.show.writers import jsonl

CONTRACT = {
    "case": {"model", "weights", "quant", "dtype", "device", "backend", "path", "context", "batch", "steps", "fill"},
    "prefill": {"tokens", "seconds", "tps", "tps_low", "tps_high"},
    "decode": {"tokens", "seconds", "tps", "tps_low", "tps_high"},
    "memory": {"weights_bytes", "cache_bytes", "prefill_peak_bytes", "decode_peak_bytes", "process_peak_bytes"},
}
TOP = {
    "schema",
    "run",
    "key",
    "outcome",
    "reason",
    "energy",
    "ceiling",
    "predicted",
    "cautions",
    "environment",
    *CONTRACT,
}


def test_a_row_has_every_field_of_the_contract(measurements):
    for measurement in measurements:
        content = row("r", measurement)
        assert content.keys() >= TOP
        for name, fields in CONTRACT.items():
            assert content[name] is None or content[name].keys() >= fields


def test_a_rate_is_the_median_of_tokens_over_seconds(measurements):
    for measurement in measurements[:2]:
        for phase in ("prefill", "decode"):
            content = row(None, measurement)[phase]
            median = statistics.median(content["tokens"] / s for s in content["seconds"])
            assert content["tps"] == pytest.approx(median, rel=1e-11)
            assert content["tps_low"] < content["tps"] < content["tps_high"]


def test_what_was_not_measured_is_null(measurements):
    assert row("r", measurements[3])["prefill"] is None
    assert row("r", measurements[3])["decode"] is not None
    assert row("r", measurements[2])["memory"]["weights_bytes"] is None
    assert row("r", measurements[2])["decode"]["tps_low"] is None
    assert row("r", measurements[4])["decode"] is None
    assert row("r", measurements[0])["energy"] is None


def test_nan_is_an_error_and_never_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps({"tps": math.nan})


def test_a_row_survives_a_round_trip_and_is_one_line(measurements):
    lines = jsonl.render("r", measurements).splitlines()
    assert [json.loads(line) for line in lines] == [row("r", measurement) for measurement in measurements]


def test_csv_holds_the_figures_of_the_rows_and_leaves_unknown_empty(measurements):
    lines = list(csv.DictReader(io.StringIO(csv_report.render("r", measurements))))
    for line, measurement in zip(lines, measurements, strict=True):
        content = row("r", measurement)
        assert line["model"] == content["case"]["model"] and line["context"] == str(content["case"]["context"])
        for phase in ("prefill", "decode"):
            assert line[f"{phase}_tps"] == (str(content[phase]["tps"]) if content[phase] else "")
        assert line["weights_bytes"] == str(content["memory"]["weights_bytes"] or "")
    assert lines[0]["ttft_s"] == "0.1041"


def test_report_modules_named_as_the_stdlib_do_not_hide_it():
    code = (
        "import profiler.show.writers.json as a, profiler.show.writers.csv as b, json, csv;"
        "assert json.dumps and csv.writer and b.csv is csv and a.__name__ == 'profiler.show.writers.json'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_notes_that_differ_only_in_figures_are_one_note_with_the_range() -> None:
    notes = endpoint._Notes()

    def marks(failure: str | None, *texts: str) -> str:
        return notes.marks(failure, [Caution("a-code", text) for text in texts])

    assert marks(None, "a chunk holds 1.5 tokens", "the client was late") == "1,2"
    assert marks("HTTP 500: no", "a chunk holds 1.9 tokens") == "3,1"
    assert marks("HTTP 404: no", "a chunk holds 1,012 tokens", "of 12, vllm0.19 and 1.5s") == "4,1,5"
    (listing,) = notes.blocks()
    assert isinstance(listing, Listing)
    assert listing.items == (
        "[1] a chunk holds 1.5–1,012 tokens", "[2] the client was late", "[3] HTTP 500: no", "[4] HTTP 404: no",
        "[5] of 12, vllm0.19 and 1.5s",
    )  # fmt: skip
