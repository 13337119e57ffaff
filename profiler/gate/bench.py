"""How a gate measures: on a quiet machine, in pairs of blocks from two warm worker processes, one per variant.

A block measures a case once in a worker process: it is a row, with the figures that a gate takes from it.
"""

from __future__ import annotations

import math
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from profiler import backends, devices
from profiler.case import Case, Source, Task
from profiler.devices import nvml
from profiler.devices.base import DeviceInfo, kind_of
from profiler.errors import ProfileError
from profiler.gate import rule, variants
from profiler.gate.variants import Variant
from profiler.results.cautions import CAPPED, DIFFERENT, cautions
from profiler.results.measurement import PHASES, Measurement, Phase
from profiler.run.process import Launch
from profiler.run.repetitions import ONE_OTHER, Effort
from profiler.run.supervisor import Interrupts, OnBeat, Stopped, Supervisor, WorkerLimits
from profiler.units import printable

GateClock = Literal["cpu", "wall"]
METRICS = PHASES  # whose times are compared
DISTURBED_WALL = ("-cpu-pressure", "-busy")  # endings of caution codes that invalidate wall time but not CPU time
DISTURBED = ("other-processes", "-clocks-differ", "-swap", "-invalid")  # and of those that invalidate both
CPU_THREADS = 1  # by default: with more, idle threads spin, which on a busy machine takes most of the CPU time

PADDING = 4096  # bytes: the environment's size moves the start of the stack, which changes speed (Mytkowicz 2009)
ROOM = 1.1  # free memory needed for a second process, in units of the first one's peak
TRIVIAL = Task(  # runs on the backend without costs, which every version has
    Case("side", "side", "synthetic", "fp32", "fp32", "cpu", "fake", "eager", context=1, batch=1, steps=1, ubatch=1),
    Source("folder", os.devnull, None, {}),
)

RESTART = 3  # pairs after which both processes are replaced: an unlucky memory layout slows a process all its life
MAX_DISTURBED = 0.25  # share of the pairs; with more, the gate would judge the machine and not the code
KeptBlocks = list[dict[str, Any]]

PRESSURE = Path("/proc/pressure/cpu")
SUPPLIES = Path("/sys/class/power_supply")
MAX_PRESSURE = 10.0  # percent of the last ten seconds in which some process waited for a core
QUIET_S = 60.0  # a build or a cron job may end within this time; a longer load is the normal state of the machine
LOOK_S = 5.0  # between looks at whether the machine has become quiet


def obstacles(device: DeviceInfo, clock: str) -> list[str]:
    """Reasons not to measure now. CPU time does not include waiting for a core, so load matters to wall time only."""
    found = [_pressure() if clock == "wall" else None, _battery(), _foreign(device)]
    return [text for text in found if text is not None]


def wait_until_quiet(
    device: DeviceInfo,
    clock: str,
    say: Callable[[str], None],
    seconds: float = QUIET_S,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """The obstacles that remain after waiting up to ``seconds``; returns as soon as there are none."""
    left, announced = seconds, False
    while (found := obstacles(device, clock)) and left > 0:
        if not announced:
            say(f"waiting up to {seconds:.0f} s: {'; '.join(found)}")
            announced = True
        sleep(LOOK_S)
        left -= LOOK_S
    return found


def _pressure() -> str | None:
    try:
        found = re.search(r"^some avg10=([\d.]+)", PRESSURE.read_text(), re.MULTILINE)
    except OSError:
        return None  # the kernel has no pressure stall information
    share = float(found[1]) if found else 0.0
    return f"processes waited for a core {share:.0f}% of the time" if share > MAX_PRESSURE else None


def _battery() -> str | None:
    """A notebook on battery runs at other clocks. Machines that report no mains supply pass."""
    try:
        mains = [path.parent for path in SUPPLIES.glob("*/type") if path.read_text().strip() == "Mains"]
        online = [(path / "online").read_text().strip() == "1" for path in mains]
    except OSError:
        return None
    return "the machine runs on battery" if online and not any(online) else None


def _foreign(device: DeviceInfo) -> str | None:
    """Other processes that compute on the GPU. Our own have not started yet."""
    if device.uuid is None:
        return None
    try:
        with nvml.library() as library:
            handle = library.nvmlDeviceGetHandleByUUID(device.uuid)
            count = len(library.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.Missing:
        return None
    if not count:
        return None
    return f"{count} other process{'es use' if count > 1 else ' uses'} {device.title}"


@dataclass(frozen=True, slots=True)
class ProcessBlock:
    """One measurement of a case by one process."""

    variant: str  # base | candidate
    process: int  # its number in this gate, from 1
    row: Measurement

    def seconds(self, metric: Phase, clock: GateClock) -> float | None:
        """Median seconds of a repetition. None if the phase has no such times, or if a time is 0."""
        times = [sample.cpu_s if clock == "cpu" else sample.seconds for sample in self.row.samples.of(metric)]
        known = [value for value in times if value is not None]
        if not known or len(known) < len(times) or min(known) <= 0:
            return None
        return statistics.median(known)

    def disturbed(self, clock: GateClock) -> str | None:
        """Why the times are invalid: something outside the process interfered. None if they are valid."""
        ends = DISTURBED + (DISTURBED_WALL if clock == "wall" else ())
        found = [caution.text for caution in cautions(self.row) if caution.code.endswith(ends)]
        texts = [text for text in found if not text.startswith(ONE_OTHER)]  # the idle process of the other slot
        return "; ".join(texts) or None


def conditions_differ(base: ProcessBlock, candidate: ProcessBlock) -> str | None:
    """How the GPU's conditions differed between the two halves of a pair; None if they did not, as far as we know."""
    clocks = [_median([s.sm_mhz for metric in METRICS for s in b.row.samples.of(metric)]) for b in (base, candidate)]
    capped = [_median([s.capped for metric in METRICS for s in b.row.samples.of(metric)]) for b in (base, candidate)]
    a, b = clocks
    if a and b and max(a, b) > (1 + DIFFERENT) * min(a, b):
        return f"clocks of {a:,.0f} MHz and {b:,.0f} MHz"
    a, b = capped
    if a is not None and b is not None and abs(a - b) > CAPPED:
        return f"the power limit reduced the clocks for {a:.0%} and {b:.0%} of the time"
    return None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def threads_of(device: str, asked: int | None) -> int | None:
    """Compute threads of a gate; None leaves the choice to the backend."""
    return CPU_THREADS if asked is None and kind_of(device).is_host else asked


def clock_of(case: Case) -> GateClock:
    """A gate on a CPU uses CPU time, where it is known: other programs disturb it far less than wall time."""
    known = case.server is None and kind_of(case.device).is_host and backends.find(case.backend).has_cpu_time(case)
    return "cpu" if known else "wall"


def record(stage: str, pair: int, blocks: Sequence[ProcessBlock], disturbed: str | None) -> list[dict[str, Any]]:
    """The blocks of one pair as JSON, in the order in which they ran: raw seconds and, if disturbed, the reason."""
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
            "invalid": disturbed,
            "started_at": block.row.started_at,
            "seconds": {metric: [s.seconds for s in block.row.samples.of(metric)] for metric in METRICS},
            "cpu_seconds": {metric: [s.cpu_s for s in block.row.samples.of(metric)] for metric in METRICS},
            "cautions": [caution.code for caution in block.row.cautions],
        }
        for place, block in enumerate(blocks)
    ]


class Interrupted(Exception):
    """The user asked to stop."""


class Bench(Protocol):
    """Runs blocks of two variants."""

    def start(self, variants: Sequence[Variant]) -> None:
        """End the running processes; the next blocks of slots 0 and 1 start processes of these variants."""

    def block(self, slot: int, task: Task) -> ProcessBlock:
        """Measure one case in the process of a slot. Raises Interrupted."""

    def check(self, variant: Variant, tasks: Sequence[Task]) -> None:
        """Raises ProfileError if a variant cannot run these tasks at all; a gate could not judge it."""

    def row(self, variant: Variant, task: Task, effort: Effort | None = None) -> Measurement:
        """The row of one task from a process of its own, which has ended. Raises Interrupted."""


@dataclass(slots=True)
class _Slot:
    variant: Variant
    supervisor: Supervisor
    process: int


class WorkerBench:
    """Runs blocks in worker processes; a context manager that ends them all.

    Both processes stay alive if the device has room for two. Otherwise each ends before the other starts, which is
    slower and noisier.
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
        self.resident: bool | None = None  # unknown before the first block

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
        if self._interrupts.stop_requested:
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
        """Checks the profiler and then a worker process, which may fail to start although the profiler answers."""
        variants.check(variant, tasks, self._effort)
        row = self.row(variant, TRIVIAL)
        if row.outcome != "ok":
            raise ProfileError(
                f"{printable(variant.name)}: its worker process cannot measure: {row.reason}",
                "A gate talks to worker processes over pipes that they inherit, so name their interpreter directly.",
            )

    def row(self, variant: Variant, task: Task, effort: Effort | None = None) -> Measurement:
        slot = self._slot(variant, effort)
        try:
            row = slot.supervisor.row(task)
        except Stopped:
            raise Interrupted from None
        finally:
            slot.supervisor.stop_worker()
        if self._interrupts.stop_requested:  # the measuring bench is another object, which would not know
            raise Interrupted
        return row

    def _slot(self, variant: Variant, effort: Effort | None = None) -> _Slot:
        self._processes += 1
        padding = {"PROFILER_PADDING": "x" * self._random.randrange(PADDING)}
        launch = Launch(variant.launch.python, {**variant.launch.environ, **padding})
        supervisor = Supervisor(
            effort or self._effort, self._limits, self._environment, self._on_beat, self._interrupts, launch
        )
        return _Slot(variant, supervisor, self._processes)


class NoValidPairs(Exception):
    """Valid pairs cannot be measured; the message says why."""


class CaseFailed(Exception):
    """A variant did not complete the case."""

    def __init__(self, block: ProcessBlock, by_base: bool) -> None:
        super().__init__(f"{block.row.outcome}: {block.row.reason}")
        self.by_base = by_base


@dataclass(slots=True)
class Series:
    """The pairs of one case."""

    task: Task
    metrics: Sequence[Phase]
    clock: GateClock
    planned: int  # pairs at most
    logs: dict[Phase, list[float]] = field(default_factory=dict)  # ln(candidate ÷ base), one value per pair
    first: tuple[ProcessBlock, ProcessBlock] | None = None  # base and candidate, for the exact comparisons
    disturbed: int = 0
    other_step: str | None = None  # set if the halves of a pair ran different decode steps

    @property
    def pairs(self) -> int:
        return len(next(iter(self.logs.values()), ()))

    def add(self, base: ProcessBlock, candidate: ProcessBlock) -> str | None:
        """Add a pair, or return why it does not count. Raises NoValidPairs if measuring on is pointless."""
        disturbed = (
            base.disturbed(self.clock) or candidate.disturbed(self.clock) or conditions_differ(base, candidate)
        )
        values = {m: (base.seconds(m, self.clock), candidate.seconds(m, self.clock)) for m in self.metrics}
        if self.first is None:
            self.first = (base, candidate)
        self.other_step = self.other_step or rule.difference(base.row, candidate.row)
        if disturbed is not None:
            self.disturbed += 1
            if self.disturbed > MAX_DISTURBED * self.planned:
                pairs = self.pairs + self.disturbed
                raise NoValidPairs(f"{self.disturbed} of {pairs} pairs were disturbed by other work: {disturbed}")
            return disturbed
        for metric, (a, b) in values.items():
            if a is None or b is None:
                raise NoValidPairs(
                    f"the {self.clock} time of a repetition of {metric} is unknown, or too short for the clock"
                )
        for metric, (a, b) in values.items():
            assert a is not None and b is not None  # checked above
            self.logs.setdefault(metric, []).append(math.log(b / a))
        return None


class Stage:
    """A series of pairs with one purpose: the noise of the base against itself, the gate, or its confirmation.

    ``slots`` holds the variant of each slot, ``base_slot`` the slot of the base. Each pair runs in random order.
    """

    def __init__(
        self, name: str, bench: Bench, slots: tuple[Variant, Variant], base_slot: int, seed: int, kept: KeptBlocks
    ) -> None:
        self._name, self._bench, self._slots, self._base, self._kept = name, bench, slots, base_slot, kept
        self._random = random.Random(f"{seed} {name}")
        self._since = RESTART  # pairs since the processes were started

    def advance(self, every: Sequence[Series], until: int, broken: Callable[[Series, Exception], None]) -> None:
        """Measure pairs of each series in turn until it has ``until``; report one that ends early to ``broken``."""
        going = list(every)
        while going:
            if self._since >= RESTART:
                self._bench.start(self._slots)
                self._since = 0
            self._since += 1
            for series in list(going):
                try:
                    self._pair(series)
                except (NoValidPairs, CaseFailed) as error:
                    broken(series, error)
                    going.remove(series)
                    self._since = RESTART if isinstance(error, CaseFailed) else self._since
                else:
                    if series.pairs >= until:
                        going.remove(series)

    def _pair(self, series: Series) -> None:
        order = (0, 1) if self._random.random() < 0.5 else (1, 0)
        ran = {slot: self._bench.block(slot, series.task) for slot in order}
        blocks = [ran[slot] for slot in order]
        base, candidate = ran[self._base], ran[1 - self._base]
        failed = next((block for block in (base, candidate) if block.row.outcome != "ok"), None)
        number, disturbed = series.pairs + series.disturbed + 1, None
        try:
            if failed is None:
                disturbed = series.add(base, candidate)
        except NoValidPairs as error:
            disturbed = str(error)
            raise
        finally:
            self._kept += record(self._name, number, blocks, disturbed)
        if failed is not None:
            raise CaseFailed(failed, by_base=failed is base or self._slots[0] is self._slots[1])
