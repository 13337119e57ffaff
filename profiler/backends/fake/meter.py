"""The virtual device: a clock and a memory that move only when told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from profiler.backends.base import OutOfMemory
from profiler.devices.base import Lap, Peak, Pressure, Reading
from profiler.units import bytes_text

BASELINE_BYTES = 64 * 1024**2  # the virtual process before its model


class FakeMeter:
    """The virtual device: its clock and its memory move only when told to."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.seconds = 0.0
        self.held = self.highest = BASELINE_BYTES
        self.capacity = capacity_bytes
        self.waited_s: float | None = None
        self.strain = Pressure(at_s=0.0)  # what the machine counts beside the clock

    def hold(self, size: int) -> None:
        """Take (or, negative, give back) bytes. Raises OutOfMemory above the capacity."""
        if self.capacity is not None and self.held + size > self.capacity:
            raise OutOfMemory(f"{bytes_text(size)} more than the {bytes_text(self.held)} held of {self.capacity:,} B")
        self.held += size
        self.highest = max(self.highest, self.held)

    def now(self) -> float:
        return self.seconds

    def window(self) -> FakeWindow:
        return FakeWindow(self)

    def mark(self) -> object:
        return self.seconds

    def elapsed(self, marks: Sequence[object]) -> list[float]:
        return [after - before for before, after in pairwise(marks)]  # type: ignore[operator]

    def reset_peak(self) -> None:
        self.highest = self.held

    def peak(self) -> Peak:
        return Peak(None, None, process_bytes=self.highest, framework_bytes=BASELINE_BYTES)

    def pressure(self) -> Pressure:
        return replace(self.strain, at_s=self.seconds)


class FakeWindow:
    """From one virtual moment to another. The virtual process computes all the time."""

    def __init__(self, meter: FakeMeter) -> None:
        self._meter = meter
        self._start, self._waited = meter.seconds, meter.waited_s

    def close(self) -> Lap:
        seconds, waited = self._meter.seconds - self._start, self._meter.waited_s
        wait_s = None if waited is None or self._waited is None else waited - self._waited
        return Lap(seconds, cpu_s=seconds, wait_s=wait_s)


class FakeWatcher:
    """Sees what the script says is to be seen: ``complaint`` is set by a fault, and forgotten once it was told."""

    def __init__(self) -> None:
        self.complaint: str | None = None

    def start(self) -> None:
        self.complaint = None

    def stop(self) -> Reading:
        return Reading(invalid=self.complaint)

    def close(self) -> None:
        """Nothing is held."""
