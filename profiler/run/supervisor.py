"""Runs cases in worker processes. Every case gets a row, whatever happens to the process that measures it.

Cases with the same load key share a worker, which gets the next case only after the previous row was stored. A worker
that fails is replaced. After an out-of-memory failure, larger cases of the load are skipped; if the model could not
be loaded, all cases of the load are.

The reason of a failed case is the first of these that applies: we ended the worker (memory, time, silence), the
kernel's OOM killer did, the worker reported an error, its signal, its exit code.

The first Ctrl-C finishes the current case and stops; a second one, or SIGTERM, stops at once.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from profiler.case import Case, Task
from profiler.devices import cgroup
from profiler.folders import describe
from profiler.results.measurement import Measurement, Outcome
from profiler.run import process
from profiler.run.process import Launch, SpareWorker, WorkerProcess, worker_environment
from profiler.run.protocol import MAX_REASON_CHARACTERS, LoadCost, ProtocolError, task_message
from profiler.run.repetitions import Effort
from profiler.units import bytes_text, printable, seconds_text, whole_seconds_text

SIGNALS = (signal.SIGINT, signal.SIGTERM)

TICK_S = 0.15  # the resident size is read more than five times a second
IDLE_SHARE = 0.01  # of a core: a hung process may still have a thread that polls the clock
OnBeat = Callable[[Case, str], None]  # also called with an empty text, several times a second, while a case runs
OnRow = Callable[[Measurement], None]
Left = Callable[[Case], float | None]  # estimated seconds until the row of the case that runs; None: unknown
WAIT_S = 0.5  # between checks while another sweep measures all that is left


class Interrupts:
    """Handles SIGINT and SIGTERM inside its ``with`` block, which must be in the main thread to have an effect.

    A signal that was ignored stays ignored: that is how a shell protects its background jobs from Ctrl-C.
    """

    def __init__(self) -> None:
        self.stop_requested = False  # end after the current case
        self.stop_now = False
        self._announced = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        self.wake_fd, self._ring_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # wakes a waiting select
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.wake_fd)
        os.close(self._ring_fd)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_now = self.stop_now or self.stop_requested or number == signal.SIGTERM
        self.stop_requested = True
        with suppress(BlockingIOError):  # thousands of unread signals: the pipe already wakes the reader
            os.write(self._ring_fd, b"!")

    def wait(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until a signal comes."""
        if select.select([self.wake_fd], [], [], seconds)[0]:
            os.read(self.wake_fd, 1 << 16)

    def announce(self, label: str, doing: str, left_s: float | None) -> None:
        """Say once, on stderr, what the first Ctrl-C waits for and for how long, as far as that is known.

        Not in the handler, which may have interrupted a print.
        """
        if self.stop_requested and not self.stop_now and not self._announced:
            self._announced = True
            left = "" if left_s is None else f", about {whole_seconds_text(max(1.0, left_s))} more"
            text = (
                f"interrupted: finishing {printable(label)} ({doing}{left}), then stopping. Ctrl-C again stops now."
            )
            print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """The limits beyond which a worker is ended."""

    max_memory_bytes: int | None = None  # host memory of the worker
    hang_s: float = 60.0  # without a message or CPU time
    case_s: float = 3600.0  # per case; loading the model is counted separately and may take as long
    grace_s: float = 5.0  # between TERM and KILL


class Stopped(Exception):
    """The user asked to stop at once; there is no row."""


class CaseWatch:
    """Waits for the row of ``case``, which was sent to the worker."""

    def __init__(
        self,
        worker: WorkerProcess,
        case: Case,
        limits: WorkerLimits,
        interrupts: Interrupts,
        on_beat: OnBeat,
        left_s: Left = lambda case: None,
    ) -> None:
        self._worker, self._case, self._limits = worker, case, limits
        self._interrupts, self._on_beat, self._left_s = interrupts, on_beat, left_s
        self._phase = self._doing = "start"
        self._idle_share = IDLE_SHARE * min(1.0, cgroup.cores() or 1.0)  # a quota of 1% of a core is not a hang
        self._started = time.monotonic()
        self.loaded_at: float | None = None  # if the model was loaded for this case
        self._life_at, self._life_cpu = self._started, worker.cpu_s() or 0.0
        self._group_cpu: float | None = None  # of the worker and its compilers, once it has been silent for a while

    def row(self) -> Measurement:
        """Wait for the row, without the fields that ``Supervisor`` adds. Unless it is ok, the worker has been ended.

        Raises Stopped.
        """
        tick = min(TICK_S, self._limits.hang_s / 4, self._limits.case_s / 4)
        while True:
            for message in self._worker.wait(tick):
                row = self._take(message)
                if row is not None:
                    return self._given(row)
            self._on_beat(self._case, "")
            self._interrupts.announce(self._case.label, self._doing, self._left_s(self._case))
            if self._interrupts.stop_now:
                raise Stopped
            failure = self._death() or self._excess()
            if failure is not None:
                return self._failed(*failure)

    def _take(self, message: dict[str, Any]) -> Measurement | None:
        """Record a sign of life; returns the row if ``message`` is one. An invalid message ends the case."""
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
                    self._worker.load = LoadCost.from_json(message["load"])
                    self._started = self.loaded_at = self._life_at
                case "beat":
                    text = printable(message["text"])
                case _:
                    raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            self._worker.broken = f"the worker sent an invalid message: {printable(message, 60)}"
        if text:
            self._phase, self._doing = text.partition(" ")[0], text
            self._on_beat(self._case, text)
        return None

    def _given(self, row: Measurement) -> Measurement:
        """After a failure the state of the model and device is unknown, so the worker ends without cleaning up."""
        if row.outcome == "ok":
            return row
        self._worker.stop(grace_s=0)
        return row

    def _death(self) -> tuple[Outcome, str] | None:
        """Why the worker has died or is unusable."""
        worker = self._worker
        if worker.broken and not worker.exited:
            return "failed", f"{worker.broken}; stopped in {self._phase}"
        if worker.closed and not worker.wait_exit(self._limits.grace_s):
            return "failed", f"the worker closed its pipe in {self._phase} but did not exit; stopped"
        if not worker.exited:
            return None
        worker.stop(0)
        return process.cause(worker.returncode, worker.oom_killed(), worker.output(), self._phase)

    def _excess(self) -> tuple[Outcome, str] | None:
        """The limit that the worker exceeded."""
        limits, now = self._limits, time.monotonic()
        resident = self._worker.resident_bytes() if limits.max_memory_bytes is not None else None
        if resident is not None and limits.max_memory_bytes is not None and resident > limits.max_memory_bytes:
            held, limit = bytes_text(resident), bytes_text(limits.max_memory_bytes)
            return "oom", f"the worker held {held} in {self._phase}, above --max-memory {limit}; stopped"
        if now - self._started > limits.case_s:
            return "timeout", f"still in {self._phase} after {seconds_text(limits.case_s)}; stopped"
        if now - self._last_life(now) > limits.hang_s:
            silence = seconds_text(limits.hang_s)
            return "timeout", f"no progress and no CPU time for {silence} in {self._phase}; the worker was stopped"
        return None

    def _last_life(self, now: float) -> float:
        """When it last sent a message, or it or its compiler used the CPU."""
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
        """End the worker; the reason mentions it if even that fails."""
        if not self._worker.exited and not self._worker.stop(self._limits.grace_s):
            reason += f"; but process {self._worker.pid} hangs inside the kernel and cannot be killed"
        return Measurement(self._case, {}, outcome, printable(reason, MAX_REASON_CHARACTERS))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    rows: int  # passed to ``on_row``
    interrupted: bool  # by Ctrl-C or SIGTERM; cases with a row are complete


def run(
    tasks: Iterable[Task | None],
    effort: Effort,
    limits: WorkerLimits,
    environment: dict[str, Any],
    on_row: OnRow,
    on_beat: OnBeat,
    left_s: Left = lambda case: None,
    spare: SpareWorker | None = None,
) -> Ending:
    """Measure ``tasks`` in their order, in worker processes; ``on_row`` gets a row for each and must store it.

    Tasks with the same load key should be adjacent, since they share a worker. ``None`` among them means that no task
    can be measured yet: the worker exits to release its memory, and the next task is requested after ``WAIT_S``. Call
    this in the main thread, or Ctrl-C is not handled. No process is left when it returns or raises (only ``tasks``,
    ``on_row`` and ``on_beat`` can make it raise). ``spare`` becomes the first worker.
    """
    with Interrupts() as interrupts:
        supervisor = Supervisor(effort, limits, environment, on_beat, interrupts, left_s=left_s, spare=spare)
        rows = 0
        try:
            for task in tasks:
                if task is None:
                    supervisor.finish_worker()
                    if spare is not None:
                        spare.stop()
                    interrupts.wait(WAIT_S)
                if interrupts.stop_requested:
                    break
                if task is not None:
                    on_row(supervisor.row(task))
                    rows += 1
            if not interrupts.stop_now:
                supervisor.finish_worker()
        except Stopped:
            pass
        finally:
            supervisor.stop_worker()
        return Ending(rows, interrupts.stop_requested)


class Supervisor:
    """Turns tasks into rows, one after the other, and remembers which cases are not worth trying."""

    def __init__(
        self,
        effort: Effort,
        limits: WorkerLimits,
        environment: dict[str, Any],
        on_beat: OnBeat,
        interrupts: Interrupts,
        launch: Launch | None = None,
        left_s: Left = lambda case: None,
        spare: SpareWorker | None = None,
    ) -> None:
        self._left_s, self._spare = left_s, spare
        self._effort, self._limits, self._environment = effort, limits, environment
        self._on_beat, self._interrupts, self._launch = on_beat, interrupts, launch
        self._worker: WorkerProcess | None = None
        self._first: Case  # the case that started the worker: it fixes model and device
        self._too_large: dict[str, list[Case]] = {}  # by load key: cases that ran out of memory once loaded
        self._unloadable: dict[str, str] = {}  # load key → reason
        self._wedged: dict[str, int] = {}  # device → process that cannot be killed and may still use it

    def row(self, task: Task) -> Measurement:
        """The row of one task. Raises Stopped if the user wants to stop at once."""
        started_at, start = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
        sent = self._send(task)
        if isinstance(sent, Measurement):
            return self._with_request(sent, started_at)
        watch = CaseWatch(sent, task.case, self._limits, self._interrupts, self._on_beat, self._left_s)
        row = replace(watch.row(), case_s=time.monotonic() - start)
        if watch.loaded_at is not None and sent.load is not None:
            row = replace(row, start_s=max(0.0, watch.loaded_at - start - (sent.load.load_s or 0.0)))
        self._learn(row, sent)
        if row.outcome != "ok" and sent.load is not None:  # the worker has added it to a measured row
            row = replace(row, load_s=sent.load.load_s, memory=sent.load.memory)
        return self._with_request(row, started_at)

    def _with_request(self, row: Measurement, started_at: str) -> Measurement:
        """``row`` with what was requested, where and when, which workers leave to this process."""
        requested = {**self._effort.requested, "max_memory_bytes": self._limits.max_memory_bytes}
        return replace(row, environment=self._environment, started_at=started_at, asked=requested)

    def _reason_to_skip(self, case: Case) -> str | None:
        """Why this case is not worth trying; ``None`` if it is."""
        if case.device in self._wedged:
            pid = self._wedged[case.device]
            return f"process {pid}, which used {case.device} before, hangs inside the kernel and cannot be killed"
        if case.load_key in self._unloadable:
            return self._unloadable[case.load_key]
        for smaller in self._too_large.get(case.load_key, ()):
            if smaller.needs_no_more_than(case):
                return f"the smaller case c={smaller.context} b={smaller.batch} ran out of memory"
        return None

    def _send(self, task: Task) -> WorkerProcess | Measurement:
        """Send a task to the worker of its load key, started if necessary; a row if the task cannot be measured."""
        case = task.case
        reason = self._reason_to_skip(case)
        if reason is not None:
            return Measurement(case, {}, "skipped", reason)
        try:
            worker = self._worker_for(case)
            worker.send(task_message(task, self._effort, self._limits.max_memory_bytes))
        except OSError as error:
            return self._not_started(case, f"no worker could be started: {describe(error)}")
        except ProtocolError as error:
            return self._not_started(case, f"the model's config cannot be passed to a worker: {error}")
        return worker

    def _not_started(self, case: Case, reason: str) -> Measurement:
        self._unloadable[case.load_key] = f"the model could not be loaded: {reason}"
        return Measurement(case, {}, "failed", reason)

    def _worker_for(self, case: Case) -> WorkerProcess:
        """The current worker if it is alive and has the right model, otherwise a new one."""
        if self._worker is not None:
            self._worker.wait(0)  # it may have died since its last row, through no fault of the next case
            if self._first.load_key != case.load_key or not self._worker.usable:
                self.finish_worker()
        if self._worker is None:
            spare = None if self._spare is None else self._spare.take(self._interrupts.wake_fd)
            self._worker = spare or WorkerProcess(
                worker_environment(os.environ), self._interrupts.wake_fd, self._launch
            )
            self._first = case
        return self._worker

    def _learn(self, row: Measurement, worker: WorkerProcess) -> None:
        """Learn from a row which later cases to skip."""
        if row.outcome == "ok":
            return
        self._worker = None  # CaseWatch.row has ended it
        if not worker.exited:
            self._wedged[row.case.device] = worker.pid
        if worker.load is None:
            what = "ran out of memory while it was loaded" if row.outcome == "oom" else "could not be loaded"
            self._unloadable[row.case.load_key] = f"the model {what}: {row.reason}"
        elif row.outcome == "oom":
            known = self._too_large.setdefault(row.case.load_key, [])
            known[:] = [*(other for other in known if not row.case.needs_no_more_than(other)), row.case]

    @property
    def has_worker(self) -> bool:
        """Whether a worker is running, and so may hold a model."""
        return self._worker is not None

    def finish_worker(self) -> None:
        """Let the worker free its model and exit; the next one needs the memory."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            if not worker.finish(self._limits.grace_s):
                self._wedged[self._first.device] = worker.pid

    def stop_worker(self) -> None:
        """End the worker now."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.stop(grace_s=0)
