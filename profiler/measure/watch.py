"""One case on one worker, watched until there is a row: the worker's, or ours about how it failed.

The reasons, in the order in which they are believed: we ended it (memory, time, silence), the kernel's OOM killer,
its own words, the signal, the exit code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from profiler.case import Case
from profiler.devices import cgroup
from profiler.measure import death
from profiler.measure.interrupt import Interrupts
from profiler.measure.process import WorkerProcess
from profiler.measure.protocol import Load
from profiler.results.measurement import Measurement, Outcome
from profiler.units import bytes_text, printable, seconds_text

TICK_S = 0.15  # the resident size is read more than five times a second
IDLE_SHARE = 0.01  # of a core: a process that hangs may still have a thread that looks at the clock
MAX_REASON = 400  # characters

OnBeat = Callable[[Case, str], None]  # also called without words, several times a second, while a case is watched


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may take before it is ended."""

    max_memory_bytes: int | None = None  # host memory of the worker
    hang_s: float = 60.0  # with neither a message nor CPU time used
    case_s: float = 3600.0  # for one case; the load of the model is counted apart, and may take as long
    grace_s: float = 5.0  # between TERM and KILL


class Stopped(Exception):
    """The person asked to stop at once; there is no row."""


class Watch:
    """Waits for the row of ``case``, whose order the worker has been sent."""

    def __init__(
        self, worker: WorkerProcess, case: Case, limits: Limits, interrupts: Interrupts, on_beat: OnBeat
    ) -> None:
        self._worker, self._case, self._limits = worker, case, limits
        self._interrupts, self._on_beat = interrupts, on_beat
        self._phase = "start"
        self._idle_share = IDLE_SHARE * min(1.0, cgroup.cores() or 1.0)  # a quota of a hundredth is no hang
        self._started = time.monotonic()
        self._life_at, self._life_cpu = self._started, worker.cpu_s() or 0.0
        self._group_cpu: float | None = None  # of the worker and its compilers, once it has been silent for a while

    def row(self) -> Measurement:
        """The row, with an empty environment; unless it is ok the worker has been ended. Raises Stopped."""
        tick = min(TICK_S, self._limits.hang_s / 4, self._limits.case_s / 4)
        while True:
            for message in self._worker.wait(tick):
                row = self._take(message)
                if row is not None:
                    return self._given(row)
            self._on_beat(self._case, "")
            self._interrupts.announce(self._case.label)
            if self._interrupts.at_once:
                raise Stopped
            failure = self._death() or self._excess()
            if failure is not None:
                return self._failed(*failure)

    def _take(self, message: dict[str, Any]) -> Measurement | None:
        """Note a sign of life; returns the row if this is one. A message that makes no sense ends the case."""
        self._life_at = time.monotonic()
        text = ""
        try:
            match message["type"]:
                case "row":
                    row = Measurement.from_json(message["row"])
                    if row.case == self._case:
                        return row
                    raise ValueError
                case "loaded":
                    self._worker.load = Load.from_json(message["load"])
                    self._started = self._life_at
                case "beat":
                    text = printable(message["text"])
                case _:
                    raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            self._worker.broken = f"the worker sent a message that makes no sense: {printable(message, 60)}"
        if text:
            self._phase = text.partition(" ")[0]
            self._on_beat(self._case, text)
        return None

    def _given(self, row: Measurement) -> Measurement:
        """After a failure the state of the model and its device is unknown: the worker has nothing to clean up."""
        if row.outcome == "ok":
            return row
        self._worker.stop(grace_s=0)
        return self._with_load(row)

    def _death(self) -> tuple[Outcome, str] | None:
        """Why the worker is gone, or might as well be."""
        worker = self._worker
        if worker.broken and not worker.exited:
            return "failed", f"{worker.broken}; stopped in {self._phase}"
        if worker.closed and not worker.wait_exit(self._limits.grace_s):
            return "failed", f"the worker closed its pipe in {self._phase} and lived on; stopped"
        if not worker.exited:
            return None
        worker.stop(0)
        return death.cause(worker.returncode, worker.oom_killed(), worker.output(), self._phase)

    def _excess(self) -> tuple[Outcome, str] | None:
        """The limit that the worker has gone over."""
        limits, now = self._limits, time.monotonic()
        resident = self._worker.resident_bytes() if limits.max_memory_bytes is not None else None
        if resident is not None and limits.max_memory_bytes is not None and resident > limits.max_memory_bytes:
            held, limit = bytes_text(resident), bytes_text(limits.max_memory_bytes)
            return "oom", f"the worker held {held} in {self._phase}, above --max-memory {limit}; stopped"
        if now - self._started > limits.case_s:
            return "timeout", f"still in {self._phase} after {seconds_text(limits.case_s)}; stopped"
        if now - self._last_life(now) > limits.hang_s:
            silence = seconds_text(limits.hang_s)
            return "timeout", f"no message and no CPU time used for {silence} in {self._phase}; stopped"
        return None

    def _last_life(self, now: float) -> float:
        """When it last said something, or it or a compiler that it waits for used the CPU."""
        cpu, silence = self._worker.cpu_s() or self._life_cpu, now - self._life_at
        if cpu - self._life_cpu > self._idle_share * silence:
            self._life_at, self._life_cpu, self._group_cpu = now, cpu, None
        elif self._group_cpu is None:
            if silence > self._limits.hang_s / 2:
                self._group_cpu = self._worker.group_cpu_s()
        elif silence > self._limits.hang_s:
            group = self._worker.group_cpu_s()
            if group - self._group_cpu > self._idle_share * silence / 2:
                self._life_at, self._life_cpu, self._group_cpu = now, cpu, group
        return self._life_at

    def _failed(self, outcome: Outcome, reason: str) -> Measurement:
        """End the worker, and say so if even that fails."""
        if not self._worker.exited and not self._worker.stop(self._limits.grace_s):
            reason += f"; but process {self._worker.pid} hangs inside the kernel and cannot be killed"
        return self._with_load(Measurement(self._case, {}, outcome, printable(reason, MAX_REASON)))

    def _with_load(self, row: Measurement) -> Measurement:
        """What is known of the model holds for a failed case as well."""
        load = self._worker.load
        return row if load is None else replace(row, load_s=load.load_s, memory=load.memory)
