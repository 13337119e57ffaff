"""What came between a phase and its machine, from the counters around it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.devices.base import Pressure
from profiler.results.measurement import Sample
from profiler.run.repetitions import QUIETER, SMALLER, Measured, disturbances

MIB = 2**20


def told(before: Pressure, after: Pressure, *samples: Sample) -> list[tuple[str, str, str | None]]:
    measured = Measured(samples or (Sample("decode", 10.0, 1, cpu_s=10.0, wait_s=0.1),), "reps", before, after)
    return [(caution.code, caution.text, caution.help) for caution in disturbances({"decode": measured}, cores=2)]


def test_an_undisturbed_phase_has_no_caution() -> None:
    start = Pressure(0.0, 0.0, 0.0, 0, 0, 0)
    assert told(start, Pressure(10.0, 1.0, 0.1, 0, 0, 0)) == []
    assert told(Pressure(0.0), Pressure(10.0)) == []  # nor one on a machine that counts nothing


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (Pressure(10.0, stalled_s=6.0), "all cores were busy: other processes waited for one 60% of the time"),
        (Pressure(10.0, stolen_s=2.0), "the hypervisor gave 10% of the CPU time to other guests"),
    ],
)
def test_each_kind_of_pressure_has_its_own_message(after: Pressure, words: str) -> None:
    assert told(Pressure(0.0, 0.0, 0.0), after) == [("decode-cpu-pressure", f"decode: {words}", QUIETER)]


def test_cpu_time_that_we_lacked_is_reported_rather_than_what_others_did() -> None:
    waited = Sample("decode", 10.0, 1, cpu_s=6.0, wait_s=4.0)
    ((_, text, _),) = told(Pressure(0.0, 0.0, 0.0), Pressure(10.0, 9.0, 2.0), waited)
    assert text == "decode: the CPU was busy: other processes took 40% of the CPU time we needed"


def test_threads_of_our_process_that_wait_for_each_other_are_not_other_work() -> None:
    waited = Sample("decode", 10.0, 1, cpu_s=16.0, wait_s=4.0)
    start, alone = Pressure(0.0, 0.0, busy_s=100.0, own_s=1.0), Pressure(10.0, 5.0, busy_s=117.0, own_s=17.0)
    assert told(start, alone, waited) == []
    beside = replace(alone, busy_s=120.0)
    ((_, text, _),) = told(start, beside, waited)
    assert text == "decode: the CPU was busy: other processes took 20% of the CPU time we needed"


@pytest.mark.parametrize(
    ("threads", "busy_s", "advice"), [(2, 30.0, "--threads 1, or "), (1, 30.0, ""), (None, 30.0, "")]
)
def test_a_busy_machine_is_answered_by_as_many_threads_as_there_are_free_cores(
    threads: int | None, busy_s: float, advice: str
) -> None:
    """Threads wait for the slowest of them, and two of them shared a core with other work for half of the time."""
    waited = Sample("decode", 10.0, 1, cpu_s=15.0, wait_s=5.0)
    measured = Measured(
        (waited,), "reps", Pressure(0.0, busy_s=0.0, own_s=0.0), Pressure(10.0, busy_s=busy_s, own_s=15.0)
    )
    (found,) = disturbances({"decode": measured}, 2, threads)
    assert (found.code, found.help) == ("decode-busy", advice + QUIETER)


@pytest.mark.parametrize(("busy_s", "threads", "found"), [(20.0, 2, True), (14.0, 2, False), (20.0, None, False)])
def test_without_a_count_of_waits_the_cpu_time_of_the_threads_shows_a_busy_machine(
    busy_s: float, threads: int | None, found: bool
) -> None:
    """Two threads that spin use two cores; these used 1.2, and others the rest."""
    sample = Sample("decode", 10.0, 1, cpu_s=12.0)
    after = Pressure(10.0, busy_s=busy_s, own_s=12.0)
    measured = Measured((sample,), "reps", Pressure(0.0, busy_s=0.0, own_s=0.0), after)
    codes = [caution.code for caution in disturbances({"decode": measured}, 2, threads)]
    assert codes == (["decode-busy"] if found else [])


def test_a_used_up_quota_is_reported_and_is_not_other_work() -> None:
    waited = Sample("decode", 10.0, 1, cpu_s=5.0, wait_s=5.0)
    start = Pressure(0.0, 0.0, busy_s=0.0, own_s=0.0, period_s=0.1, periods=0, throttled=0, throttled_s=0.0)
    after = Pressure(
        10.0, 5.0, busy_s=20.0, own_s=5.0, period_s=0.1, periods=100, throttled=98, throttled_s=5.0
    )  # others kept the machine busy meanwhile
    assert told(start, after, waited) == [
        ("decode-throttled", "decode: the CPU quota was used up in 98 of 100 periods", "a larger CPU quota")
    ]
    assert told(start, replace(after, throttled=1, throttled_s=0.01, stalled_s=0.0)) == []


def test_a_quota_that_is_not_visible_is_reported_by_the_time_it_stops_us() -> None:
    """A container does not see the groups that its own lies in, and the kernel counts what they take from it."""
    waited = Sample("decode", 10.0, 1, cpu_s=5.0, wait_s=5.0)
    ((code, text, _),) = told(Pressure(0.0, throttled_s=1.0), Pressure(10.0, throttled_s=6.0), waited)
    assert code == "decode-throttled"
    assert text.endswith("a CPU quota that is not visible here slowed the process down: cores were stopped for"
                         " 5.00 s of 10.0 s")  # fmt: skip


def test_repetitions_as_short_as_a_quota_period_get_a_warning_about_longer_runs() -> None:
    short = [Sample("decode", 0.03, 1, cpu_s=0.03, wait_s=0.0)] * 5
    start = Pressure(0.0, period_s=0.1, periods=0, throttled=0, throttled_s=0.0)
    ((_, text, _),) = told(start, Pressure(1.0, period_s=0.1, periods=10, throttled=9, throttled_s=0.5), *short)
    assert text.endswith("a repetition is not much longer than a period (100 ms), so a longer run may be slower")


def test_other_work_during_the_warm_up_does_not_disturb_the_repetitions() -> None:
    disturbed = Sample("decode", 10.0, 1, cpu_s=1.0, wait_s=9.0, warmup=True)
    assert told(Pressure(0.0), Pressure(10.0), disturbed, Sample("decode", 10.0, 1, cpu_s=10.0, wait_s=0.0)) == []


def test_swap_is_reported_if_this_process_is_in_it() -> None:
    start, used = Pressure(0.0, swapped_in_bytes=0, swapped_bytes=0), 64 * MIB
    assert told(start, Pressure(10.0, swapped_in_bytes=used, swapped_bytes=0)) == []  # another program's
    ((code, text, helps),) = told(start, Pressure(10.0, swapped_in_bytes=0, swapped_bytes=used))
    assert (code, text, helps) == ("decode-swap", "decode: 64.0 MiB of this process are in swap", SMALLER)
    ((_, text, _),) = told(start, Pressure(10.0, swapped_in_bytes=used, swapped_bytes=MIB))
    assert text == "decode: 64.0 MiB were read back from swap"


def test_allocator_retries_are_reported() -> None:
    ((code, text, helps),) = told(Pressure(0.0, retries=1), Pressure(10.0, retries=4))
    assert (code, helps) == ("decode-allocator-retries", SMALLER)
    assert "3 times" in text
