"""What a gate measures: blocks, run in turns by one warm process per variant, and collected in pairs.

A block is one order to one warm process, with the figures that a gate takes from its row.
"""

from __future__ import annotations

import math
import os
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from profiler import devices
from profiler.case import Case, Source, Task
from profiler.devices.base import kind_of
from profiler.errors import ProfileError
from profiler.gate import rule
from profiler.gate import variants as variants
from profiler.gate.variants import Variant
from profiler.results.cautions import CAPPED, DIFFERENT, cautions
from profiler.results.measurement import Measurement, Phase
from profiler.run.process import Launch
from profiler.run.protocol import Order
from profiler.run.repetitions import ONE_OTHER, Effort
from profiler.run.supervisor import Interrupts, OnBeat, Stopped, Supervisor, WorkerLimits
from profiler.units import printable

GateClock = Literal["cpu", "wall"]
METRICS: tuple[Phase, ...] = ("prefill", "decode")
PRESSED = ("-cpu-pressure",)  # ends of caution codes that spoil a wall clock, not a count of CPU time
SPOILT = ("other-processes", "-clocks-differ", "-swap", "-invalid")  # and that spoil any clock
CPU_THREADS = 1  # unless asked otherwise: idle threads of more spin, and on a busy machine that is most CPU time

PADDING = 4096  # bytes: where the stack starts depends on the environment's size, and with it speed (Mytkowicz 2009)
ROOM = 1.1  # of the first process's peak must be free for a second one beside it
TRIVIAL = Task(  # of the backend that costs nothing, which every version has
    Case("side", "side", "synthetic", "fp32", "fp32", "cpu", "fake", "eager", context=1, batch=1, steps=1, ubatch=1),
    Source("folder", os.devnull, None, {}),
)

RESTART = 3  # pairs after which both processes are new: some are slow from start to end, by luck of layout
MOST_SPOILT = 0.25  # of the pairs: with more, it is the machine that is measured
KeptBlocks = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ProcessBlock:
    """What one process gave for one cell."""

    variant: str  # base | candidate
    process: int  # which one of this gate, from 1
    row: Measurement

    def seconds(self, metric: Phase, clock: GateClock) -> float | None:
        """Median seconds of a repetition; None where the phase or the clock is missing, or the clock stood still."""
        times = [sample.cpu_s if clock == "cpu" else sample.seconds for sample in self.row.of(metric)]
        known = [value for value in times if value is not None]
        if not known or len(known) < len(times) or min(known) <= 0:
            return None
        return statistics.median(known)

    def spoilt(self, clock: GateClock) -> str | None:
        """Why its times mean nothing, in words: something outside took part."""
        ends = SPOILT + (PRESSED if clock == "wall" else ())
        found = [caution.text for caution in cautions(self.row) if caution.code.endswith(ends)]
        texts = [text for text in found if not text.startswith(ONE_OTHER)]  # the other slot's process, which idles
        return "; ".join(texts) or None


def unlike(base: ProcessBlock, candidate: ProcessBlock) -> str | None:
    """Why the two halves of a pair ran under different conditions, as far as a GPU tells; None if they did not."""
    clocks = [_median([s.sm_mhz for metric in METRICS for s in b.row.of(metric)]) for b in (base, candidate)]
    capped = [_median([s.capped for metric in METRICS for s in b.row.of(metric)]) for b in (base, candidate)]
    a, b = clocks
    if a and b and max(a, b) > (1 + DIFFERENT) * min(a, b):
        return f"clocks of {a:,.0f} MHz and {b:,.0f} MHz"
    a, b = capped
    if a is not None and b is not None and abs(a - b) > CAPPED:
        return f"the power limit held the clocks down for {a:.0%} and {b:.0%} of the time"
    return None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def threads_of(device: str, asked: int | None) -> int | None:
    """Threads that a gate computes with; None leaves it to the backend."""
    return CPU_THREADS if asked is None and clock_of(device) == "cpu" else asked


def clock_of(device: str) -> GateClock:
    """A CPU's gate counts CPU time, which other programs change far less than the time on the wall."""
    return "cpu" if kind_of(device).is_host else "wall"


def record(stage: str, pair: int, blocks: Sequence[ProcessBlock], spoilt: str | None) -> list[dict[str, Any]]:
    """What is kept of the blocks of one pair, in the order they ran: raw seconds, and why they do not count."""
    return [
        {
            "stage": stage,
            "pair": pair,
            "place": place,  # 0: ran first
            "side": block.variant,
            "process": block.process,
            "key": block.row.case.key,
            "outcome": block.row.outcome,
            "reason": block.row.reason,
            "invalid": spoilt,
            "started_at": block.row.started_at,
            "seconds": {metric: [s.seconds for s in block.row.of(metric)] for metric in METRICS},
            "cpu_seconds": {metric: [s.cpu_s for s in block.row.of(metric)] for metric in METRICS},
            "cautions": [caution.code for caution in block.row.cautions],
        }
        for place, block in enumerate(blocks)
    ]


class Interrupted(Exception):
    """The person asked to stop."""


class Bench(Protocol):
    """Runs blocks of two sides."""

    def start(self, variants: Sequence[Variant]) -> None:
        """End the processes there are; the next blocks of slot 0 and 1 start new ones of these sides."""

    def block(self, slot: int, task: Task) -> ProcessBlock:
        """Measure one case on the process of a slot. Raises Interrupted."""

    def check(self, variant: Variant, tasks: Sequence[Task]) -> None:
        """Raises ProfileError where a side cannot take these jobs at all: then there is nothing to judge."""


@dataclass(slots=True)
class _Slot:
    variant: Variant
    supervisor: Supervisor
    process: int


class WorkerBench:
    """Blocks in worker processes; a context manager, which leaves none behind.

    Both processes stay if the device has room for two, else each ends before the other starts: slower, and noisier.
    """

    def __init__(
        self,
        effort: Effort,
        limits: WorkerLimits,
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

    def start(self, variants: Sequence[Variant]) -> None:
        for slot in self._slots:
            slot.supervisor.finish_worker()
        self._slots = [self._slot(variant) for variant in variants]

    def block(self, slot: int, task: Task) -> ProcessBlock:
        if self._interrupts.asked:
            raise Interrupted
        mine = self._slots[slot]
        if self.resident is False:
            for other in self._slots:
                if other is not mine and other.supervisor.has_worker:
                    other.supervisor.finish_worker()
            if not mine.supervisor.has_worker:
                mine = self._slots[slot] = self._slot(mine.variant)
        try:
            row = mine.supervisor.row(task)
        except Stopped:
            raise Interrupted from None
        if self.resident is None and row.outcome == "ok":
            peak = row.memory.process_peak_bytes
            self.resident = peak is None or devices.find(task.case.device).free_bytes > ROOM * peak
        return ProcessBlock(mine.variant.name, mine.process, row)

    def check(self, variant: Variant, tasks: Sequence[Task]) -> None:
        """Both its profiler and a worker of it: the first may answer where the second does not even start."""
        variants.check(variant, [Order(task.case, task.source, self._effort, None) for task in tasks])
        slot = self._slot(variant)
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
                f"{printable(variant.name)}: its worker process does not measure: {row.reason}",
                "A gate talks to a worker process of each side over pipes that it inherits: name its interpreter.",
            )

    def _slot(self, variant: Variant) -> _Slot:
        self._processes += 1
        padding = {"PROFILER_PADDING": "x" * self._random.randrange(PADDING)}
        launch = Launch(variant.launch.python, {**variant.launch.environ, **padding})
        supervisor = Supervisor(
            self._effort, self._limits, self._environment, self._on_beat, self._interrupts, launch
        )
        return _Slot(variant, supervisor, self._processes)


class Unfit(Exception):
    """The pairs cannot be had; the message says why."""


class Broken(Exception):
    """A side did not run the cell to its end."""

    def __init__(self, block: ProcessBlock, by_base: bool) -> None:
        super().__init__(f"{block.row.outcome}: {block.row.reason}")
        self.by_base = by_base


@dataclass(slots=True)
class Series:
    """One cell: base in ``sides[0]``, candidate in ``sides[1]``."""

    task: Task
    metrics: Sequence[Phase]
    clock: GateClock
    planned: int  # pairs at most
    logs: dict[Phase, list[float]] = field(default_factory=dict)  # ln(candidate ÷ base), a value a pair
    first: tuple[ProcessBlock, ProcessBlock] | None = None  # base and candidate, for what does not vary
    spoilt: int = 0
    other_step: str | None = None  # that the two of a pair ran different decode steps

    @property
    def pairs(self) -> int:
        return len(next(iter(self.logs.values()), ()))

    def add(self, base: ProcessBlock, candidate: ProcessBlock) -> str | None:
        """Take a pair, or return why it does not count."""
        spoilt = base.spoilt(self.clock) or candidate.spoilt(self.clock) or unlike(base, candidate)
        values = {m: (base.seconds(m, self.clock), candidate.seconds(m, self.clock)) for m in self.metrics}
        if self.first is None:
            self.first = (base, candidate)
        self.other_step = self.other_step or rule.difference(base.row, candidate.row)
        if spoilt is None:
            missing = [metric for metric, both in values.items() if None in both]
            if missing:
                raise Unfit(
                    f"a repetition of {missing[0]} has no {self.clock} time: it is shorter than the clock tells"
                )
        if spoilt is not None:
            self.spoilt += 1
            if self.spoilt > MOST_SPOILT * self.planned:
                raise Unfit(f"{self.spoilt} of {self.pairs + self.spoilt} pairs were spoilt from outside: {spoilt}")
            return spoilt
        for metric, (a, b) in values.items():
            assert a is not None and b is not None  # checked above
            self.logs.setdefault(metric, []).append(math.log(b / a))
        return None


class Stage:
    """A purpose for which pairs are measured: the noise of the base against itself, the gate, its confirmation.

    ``slots``: the side in each slot; ``base_slot``: which of them is the base. The order within a pair is drawn anew
    each time.
    """

    def __init__(
        self, name: str, bench: Bench, slots: tuple[Variant, Variant], base_slot: int, seed: int, kept: KeptBlocks
    ) -> None:
        self._name, self._bench, self._slots, self._base, self._kept = name, bench, slots, base_slot, kept
        self._random = random.Random(f"{seed} {name}")
        self._since = RESTART  # pairs since the processes were started

    def advance(self, every: Sequence[Series], until: int, broken: Callable[[Series, Exception], None]) -> None:
        """Measure pairs of each series in turn, up to ``until``. ``broken`` hears of those that end before."""
        going = list(every)
        while going:
            if self._since >= RESTART:
                self._bench.start(self._slots)
                self._since = 0
            self._since += 1
            for series in list(going):
                try:
                    self._pair(series)
                except (Unfit, Broken) as error:
                    broken(series, error)
                    going.remove(series)
                    self._since = RESTART if isinstance(error, Broken) else self._since
                else:
                    if series.pairs >= until:
                        going.remove(series)

    def _pair(self, series: Series) -> None:
        order = (0, 1) if self._random.random() < 0.5 else (1, 0)
        ran = {slot: self._bench.block(slot, series.task) for slot in order}
        blocks = [ran[slot] for slot in order]
        base, candidate = ran[self._base], ran[1 - self._base]
        failed = next((block for block in (base, candidate) if block.row.outcome != "ok"), None)
        number, spoilt = series.pairs + series.spoilt + 1, None
        try:
            if failed is None:
                spoilt = series.add(base, candidate)
        except Unfit as error:
            spoilt = str(error)
            raise
        finally:
            self._kept += record(self._name, number, blocks, spoilt)
        if failed is not None:
            raise Broken(failed, by_base=failed is base or self._slots[0] is self._slots[1])
