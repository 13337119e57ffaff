from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.reports import table
from profiler.reports.base import figure, rate_cell
from profiler.results.measurement import Caution, Measurement, Sample


def test_usual_rows_fit_their_width(measurements):
    for width in (120, 100, 90):
        text = table.render("261124-093015", measurements, width)
        assert max(map(len, text.splitlines())) <= width


def test_the_columns_of_least_worth_go_first_and_the_rates_stay(measurements):
    def titles(width):
        return next(line for line in table.render("r", measurements, width).splitlines() if "quant" in line).split()

    widest, narrow, least = titles(200), titles(115), titles(10)
    assert "reps" in widest and "cache" in widest
    assert "reps" not in narrow and "peak" in narrow
    assert least == ["quant", "context", "batch", "prefill", "t/s", "decode", "t/s", "outcome", "notes"]


def test_a_long_model_name_wraps_and_costs_no_column(measurements):
    long = [replace(m, case=replace(m.case, model="very-" * 39)) for m in measurements]
    text = table.render("r", long)
    assert max(map(len, text.splitlines())) <= 120
    assert "TTFT" in text


def test_rows_are_grouped_by_model_in_the_order_models_come(measurements):
    lines = table.render("r", measurements).splitlines()
    names = [line for line in lines if line in ("gemma-3-270m", "qwen3.5-0.8b")]
    assert names == ["gemma-3-270m", "qwen3.5-0.8b"]
    assert len([line for line in lines if line.startswith("  ") and not line.startswith("    ")]) == 1 + 8


def test_two_models_of_one_name_are_two_groups(measurements):
    twin = replace(measurements[0], case=replace(measurements[0].case, model_id="other"))
    lines = table.render("r", [measurements[0], twin]).splitlines()
    assert lines.count("gemma-3-270m") == 2


def test_every_reason_is_shown_in_words_with_its_case(measurements):
    text = " ".join(table.render("r", measurements).split())
    for m in measurements:
        if m.outcome != "ok":
            assert f"{m.outcome}: {m.reason} ({m.case.label})" in text


def test_a_caution_is_said_once_with_its_cases_and_the_option_that_helps(measurements):
    shared = Caution("x", "the clock was throttled", "--cooldown 10")
    rows = [replace(m, cautions=(shared, shared)) for m in measurements]
    text = " ".join(table.render("r", rows).split())
    assert text.count("the clock was throttled") == 1
    assert "the clock was throttled; try --cooldown 10 (all cases)" in text


def test_a_note_names_few_cases_and_counts_the_rest(measurements):
    shared = Caution("x", "throttled")
    rows = [
        replace(measurements[0], case=replace(measurements[0].case, context=i), cautions=(shared,))
        for i in range(1, 8)
    ]
    text = " ".join(table.render("r", [*rows, measurements[3]]).split())
    assert "throttled (fp32 c=1 b=1, fp32 c=2 b=1," in text
    assert "c=4 b=1 and 3 more)" in text


def test_lines_of_a_reason_stay_words_apart(measurements):
    row = replace(measurements[4], reason="first line\nsecond line")
    assert "oom: first line second line" in table.render("r", [row])


def test_a_run_without_rows_is_said():
    assert table.render("261124-093015", []) == "run 261124-093015: no rows\n"


@pytest.mark.parametrize(
    ("value", "relative_half", "shown"),
    [
        (1234.5, None, "1,200"),  # once: two digits
        (1234.5, 0.0001, "1,234"),  # never more than four
        (1234.5, 0.04, "1,230"),  # ± 49: tens
        (1234.5, 0.4, "1,200"),  # ± 494: hundreds
        (12.345, 0.01, "12.35"),  # ± 0.12: hundredths, as the leading digit is 1
        (12.345, 0.05, "12.3"),  # ± 0.62: tenths
        (0.012345, 0.05, "0.0123"),
        (50.0, 3.0, "50"),
    ],
)
def test_a_figure_has_no_more_digits_than_its_interval_supports(value, relative_half, shown):
    assert figure(value, relative_half) == shown


def test_rate_of_a_phase_that_was_not_measured_is_unknown_not_zero(measurements):
    synthetic_fill = measurements[3]
    assert rate_cell(synthetic_fill, "prefill") == "–"
    assert rate_cell(synthetic_fill, "decode") != "–"


def test_rate_says_the_longer_arm_of_its_interval(measurements):
    six = tuple(Sample("decode", 16 / rate, 16) for rate in (98.0, 99.0, 100.0, 100.0, 101.0, 104.0))
    measurement: Measurement = replace(measurements[0], samples=six)
    assert rate_cell(measurement, "decode") == "100 ±4%"
