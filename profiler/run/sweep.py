"""Runs a resolved request and stores its rows. ``profile sweep`` and ``profiler.sweep`` both use this.

Each row is stored before it is shown. A case that another sweep of the same store is measuring is left to that sweep
until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from profiler import backends
from profiler.case import Case, Task
from profiler.cost.cases import host_of, stored_prediction
from profiler.cost.learned import NOTHING, Learned, from_store
from profiler.devices import calibration
from profiler.devices.base import DeviceInfo, kind_of
from profiler.results import environment
from profiler.results.leases import Holder, Leases
from profiler.results.measurement import NO_SAMPLES, Caution, Measurement, RunModel
from profiler.results.store import Store, StoredRow
from profiler.run import ceilings, supervisor
from profiler.run import plan as run_plan
from profiler.run.grid import Subject
from profiler.run.plan import Pace, SweepPlan
from profiler.run.process import SpareWorker
from profiler.run.request import ResolvedRequest
from profiler.run.reuse import ReusableRows, fallbacks
from profiler.run.supervisor import WorkerLimits

ReusedRows = Mapping[Case, StoredRow]


class SweepListener:
    """Receives the events of a sweep. This class ignores them all. If a method raises, the sweep ends."""

    def started(self, run: str) -> None:
        """The run was registered in the store, with this id."""

    def say(self, text: str) -> None:
        """A message for the user."""

    def reused(self, count: int, total: int) -> None:
        """``count`` of the ``total`` cases reuse stored rows and will not be measured."""

    def row(self, row: Measurement, run: str | None = None) -> None:
        """A case has its row: measured, skipped, or reused from ``run``. If storing it failed, the sweep ends."""

    def planned(self, plan: SweepPlan, budget_s: float | None) -> None:
        """The plan of what will be measured."""

    def measuring(self, total: int, remaining_s: Callable[[], float]) -> AbstractContextManager[object]:
        """Entered around the measuring of ``total`` cases; ``remaining_s`` estimates the remaining seconds."""
        return nullcontext()

    def beat(self, case: Case, phase: str) -> None:
        """A case is alive; an empty ``phase`` means that the phase has not changed."""

    def waiting(self, case: Case, run: str) -> None:
        """Only cases that other sweeps are measuring are left; ``run`` is measuring ``case``."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A finished sweep."""

    run: str  # id in the store
    rows: Sequence[Measurement]  # without their samples
    interrupted: bool  # by Ctrl-C or SIGTERM


@contextmanager
def early_worker(backend: str, device: DeviceInfo, measures: bool = True) -> Iterator[SpareWorker]:
    """A worker that imports its libraries while the sweep is planned; it is ended with the block.

    None is started where nothing is measured, where that takes no time, or if the ceilings of ``device`` must be
    measured first, which needs an idle machine.
    """
    with SpareWorker() as spare:
        if measures and backends.find(backend).imports_slowly and calibration.load_quick(device) is not None:
            spare.start(backend)
        yield spare


def sweep(
    resolved: ResolvedRequest,
    device: DeviceInfo,
    store: Store,
    limits: WorkerLimits,
    listener: SweepListener,
    *,
    argv: Sequence[str],
    resumed: bool = True,
    learned: bool = True,
    spare: SpareWorker | None = None,
) -> SweepResult:
    """Measure the cases that ``store`` does not have yet; without ``resumed``, all. Every case of the grid gets a
    row. ``learned``: whether earlier rows correct the predictions. ``spare``: the first worker (``early_worker``).

    ``argv``: the arguments of ``profile`` that would request this sweep, stored with the run. Raises StoreError.
    """
    learned_from = store.path if learned else None
    prepared = prepare(resolved, device, store, limits.max_memory_bytes, resumed, learned_from)
    plan, snapshot = prepared.plan, prepared.environment
    if plan.tasks and not backends.simulated(resolved.backend):
        ceilings.ensure(device, listener.say)
    recorder = Recorder(store, prepared, resolved, device, listener, argv)
    if prepared.reused:
        listener.reused(len(prepared.reused), len(resolved.tasks))
    if (on_fallbacks := fallbacks(prepared.reused.values())) is not None:
        listener.say(on_fallbacks)
    recorder.reuse(prepared.reused.values())
    recorder.skip(plan.skipped)
    listener.planned(plan, resolved.budget_s)

    pace = Pace(plan.tasks, resolved.budget_s)
    with (
        Leases(store.path, recorder.run, environment.environment_key(snapshot)) as leases,
        listener.measuring(len(plan.tasks), pace.remaining_s),
    ):
        queue = Queue(plan.tasks, pace, leases, prepared.reusable, recorder)
        ending = supervisor.run(
            queue.tasks(), resolved.effort, limits, snapshot, queue.done, queue.beat, pace.left_s, spare
        )
    store.finish_run(recorder.run, "interrupted" if ending.interrupted else "finished")
    return SweepResult(recorder.run, recorder.rows, ending.interrupted)


def available_bytes(device: DeviceInfo, max_memory: int | None) -> int:
    """Memory a case may use on the device; ``max_memory`` limits host memory."""
    on_host = kind_of(device.kind).is_host
    return min(device.free_bytes, max_memory) if max_memory and on_host else device.free_bytes


@dataclass(frozen=True, slots=True)
class PreparedSweep:
    """What a sweep knows before it measures anything."""

    environment: dict[str, Any]
    reusable: ReusableRows
    reused: ReusedRows  # instead of measuring these cases again
    available_bytes: int
    plan: SweepPlan  # of the other cases, within the budget if there is one
    learned: Learned  # what earlier rows teach


def prepare(
    resolved: ResolvedRequest,
    device: DeviceInfo,
    store: Store | None,
    max_memory: int | None,
    resumed: bool = True,
    learned_from: Path | None = None,
) -> PreparedSweep:
    """Find the rows of ``store`` that the sweep reuses, none unless ``resumed``, and plan the other cases.

    ``learned_from``: the store whose rows correct the predictions; None: leave them plain.
    """
    snapshot = environment.snapshot(device, backends.find(resolved.backend).versions())
    reusable = ReusableRows(store, snapshot, resolved.effort, max_memory)
    found = ((task.case, reusable.find(task.case)) for task in resolved.tasks if resumed)
    reused = {case: row for case, row in found if row is not None}
    available = available_bytes(device, max_memory)
    missing = [task for task in resolved.tasks if task.case not in reused]
    learned = NOTHING
    if learned_from is not None and resolved.tasks:
        threads = resolved.tasks[0].case.threads
        learned = from_store(learned_from, device, host_of(device, threads), threads, snapshot)
    plan = run_plan.make(missing, device, resolved.effort, available, learned)
    if resolved.budget_s is not None:
        plan = run_plan.choose(plan, resolved.budget_s)
    return PreparedSweep(snapshot, reusable, reused, available, plan, learned)


class Recorder:
    """Starts a run and stores its rows; the listener gets each row once it is stored."""

    def __init__(
        self,
        store: Store,
        prepared: PreparedSweep,
        resolved: ResolvedRequest,
        device: DeviceInfo,
        listener: SweepListener,
        argv: Sequence[str],
    ) -> None:
        self.store, self.environment, self.listener = store, prepared.environment, listener
        self._learned = prepared.learned
        self._models = {subject.model_id: _run_model(subject) for subject in resolved.subjects}
        self.run = store.start_run(argv, prepared.environment, [*self._models.values()])
        self.rows: list[Measurement] = []  # without samples; includes reused ones
        self._tasks = {task.case.key: task for task in resolved.tasks}
        self._device = device
        listener.started(self.run)

    def reuse(self, rows: Iterable[StoredRow]) -> None:
        """Add rows that other runs have measured to this run."""
        found = list(rows)
        if found:
            self.store.reuse(self.run, *(row.id for row in found))
        for row in found:
            self._show(self._described(row.measurement), row.run)

    def skip(self, skipped: Iterable[Task]) -> None:
        """Store a row with the reason for each task that does not run."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        rows = [
            self._with_model(Measurement(task.case, self.environment, "skipped", task.reason, started_at=now))
            for task in skipped
        ]
        try:
            self.store.append_all(self.run, rows)
        finally:
            for row in rows:
                self._show(row)

    def append(self, row: Measurement, stored: Callable[[], None]) -> None:
        """Store a row of this run, call ``stored``, and show the row. It is shown even if either fails, because it
        may be the only copy.
        """
        row = self._with_model(row)
        try:
            self.store.append(self.run, row)
            stored()
        finally:
            self._show(row)

    def _with_model(self, row: Measurement) -> Measurement:
        """``row`` with what this run says about its model, and with the prediction for its case."""
        return replace(self._described(row), expected=self._expected(row.case))

    def _expected(self, case: Case) -> dict[str, Any]:
        """The prediction for the case; empty for one that cannot be measured."""
        task = self._tasks.get(case.key)
        if task is None or task.geometry is None or task.reason is not None:
            return {}
        return stored_prediction(case, task.geometry, self._device, task.checkpoint_format, self._learned)

    def _described(self, row: Measurement) -> Measurement:
        """``row`` with what this run says about its model, as ``Store`` returns reused rows too."""
        return self._models[row.case.model_id].describe(row)

    def _show(self, row: Measurement, run: str | None = None) -> None:
        self.rows.append(replace(row, samples=NO_SAMPLES))
        self.listener.row(row, run)


def _run_model(subject: Subject) -> RunModel:
    """What a run says about a model."""
    notes = tuple(Caution(note.code, note.text) for note in subject.notes)
    return RunModel(subject.model_id, subject.name, notes, subject.checkpoint, dict(subject.source.config))


class Queue:
    """The tasks still to be measured, without those whose rows other sweeps have stored since this one began."""

    def __init__(
        self,
        tasks: Sequence[Task],
        pace: Pace,
        leases: Leases,
        reusable: ReusableRows,
        recorder: Recorder,
    ) -> None:
        self._tasks, self._pace, self._leases, self._reusable = tasks, pace, leases, reusable
        self._recorder, self._listener = recorder, recorder.listener
        self._reused: dict[str, int] = {}  # by run: rows that another sweep measured meanwhile
        self._waited_for: tuple[str, str] | None = None

    def tasks(self) -> Iterator[Task | None]:
        """The next task each time; None while other sweeps are measuring everything that is left."""
        waiting = self._tasks
        while waiting:
            held: list[tuple[Task, Holder]] = []
            for task in waiting:
                holder = yield from self._turn(task)
                if holder is not None:
                    held.append((task, holder))
            if len(held) == len(waiting):
                self._wait(*held[0])
                yield None
                self._pace.pause()
            waiting = [task for task, _ in held]
        self._say_reused()

    def done(self, row: Measurement) -> None:
        """Store and show the row of a task."""
        prepare_s = row.decode_path.prepare_s if row.decode_path else 0.0
        count = partial(self._pace.note, row.case, row.load_s, row.outcome == "ok", prepare_s)
        self._recorder.append(row, count)  # counted before it is shown, together with the remaining time

    def beat(self, case: Case, phase: str) -> None:
        """Keep our claim on the current case, so that other sweeps leave it to this one."""
        self._leases.renew()
        self._listener.beat(case, phase)

    def _turn(self, task: Task) -> Generator[Task, None, Holder | None]:
        """Skip, reuse or yield one task. If another sweep is measuring its case, return that sweep."""
        case = task.case
        reason = self._pace.refuse(case)
        if reason is not None:
            self._pace.drop(case)
            self._recorder.skip([replace(task, reason=reason)])
            return None
        if self._reuse(case):
            return None
        holder = self._leases.claim(case.key)
        if holder is not None:
            return holder
        if self._reuse(case):  # it was stored since the first look
            self._leases.release(case.key)
        else:
            yield task
        return None

    def _reuse(self, case: Case) -> bool:
        """Whether another sweep has measured the case since this one began; this run then reuses its row."""
        row = self._reusable.find_new(case)
        if row is None:
            return False
        self._pace.drop(case)
        self._recorder.reuse([row])
        self._reused[row.run] = self._reused.get(row.run, 0) + 1
        return True

    def _wait(self, task: Task, holder: Holder) -> None:
        """Report what the sweep is waiting for, unless it already did."""
        if self._waited_for != (waited_for := (task.case.key, holder.run)):
            self._waited_for = waited_for
            self._listener.waiting(task.case, holder.run)

    def _say_reused(self) -> None:
        """Say how many rows each of the other sweeps has contributed."""
        for run, count in self._reused.items():
            cases, rows = ("1 case was", "row") if count == 1 else (f"{count:,} cases were", "rows")
            self._listener.say(f"{cases} measured by run {run} at the same time; this run reuses the {rows}")
