"""What samples show by themselves, in words, with the option that helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes.lab import make_case

from profiler.results import stats
from profiler.results.cautions import cautions
from profiler.results.measurement import Caution, Measurement, Memory, Phase, Sample
from profiler.show import columns

PRECISE = {"precision": 0.02, "max_phase_s": 60.0}


def row(
    seconds: Sequence[float],
    stopped: str = "precision",
    asked: dict[str, Any] = PRECISE,
    warmups: Sequence[float] = (0.1,) * 5,
    phase: Phase = "decode",
    **fields: Any,
) -> Measurement:
    samples = [Sample(phase, second, 32, warmup=True) for second in warmups]
    samples += [Sample(phase, second, 32) for second in seconds]
    return Measurement(make_case(), {}, "ok", samples=tuple(samples), asked=asked, stopped={phase: stopped}, **fields)


def told(measurement: Measurement) -> dict[str, str | None]:
    """Code → help."""
    return {caution.code: caution.help for caution in cautions(measurement)}


def test_a_quiet_phase_needs_no_caution() -> None:
    assert told(row([0.1, 0.101, 0.1, 0.0995, 0.1])) == {}


def test_only_the_worst_of_spread_noise_and_imprecision_is_reported() -> None:
    imprecise = [0.100, 0.106, 0.097, 0.104, 0.100, 0.103, 0.098, 0.105, 0.1, 0.096] * 2
    noisy = [0.10, 0.13, 0.09, 0.12, 0.14] * 4
    incomparable = [0.1, 0.9, 0.1, 0.9]
    assert told(row(imprecise[:8], "cap")) == {"decode-imprecise": "-r 32"}
    assert told(row(imprecise[:8], "time")) == {"decode-imprecise": "a longer --max-phase"}
    assert told(row(noisy, "cap")) == {"decode-noisy": "--fresh on a quieter machine"}
    assert told(row(incomparable, "time", warmups=(0.1,)))["spread"] == "a longer --max-phase"


def test_requests_that_are_different_tasks_may_differ() -> None:
    """Repeating them would not make them alike, and ``--tasks`` refuses ``-r``."""
    differ = [0.1, 0.9, 0.1, 0.9]
    assert "spread" in told(row(differ, "cap", serving={"requests": 4}))
    assert told(row(differ, "cap", serving={"requests": 4, "tasks": {}})) == {}


@pytest.mark.parametrize(
    ("basis", "words", "help"),
    [
        ("calibrated", "by your calibrations", "a quieter machine"),
        ("prior", "usual on CPUs", "profile calibrate, three times"),
    ],
)
def test_an_interval_that_is_wide_because_processes_differ_says_so(basis: str, words: str, help: str) -> None:
    apart = {"between": {"prefill": 0.025, "decode": 0.015, "basis": basis}}
    quiet = row([0.1, 0.101, 0.1, 0.0995, 0.1], expected=apart)
    (caution,) = cautions(quiet)
    assert caution == Caution(
        "between",
        f"process-to-process variation ({words}) is 1.5% in decode: more repetitions would not reduce it",
        help,
    )
    assert told(replace(quiet, asked={"precision": 0.05, "max_phase_s": 60.0})) == {}
    little = replace(quiet, expected={"between": {"decode": 0.002, "basis": basis}})
    assert told(little) == {}  # there repetitions would
    assert told(replace(quiet, asked={"reps": 5, "max_phase_s": 60.0})) == {}
    wide = [0.100, 0.106, 0.097, 0.104, 0.100, 0.103, 0.098, 0.105, 0.1, 0.096] * 2
    assert set(told(row(wide[:8], "cap", expected=apart))) == {"decode-imprecise"}


def test_a_precision_that_was_not_requested_is_not_missed() -> None:
    wide = [0.100, 0.106, 0.097, 0.104, 0.100, 0.103]
    assert told(row(wide, "reps", {"reps": 6, "max_phase_s": 60.0})) == {}


def test_a_row_whose_precision_is_null_has_no_requested_precision() -> None:
    assert told(row([0.1, 0.104, 0.1, 0.096], "cap", {"precision": None})) == {}


def test_the_text_names_the_precision_and_is_the_same_for_every_such_row() -> None:
    (one,) = cautions(row([0.100, 0.106, 0.097, 0.104, 0.100, 0.103, 0.098], "time"))
    (other,) = cautions(row([0.100, 0.107, 0.097, 0.104, 0.101, 0.103], "time", warmups=(5.0,)))
    assert one == other
    assert one.text == "decode: --precision 2% was not reached within --max-phase"


def test_a_phase_that_gets_slower_is_not_steady() -> None:
    found = row([0.100, 0.102, 0.104, 0.106, 0.108, 0.110], "cap")
    (caution,) = [caution for caution in cautions(found) if caution.code == "decode-unsteady"]
    assert caution.text == "decode: not steady, 11% slower in the last repetition than in the first"


def test_few_repetitions_are_judged_together_with_the_warm_ups_before_them() -> None:
    asked = {"reps": 2, "max_phase_s": 60.0}
    falling = row([0.13, 0.12], "reps", asked, warmups=(0.9, 0.3, 0.2, 0.16, 0.14))
    assert "decode-unsteady" in told(falling)
    assert "decode-unsteady" not in told(row([0.13, 0.12], "reps", asked, warmups=(0.9, 0.16, 0.14)))  # four: too few


def test_a_cold_start_alone_is_not_called_a_drift() -> None:
    assert told(row([0.1] * 5, warmups=(9.0,))) == {}


def test_a_stored_row_keeps_its_cautions_first() -> None:
    note = Caution("gguf", "from a GGUF file")
    found = cautions(row([0.1, 0.9, 0.1, 0.9], cautions=(note,)))
    assert found[0] == note and len(found) > 1


def test_memory_that_only_views_keep_alive_is_reported_if_it_is_large() -> None:
    much = row([0.1] * 5, memory=Memory(prefill_peak_bytes=1000 * 2**20, retained_bytes=200 * 2**20))
    (caution,) = cautions(much)
    assert (caution.code, caution.help) == ("retained", "--ubatch 512") and "200 MiB" in caution.text
    assert told(replace(much, memory=replace(much.memory, retained_bytes=50 * 2**20))) == {}


@pytest.mark.parametrize(("path", "helps"), [("eager", "--path graph"), ("static", "--path graph"), ("graph", None)])
def test_a_gpu_with_nothing_left_to_do_after_the_last_launch_was_waiting(path: str, helps: str | None) -> None:
    def on_gpu(drain_s: float | None) -> Measurement:
        sample = Sample("decode", 1.0, 32, step_s=(0.03,) * 32, device_s=0.99, drain_s=drain_s)
        return Measurement(make_case(path=path), {}, "ok", samples=(sample,) * 5)

    assert told(on_gpu(0.001)) == {"launch-bound": helps}
    assert told(on_gpu(0.03)) == {}  # a whole step was still in the queue
    assert told(on_gpu(None)) == {}


def test_attention_plans_per_cache_length_are_reported_because_repetitions_reuse_them() -> None:
    def on(device: str, first_s: float, path: str = "eager") -> Measurement:
        cold = Sample("decode", 1.0, 4, step_s=(1.0, first_s, first_s, first_s), warmup=True)
        warm = Sample("decode", 0.12, 4, step_s=(0.03,) * 4)
        return Measurement(make_case(path=path, device=device), {}, "ok", samples=(cold, *(warm,) * 5))

    (told_of,) = cautions(on("cuda:0", 0.09))
    assert told_of.code == "new-lengths"
    assert "takes 90.0 ms instead of 30.0 ms" in told_of.text
    assert told(on("cuda:0", 0.033)) == told(on("cpu", 0.09)) == told(on("cuda:0", 0.09, "graph")) == {}


def test_a_figure_above_the_ceiling_is_reported_as_an_error_of_one_of_them() -> None:
    quick = row([0.1] * 5, expected={"ceiling_s": {"prefill": 1.0, "step": 0.004}})
    (caution,) = cautions(quick)  # 32 steps in 0.1 s: 3.1 ms each
    assert (caution.code, caution.help) == ("decode-above-ceiling", "profile calibrate")
    slower = replace(quick, expected={"ceiling_s": {"prefill": 1.0, "step": 0.003}})
    assert told(slower) == {}


def test_a_row_has_mbu_and_mfu_and_a_caution_above_one() -> None:
    """Seconds that the bytes and FLOPs alone take ÷ measured seconds."""
    case = replace(make_case(), context=100, batch=2, steps=4)
    samples = (Sample("prefill", 2.0, 200), Sample("decode", 1.0, 8))
    used = {"prefill_s": 1.0, "step_s": 0.275, "basis": "quick"}  # of one step
    measured = Measurement(case, {}, "ok", samples=samples, expected={"utilization": used})
    found = stats.ceiling(measured)
    assert found is not None and found["basis"] == "quick" and found["decode_fraction"] is None
    assert (found["prefill_mfu"], found["decode_mbu"]) == pytest.approx((0.5, 1.1))
    assert told(measured) == {"decode-above-ceiling": "profile calibrate"}
    pressed = replace(measured, cautions=(Caution("decode-busy", "the CPU was busy"),))
    assert (stats.utilization(pressed, "prefill"), stats.utilization(pressed, "decode")) == (0.5, None)


def test_a_figure_of_a_busy_machine_is_not_the_models() -> None:
    """Two threads gave 18 t/s where one gave 1,150, within a narrow interval."""
    pressed = row(
        [1.0, 1.001, 1.0, 0.999, 1.0], cautions=(Caution("decode-busy", "the CPU was busy", "--threads 1"),)
    )
    rate = stats.rate(pressed, "decode")
    assert rate is not None and rate.wide and not rate.noisy
    assert columns.rate_cell(pressed, "decode") == "busy: 32"
    assert columns.token_cell(pressed) == "busy"
    assert columns.fastest([pressed, pressed]) is None
    assert told(pressed) == {"decode-busy": "--threads 1"}
