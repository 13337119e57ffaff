"""Energy of a case: exact in simulated time with scripted watts, within 1 % through NVML; and slowdowns meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes.lab import make_case, source
from fakes.nvml import FakeNvml
from fakes.nvml.bench import Bench
from fakes.nvml.control import BACKWARDS, FROZEN, GPU_IS_LOST, NOT_SUPPORTED

from profiler.backends import fake
from profiler.backends.fake import FakeMeter, FakeSession
from profiler.devices.cuda import Board
from profiler.devices.sampler import Sampler
from profiler.devices.telemetry import HW_THERMAL, SW_POWER_CAP
from profiler.results import energy
from profiler.results.cautions import cautions
from profiler.results.measurement import Measurement
from profiler.run.loop import measure
from profiler.run.repetitions import Effort, Repeater

CASE = make_case(1024, batch=2, steps=10)  # a prefill of 0.2048 s and a decode of 0.1 s
ASKED = Effort(reps=3, energy=True)


def silent(text: str) -> None:
    """A beat that nobody hears."""


def row(result: Measurement) -> Measurement:
    """The row as the parent completes it."""
    return replace(result, case=CASE, asked={"reps": 3, "max_phase_s": 60.0})


def measured(effort: Effort = ASKED, **script: Any) -> Measurement:
    session = fake.open_session(CASE, source(**script), silent)
    return row(measure(session, CASE, Repeater(effort)))


def test_a_short_phase_is_repeated_for_ten_seconds_and_gives_watts_per_rate() -> None:
    result = measured(idle_w=40.0, prefill_w=200.0, decode_w=100.0)
    prefill, decode = energy.consumption(result, "prefill"), energy.consumption(result, "decode")
    assert prefill is not None and decode is not None
    assert (prefill.watts, decode.watts) == (pytest.approx(200), pytest.approx(100))
    assert prefill.per_token_j == pytest.approx(200 * 0.2048 / 2048)
    assert decode.per_token_j == pytest.approx(100 * 0.1 / 20)  # of all sequences
    assert decode.above_idle_j == pytest.approx(60 * 0.1 / 20)
    assert result.energy is not None and result.energy.prefill is not None
    assert result.energy.prefill.repetitions == 49  # of 0.2048 s
    assert len(result.samples.of("prefill")) == len(result.samples.of("decode")) == 3  # none of them is a sample


def test_energy_that_was_not_requested_costs_nothing() -> None:
    assert measured(Effort(reps=3), idle_w=40.0).energy is None


def test_long_repetitions_give_energy_without_being_repeated() -> None:
    result = measured(Effort(reps=3), idle_w=40.0, prefill_s_per_token=0.002)
    assert result.energy is not None and result.energy.decode is None
    assert result.energy.prefill is not None and result.energy.prefill.repetitions == 3
    prefill = energy.consumption(result, "prefill")
    assert prefill is not None and prefill.watts == pytest.approx(200) and prefill.above_idle_j is None


def test_nothing_is_repeated_for_a_device_that_reports_no_energy() -> None:
    session = fake.open_session(CASE, source(), silent)
    before = session.meter.now()
    result = row(measure(session, CASE, Repeater(ASKED)))
    assert session.meter.now() - before < 5
    assert energy.unknown(result) == "prefill and decode: the script states no power"


class Coupled(FakeMeter):
    """A simulated device whose clock is that of a scripted card, with a power for each phase."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        super().__init__()

    @property
    def seconds(self) -> float:
        return self._bench.machine.now_s

    @seconds.setter
    def seconds(self, until: float) -> None:
        self._bench.run(max(0.0, until - self._bench.machine.now_s))


@pytest.fixture
def bench(driver: Callable[..., FakeNvml]) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**card: Any) -> Bench:
        made.append(Bench(driver(), **card))
        return made[-1]

    yield make
    for each in made:
        each.telemetry.close()


def coupled(bench: Bench, effort: Effort = ASKED) -> Measurement:
    """The case on the fake backend, watched through NVML."""
    session: FakeSession = fake.open_session(CASE, source(load_s=0.0), silent)
    session.machine = session.meter = Coupled(bench)  # type: ignore[assignment]
    session.watcher = bench.telemetry
    return row(measure(session, CASE, Repeater(effort)))


def test_energy_through_nvml_is_the_scripted_one_within_one_percent(bench: Callable[..., Bench]) -> None:
    """Idle for 5 s, 8 prefills of 0.2048 s, then 10 s of them: the decode begins at 16.88 s."""
    board = bench(power_w=55.0)
    board.card.at(5.0, power_w=310.0).at(5 + 57 * 0.2048, power_w=180.0)
    result = coupled(board)
    prefill, decode = energy.consumption(result, "prefill"), energy.consumption(result, "decode")
    assert prefill is not None and decode is not None and result.energy is not None
    assert result.energy.idle_w == pytest.approx(55, rel=0.01)
    assert prefill.per_token_j == pytest.approx(310 * 0.2048 / 2048, rel=0.01)
    assert decode.per_token_j == pytest.approx(180 * 0.1 / 20, rel=0.01)
    assert (result.energy.source, result.energy.scope) == ("nvml-counter", "gpu-board")
    assert energy.suspect(result) is None and energy.unknown(result) is None


@pytest.mark.parametrize("does", [FROZEN, BACKWARDS])
def test_a_counter_that_breaks_while_it_is_needed_is_a_reason(bench: Callable[..., Bench], does: int) -> None:
    board = bench(power_w=300.0)
    board.card.counter(does, at_s=8.0)
    result = coupled(board)
    assert energy.consumption(result, "prefill") is None
    assert "the energy counter" in (energy.unknown(result) or "")
    assert [caution.code for caution in cautions(result)] == ["energy-unknown"]


def test_without_an_energy_counter_power_is_integrated(bench: Callable[..., Bench]) -> None:
    board = bench(power_w=300.0)
    board.machine.fault("nvmlDeviceGetTotalEnergyConsumption", NOT_SUPPORTED)
    result = coupled(board)
    taken = energy.consumption(result, "decode")
    assert taken is not None and taken.watts == pytest.approx(300, rel=0.01)
    assert result.energy is not None and result.energy.source == "nvml-power"


def test_a_card_that_is_lost_leaves_the_speed_and_says_what_is_unknown(bench: Callable[..., Bench]) -> None:
    board = bench(power_w=300.0)
    board.machine.fault("*", GPU_IS_LOST, after=2000)
    result = coupled(board)
    assert len(result.samples.of("decode")) == 3
    said = {caution.code: caution.text for caution in cautions(result)}
    assert said["unwatched"] == "throttling of cpu could not be detected: the GPU is lost"
    assert "the GPU is lost" in said["energy-unknown"]


def test_throttled_repetitions_are_replaced_and_kept_in_the_record(bench: Callable[..., Bench]) -> None:
    """Five warm-ups of 0.2048 s, then one prefill within a hot half second."""
    board = bench(reasons=0)
    board.card.at(1.1, reasons=HW_THERMAL).at(1.2, reasons=0)
    result = coupled(board, Effort(reps=3))
    assert [sample.invalid is None for sample in result.samples.record("prefill")] == [True] * 5 + [False] + [
        True
    ] * 3
    assert len(result.samples.of("prefill")) == 3
    (caution,) = [caution for caution in cautions(result) if caution.code == "prefill-invalid"]
    assert caution.text == "prefill: 1 repetition was invalid and repeated (thermal slowdown by the hardware)"


def test_a_card_that_stays_hot_ends_the_phase_and_says_so(bench: Callable[..., Bench]) -> None:
    result = coupled(bench(reasons=HW_THERMAL), Effort(reps=3))
    assert result.stopped == {"prefill": "invalid", "decode": "invalid"}
    assert result.samples.of("decode") == ()


def test_a_slowdown_in_the_energy_window_makes_the_energy_unknown(bench: Callable[..., Bench]) -> None:
    board = bench(power_w=300.0, reasons=0)
    board.card.at(12.0, reasons=HW_THERMAL).at(12.5, reasons=0)
    result = coupled(board)
    assert "prefill: the device was disturbed (thermal slowdown by the hardware)" in (energy.unknown(result) or "")
    assert energy.consumption(result, "decode") is not None


def test_the_power_limit_clocks_and_other_processes_are_noted(bench: Callable[..., Bench]) -> None:
    board = bench(reasons=SW_POWER_CAP, sm_mhz=2100, processes={1: 2**30, 2: 2**30})
    board.card.at(1.45, sm_mhz=1800)
    result = coupled(board, Effort(reps=3))
    said = {caution.code: caution.text for caution in cautions(result)}
    assert said["decode-power-capped"] == "decode: the power limit lowered the clocks for 100% of the time"
    assert said["prefill-clocks-differ"] == "prefill: clocks differ between repetitions, 1,800 to 2,100 MHz"
    assert said["other-processes"] == "another process computes on cpu"  # one of the two is this


def test_a_driver_that_hangs_costs_its_patience_once(driver: Callable[..., FakeNvml]) -> None:
    machine = driver()
    machine.card()
    machine.fault("nvmlDeviceGetFieldValues", -1)
    session: FakeSession = fake.open_session(CASE, source(), silent)
    session.watcher = Sampler(Board("GPU-aaaa"), patience_s=0.02)
    result = row(measure(session, CASE, Repeater(ASKED)))
    session.watcher.close()
    assert len(result.samples.of("decode")) == 3
    assert energy.unknown(result) == "prefill and decode: the driver did not answer for 20.0 ms"
    assert {caution.code for caution in cautions(result)} >= {"unwatched", "energy-unknown"}
