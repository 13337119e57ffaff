"""A scripted card with its telemetry, on virtual time: a snapshot at every tick, as a thread takes them."""

from __future__ import annotations

from typing import Any

from fakes.nvml.control import Card, FakeNvml
from profiler.devices.cuda import Board
from profiler.devices.telemetry import TICK_S, Telemetry


class Bench:
    """A card ``GPU-aaaa``, its telemetry, and a clock."""

    def __init__(self, machine: FakeNvml, **card: Any) -> None:
        self.machine = machine
        self.card: Card = machine.card(**card)
        self.telemetry = Telemetry(Board("GPU-aaaa"), lambda: machine.now_s, self.run)
        self._next = TICK_S

    def open(self) -> Telemetry:
        return self.telemetry.open()

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.machine.now_s + seconds
        while self._next <= end:
            self.machine.now_s = self._next
            self.telemetry.look()
            self._next += TICK_S
        self.machine.now_s = end
