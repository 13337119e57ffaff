"""The line below a table that answers the question."""

from __future__ import annotations

from dataclasses import replace

from profiler.results.measurement import Measurement, Memory, Sample
from profiler.show.columns import fastest
from profiler.show.writers import md, table

GIB = 1024**3


def decoded(measurement: Measurement, *rates: float, **case: object) -> Measurement:
    samples = tuple(Sample("decode", 16 / rate, 16) for rate in rates)
    return replace(measurement, case=replace(measurement.case, **case), samples=samples)


def test_a_single_row_has_no_fastest_case(measurements):
    assert fastest(measurements[:1]) is None
    assert fastest([]) is None
    assert fastest([measurements[0], measurements[4]]) is None  # the other one has no figure


def test_the_fastest_case_is_named_with_the_memory_it_leaves_free(measurements):
    memory = Memory(process_peak_bytes=60 * GIB)
    slow, fast = decoded(measurements[0], 10, 10), replace(decoded(measurements[0], 20, 20, batch=4), memory=memory)
    expected = "fastest decode: gemma-3-270m fp32 c=128 b=4 at 20.00 t/s, 4.00 GiB of 64.0 GiB free"
    assert fastest([slow, fast]) == fastest([fast, slow]) == expected


def test_each_model_has_its_best_the_fastest_first(measurements):
    rows = [
        decoded(measurements[0], 10, 10, quant="nf4"),
        decoded(measurements[0], 12, 12),
        decoded(measurements[0], 30, 30, model="other", model_id="o"),
    ]
    found = fastest(rows)
    assert found is not None
    assert found.startswith("fastest decode by model: other fp32 c=128 b=1 at 30.00 t/s")
    assert found.count(" at ") == 2 and "; gemma-3-270m fp32 c=128 b=1 at 12.00 t/s" in found


def test_what_is_within_the_noise_of_the_fastest_is_counted(measurements):
    fast = decoded(measurements[0], 20.0, 20.4, 19.6)
    near = decoded(measurements[0], 19.9, 20.3, 19.5, batch=2)
    slow = decoded(measurements[0], 10.0, 10.1, 9.9, batch=4)
    assert "(1 other not distinguishable from it)" in (fastest([fast, near, slow]) or "")
    assert "distinguishable" not in (fastest([fast, slow]) or "")


def test_unknown_memory_is_no_headroom(measurements):
    rows = [replace(decoded(measurements[0], rate), memory=Memory()) for rate in (10.0, 20.0)]
    assert fastest(rows) == "fastest decode: gemma-3-270m fp32 c=128 b=1 at 20 t/s (measured once)"


def test_repetitions_that_cannot_be_compared_win_nothing(measurements):
    odd, even = decoded(measurements[0], 5, 500), decoded(measurements[0], 10, 10)
    assert fastest([odd, even]) is None
    assert fastest([odd, even, decoded(measurements[0], 9, 9, batch=2)]) is not None


def test_the_fastest_case_is_the_last_line_of_a_table(measurements):
    for report in (table, md):
        last = report.render("r", measurements).rstrip().split("\n\n")[-1]
        assert last.startswith("fastest decode by model: gemma")
