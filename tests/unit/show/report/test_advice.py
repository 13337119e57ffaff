"""What a report advises: the rule over measured and predicted cases, and the next command."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import printed
from fakes.reported import ENVIRONMENT, GIB, MEMORY, OTHER, ended, measured, scored

from profiler.cost import engines
from profiler.cost.cases import stored_prediction
from profiler.models import families, hub
from profiler.results.measurement import Memory
from profiler.results.row import from_row, row
from profiler.results.store import Run
from profiler.show.report import advice, ceiling, fits, predictions
from profiler.show.report import page as report_page
from profiler.show.report.blocks import Bars, Code, Map, Page, Text
from profiler.show.report.predictions import Forecast
from profiler.show.report.selection import machines

E2B = hub.shipped_config("gemma-4-e2b")
E2B_BYTES = round(engines.find("transformers").storage(families.geometry(E2B), "bf16", "bf16").device_bytes)
OWN = {"model": "mine", "model_id": "x"}  # a model outside the catalog


def weighing(gib: float) -> Memory:
    return replace(MEMORY, weights_bytes=round(gib * GIB))


def run(*argv: str) -> Run:
    return Run("r", "2026-11-24T09:30:15Z", None, None, argv, {}, (), {})


def said(page: Page) -> str:
    """The paragraphs of the first section, with its commands."""
    blocks = page.sections[0].blocks
    return " ".join("\n".join(each.lines) if isinstance(each, Code) else each.text
                    for each in blocks if isinstance(each, Code | Text))  # fmt: skip


def advised(*rows) -> str:
    return said(report_page.page(rows))


def test_the_largest_model_that_writes_as_fast_as_people_read_is_advised():
    small = measured(model="small", decode=(50.0, 50.1, 49.9), memory=weighing(1))
    middle = measured(model="middle", decode=(9.0, 9.1, 8.9), memory=weighing(2))
    large = measured(model="large", decode=(2.0, 2.01, 1.99), memory=weighing(3))
    found = advised(small, middle, large)
    assert found.startswith("Run middle in bf16: the largest measured model that decodes as fast as people read")
    assert "The fastest is small bf16" in found


def test_a_rate_counts_by_the_lower_end_of_its_interval():
    unsure = measured(model="large", decode=(5.0, 5.4, 5.6, 6.1), memory=weighing(3))
    sure = measured(model="small", decode=(9.0, 9.1, 8.9), memory=weighing(1))
    assert advised(unsure, sure).startswith("Run small in bf16")


def test_a_batch_is_as_fast_as_people_read_only_if_each_of_its_sequences_is():
    rows = [measured(model=model, batch=8, decode=(10.0, 10.1, 9.9)) for model in ("a", "b")]
    assert advised(*rows).startswith("Nothing measured here certainly decodes as fast as people read.")
    rows = [measured(model=model, batch=8, decode=(80.0, 80.1, 79.9)) for model in ("a", "b")]
    assert advised(*rows).startswith("Run ") and "t/s for 8 sequences together, at 512 tokens" in advised(*rows)


def test_where_nothing_is_fast_enough_the_fastest_is_named_as_such():
    found = advised(measured(model="a", decode=(1.0, 1.01)), measured(model="b", decode=(2.0, 2.01)))
    assert found.startswith("Nothing measured here certainly decodes as fast as people read. The closest is b")


def test_a_tight_case_and_incomparable_repetitions_are_not_advised():
    full = measured(memory=replace(MEMORY, process_peak_bytes=64 * GIB - 1))
    assert "no case fits with headroom" in advised(full)
    assert "the repetitions of every case differ too much" in advised(measured(decode=(1.0, 100.0)))
    assert "no case was completed" in advised(ended("failed", "it broke"))


def test_sizes_that_are_not_known_rank_nothing():
    packed = measured(model="a", quant="nf4", decode=(20.0, 20.1))
    other = measured(model="b", quant="nf4", decode=(30.0, 30.1))
    assert advised(packed, other).startswith(
        "Run b in nf4: the fastest one measured, because the size of a and b is not known"
    )


def test_a_model_outside_the_catalog_has_the_size_of_its_files():
    small = replace(measured(model="a", quant="nf4", decode=(30.0, 30.1)), checkpoint={"parameters": 1_000_000})
    large = replace(measured(model="b", quant="nf4", decode=(20.0, 20.1)), checkpoint={"parameters": 2_000_000})
    assert advised(small, large).startswith("Run b in nf4: the largest measured model")


def test_of_the_quantizations_of_a_model_the_one_that_loses_least_and_is_fast_enough_is_advised():
    sizes = {"bf16": 4.0, "int8": 2.0, "nf4": 1.0}
    rates = {"bf16": 4.0, "int8": 9.0, "nf4": 20.0}
    rows = [
        measured(model="m", quant=quant, decode=(rate, rate * 1.01), memory=weighing(sizes[quant]))
        for quant, rate in rates.items()
    ]
    assert advised(*rows).startswith(
        "Run m in int8: it decodes as fast as people read, in the quantization that loses least of those"
        " that are fast enough."
    )
    assert "The fastest is m nf4" in advised(*rows)


def lossy(losses: dict[str, float | None], rates: dict[str, float], **case) -> str:
    """The advice on one model in these quantizations."""
    rows = [measured(model="m", quant=quant, decode=(rate, rate * 1.01), **case) for quant, rate in rates.items()]
    return advised(*(row if (kl := losses.get(row.case.quant)) is None else scored(row, kl) for row in rows))


def test_the_advice_says_what_a_quantization_loses_and_gains():
    found = lossy({"bf16": 0.001, "int8": 0.02, "nf4": 0.3}, {"bf16": 4.0, "int8": 8.0, "nf4": 16.0})
    assert found.startswith("Run m in int8")
    assert "It loses 0.020 nats (KL divergence from fp32) and decodes 2.00 × as fast as bf16 (" in found
    assert "). nf4 loses 0.30 nats and decodes 2.00 × as fast (" in found


def test_a_measured_loss_decides_instead_of_bits():
    """LLM.int8() and nf4 of a model that 8 bits hurt more, and bf16, which loses less than both and reads along."""
    assert lossy({"int8": 0.3, "nf4": 0.1}, {"int8": 9.0, "nf4": 8.0}).startswith("Run m in nf4")
    assert lossy({"int8": 0.3, "bf16": 0.001}, {"int8": 9.0, "bf16": 8.0}).startswith("Run m in bf16")
    slow = lossy({"int8": 0.3, "bf16": 0.001}, {"int8": 9.0, "bf16": 2.0})
    assert slow.startswith("Run m in int8")
    assert lossy({"bf16": 0.001, "int8": 0.004}, {"bf16": 8.0, "int8": 9.0}).startswith("Run m in int8")  # no loss


def test_weights_in_32_bits_are_advised_only_where_all_others_lose_more():
    losses, rates = {"fp32": 0.0, "int8": 0.006}, {"fp32": 8.0, "int8": 16.0}
    assert lossy(losses, rates).startswith(
        "Run m in int8: it decodes as fast as people read, in the quantization below"
    )
    assert lossy(losses | {"int8": 0.03}, rates).startswith("Run m in fp32")


def test_of_faster_cases_the_least_loss_and_the_fastest_are_named():
    losses = {"bf16": 0.001, "int8": 0.02, "fp16": 0.2, "fp4": 0.3, "nf4": 0.4}
    found = lossy(losses, {"bf16": 8.0, "int8": 12.0, "fp16": 9.0, "fp4": 16.0, "nf4": 20.0})
    assert "int8 loses 0.020 nats and decodes 1.50 × as fast" in found
    assert "nf4 loses 0.40 nats and decodes 2.50 × as fast" in found
    assert "fp16 loses" not in found and "fp4 loses" not in found
    assert "loses 0.020" not in lossy({"bf16": 0.001, "int8": 0.02}, {"bf16": 8.0, "int8": 8.4})


def test_the_rate_at_the_longest_context_is_said_too():
    rates = ((512, 20.0), (1024, 18.0), (4096, 9.0))
    rows = [measured(context=at, decode=(rate, rate * 1.01, rate * 0.99)) for at, rate in rates]
    assert "t/s at 512 tokens of context, and at 9.00 (8.78–9.23) t/s at 4,096." in advised(*rows)


def test_a_loss_that_only_some_quantizations_have_changes_nothing():
    assert lossy({"nf4": 0.001}, {"int8": 9.0, "nf4": 20.0}).startswith("Run m in int8")
    rows = [
        scored(measured(quant="int8", decode=(9.0, 9.1)), 0.3),
        scored(measured(quant="nf4", decode=(8.0, 8.1)), 0.1, texts="other"),
    ]
    assert advised(*rows).startswith("Run m in int8")


def test_what_was_measured_to_lose_more_is_not_what_to_measure_next():
    """int8 was measured at another context, where it lost more than nf4; by its bits it would lose less."""
    packed = scored(measured(**OWN, quant="nf4", decode=(20.0, 20.1, 19.9), memory=weighing(3)), 0.02)
    other = scored(measured(**OWN, quant="int8", context=1024, decode=(2.0, 2.01, 1.99)), 0.3, window=512)
    assert "mine in int8 loses less" in said(report_page.page([packed], configs={"x": E2B}))
    assert "int8 loses less" not in said(report_page.page([packed, other], configs={"x": E2B}))


def test_a_model_of_the_catalog_comes_with_the_command_that_says_how_llama_cpp_runs_it():
    known = measured(model="gemma-4-e2b", decode=(10.0, 10.1, 9.9), memory=replace(MEMORY, weights_bytes=E2B_BYTES))
    other = measured(model="mine", decode=(10.0, 10.1, 9.9))
    for each, lines in ((known, ["profile fit gemma-4-e2b --engine llama.cpp -c 512 -b 1"]), (other, [])):
        (machine,) = machines([each])
        section = advice.section([machine], [Forecast.of(machine)])
        assert [line for block in section.blocks if isinstance(block, Code) for line in block.lines] == lines
        for line in lines:
            printed.check(line.split())


def test_a_model_that_only_bears_a_name_of_the_catalog_comes_without_its_predictions():
    row = measured(model="gemma-4-e2b", model_id="x", decode=(9.0, 9.1, 8.9), memory=weighing(3))
    own = E2B | {"text_config": E2B["text_config"] | {"num_hidden_layers": 30, "num_kv_shared_layers": 15}}
    other = own | {"text_config": own["text_config"] | {"layer_types": E2B["text_config"]["layer_types"][:30]}}
    assert "profile fit gemma-4-e2b" in said(report_page.page([row], configs={"x": E2B}))
    assert "profile fit gemma-4-e2b" not in said(report_page.page([row], configs={"x": other}))


def test_what_to_measure_next_in_llama_cpp_names_the_build_of_the_newest_run():
    slow = measured(
        **OWN | {"backend": "llama.cpp", "weights": "synthetic", "quant": "q8_0"}, decode=(2.0, 2.01, 1.99)
    )
    runs = [run("sweep", "-m", "./mine", "--llama-cpp", "/opt/old"), run("sweep", "--llama-cpp=/opt/bin")]
    for paths, folder in ((False, "./bin"), (True, "/opt/bin")):
        page = report_page.page([slow], "r", runs, configs={"x": E2B}, paths=paths)
        words = next(block.lines[0] for block in page.sections[0].blocks if isinstance(block, Code)).split()
        assert words[words.index("--llama-cpp") + 1] == folder
        printed.check(words)


def test_a_predicted_case_that_people_can_read_along_is_what_to_measure_next():
    """Nothing measured is fast enough, but the map predicts a quantization that is: the advice must not deny it."""
    slow = measured(**OWN, decode=(2.0, 2.01, 1.99))
    page = report_page.page([slow], "r", [run("sweep", "-m", "./mine")], configs={"x": E2B})
    assert "slower than people read" in said(page)
    assert "mine in int8 is predicted to decode at 7" in said(page) and "Measure this next:" in said(page)
    words = next(block.lines[0] for block in page.sections[0].blocks if isinstance(block, Code)).split()
    assert words[:6] == ["profile", "sweep", "-m", "./mine", "-q", "int8"]
    printed.check(words)
    (shown,) = [block for block in page.sections[1].blocks if isinstance(block, Map)]
    assert "~7" in dict(shown.rows)["mine \xb7 int8"][0].value


def test_a_prediction_that_ranks_no_higher_changes_nothing():
    fast = measured(**OWN, decode=(20.0, 20.1, 19.9), memory=weighing(9.5))
    assert "predicted to decode" not in said(report_page.page([fast], configs={"x": E2B}))


def test_of_a_packed_model_the_prediction_that_loses_less_is_what_to_measure_next():
    packed = measured(**OWN, quant="nf4", decode=(20.0, 20.1, 19.9), memory=weighing(3))
    found = said(report_page.page([packed], configs={"x": E2B}))
    assert "mine in int8 loses less and is predicted to decode" in found
    assert "Measure this next, with weights in int8." in found  # nobody said where the model is


def test_a_case_that_was_measured_is_never_advised_as_a_prediction():
    rows = [measured(**OWN, decode=(2.0, 2.01, 1.99)), measured(**OWN, quant="int8", decode=(1.0, 1.01, 0.99))]
    assert "predicted to decode" not in said(report_page.page(rows, configs={"x": E2B}))


def test_a_case_measured_at_another_batch_than_the_map_shows_is_measured():
    rows = [measured(**OWN, decode=(2.0, 2.01, 1.99)), measured(**OWN, quant="int8", decode=(1.0, 1.01, 0.99))]
    rows += [measured(**OWN, batch=4, context=context, decode=(9.0, 9.1, 8.9)) for context in (512, 1024, 2048)]
    assert "predicted to decode" not in said(report_page.page(rows, configs={"x": E2B}))


def test_the_config_that_a_run_stored_predicts_a_model_outside_the_catalog():
    found = machines([measured(**OWN)])
    assert "no model in the catalog" in Forecast.of(found[0]).missing["mine"]
    forecast = Forecast.of(found[0], {"x": E2B})
    assert forecast.missing == {} and forecast.parameters("mine") == families.geometry(E2B).parameters
    assert forecast.predict("mine", "nf4", 8192, 1) is not None


def test_measured_rows_correct_the_predictions_beside_them():
    """Rows that were twice as fast as predicted."""
    rows = [measured(**OWN, context=context) for context in (128, 256, 512, 1024)]
    (machine,) = machines(rows)
    plain = Forecast.of(machine, {"x": E2B}).predict("mine", "bf16", 8192, 1)
    info = predictions._info(ENVIRONMENT)
    expected = [stored_prediction(row.case, families.geometry(E2B), info) for row in rows]
    rates = [each["plain"]["decode_tps"]["value"] for each in expected]
    taught = [
        replace(measured(**OWN, context=row.case.context, decode=(2 * rate,) * 3), expected=each)
        for row, rate, each in zip(rows, rates, expected, strict=True)
    ]
    found = Forecast.of(machines(taught)[0], {"x": E2B}).predict("mine", "bf16", 8192, 1)
    assert found.decode.tps.basis == "learned" != plain.decode.tps.basis
    assert found.decode.tps.value == pytest.approx(2 * plain.decode.tps.value, rel=0.15)


def test_rows_of_llama_cpp_are_predicted_by_the_rules_of_llama_cpp():
    row = measured(**OWN, quant="q4_k_m", backend="llama.cpp", decode=(20.0, 20.1, 19.9), memory=weighing(3))
    (machine,) = machines([row])
    forecast = Forecast.of(machine, {"x": E2B})
    grid = fits.MapGrid.of(machine, forecast)
    assert [line.series for line in grid.lines] == ["q4_k_m", "q8_0"]
    (found,) = {forecast.predict("mine", "q8_0", 8192, 1, line.like).engine.name for line in grid.lines}
    assert found == "llama.cpp"
    assert "Measure this next, with a GGUF file in q8_0." in said(report_page.page([row], configs={"x": E2B}))


def test_a_folder_and_a_gguf_file_of_one_name_are_two_models():
    folder = measured(model="m", model_id="a", decode=(9.0, 9.1, 8.9))
    file = replace(
        measured(model="m", model_id="b", quant="fp32", decode=(7.0, 7.1, 6.9)),
        checkpoint={"dtypes": {"F32": 1, "Q4_K": 9}, "parameters": 5},
    )
    (machine,) = machines([folder, file])
    assert machine.models == ["m", "m (GGUF)"]
    page = report_page.page([folder, file])
    (shown,) = [block for block in page.sections[1].blocks if isinstance(block, Map)]
    assert [label for label, _ in shown.rows] == ["m \xb7 bf16", "m (GGUF) \xb7 fp32"]


def served(prompt: str, rate: float):
    options = f"prompt={prompt}:0a1b2c3d server=llama-server"
    return measured(
        model="some-135M", quant="q4_1", backend="endpoint", path="unknown", dtype="unknown", options=options,
        decode=(rate, rate * 1.01, rate * 0.99), memory=replace(MEMORY, weights_bytes=None),
    )  # fmt: skip


def test_a_prompt_is_not_a_setting_to_run():
    rows = [served(prompt, rate) for prompt, rate in (("fast", 90.0), ("usual", 50.0), ("slow", 20.0))]
    page = report_page.page(rows)
    assert said(page).startswith("Run some-135M in q4_1 llama-server: it decodes as fast as people read.")
    assert "It decodes at 50" in said(page)
    assert "with the prompt usual" in said(page)
    (shown,) = [block for block in page.sections[1].blocks if isinstance(block, Map)]
    assert [label for label, _ in shown.rows] == ["fast", "slow", "usual"]
    assert shown.columns == ("some-135M \xb7 q4_1 llama-server",)
    assert Forecast.of(machines(rows)[0]).parameters("some-135M") == 135_000_000


PATHS = [
    ("/home/me/models/a.gguf cannot be read", "…/a.gguf cannot be read"),
    ("see ~/secret/project/a.gguf", "see …/a.gguf"),
    (r"C:\Users\me\a.gguf", "…/a.gguf"),
    ("('/home/me/a.gguf', '/mnt/b')", "('…/a.gguf', '…/b')"),
    ("./models/a.gguf and owner/name", "./models/a.gguf and owner/name"),
    ("http://localhost:8080/v1/models", "http://localhost:8080/v1/models"),
    ("prefill t/s, 1/2/3, and/or", "prefill t/s, 1/2/3, and/or"),
    ("a / b / c", "a / b / c"),
]


@pytest.mark.parametrize(("text", "shown"), PATHS)
def test_the_folders_of_an_absolute_path_are_not_shown(text: str, shown: str) -> None:
    assert report_page.without_paths(text) == shown


def test_a_page_to_share_has_no_absolute_path_unless_asked():
    rows = [measured(model="/srv/client/a"), ended("failed", "/home/me/x/b.gguf is cut off", model="c", context=64)]
    runs = [run("sweep", "-m", "/home/me/my models/a.gguf,./c", "--llama-cpp=/opt/me/bin")]
    page = repr(report_page.page(rows, "r", runs))
    assert "/home" not in page and "client" not in page and "my models" not in page and "/opt" not in page
    assert "profile sweep -m ./a.gguf,./c --llama-cpp=./bin" in page
    full = repr(report_page.page(rows, "r", runs, paths=True))
    assert "/home/me/my models/a.gguf" in full and "/home/me/x/b.gguf" in full and "/srv/client/a" in full


def test_files_stand_beside_the_store_even_if_they_are_of_the_same_device():
    ours, theirs = measured(decode=(10.0, 10.1, 9.9)), measured(decode=(40.0, 40.4, 39.6))
    found = machines([ours], [("laptop.jsonl", [theirs]), ("old.sqlite", [ended("oom", "no")])])
    assert [machine.title for machine in found] == [
        "Some CPU (64.0 GiB)",
        "Some CPU (64.0 GiB), laptop.jsonl",
        "Some CPU (64.0 GiB), old.sqlite",
    ]
    assert [len(machine.results) for machine in found] == [1, 1, 1]


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("basis", ["quick", None])
def test_rows_of_a_file_have_the_ceilings_of_the_store(basis: str | None, served: bool) -> None:
    used = {"utilization": {"prefill_s": 1.0, "step_s": 0.05, "basis": basis}} if basis else {}
    expected = used | {"ceiling_s": {"prefill": 0.5, "step": 0.02}, "decode_bound": "bandwidth"}
    options = {"options": "server=llama-server", "batch": 4} if served else {"batch": 2}
    stored = measured(expected=expected, **options)
    again = from_row(row(None, stored))
    for before, after in zip(machines([stored])[0].ok, machines([again])[0].ok, strict=True):
        assert after.shares == pytest.approx(dict(before.shares))
        assert (after.bound, after.ceiling_basis) == (before.bound, before.ceiling_basis)
    assert row(None, again)["ceiling"] == pytest.approx(row(None, stored)["ceiling"])


def test_bars_of_all_machines_have_one_scale():
    used = {"utilization": {"prefill_s": 1.0, "step_s": 0.01, "basis": "data sheet"}}
    slow, fast = measured(decode=(10.0, 10.1, 9.9)), measured(decode=(40.0, 40.4, 39.6), environment=OTHER)
    found = ceiling.bars(machines([replace(slow, expected=used), replace(fast, expected=used)]), [None, None])
    shown = [(round(bar.value, 3), round(bar.ceiling, 3)) for bars in found for bar in bars.rows]
    assert shown == [(0.1, 1.0), (0.4, 1.0)]
    assert "by its data sheet" in found[0].title


def test_the_picture_has_a_bar_for_the_case_that_is_advised_however_slow():
    rows = [measured(model=f"m{n}", decode=(90.0 - n, 91.0 - n, 89.0 - n), memory=weighing(1)) for n in range(12)]
    page = report_page.page([*rows, measured(model="large", decode=(9.0, 9.1, 8.9), memory=weighing(9))])
    (bars,) = [block for block in page.sections[0].blocks if isinstance(block, Bars)]
    assert said(page).startswith("Run large") and "large \xb7 bf16" in [bar.label for bar in bars.rows]
    assert len(bars.rows) == ceiling.MAX_BARS
