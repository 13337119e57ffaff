"""The meter of a GPU, with a fake torch that logs its calls."""

from __future__ import annotations

import os
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from profiler.devices import cuda
from profiler.errors import ProfileError
from profiler.units import GIB


class Event:
    """Records the device's time, which moves by a millisecond at every event."""

    ticks = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:0"
        Event.ticks += 1
        self.at = Event.ticks

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, other: Event) -> float:
        return float(other.at - self.at)  # milliseconds, as in CUDA


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of torch, in order."""
    calls: list[str] = []

    def call(name: str, answer: Any = None) -> Any:
        def inner(device: str | None = None) -> Any:
            calls.append(name)
            return answer

        return inner

    torch = ModuleType("torch")
    torch.device = str  # type: ignore[attr-defined]
    torch.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Event=Event,
        current_stream=lambda device: f"stream of {device}",
        get_device_properties=lambda device: SimpleNamespace(uuid="aaaa"),
        synchronize=call("synchronize"),
        empty_cache=call("empty_cache"),
        reset_peak_memory_stats=call("reset"),
        max_memory_allocated=call("allocated", 2 * GIB),
        max_memory_reserved=call("reserved", 3 * GIB),
        memory_reserved=call("reserved now", 3 * GIB),
        memory_stats=lambda device: {"num_alloc_retries": 2},
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    return calls


def test_the_clock_waits_for_the_device(nvml: Any, card: Any, asked: list[str]) -> None:
    nvml(card())
    meter = cuda.meter("cuda:0")
    assert meter.now() < meter.now()
    assert asked == ["synchronize", "synchronize"]


def test_a_card_with_another_number_in_cuda_is_not_measured(nvml: Any, card: Any, asked: list[str]) -> None:
    """CUDA may skip a card that NVML lists: power and memory would be another card's."""
    nvml(card(uuid="GPU-bbbb"), card())
    with pytest.raises(ProfileError, match="cuda:0 of CUDA is cuda:1 by NVML"):
        cuda.meter("cuda:0")


def test_marks_are_events_and_give_seconds(nvml: Any, card: Any, asked: list[str]) -> None:
    nvml(card())
    meter = cuda.meter("cuda:0")
    marks = [meter.timestamp() for _ in range(3)]
    assert asked == []  # a mark waits for nothing
    assert meter.elapsed(marks) == [0.001, 0.001]
    assert marks[-1].waited  # type: ignore[attr-defined]
    assert meter.elapsed([]) == []


def test_a_reset_peak_frees_unused_segments_first(nvml: Any, card: Any, asked: list[str]) -> None:
    nvml(card())
    cuda.meter("cuda:0").reset_peak()
    assert asked == ["synchronize", "empty_cache", "reset"]


def test_a_window_measures_host_time_device_time_and_the_rest_of_the_queue(
    nvml: Any, card: Any, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml(card())
    meter = cuda.meter("cuda:0")
    window = meter.window()
    assert asked == ["synchronize"]  # nothing of what was queued before is inside
    moments = iter((10.0, 10.25, 10.25))  # the last launch, when the device has finished, the end of the window
    monkeypatch.setattr(cuda.time, "perf_counter", lambda: next(moments))
    lap = window.close()
    assert asked == ["synchronize", "synchronize"]
    assert (lap.device_s, lap.drain_s) == (0.001, 0.25)
    assert lap.cpu_s is not None


def test_allocator_retries_are_counted(nvml: Any, card: Any, asked: list[str]) -> None:
    nvml(card())
    assert cuda.meter("cuda:0").pressure().retries == 2


def test_process_memory_is_that_of_our_pid_in_nvml(nvml: Any, card: Any, asked: list[str]) -> None:
    nvml(card(used=14 * GIB, processes={1: 9 * GIB, os.getpid(): 4 * GIB}))
    peak = cuda.meter("cuda:0").peak()
    assert (peak.allocated_bytes, peak.reserved_bytes, peak.process_bytes) == (2 * GIB, 3 * GIB, 4 * GIB)
    assert (peak.framework_bytes, peak.device_bytes) == (1 * GIB, 14 * GIB)  # the context; all programs


@pytest.mark.parametrize("processes", [{}, {os.getpid(): None}])
def test_without_memory_by_process_the_growth_of_the_card_counts(
    nvml: Any, card: Any, asked: list[str], processes: dict[int, int | None]
) -> None:
    module = nvml(card(used=1 * GIB, processes=processes))
    meter = cuda.meter("cuda:0")
    module.cards[0].used = 6 * GIB
    assert meter.peak().process_bytes == 5 * GIB


def test_a_card_that_nvml_does_not_know_leaves_the_process_unknown(nvml: Any, card: Any, asked: list[str]) -> None:
    nvml(card(uuid="GPU-other"))
    peak = cuda.meter("cuda:0").peak()
    assert (peak.allocated_bytes, peak.process_bytes) == (2 * GIB, None)


def test_on_a_slice_the_rest_of_the_card_does_not_count(
    nvml: Any, card: Any, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch may name the whole card."""
    module = nvml(card(used=9 * GIB, split=True))
    module.slices["MIG-1"] = part = card(uuid="MIG-1", used=1 * GIB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    meter = cuda.meter("cuda:0")
    module.cards[0].used, part.used = 60 * GIB, 3 * GIB
    assert meter.peak().process_bytes == 2 * GIB


def test_a_driver_that_hangs_leaves_the_process_unknown_and_is_called_once(
    nvml: Any, card: Any, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits for a hundredth of a second."""
    nvml(card())
    calls, end = [], threading.Event()

    def hang(uuid: str, *about: int) -> int:
        calls.append(uuid)
        end.wait(10)
        return 0

    monkeypatch.setattr(cuda.nvml, "PATIENCE_S", 0.01)
    monkeypatch.setattr(cuda.nvml, "used_bytes", hang)
    meter = cuda.meter("cuda:0")
    assert meter.peak().process_bytes is None and meter.peak().allocated_bytes == 2 * GIB
    end.set()
    assert calls == ["GPU-aaaa"]


def test_the_watcher_is_of_the_card_that_torch_uses(nvml: Any, card: Any, asked: list[str]) -> None:
    nvml(card(uuid="GPU-other"), card())
    assert cuda.watcher("cuda:0").source._uuid == "GPU-aaaa"
