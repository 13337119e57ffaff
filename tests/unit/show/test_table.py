from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.reported import measured, scored

from profiler.case import Case
from profiler.results.measurement import Caution, Measurement, Sample
from profiler.show.columns import figure, heading, rate_cell, token_cell
from profiler.show.notes import few, notes
from profiler.show.output import rendered, shortened_cells
from profiler.show.writers import table


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
    assert least == ["quant", "context", "batch", "decode", "t/s", "TTFT", "peak", "notes"]


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
    assert [line for line in lines if line.startswith("gemma-3-270m #")] == [
        "gemma-3-270m #g3",
        "gemma-3-270m #other",
    ]


def test_every_reason_is_shown_in_words_with_its_case(measurements):
    text = " ".join(table.render("r", measurements).split())
    for m in measurements:
        if m.outcome != "ok":
            assert f"{m.outcome}: {m.reason} ({m.case.label})" in text


def test_a_caution_is_shown_once_with_its_cases_and_the_option_that_helps(measurements):
    shared = Caution("x", "the clock was throttled", "--cooldown 10")
    rows = [replace(m, cautions=(shared, shared)) for m in measurements]
    text = " ".join(table.render("r", rows, most_notes=None).split())
    assert text.count("the clock was throttled") == 1
    assert "the clock was throttled; try --cooldown 10 (all cases)" in text


def test_at_most_five_notes_are_shown_and_the_rest_is_counted(measurements):
    """31 notes once stood below 12 rows. What doubts a figure comes first."""
    trifles = tuple(Caution(f"x{i}", f"trifle {letter}") for i, letter in enumerate("abcdef"))
    rows = [
        replace(measurements[0], cautions=trifles),
        replace(measurements[0], cautions=(Caution("spread", "noisy"),)),
    ]
    kept, cells = few(*notes(rows), 5)
    assert [note.text for note in kept] == ["trifle a", "trifle b", "trifle c", "trifle d", "noisy"]
    assert [note.number for note in kept] == [1, 2, 3, 4, 5] and cells == ["1 2 3 4 +2", "5"]
    text = table.render("r", rows, 80)
    assert "and 2 more notes (+): profile runs show r --notes all" in text.splitlines()
    whole = table.render("r", rows, 80, most_notes=None)
    assert "trifle f" in whole and "more note" not in whole


def test_cautions_that_differ_only_in_figures_are_one_note_with_the_range(measurements):
    rows = [
        replace(measurements[0], cautions=(Caution("x", f"other processes took {share}% of the CPU time", "-r 5"),))
        for share in (75, 79, 76)
    ]
    (note,), numbers = notes(rows)
    assert note.text == "other processes took 75–79% of the CPU time"
    assert numbers == [[1], [1], [1]] and len(note.cases) == 3


def test_mbu_and_mfu_stay_in_a_narrow_table_and_say_where_the_ceiling_is_from(measurements):
    used = {"prefill_s": 1e-3, "step_s": 1e-3, "basis": "data sheet"}
    rows = [replace(measurements[0], expected={"utilization": used}), measurements[1]]
    lines = table.render("r", rows, 80).splitlines()
    titles = next(line for line in lines if "quant" in line).split()
    assert "MBU" in titles and "MFU" in titles and "weights" not in titles
    assert max(map(len, lines)) <= 80
    assert "÷ the device's rate by its data sheet" in " ".join(" ".join(lines).split())
    assert "MBU" not in table.render("r", measurements, 80)


def test_divergences_stay_in_a_narrow_table_that_says_which_can_be_compared():
    rows = [scored(measured(), 0.02), scored(measured(context=1024), 0.03)]
    text = table.fitted("r", rows, 80, 5)
    assert "KL, nats" in text and max(map(len, text.splitlines())) <= 80
    assert "compare only rows with the same window" in " ".join(text.split())
    assert "compare only" not in table.render("r", rows[:1])


def test_rows_that_differ_only_in_options_look_different_at_eighty_columns():
    used = {"prefill_s": 1e-3, "step_s": 1e-3, "basis": "data sheet"}
    options = [f"flash-attn=on kv={kv} n-cpu-moe=4 ubatch=512" for kv in ("f16", "q8_0", "q4_0")]
    rows = [replace(measured(backend="llama.cpp", options=each), expected={"utilization": used}) for each in options]
    lines = table.fitted("r", rows, 80, 5).splitlines()
    assert "flash-attn=on n-cpu-moe=4 ubatch=512" in " ".join(lines[:2])
    assert [line.split()[1] for line in lines if line.startswith("  bf16")] == ["kv=f16", "kv=q8_0", "kv=q4_0"]
    assert max(map(len, lines)) <= 80


def test_columns_make_room_for_options_that_would_look_alike():
    used = {"prefill_s": 1e-3, "step_s": 1e-3, "basis": "data sheet"}
    settings = [(flash, kv, moe) for flash in ("on", "off") for kv in ("f16", "q8_0") for moe in (4, 12)]
    options = [f"flash-attn={flash} kv={kv} n-cpu-moe={moe} ubatch=512" for flash, kv, moe in settings]
    usual = measured(backend="llama.cpp", quant="q4_k_m")
    rows = [
        replace(usual, case=replace(usual.case, options=each), expected={"utilization": used}) for each in options
    ]
    lines = table.fitted("r", rows, 80, 5).splitlines()
    shown = [" ".join(line.split()[1:4]) for line in lines if line.startswith("  q4_k_m")]
    assert len(set(shown)) == len(rows) and all(("kv=" in each and "=4" in each) or "=12" in each for each in shown)
    assert max(map(len, lines)) <= 80
    assert "MBU" not in "".join(lines)  # there was no room for it, so nothing explains it


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        (
            ["gemma-3-270m-UD-Q4_K_XL", "gemma-3-270m-UD-Q5_K_XL"],
            ["gemma-3-…Q4_K_XL", "gemma-3-…Q5_K_XL"],
        ),
        (["fa=on kv=q8_0 ub=512", "fa=on kv=q4_0 ub=512"], ["…on kv=q8_0 ub=…", "…on kv=q4_0 ub=…"]),
        (["", "fa=on kv=q8_0 ub=512", "fa=on kv=q4_0 ub=512"], ["", "…on kv=q8_0 ub=…", "…on kv=q4_0 ub=…"]),
        (
            ["flash-attn=on n-cpu-moe=4", "flash-attn=on n-cpu-moe=12", ""],
            ["fla…=on n-c…=4", "fla…=on n-c…=12", ""],
        ),
        (["the same long text"] * 2, ["the same…ng text"] * 2),
        ([f"{'a' * 20}{x}{'b' * 30}{y}{'c' * 20}" for x in "xy" for y in "xy"], None),
        ([], []),
    ],
)
def test_texts_that_are_shortened_look_different_if_they_are(cells: list[str], shown: list[str] | None) -> None:
    found = shortened_cells(cells, 16)
    assert len(set(found)) == len(set(cells))
    assert shown is None or found == shown


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


def test_a_run_without_rows_has_a_message():
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
        (8.0, 0.4, "8.0"),  # ± 3.2: units, but a lone digit reads like a slip
    ],
)
def test_a_figure_has_no_more_digits_than_its_interval_supports(value, relative_half, shown):
    assert figure(value, relative_half) == shown


def test_rate_of_a_phase_that_was_not_measured_is_unknown_not_zero(measurements):
    synthetic_fill = measurements[3]
    assert rate_cell(synthetic_fill, "prefill") == "–"
    assert rate_cell(synthetic_fill, "decode") != "–"


def test_a_rate_shows_the_longer_half_of_its_interval(measurements):
    six = tuple(Sample("decode", 16 / rate, 16) for rate in (98.0, 104.0, 99.0, 101.0, 100.0, 100.0))
    measurement: Measurement = replace(measurements[0], samples=six)
    assert rate_cell(measurement, "decode") == "100 ±4%"


def timed(measurement: Measurement, *seconds: float, reps: int | None = None) -> Measurement:
    """Decode repetitions of 16 tokens that took so long."""
    samples = tuple(Sample("decode", taken, 16) for taken in seconds)
    return replace(measurement, samples=samples, cautions=(), asked={"reps": reps or len(samples)})


def test_an_interval_that_says_nothing_is_shown_as_too_noisy_and_noted(measurements):
    odd = timed(measurements[0], 16 / 17, 16 / 30)
    assert rate_cell(odd, "decode") == "too noisy: 17–30"
    assert token_cell(odd) == "too noisy"
    (note,), (numbers,) = notes([odd])
    assert note.text == "decode: repetitions differ too much to compare (2 of them): free the machine"
    assert (note.help, numbers) == ("-r 5", [1])
    text = " ".join(table.render("r", [odd]).split())
    assert (
        "±: distance from the median to the farther end of its 95% interval; too noisy: the interval exceeds ±50%"
        in text
    )


def test_two_repetitions_that_are_close_are_too_few(measurements):
    near = timed(measurements[0], 16 / 21, 16 / 23)
    assert rate_cell(near, "decode") == "too few: 21–23"
    assert "too few: the interval exceeds ±50%" in " ".join(table.render("r", [near]).split())


def test_time_per_token_is_the_inverse_of_the_rate_beside_it(measurements):
    samples = tuple(Sample("decode", seconds, 16, step_s=(0.001,) * 16) for seconds in (0.12, 0.123, 0.126))
    row = replace(measurements[0], samples=samples, cautions=())
    assert rate_cell(row, "decode").split()[0] == "130"
    assert token_cell(row) == "7.7"


def test_repetitions_that_a_limit_cut_short_need_a_longer_one(measurements):
    (note,), _ = notes([timed(measurements[0], 1.0, 2.0, reps=5)])
    assert note.help == "a longer --max-phase"


def test_an_interval_of_up_to_half_the_figure_is_shown_as_plus_minus(measurements):
    usual = timed(measurements[0], 1.0, 1.04)
    assert rate_cell(usual, "decode") == "16 ±28%"
    assert notes([usual]) == ([], [[]])
    assert "too noisy" not in table.render("r", [usual])


def test_the_reps_column_stays_if_repetitions_differ_from_the_request(measurements):
    full, cut = timed(measurements[0], 1.0, 1.01, 1.0), timed(measurements[0], 1.0, 1.01, reps=3)
    assert "reps" not in table.render("r", [full], 60)
    assert "reps" in table.render("r", [full, cut], 80)


def test_repetitions_go_before_ttft_and_peak_if_a_case_failed(measurements):
    rows = [timed(measurements[0], 1.0, 1.01, reps=3), *measurements[1:]]
    titles = next(line for line in table.render("r", rows, 80).splitlines() if "quant" in line)
    assert "TTFT" in titles and "peak" in titles and "notes" in titles and "reps" not in titles


def test_the_heading_has_the_memory_of_the_device_and_what_is_computed_in(measurements):
    parts = heading("r", measurements[:2])
    assert parts == [
        "run r", "AMD EPYC 7763 (64.0 GiB)", "real weights", "compute fp32", "cpu", "hf", "eager", "16 steps",
    ]  # fmt: skip
    assert "synthetic fill" in heading("r", [measurements[3]])


def test_figures_of_the_fake_backend_are_called_fake(measurements):
    made_up = replace(measurements[0], case=replace(measurements[0].case, backend="fake"))
    assert heading("r", [measurements[1], made_up])[0] == "FAKE FIGURES"
    assert "FAKE" not in " ".join(heading("r", measurements))


def test_a_table_for_a_terminal_follows_its_width_and_other_formats_do_not(measurements):
    for width in (90, 140):
        assert rendered("table", "r", measurements, width)[0] == table.render("r", measurements, width)
    assert rendered("table", "r", measurements, 90)[0] != rendered("table", "r", measurements, 140)[0]
    assert rendered("md", "r", measurements, 40) == rendered("md", "r", measurements)


def test_a_case_skipped_because_another_failed_refers_to_its_note(measurements):
    cause = "out of memory: 5.00 MiB more were asked for"
    dead = replace(measurements[4], reason=cause)
    skipped = replace(measurements[5], reason=f"the model ran out of memory while it was loaded: {cause}")
    for rows in ([dead, skipped], [skipped, dead]):  # the grid may have the larger case first
        text = " ".join(table.render("r", rows).split())
        assert text.count(cause) == 1
        number = 1 + rows.index(dead)
        assert f"skipped: the model ran out of memory while it was loaded: see note {number} (" in text
        assert f"[{number}] oom: {cause}" in text


def test_a_note_on_all_cases_of_a_model_names_the_model_alone() -> None:
    note = Caution("model", "text tower only")
    rows = [
        replace(sample_row(model, context), cautions=(note,) if model == "one" else ()) for model, context in GRID
    ]
    assert "text tower only (one)" in table.render(None, rows)


GRID = [("one", 128), ("one", 512), ("two", 128)]


def sample_row(model: str, context: int) -> Measurement:
    case = Case(model, model, "synthetic", "fp32", "fp32", "cpu", "hf", "eager", context, 1, 4)
    samples = (Sample("prefill", 1.0, context), Sample("decode", 1.0, 4, (0.25,) * 4))
    return Measurement(case, {}, "ok", samples=samples)


def test_models_of_one_name_are_told_apart_in_tables(measurements):
    folder = measurements[0]
    file = replace(
        folder, case=replace(folder.case, model_id="other", context=256), checkpoint={"dtypes": {"Q4_K": 1, "F32": 1}}
    )
    for output in ("table", "md"):
        text, _ = rendered(output, "r", [folder, file])
        assert text.count("gemma-3-270m (GGUF)") >= 1 and "gemma-3-270m #" not in text
        both = replace(file, checkpoint={})
        assert "gemma-3-270m #other" in rendered(output, "r", [folder, both])[0].replace("\\#", "#")
        assert "(GGUF)" not in rendered(output, "r", [file])[0]
