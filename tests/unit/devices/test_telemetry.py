"""What is read of a board while something runs on it, and what becomes of a board that does not play along.

The board is scripted and time is simulated.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from fakes.nvml import FakeNvml
from fakes.nvml.bench import Bench
from fakes.nvml.control import (
    BACKWARDS,
    FROZEN,
    GPU_IS_LOST,
    NOT_SUPPORTED,
    RESET,
    TURING,
    UNKNOWN_ERROR,
)

from profiler.devices.telemetry import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL
from profiler.units import GIB

Driver = Callable[..., FakeNvml]


@pytest.fixture
def bench(driver: Driver):
    made: list[Bench] = []

    def make(*without: str, **card: Any) -> Bench:
        made.append(Bench(driver(*without), **card))
        return made[-1]

    yield make
    for each in made:
        each.telemetry.close()


STEADY = (3.017, 13.017)
"""Ten seconds that begin between two steps of the counter."""


@pytest.mark.parametrize("step_s", [0.02, 0.1, 0.13])
@pytest.mark.parametrize("start_s", [3.0, 3.017, 3.051, 3.099])
def test_the_energy_of_ten_seconds_is_read_back_within_one_percent(bench: Any, step_s: float, start_s: float) -> None:
    board = bench(step_s=step_s)
    board.card.at(start_s, power_w=300).at(start_s + 4, power_w=380).at(start_s + 10, power_w=90)
    telemetry = board.open()
    board.run(20)
    span = (start_s, start_s + 10)
    truth = 4 * 300 + 6 * 380
    assert telemetry.counted_j([span]) == (pytest.approx(truth, rel=0.01), None)
    assert telemetry.integrated_j([span]) == (pytest.approx(truth, rel=0.01), None)


def test_energy_between_windows_does_not_count(bench: Any) -> None:
    board = bench()
    for number in range(10):
        board.card.at(1 + 3 * number, power_w=300).at(3 + 3 * number, power_w=20)
    telemetry = board.open()
    board.run(40)
    spans = [(1.0 + 3 * number, 3.0 + 3 * number) for number in range(10)]
    joules, reason = telemetry.counted_j(spans)
    assert reason is None and joules == pytest.approx(20 * 300, rel=0.01)


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (FROZEN, "the energy counter stood still for 8.5"),
        (BACKWARDS, "the energy counter went backwards"),
        (RESET, "the energy counter went backwards"),
    ],
)
def test_a_counter_that_does_not_count_gives_none_and_a_reason(bench: Any, does: int, words: str) -> None:
    board = bench(power_w=300)
    board.card.counter(does, at_s=5.0)
    telemetry = board.open()
    board.run(16)
    joules, reason = telemetry.counted_j([STEADY])
    assert joules is None and reason is not None and words in reason
    assert telemetry.integrated_j([STEADY])[0] == pytest.approx(3000, rel=0.01)  # the two are told apart
    assert telemetry.gone is None


def test_a_reset_before_the_window_does_no_harm(bench: Any) -> None:
    board = bench(power_w=300)
    board.card.counter(RESET, at_s=1.0)
    telemetry = board.open()
    board.run(16)
    assert telemetry.counted_j([STEADY])[0] == pytest.approx(3000, rel=0.01)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN_ERROR])
def test_an_unsupported_counter_is_unknown_with_the_drivers_words(bench: Any, code: int) -> None:
    board = bench(power_w=300)
    board.machine.fault("nvmlDeviceGetTotalEnergyConsumption", code)
    telemetry = board.open()
    board.run(16)
    joules, reason = telemetry.counted_j([STEADY])
    words = {NOT_SUPPORTED: "Not Supported", UNKNOWN_ERROR: "Unknown Error"}[code]
    assert (joules, reason) == (None, f"the device does not report its energy ({words})")
    assert telemetry.integrated_j([STEADY])[0] == pytest.approx(3000, rel=0.01)


def test_a_missing_counter_is_unknown(bench: Any) -> None:
    board = bench("nvmlDeviceGetTotalEnergyConsumption", power_w=300)
    telemetry = board.open()
    board.run(16)
    reason = "the device does not report its energy (the driver has no such function)"
    assert telemetry.counted_j([STEADY]) == (None, reason)


def test_a_new_case_tries_unknown_figures_again(bench: Any) -> None:
    board = bench(power_w=300)
    board.machine.fault("nvmlDeviceGetTotalEnergyConsumption", UNKNOWN_ERROR)
    telemetry = board.open()
    board.run(1)
    board.machine.control.faults = 0
    telemetry.begin(energy=True)
    board.run(15)
    assert telemetry.counted_j([STEADY])[0] == pytest.approx(3000, rel=0.01)


@pytest.mark.parametrize("symbol", ["*", "field 269", "nvmlDeviceGetTemperatureV"])
def test_a_board_that_is_lost_ends_the_telemetry_with_a_reason(bench: Any, symbol: str) -> None:
    board = bench(power_w=300)
    board.machine.fault(symbol, GPU_IS_LOST, after=100)
    telemetry = board.open()
    board.run(30)
    assert telemetry.gone == "the GPU is lost"
    assert telemetry.counted_j([STEADY]) == telemetry.integrated_j([STEADY]) == (None, "the GPU is lost")
    assert telemetry._history.reading((28.0, 29.0)).invalid is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (("nvmlInitWithFlags", UNKNOWN_ERROR), "no NVIDIA driver answers (Unknown Error)"),
        (("nvmlDeviceGetHandleByUUID", UNKNOWN_ERROR), "NVML does not find the GPU by its UUID (Unknown Error)"),
    ],
)
def test_a_board_that_cannot_be_opened_is_a_reason(bench: Any, fault: tuple[str, int], words: str) -> None:
    board = bench()
    board.machine.fault(*fault)
    telemetry = board.open()
    assert telemetry.gone == words
    assert telemetry.counted_j([STEADY]) == (None, words)


def test_a_board_is_found_by_its_uuid_whatever_its_number(driver: Driver) -> None:
    machine = driver()
    machine.card("GPU-other", temperature_c=90)
    board = Bench(machine)
    last = board.open().last
    assert last is not None and last.temperature_c == 35
    board.telemetry.close()


@pytest.mark.parametrize("symbol", ["nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"])
def test_an_older_driver_is_called_by_the_older_name(bench: Any, symbol: str) -> None:
    last = bench(symbol, reasons=SW_POWER_CAP).open().last
    assert last is not None and (last.temperature_c, last.reasons) == (35, SW_POWER_CAP)


@pytest.mark.parametrize("name", ["clock", "memory clock", "temperature", "reasons", "fields", "processes"])
def test_a_figure_that_a_board_does_not_report_leaves_the_rest_known(bench: Any, name: str) -> None:
    symbols = {
        "clock": ["nvmlDeviceGetClockInfo"],
        "memory clock": ["nvmlDeviceGetClockInfo"],
        "temperature": ["nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"],
        "reasons": ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"],
        "fields": ["nvmlDeviceGetFieldValues"],
        "processes": ["nvmlDeviceGetComputeRunningProcesses_v3"],
    }[name]
    board = bench(power_w=300)
    for symbol in symbols:
        board.machine.fault(symbol, NOT_SUPPORTED)
    telemetry = board.open()
    board.run(16)
    assert name in telemetry.source.unknown
    assert telemetry.counted_j([STEADY])[0] == pytest.approx(3000, rel=0.01)


def test_an_average_over_a_second_is_not_used_as_power(bench: Any) -> None:
    """``nvmlDeviceGetPowerUsage`` is such an average from Ampere on; before, it is the momentary power."""
    for architecture, joules in ((TURING, 3000), (TURING + 1, None)):
        board = bench(architecture=architecture, power_w=300)
        board.machine.fault("field 186", NOT_SUPPORTED)
        telemetry = board.open()
        board.run(16)
        assert telemetry.integrated_j([STEADY])[0] == (joules and pytest.approx(joules, rel=0.01))


@pytest.mark.parametrize(
    ("bit", "words"),
    [
        (HW_SLOWDOWN, "hardware slowdown"),
        (SW_THERMAL, "thermal slowdown by the driver"),
        (HW_THERMAL, "thermal slowdown by the hardware"),
        (POWER_BRAKE, "power brake"),
    ],
)
def test_a_forced_slowdown_is_seen(bench: Any, bit: int, words: str) -> None:
    board = bench(reasons=0)
    board.card.at(4.0, reasons=bit | SW_POWER_CAP).at(5.0, reasons=0)
    telemetry = board.open()
    board.run(10)
    during, after = telemetry._history.reading((2.0, 6.0)), telemetry._history.reading((6.0, 8.0))
    assert during.invalid == words
    assert during.capped == pytest.approx(0.25, abs=0.02)
    assert (after.invalid, after.capped) == (None, 0.0)


def test_a_board_that_does_not_report_slowdowns_is_called_blind(bench: Any) -> None:
    assert bench().open().blind is None
    board = bench()
    for symbol in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        board.machine.fault(symbol, NOT_SUPPORTED)
    assert board.open().overview().blind == "it does not report why its clocks are low (Not Supported)"


def test_a_slowdown_between_two_snapshots_is_counted_by_the_driver(bench: Any) -> None:
    board = bench(reasons=0)
    board.card.at(4.001, reasons=HW_THERMAL).at(4.021, reasons=0)
    telemetry = board.open()
    board.run(10)
    assert telemetry._history.reading((2.0, 6.0)).invalid == "thermal slowdown by the hardware"


def test_another_counter_in_its_place_is_not_a_slowdown(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An energy counter instead of field 269, as in a driver with other numbers for its fields."""
    from profiler.devices import cuda as module

    monkeypatch.setattr(module, "LIMITED", {83: SW_THERMAL})
    monkeypatch.setattr(module, "FIELDS", [186, 83])
    each = bench(power_w=30_000_000, reasons=0)
    telemetry = each.open()
    each.run(10)
    assert telemetry._history.reading((2.0, 6.0)).invalid is None


def test_clocks_and_temperature_are_those_of_the_window(bench: Any) -> None:
    board = bench(sm_mhz=2520)
    board.card.at(3.0, sm_mhz=2100, temperature_c=70).at(5.0, temperature_c=60)
    telemetry = board.open()
    board.run(10)
    before, hot = telemetry._history.reading((1.0, 2.0)), telemetry._history.reading((3.0, 6.0))
    assert (before.sm_mhz, before.temperature_c) == (2520, 35)
    assert (hot.sm_mhz, hot.temperature_c) == (2100, 70)
    assert telemetry._history.reading((7.0, 7.01)).sm_mhz is None  # too short for a median


@pytest.mark.parametrize(
    ("processes", "others"),
    [
        ({}, None),  # the driver does not report it
        ({os.getpid(): 3 * GIB}, 0),
        ({os.getpid(): 3 * GIB, 1: GIB}, 1),
        ({1: GIB}, 0),  # in a container: this process by its number on the host
        ({1: GIB, 2: None}, 1),
    ],
)
def test_other_processes_are_counted_in_containers_too(
    bench: Any, processes: dict[int, int | None], others: int | None
) -> None:
    board = bench(processes=processes)
    telemetry = board.open()
    board.run(5)
    assert telemetry.overview().others == others


def test_the_most_others_of_a_case_count_and_none_of_the_case_before(bench: Any) -> None:
    board = bench(processes={1: GIB, 2: GIB, 3: GIB})
    telemetry = board.open()
    board.card.at(3.0, processes={1: GIB})
    board.run(5)
    assert telemetry.overview().others == 2
    telemetry.begin(energy=False)
    board.run(5)
    assert telemetry.overview().others == 0


def test_a_bug_of_ours_ends_the_telemetry_and_not_the_measurement(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = bench()
    telemetry = board.open()
    monkeypatch.setattr(telemetry.source, "read", lambda at_s: 1 / 0)
    board.run(1)
    assert telemetry.gone == "the telemetry failed: ZeroDivisionError: division by zero"
