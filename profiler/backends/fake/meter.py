"""The virtual device: a clock and a memory that move only when told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from profiler.backends.base import OutOfMemory
from profiler.devices.base import Consumed, FigureOrReason, Lap, Overview, Peak, Pressure, Reading
from profiler.units import bytes_text

UNSTATED: FigureOrReason = (None, "the script states no power")
BASELINE_BYTES = 64 * 1024**2  # the virtual process before its model


class FakeMeter:
    """The virtual device: its clock and its memory move only when told to."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.seconds = 0.0
        self.held = self.highest = BASELINE_BYTES
        self.capacity = capacity_bytes
        self.waited_s: float | None = None
        self.strain = Pressure(at_s=0.0)  # what the machine counts beside the clock
        self._powered: list[tuple[float, float, float]] = []  # from, until, watts: where a phase took energy

    def work(self, seconds: float, watts: float | None) -> None:
        """Let time pass on a device that takes so much power."""
        if watts is not None:
            self._powered.append((self.seconds, self.seconds + seconds, watts))
        self.seconds += seconds

    def joules(self, span: tuple[float, float]) -> float:
        """Energy between two moments."""
        return sum(
            max(0.0, min(until, span[1]) - max(start, span[0])) * watts for start, until, watts in self._powered
        )

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
    """Sees what the script says is to be seen: ``complaint`` is set by a fault, and forgotten once it was told.

    Virtual energy is virtual watts times virtual seconds; a script that states no watts leaves it unknown.
    """

    def __init__(self, meter: FakeMeter, idle_w: float | None) -> None:
        self.complaint: str | None = None
        self._meter, self._idle_w = meter, idle_w

    def begin(self, energy: bool) -> None:
        self.complaint = None

    def start(self) -> None:
        self.complaint = None

    def stop(self, seconds: float) -> Reading:
        return Reading(invalid=self.complaint, ended_s=self._meter.seconds)

    def consumed(self, spans: Sequence[tuple[float, float]]) -> Consumed | None:
        counter: FigureOrReason = (
            (sum(map(self._meter.joules, spans)), None) if self._idle_w is not None else UNSTATED
        )
        return Consumed("fake-counter", "fake", counter, (None, "a virtual device reports no power"))

    def idle_w(self) -> FigureOrReason:
        return UNSTATED if self._idle_w is None else (self._idle_w, None)

    def overview(self) -> Overview:
        return Overview()

    def close(self) -> None:
        """Nothing is held."""
