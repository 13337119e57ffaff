"""Every case becomes a row, whatever happens to the process that measures it.

One worker per load key; the next case is sent only after the row of the last has been handed over and stored. What
is larger than a case that ran out of memory is not tried, nor a model that could not be loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from profiler.case import Case
from profiler.folders import describe
from profiler.measure.effort import Effort
from profiler.measure.environ import worker_environment
from profiler.measure.interrupt import Interrupts
from profiler.measure.process import Launch, WorkerProcess
from profiler.measure.protocol import Order, ProtocolError
from profiler.measure.watch import Limits, OnBeat, Stopped, Watch
from profiler.models.source import Source
from profiler.results.measurement import Measurement

OnRow = Callable[[Measurement], None]
WAIT_S = 0.5  # for what another sweep is measuring


@dataclass(frozen=True, slots=True)
class Job:
    """A case, and where its model is."""

    case: Case
    source: Source


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    rows: int  # handed over
    interrupted: bool  # by Ctrl-C or SIGTERM; what has a row is complete


def run(
    jobs: Iterable[Job | None],
    effort: Effort,
    limits: Limits,
    environment: dict[str, Any],
    on_row: OnRow,
    on_beat: OnBeat,
) -> Ending:
    """Measure ``jobs`` in their order, in worker processes; ``on_row`` gets a row for each and must store it.

    Jobs of one load key should follow each other, since they share a worker. None among them means that none can be
    done yet: the worker gives its memory back, and the next job is asked for after ``WAIT_S``. Call it in the main
    thread, or Ctrl-C is not handled. No process is left when it returns or raises (only ``jobs``, ``on_row`` and
    ``on_beat`` can make it raise).
    """
    with Interrupts() as interrupts:
        supervisor = Supervisor(effort, limits, environment, on_beat, interrupts)
        rows = 0
        try:
            for job in jobs:
                if job is None:
                    supervisor.finish_worker()
                    interrupts.wait(WAIT_S)
                if interrupts.asked:
                    break
                if job is not None:
                    on_row(supervisor.row(job))
                    rows += 1
            if not interrupts.at_once:
                supervisor.finish_worker()
        except Stopped:
            pass
        finally:
            supervisor.stop_worker()
        return Ending(rows, interrupts.asked)


class Supervisor:
    """Turns jobs into rows, one after the other, and remembers what is not worth trying."""

    def __init__(
        self,
        effort: Effort,
        limits: Limits,
        environment: dict[str, Any],
        on_beat: OnBeat,
        interrupts: Interrupts,
        launch: Launch | None = None,
    ) -> None:
        self._effort, self._limits, self._environment = effort, limits, environment
        self._on_beat, self._interrupts, self._launch = on_beat, interrupts, launch
        self._worker: WorkerProcess | None = None
        self._first: Case  # the case the worker was started for: it fixes model and device
        self._too_large: dict[str, list[Case]] = {}  # by load key, those that ran out of memory after it was loaded
        self._unloadable: dict[str, str] = {}  # load key → reason
        self._wedged: dict[str, int] = {}  # device → process that cannot be killed and may hold it

    def row(self, job: Job) -> Measurement:
        """The row of one job. Raises Stopped when the person wants to stop at once."""
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        reason = self._reason_to_skip(job.case)
        row = Measurement(job.case, {}, "skipped", reason) if reason else self._measure(job)
        asked = {**self._effort.asked, "max_memory_bytes": self._limits.max_memory_bytes}
        return replace(row, environment=self._environment, started_at=started_at, asked=asked)

    def _reason_to_skip(self, case: Case) -> str | None:
        """Why this case is not worth a try."""
        if case.device in self._wedged:
            pid = self._wedged[case.device]
            return f"process {pid}, which used {case.device} before, hangs inside the kernel and cannot be killed"
        if case.load_key in self._unloadable:
            return self._unloadable[case.load_key]
        for smaller in self._too_large.get(case.load_key, ()):
            if smaller.dominates(case):
                return f"dominated by c={smaller.context} b={smaller.batch}, which ran out of memory"
        return None

    def _measure(self, job: Job) -> Measurement:
        """Send the case to a worker that has its model, or will load it, and wait for the row."""
        case, limits = job.case, self._limits
        try:
            worker = self._worker_for(case)
            worker.send(Order(case, job.source, self._effort, limits.max_memory_bytes))
        except OSError as error:
            return self._not_started(case, f"no worker could be started: {describe(error)}")
        except ProtocolError as error:
            return self._not_started(case, f"the model's config cannot be passed to a worker: {error}")
        row = Watch(worker, case, limits, self._interrupts, self._on_beat).row()
        self._learn(row, worker)
        return row

    def _not_started(self, case: Case, reason: str) -> Measurement:
        self._unloadable[case.load_key] = f"the model could not be loaded: {reason}"
        return Measurement(case, {}, "failed", reason)

    def _worker_for(self, case: Case) -> WorkerProcess:
        """The worker that is there if it is alive and has the right model, else a new one."""
        if self._worker is not None:
            self._worker.wait(0)  # it may have died since its last row, which is no fault of the next case
            if self._first.load_key != case.load_key or not self._worker.usable:
                self.finish_worker()
        if self._worker is None:
            self._worker = WorkerProcess(worker_environment(os.environ), self._interrupts.wake_fd, self._launch)
            self._first = case
        return self._worker

    def _learn(self, row: Measurement, worker: WorkerProcess) -> None:
        """What a row says about the cases to come."""
        if row.outcome == "ok":
            return
        self._worker = None  # ended, see Watch.row
        if not worker.exited:
            self._wedged[row.case.device] = worker.pid
        if worker.load is None:
            what = "ran out of memory while it was loaded" if row.outcome == "oom" else "could not be loaded"
            self._unloadable[row.case.load_key] = f"the model {what}: {row.reason}"
        elif row.outcome == "oom":
            known = self._too_large.setdefault(row.case.load_key, [])
            known[:] = [*(other for other in known if not row.case.dominates(other)), row.case]

    @property
    def has_worker(self) -> bool:
        """Whether a process of this one may hold a model."""
        return self._worker is not None

    def finish_worker(self) -> None:
        """Let the worker free its model and end; the next one needs the memory."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            if not worker.finish(self._limits.grace_s):
                self._wedged[self._first.device] = worker.pid

    def stop_worker(self) -> None:
        """End the worker now."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.stop(grace_s=0)
