"""What the sections of a report say of rows whose answer is known."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from fakes.reported import ENVIRONMENT, GIB, MEMORY, OTHER, ended, grid, measured, scored

from profiler.case import digest
from profiler.cost import engines
from profiler.models import families, hub
from profiler.results import energy as derived
from profiler.results.measurement import Caution, Energy, Measurement, Memory
from profiler.results.store import Run
from profiler.show.report import appendix, ceiling, charts, divergence, energy, fits, memory, quality, speed
from profiler.show.report import page as report_page
from profiler.show.report.blocks import Figures, Listing, Map, Page, Section, Table, Text
from profiler.show.report.charts import Plot
from profiler.show.report.predictions import Forecast
from profiler.show.report.quality import Score
from profiler.show.report.selection import machines

E2B = {"model": "gemma-4-e2b", "quant": "bf16", "context": 512}


def text(section: Section | Page) -> str:
    """All words of a section."""
    if isinstance(section, Page):
        return " ".join(map(text, section.sections))
    words = []
    for block in section.blocks:
        if isinstance(block, Text):
            words.append(block.text)
        elif isinstance(block, Table):
            words += [
                block.caption or "",
                *(head.title for head in block.columns),
                *(c for row in block.rows for c in row),
            ]
        elif isinstance(block, Listing):
            words += block.items
        elif isinstance(block, Figures):
            words += [block.title or "", *(figure.title for figure in block.items)]
    return " ".join(words)


def weighing(gib: float) -> Memory:
    return replace(MEMORY, weights_bytes=round(gib * GIB))


def cells(*rows) -> dict[tuple[str, str], object]:
    found = machines(rows)
    section = fits.section(found, [Forecast.of(machine) for machine in found])
    (table,) = [block for block in section.blocks if isinstance(block, Map)]
    return {(label, at): cell for label, line in table.rows for at, cell in zip(table.columns, line, strict=True)}


def e2b_bytes() -> int:
    """What the catalog's shapes say that its weights take."""
    geometry = families.geometry(hub.shipped_config("gemma-4-e2b"))
    return round(engines.find("transformers").storage(geometry, "bf16", "bf16").device_bytes)


def test_a_measured_cell_shows_the_row_and_a_predicted_one_is_marked():
    row = measured(**E2B, decode=(10.0, 10.1, 9.9), memory=replace(MEMORY, weights_bytes=e2b_bytes()))
    found = cells(row)
    here, there = found["gemma-4-e2b · bf16", "512"], found["gemma-4-e2b · bf16", "8k"]
    assert here.measured and here.value == "10.00" and here.tone == "fits" and here.detail.startswith("fits")
    assert (
        not there.measured
        and there.value.startswith("~")
        and "–" in there.span
        and there.title.startswith("predicted")
    )
    assert not found["gemma-4-e2b · nf4", "512"].measured  # a format nobody measured


def test_a_model_that_only_shares_the_name_is_not_predicted():
    found = cells(measured(**E2B, memory=replace(MEMORY, weights_bytes=e2b_bytes() // 2)))
    assert list(found) == [("gemma-4-e2b · bf16", "512")]


def test_another_decode_path_is_not_predicted_by_the_rules_of_this_one():
    sized = replace(MEMORY, weights_bytes=e2b_bytes())
    found = cells(measured(**E2B, memory=sized), measured(**E2B, memory=sized, path="graph"))
    assert found["gemma-4-e2b · bf16 eager", "8k"].value.startswith("~")
    assert found["gemma-4-e2b · bf16 graph", "8k"].value == ""


def test_a_name_alone_is_not_enough_to_predict():
    nothing = measured(**E2B, memory=replace(MEMORY, weights_bytes=None))
    assert list(cells(nothing)) == [("gemma-4-e2b · bf16", "512")]
    shapes = digest(hub.shipped_config("gemma-4-e2b"))
    same = measured(**E2B, model_id=shapes, weights="synthetic", memory=replace(MEMORY, weights_bytes=None))
    assert ("gemma-4-e2b · nf4", "8k") in cells(same)


def test_a_model_of_nobody_has_only_its_measured_cells():
    assert set(cells(measured(), measured(context=1024))) == {("m · bf16", "512"), ("m · bf16", "1k")}


def test_outcomes_stand_in_the_map_as_what_they_were():
    found = cells(
        measured(),
        ended("oom", "3 GiB of 2 GiB", context=1024),
        ended("timeout", "an hour", context=2048),
        ended("skipped", "too large", context=4096),
        measured(context=8192, decode=(1.0, 100.0)),
    )
    shown = {at: (cell.value, cell.tone) for (_, at), cell in found.items()}
    assert shown["1k"] == ("oom", "no") and shown["2k"] == ("timeout", "none")
    assert shown["4k"] == ("–", "none") and shown["8k"][0].endswith("?")


def test_curves_hold_the_medians_and_intervals_of_the_rows():
    rows = [
        measured(context=context, decode=(rate, rate * 1.1, rate * 0.9))
        for context, rate in ((512, 10.0), (1024, 8.0))
    ]
    section = speed.section(machines(rows))
    decode = next(b for b in section.blocks if isinstance(b, Figures) and b.title == "Decode over context")
    points = decode.items[0].plot.marks
    assert [(point.x, point.y) for point in points] == [(512, pytest.approx(10.0)), (1024, pytest.approx(8.0))]
    assert all(point.low < point.y < point.high for point in points)
    assert "There is no chart of decode over batch size" in text(section)


def test_a_single_repetition_has_no_bar():
    rows = [measured(context=context, decode=(5.0,)) for context in (512, 1024)]
    points = next(
        b for b in speed.section(machines(rows)).blocks if isinstance(b, Figures) and "Decode" in (b.title or "")
    )
    assert [(point.low, point.high) for point in points.items[0].plot.marks] == [(None, None), (None, None)]


def test_parts_of_memory_sum_to_the_peak_or_are_not_shown():
    found = memory.parts(MEMORY)
    assert found is not None and sum(found.values()) == MEMORY.prefill_peak_bytes
    assert memory.parts(replace(MEMORY, baseline_bytes=None)) is None
    assert memory.parts(replace(MEMORY, weights_bytes=9 * GIB)) is None  # more than the peak: a counter is wrong
    assert memory.parts(Memory()) is None


def test_a_breakdown_that_is_missing_has_the_reason_that_is_true_of_its_rows():
    llama = measured(backend="llama.cpp", memory=replace(MEMORY, baseline_bytes=None))
    said = text(report_page.page([llama]))
    assert "rows of llama.cpp do not say how much of the peak is framework." in said
    assert "the parts that are known exceed the peak" in text(
        report_page.page([measured(memory=replace(MEMORY, weights_bytes=9 * GIB))])
    )


def test_models_without_a_breakdown_are_named_beside_the_charts_of_others():
    llama = measured(model="file", backend="llama.cpp", memory=replace(MEMORY, baseline_bytes=None))
    said = text(report_page.page([measured(), llama]))
    assert "no breakdown of memory for file: rows of llama.cpp do not say how much of the peak is framework." in said
    assert "pale" not in said and "Short line" not in said and "Dashed line: memory of the device" not in said


def test_a_breakdown_of_one_context_is_over_quantizations():
    rows = [measured(quant=quant, memory=replace(MEMORY, load_peak_bytes=GIB)) for quant in ("bf16", "nf4")]
    section = memory.section(machines(rows), [Forecast.of(machines(rows)[0])])
    (figure,) = section.blocks[0].items
    assert figure.title.startswith("m at 512 tokens")
    assert [label for _, label in figure.plot.x.ticks] == ["bf16", "nf4"] and figure.plot.x.title == ""
    assert "nf4: weights 2.00 GiB" in [mark.said for mark in figure.plot.marks]
    assert "Short line: peak while loading." in text(section)


def test_the_cache_is_shown_by_kind_of_layer_where_it_was_measured_so():
    split = {"growing_cache_bytes": GIB // 8, "window_cache_bytes": GIB // 8, "recurrent_bytes": 0}
    own = {"framework_bytes": GIB, "prefill_cache_bytes": GIB // 2, "prefill_activation_bytes": GIB}
    found = memory.parts(replace(MEMORY, **split, **own, phases_process_bytes=5 * GIB))
    assert found is not None and sum(found.values()) == 5 * GIB
    assert found["growing cache"] == GIB // 8 and found["window cache"] == 3 * GIB // 8  # with what prefill retains
    assert found["framework"] == GIB and found["working memory"] == 5 * GIB - 3 * GIB - GIB // 2


def limit_lines(*rows) -> tuple[str, int]:
    found = machines(rows)
    section = memory.section(found, [Forecast.of(machine) for machine in found])
    (figure,) = [figure for block in section.blocks if isinstance(block, Figures) for figure in block.items]
    return figure.title, len([line for line in figure.plot.lines if line.dashed])


def test_the_limit_is_drawn_where_it_is_in_sight_and_named_where_not():
    near = ENVIRONMENT | {"device": ENVIRONMENT["device"] | {"memory_bytes": 8 * GIB}}
    assert limit_lines(measured(environment=near)) == ("m bf16, of 8.00 GiB", 1)
    assert limit_lines(measured()) == ("m bf16, far below the device's 64.0 GiB", 0)


def test_shares_of_the_ceiling_are_the_rows_and_above_one_is_called_a_bug():
    at = {"ceiling_s": {"prefill": 1.0, "step": 0.05}, "decode_bound": "bandwidth"}
    found = text(ceiling.section(machines([measured(expected=at)]), [Forecast.of(machines([measured()])[0])]))
    assert "20% 50% bandwidth" in found and "bug" not in found
    over = at | {"ceiling_s": {"prefill": 1.0, "step": 0.2}}
    assert "a bug in profile" in text(
        ceiling.section(machines([measured(expected=over)]), [Forecast.of(machines([measured()])[0])])
    )


def test_without_calibration_the_page_says_so():
    found = machines([measured()])
    assert "no calibration of the device" in text(ceiling.section(found, [Forecast.of(found[0])]))


def test_energy_is_shown_where_a_meter_gave_some_and_explained_where_not(monkeypatch):
    found = machines([measured()])
    assert text(energy.section(found)) == "No energy figures. Add --energy to the sweep."
    joules = {
        "decode_j": 12.5,
        "decode_j_per_token": 1.56,
        "source": "nvml-counter",
        "scope": "gpu-board",
        "suspect": True,
    }
    metered = replace(measured(), energy=Energy("nvml-counter", "gpu-board"))
    monkeypatch.setattr(derived, "content", lambda measurement: joules)
    shown = text(energy.section(machines([metered])))
    assert "12.5" in shown and "1.56" in shown and "nvml-counter of gpu-board" in shown and "disagree" in shown
    monkeypatch.setattr(derived, "content", lambda measurement: {"reason": "no RAPL on this machine"})
    assert text(energy.section(machines([metered]))) == "No energy figures: no RAPL on this machine."


def test_the_frontier_holds_formats_of_one_model_against_each_other():
    def sized(quant: str, rate: float, gib: int, **case):
        return measured(
            quant=quant, decode=(rate, rate, rate), memory=replace(MEMORY, process_peak_bytes=gib * GIB), **case
        )

    rows = [sized("bf16", 20, 8), sized("int8", 10, 9), sized("nf4", 5, 4), sized("nf4", 90, 1, model="tiny")]
    section = quality.section(machines(rows), ())
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert [row[0] for row in table.rows] == ["m bf16 c=512 b=1", "m nf4 c=512 b=1", "tiny nf4 c=512 b=1"]
    assert "no published scores of these models" in text(section)


def test_quality_counts_only_for_the_formats_a_score_holds_for():
    scores = [Score(model, "Bench", value, "somebody", ("bf16",)) for model, value in (("a", 50.0), ("b", 70.0))]
    plain = [measured(model=model, decode=(rate, rate)) for model, rate in (("a", 20.0), ("b", 10.0))]
    assert "With quality from Bench, not beaten in every respect: a bf16 c=512 b=1 and b bf16 c=512 b=1" in text(
        quality.section(machines(plain), scores)
    )
    packed = [measured(model=model, quant="nf4") for model in ("a", "b")]
    found = text(quality.section(machines(packed), scores))
    assert "no comparable case has a quantization with a score" in found and "Bench" not in found


def test_a_folder_that_bears_the_name_of_a_published_model_does_not_get_its_score():
    rows = [
        measured(**E2B, memory=weighing(0.001), decode=(20.0, 20.0)),
        measured(**E2B | {"model": "gemma-4-31b"}, memory=weighing(0.002), decode=(10.0, 10.0)),
    ]
    assert "LiveCodeBench" not in text(report_page.page(rows))
    own = [
        Score(name, "Mine", value, "me", ("bf16",)) for name, value in (("gemma-4-e2b", 1.0), ("gemma-4-31b", 2.0))
    ]
    assert "With quality from Mine" in text(report_page.page(rows, scores=own))


def losses(*rows) -> Section:
    section = divergence.section(machines(rows))
    assert section is not None
    return section


def plots(section: Section) -> list[tuple[str, Plot]]:
    return [
        (chart.title, chart.plot) for block in section.blocks if isinstance(block, Figures) for chart in block.items
    ]


def test_rows_without_a_divergence_have_no_section_on_quality():
    assert divergence.section(machines([measured(), ended("oom", "3 GiB", context=1024)])) is None
    unknown = replace(measured(), quality={"reason": "no tokenizer.json"})
    assert "quality" not in [section.anchor for section in report_page.page([unknown]).sections]


def test_a_chart_has_speed_loss_and_memory_and_the_words_say_the_same():
    sizes = {"bf16": 8, "int8": 4, "nf4": 2, "fp4": 2}
    rates, kls = {"bf16": 10.0, "int8": 20.0, "nf4": 40.0, "fp4": 30.0}, {"bf16": 0.001, "int8": 0.02, "nf4": 0.3}
    section = losses(
        *(
            scored(
                measured(
                    quant=quant,
                    decode=(rate, rate * 1.01, rate * 0.99),
                    memory=replace(MEMORY, process_peak_bytes=sizes[quant] * GIB),
                ),
                kls.get(quant, 0.5),
            )
            for quant, rate in rates.items()
        )
    )
    ((title, plot),) = plots(section)
    assert title == "m: speed and loss in windows of 512 tokens"
    marks = {mark.label: mark for mark in plot.marks}
    assert {label: (mark.x, round(mark.y, 3), mark.area) for label, mark in marks.items()} == {
        "bf16": (10.0, 0.001, 1.0), "int8": (20.0, 0.02, 0.5), "nf4": (40.0, 0.3, 0.25), "fp4": (30.0, 0.5, 0.25),
    }  # fmt: skip
    assert [label for label, mark in marks.items() if mark.pale] == ["fp4"]  # slower than nf4, and loses more
    assert [(round(x), round(y, 3)) for x, y in plot.lines[0].points] == [(10, 0.001), (20, 0.02), (40, 0.3)]
    (words,) = [block.items for block in section.blocks if isinstance(block, Listing)]
    assert words[0] == (
        "m, windows of 512 tokens: int8 loses 0.020 nats and decodes 2.00 × as fast as bf16; nf4 loses 0.30 nats at"
        " 4.00 ×. They lose most in scripts: nf4 0.48 nats."
    )


def test_losses_are_known_where_speeds_are_not():
    noisy = measured(quant="nf4", decode=(1.0, 100.0))
    section = losses(scored(measured(), 0.001), scored(noisy, 0.1))
    assert not plots(section) and "no two cases whose losses can be compared" in text(section)
    (table, _) = [block for block in section.blocks if isinstance(block, Table)]
    assert [row[1].split()[0] for row in table.rows] == ["0.0010", "0.10"]


def test_losses_by_kind_of_text_are_a_table():
    section = losses(scored(measured(), 0.001), scored(measured(quant="nf4"), 0.1))
    table = next(b for b in section.blocks if isinstance(b, Table) and "by kind of text" in (b.caption or ""))
    assert [head.title for head in table.columns] == ["case", "prose", "code", "html", "scripts"]
    assert table.rows[1] == ("m nf4 c=512 b=1", "0.070", "0.090", "0.080", "0.16")


def test_cases_of_another_batch_are_no_measure_of_a_speed():
    """Eight sequences together decode faster than one, in every quantization."""
    alone = scored(measured(quant="bf16", decode=(10.0, 10.1, 9.9)), 0.001)
    many = scored(measured(quant="nf4", batch=8, decode=(40.0, 40.4, 39.6)), 0.1)
    words = text(losses(alone, many))
    assert "loses 0.10 nats" in words and "as fast as" not in words
    ((_, plot),) = plots(losses(scored(measured(quant="bf16", batch=8), 0.001), scored(measured(quant="nf4"), 0.1)))
    assert not any(mark.pale for mark in plot.marks)


def test_engines_share_a_chart_only_if_their_losses_are_of_one_scale():
    ours = [scored(measured(), 0.001), scored(measured(quant="nf4"), 0.2)]

    def theirs(**scale) -> list[Measurement]:
        return [
            scored(
                measured(model="m-Q4", quant="q4_k_m", backend="llama.cpp"), 0.05, reference="m-f32.gguf", **scale
            ),
            scored(measured(model="m-Q8", quant="q8_0", backend="llama.cpp"), 0.002, reference="m-f32.gguf", **scale),
        ]

    ((_, plot),) = plots(losses(*ours, *theirs()))
    assert list(plot.palette) == ["transformers", "llama.cpp"] and len(plot.marks) == 4
    for scale in ({"definition": 2}, {"texts": "other"}, {"window": 4096}, {"dtype": "bf16"}, {"nll": 3.1}):
        section = losses(*ours, *theirs(**scale))
        assert [len(plot.marks) for _, plot in plots(section)] == [2, 2], scale
        assert "cannot be compared, so they do not share a chart" in text(section)


def test_no_loss_at_all_is_at_the_lower_end_of_the_axis():
    ((_, plot),) = plots(losses(scored(measured(quant="fp32"), 0.0), scored(measured(quant="nf4"), 0.3)))
    assert plot.y.ticks is not None and plot.y.ticks[0] == (plot.y.low, "0") and plot.y.low < 0.1
    drawn = charts.svg(plot)
    assert ">fp32</text>" in drawn and ">nf4</text>" in drawn and ">0</text>" in drawn


def test_the_rounding_of_fp32_is_no_loss():
    section = losses(scored(measured(quant="fp32"), 4e-10), scored(measured(quant="nf4"), 0.3))
    ((_, plot),) = plots(section)
    assert plot.y.ticks[0][1] == "0" and plot.y.low >= 0.001
    (table, kinds) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.rows[0][1] == "<0.000001" == kinds.rows[0][1]


def test_labels_of_points_do_not_overlap():
    """Of points that lie on each other, only one has its label; the figures of all are in the tip."""
    rows = [
        scored(measured(quant=quant), 0.1)
        for quant in ("nf4", "fp4", "int8", "nf4-dq", "fp16", "bf16", "fp32", "awq")
    ]
    ((_, plot),) = plots(losses(*rows))
    drawn = charts.svg(plot)
    labels = re.findall(r">([^<>]*)</text><title>", drawn)
    assert 1 <= len(labels) < len(rows) and set(labels) <= {row.case.quant for row in rows}
    assert drawn.count("<title>") == len(rows)


def test_cautions_that_differ_only_in_figures_are_said_once():
    rows = [
        replace(measured(context=context), cautions=(caution,))
        for context, caution in (
            (512, Caution("load", "below 1.50 GiB")),
            (1024, Caution("load", "below 1.75 GiB")),
            (2048, Caution("other", "hot", "--cool")),
        )
    ]
    (found,) = appendix.cautions(machines(rows)).blocks
    assert found.caption == "3 of 3 cases have cautions"
    assert found.rows == (
        ("load", "2", "below 1.50 GiB (the figures vary)", "bf16 c=512 b=1 and bf16 c=1024 b=1"),
        ("other", "1", "hot; try --cool", "bf16 c=2048 b=1"),
    )


def test_cautions_name_models_as_the_page_does():
    hot = (Caution("hot", "hot"),)
    files = [
        replace(measured(model=f"m-{quant}", model_id=quant, quant=quant, backend="llama.cpp"), cautions=cautions)
        for quant, cautions in (("q8_0", hot), ("q4_0", ()))
    ]
    (found,) = appendix.cautions(machines([*files, measured(model="n")])).blocks
    assert found.rows[0][-1] == "m q8_0 c=512 b=1"


def test_what_was_not_measured_is_listed_by_reason():
    rows = [measured(), *(ended("oom", "3 GiB of 2 GiB", context=1024 * n) for n in range(1, 8))]
    (table,) = appendix.skipped(machines(rows)).blocks
    ((outcome, reason, cases),) = table.rows
    assert (outcome, reason) == ("oom", "3 GiB of 2 GiB") and cases.endswith("and 3 more")


def test_the_command_that_repeats_a_run_names_no_file_of_its_owner():
    argv = ("sweep", "--store", "/home/me/x.sqlite", "-m", "a b", "--html=/home/me/p.html", "-c", "4k")
    run = Run("r", "2026-11-24T09:30:15Z", None, None, argv, {}, (), {})
    (code, _) = appendix.commands([run], "r").blocks
    assert code.lines == ("profile sweep -m 'a b' -c 4k",)


def test_the_newer_row_of_a_case_counts_and_a_good_one_before_a_bad_one():
    old, new = measured(decode=(1.0, 1.0)), measured(decode=(2.0, 2.0))
    (machine,) = machines([old, new, ended("failed", "once more")])
    (result,) = machine.results
    assert (
        "2 older rows of the same cases left out"
        in report_page.page([old, new, ended("failed", "once more")]).summary
    )
    assert result.decode is not None and result.decode.median == pytest.approx(2.0)


def test_another_device_is_another_side_and_other_software_is_not():
    newer = ENVIRONMENT | {"libraries": {"torch": "2.14.0"}}
    found = machines([measured(), measured(environment=newer, context=1024), measured(environment=OTHER)])
    assert [machine.title for machine in found] == ["Some CPU (64.0 GiB)", "Some GPU (24.0 GiB)"]
    assert "2.13.0 and 2.14.0" in text(report_page.page([measured(), measured(environment=newer, context=1024)]))


def test_a_setting_names_a_series_only_where_it_tells_rows_apart():
    (machine,) = machines([measured(), measured(path="graph"), measured(quant="nf4", dtype="fp32")])
    assert [result.series for result in machine.results] == ["bf16 eager", "bf16 graph", "nf4 eager"]


def test_threads_tell_rows_apart_and_steps_only_where_they_do():
    rows = [measured(threads=1), measured(), measured(quant="nf4", steps=16), measured(quant="nf4", steps=32)]
    (machine,) = machines([*rows, measured(quant="int8", steps=64)])
    found = [result.series for result in machine.results]
    assert found == ["bf16 threads=1", "bf16", "int8", "nf4 16 steps", "nf4 32 steps"]


def test_what_is_drawn_and_listed_of_many_rows_is_limited_and_the_page_says_so():
    page = report_page.page(grid(8, 7, 6, 3))
    tables = [block for section in page.sections for block in section.blocks if isinstance(block, Table | Map)]
    assert max(len(table.rows) for table in tables) <= 60
    drawn = [figure for s in page.sections for b in s.blocks if isinstance(b, Figures) for figure in b.items]
    assert len(drawn) <= 30
    assert "60 of 1,008 measured cases are shown" in text(page)


def test_weights_of_no_bytes_say_nothing_of_the_model():
    (machine,) = machines([measured(**E2B, memory=replace(MEMORY, weights_bytes=0))])
    assert "no row has the size of its weights" in Forecast.of(machine).missing["gemma-4-e2b"]


def test_rows_of_a_model_come_together_in_the_order_of_their_size():
    sizes = [(1024, 2), (128, 4), (1024, 1), (128, 1)]
    rows = [measured(model=model, quant=quant, context=at, batch=batch)
            for at, batch in sizes for model, quant in (("b", "nf4"), ("a", "nf4"), ("b", "bf16"))]  # fmt: skip
    (machine,) = machines(rows)
    found = [(result.model, result.case.quant, result.case.context, result.case.batch) for result in machine.ok]
    names = [("b", "bf16"), ("b", "nf4"), ("a", "nf4")]
    assert found == [(*name, *size) for name in names for size in sorted(sizes)]
    assert [(group.model, len(mine)) for group, mine in machine.groups.items()] == [("b", 4), ("b", 4), ("a", 4)]
    assert {result.case.batch for result in machine.fewest} == {1}


def test_two_models_of_one_name_stay_two():
    """As run1/checkpoint-500 and run2/checkpoint-500, measured by two sweeps."""
    rows = [
        measured(model="merged", model_id=model_id, context=context, decode=(rate, rate * 1.01))
        for model_id, rate in (("aaaabbbbcccc", 10.0), ("ddddeeeeffff", 90.0))
        for context in (32, 64)
    ]
    (found,) = machines(rows)
    assert found.models == ["merged #aaaabb", "merged #ddddee"]
    page = report_page.page(rows)
    assert "2 models" in page.summary and "Run merged #ddddee in bf16" in text(page)
    assert "merged #aaaabb" in text(speed.section([found]))


def test_simulated_rows_are_a_machine_that_says_so():
    titles = [machine.title for machine in machines([measured(), measured(backend="fake")])]
    assert titles[1] == f"{titles[0]}, simulated"


def test_a_model_without_a_prediction_has_a_reason_that_is_true_of_its_rows():
    def reasons(row):
        return list(Forecast.of(machines([row])[0]).missing.values())

    assert reasons(measured(backend="fake")) == ["the backend fake cannot be predicted"]
    assert reasons(measured(model="mine")) == [
        "its rows do not contain its shapes, and no model in the catalog has this name"
    ]


def test_the_legend_of_the_maps_is_given_once():
    found = machines([measured(), measured(backend="fake")])
    section = fits.section(found, [Forecast.of(machine) for machine in found])
    assert len([block for block in section.blocks if isinstance(block, Map)]) == 2
    assert len([block for block in section.blocks if isinstance(block, Text) and block.folded]) == 1


def test_charts_that_are_missing_are_named_in_one_line():
    found = text(speed.section(machines([measured()])))
    assert found.count("There is no chart") == 1 and "Charts show 0" not in found
