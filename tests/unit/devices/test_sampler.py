"""The process that watches a device: its answers, its end, and a driver that hangs in it. It runs in real time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.nvml import FakeNvml
from fakes.nvml.control import GPU_IS_LOST, HANG, NOT_SUPPORTED

from profiler.devices.cpu import Rapl
from profiler.devices.cuda import Board
from profiler.devices.sampler import ENDED, Sampler
from profiler.devices.telemetry import HW_THERMAL
from profiler.units import GIB

Driver = Callable[..., FakeNvml]


@pytest.fixture
def sampler() -> Iterator[Callable[..., Sampler]]:
    made: list[Sampler] = []

    def make(patience_s: float = 60) -> Sampler:
        made.append(Sampler(Board("GPU-aaaa"), patience_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("symbol", ["nvmlInitWithFlags", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetClockInfo"])
def test_a_driver_that_hangs_is_given_up_and_nothing_waits_for_it_again(
    driver: Driver, sampler: Callable[..., Sampler], symbol: str
) -> None:
    machine = driver()
    machine.card()
    machine.fault(symbol, HANG)
    telemetry = sampler(patience_s=0.02)
    telemetry.open()
    assert telemetry.gone == "the driver did not answer for 20.0 ms"
    assert telemetry._link is None  # nobody is left to wait for
    assert telemetry.stop(1.0).invalid is None
    assert telemetry.counted_j([(0.0, 1.0)]) == (None, telemetry.gone)
    assert telemetry._process.returncode == -signal.SIGKILL  # nothing hangs on


def test_it_samples_by_itself_and_answers_at_once(driver: Driver, sampler: Callable[..., Sampler]) -> None:
    driver().card(reasons=HW_THERMAL)
    telemetry = sampler()
    telemetry.open()
    start = time.perf_counter()
    assert telemetry.stop(0.0).invalid is None  # no time has passed in it; a snapshot was taken now
    time.sleep(0.5)
    reading = telemetry.stop(time.perf_counter() - start)
    assert reading.invalid == "thermal slowdown by the hardware"
    seen = [snapshot.at_s for snapshot in telemetry._history if snapshot.at_s > start]
    assert len(seen) >= 5 and seen == sorted(seen)  # 12 on a machine with nothing else to do
    assert telemetry.gone is None


def test_unknown_figures_and_other_processes_are_passed_on(driver: Driver, sampler: Callable[..., Sampler]) -> None:
    machine = driver()
    card = machine.card(power_w=300, processes={os.getpid(): GIB, 1: GIB})
    machine.fault("nvmlDeviceGetTotalEnergyConsumption", NOT_SUPPORTED)
    telemetry = sampler()
    telemetry.begin(energy=True)
    telemetry.stop(0.0)
    assert telemetry.overview().others == 1
    assert telemetry.counted_j([(0.0, 0.1)])[1] == "the device does not report its energy (Not Supported)"
    card.at(0.0, processes={os.getpid(): GIB})
    machine.control.faults = 0
    telemetry.begin(energy=True)  # a new case asks again
    assert telemetry.overview().others is None
    telemetry.stop(0.0)
    assert telemetry.overview().others == 0
    assert "energy" not in telemetry.source.unknown


def test_a_board_that_is_lost_is_a_reason(driver: Driver, sampler: Callable[..., Sampler]) -> None:
    machine = driver()
    machine.card()
    telemetry = sampler()
    telemetry.open()
    machine.fault("*", GPU_IS_LOST)
    telemetry.stop(0.0)
    assert telemetry.gone == telemetry.blind == "the GPU is lost"


def test_a_process_that_was_killed_is_a_reason(driver: Driver, sampler: Callable[..., Sampler]) -> None:
    driver().card()
    telemetry = sampler()
    telemetry.open()
    os.kill(telemetry._process.pid, signal.SIGKILL)
    telemetry.begin(energy=True)
    telemetry.stop(0.0)
    assert telemetry.gone == ENDED


def test_it_ends_with_the_process_it_works_for(driver: Driver, sampler: Callable[..., Sampler]) -> None:
    driver().card()
    telemetry = sampler()
    telemetry.open()
    assert telemetry._link is not None
    telemetry._link.close()  # as the kernel does when a process dies
    assert telemetry._process.wait(60) == 0


def test_a_process_that_cannot_be_started_is_a_reason(
    driver: Driver, sampler: Callable[..., Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Resource temporarily unavailable")

    driver().card()
    monkeypatch.setattr(subprocess, "Popen", refuse)
    telemetry = sampler()
    telemetry.open()
    assert telemetry.gone == "the telemetry failed: OSError: Resource temporarily unavailable"


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    telemetry = Sampler(Rapl(tmp_path))
    telemetry.begin(energy=True)
    assert telemetry.counted_j([(0.0, 1.0)]) == (None, "this machine has no energy counters of its CPU (RAPL)")
    telemetry.close()
