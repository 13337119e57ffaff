"""The virtual device: a clock and a memory that move only when told to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from profiler.backends.base import OutOfMemory
from profiler.devices.base import Peak
from profiler.units import bytes_text

BASELINE_BYTES = 64 * 1024**2  # the virtual process before its model


class FakeMeter:
    """The virtual device: its clock and its memory move only when told to."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.seconds = 0.0
        self.held = self.highest = BASELINE_BYTES
        self.capacity = capacity_bytes

    def hold(self, size: int) -> None:
        """Take (or, negative, give back) bytes. Raises OutOfMemory above the capacity."""
        if self.capacity is not None and self.held + size > self.capacity:
            raise OutOfMemory(f"{bytes_text(size)} more than the {bytes_text(self.held)} held of {self.capacity:,} B")
        self.held += size
        self.highest = max(self.highest, self.held)

    def now(self) -> float:
        return self.seconds

    def cpu_s(self) -> float:
        return self.seconds

    def waited_s(self) -> float | None:
        return None

    def mark(self) -> object:
        return self.seconds

    def elapsed(self, marks: Sequence[object]) -> list[float]:
        return [after - before for before, after in pairwise(marks)]  # type: ignore[operator]

    def reset_peak(self) -> None:
        self.highest = self.held

    def peak(self) -> Peak:
        return Peak(allocated_bytes=None, reserved_bytes=None, process_bytes=self.highest)
