"""What runs blocks: two slots, each with a process of one side that stays warm between its blocks."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from profiler import devices
from profiler.case import Case
from profiler.errors import ProfileError
from profiler.gate import side as sides
from profiler.gate.block import Block
from profiler.gate.side import Side
from profiler.measure.interrupt import Interrupts
from profiler.measure.loop import Effort
from profiler.measure.process import Launch
from profiler.measure.protocol import Order
from profiler.measure.supervisor import Job, Supervisor
from profiler.measure.watch import Limits, OnBeat, Stopped
from profiler.models.source import Source
from profiler.units import printable

PADDING = 4096  # bytes: where the stack starts depends on the environment's size, and with it speed (Mytkowicz 2009)
ROOM = 1.1  # of the first process's peak must be free for a second one beside it


TRIVIAL = Job(  # of the backend that costs nothing, which every version has
    Case("side", "side", "synthetic", "fp32", "fp32", "cpu", "fake", "eager", context=1, batch=1, steps=1, ubatch=1),
    Source("folder", os.devnull, None, {}),
)


class Interrupted(Exception):
    """The person asked to stop."""


class Bench(Protocol):
    """Runs blocks of two sides."""

    def start(self, sides: Sequence[Side]) -> None:
        """End the processes there are; the next blocks of slot 0 and 1 start new ones of these sides."""

    def block(self, slot: int, job: Job) -> Block:
        """Measure one case on the process of a slot. Raises Interrupted."""

    def check(self, side: Side, jobs: Sequence[Job]) -> None:
        """Raises ProfileError where a side cannot take these jobs at all: then there is nothing to judge."""


@dataclass(slots=True)
class _Slot:
    side: Side
    supervisor: Supervisor
    process: int


class WorkerBench:
    """Blocks in worker processes; a context manager, which leaves none behind.

    Both processes stay if the device has room for two, else each ends before the other starts: slower, and noisier.
    """

    def __init__(
        self,
        effort: Effort,
        limits: Limits,
        environment: dict[str, Any],
        seed: int,
        on_beat: OnBeat = lambda case, text: None,
    ) -> None:
        self._effort, self._limits, self._environment, self._on_beat = effort, limits, environment, on_beat
        self._random = random.Random(seed)
        self._interrupts = Interrupts()
        self._slots: list[_Slot] = []
        self._processes = 0
        self.resident: bool | None = None  # not known before the first block

    def __enter__(self) -> WorkerBench:
        self._interrupts.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for slot in self._slots:
            slot.supervisor.stop_worker()
        self._interrupts.__exit__(*error)

    def start(self, sides: Sequence[Side]) -> None:
        for slot in self._slots:
            slot.supervisor.finish_worker()
        self._slots = [self._slot(side) for side in sides]

    def block(self, slot: int, job: Job) -> Block:
        if self._interrupts.asked:
            raise Interrupted
        mine = self._slots[slot]
        if self.resident is False:
            for other in self._slots:
                if other is not mine and other.supervisor.has_worker:
                    other.supervisor.finish_worker()
            if not mine.supervisor.has_worker:
                mine = self._slots[slot] = self._slot(mine.side)
        try:
            row = mine.supervisor.row(job)
        except Stopped:
            raise Interrupted from None
        if self.resident is None and row.outcome == "ok":
            peak = row.memory.process_peak_bytes
            self.resident = peak is None or devices.find(job.case.device).free_bytes > ROOM * peak
        return Block(mine.side.name, mine.process, row)

    def check(self, side: Side, jobs: Sequence[Job]) -> None:
        """Both its profiler and a worker of it: the first may answer where the second does not even start."""
        sides.check(side, [Order(job.case, job.source, self._effort, None) for job in jobs])
        slot = self._slot(side)
        try:
            row = slot.supervisor.row(TRIVIAL)
        except Stopped:
            raise Interrupted from None
        finally:
            slot.supervisor.stop_worker()
        if self._interrupts.asked:  # the bench that measures is another one, which would not know
            raise Interrupted
        if row.outcome != "ok":
            raise ProfileError(
                f"{printable(side.name)}: its worker process does not measure: {row.reason}",
                "A gate talks to a worker process of each side over pipes that it inherits: name its interpreter.",
            )

    def _slot(self, side: Side) -> _Slot:
        self._processes += 1
        padding = {"PROFILER_PADDING": "x" * self._random.randrange(PADDING)}
        launch = Launch(side.launch.python, {**side.launch.environ, **padding})
        supervisor = Supervisor(
            self._effort, self._limits, self._environment, self._on_beat, self._interrupts, launch
        )
        return _Slot(side, supervisor, self._processes)
