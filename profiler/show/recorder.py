"""The cases of a sweep in turn, and their rows: stored first, then shown.

A case that another sweep of the same store is measuring is left to that sweep until the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import click

from profiler.case import CODES, Case, Task
from profiler.console import OutputLost
from profiler.cost import estimate
from profiler.devices.base import DeviceInfo
from profiler.results.leases import Holder, Leases
from profiler.results.measurement import Caution, Measurement
from profiler.results.store import Store, StoredRow
from profiler.run import plan
from profiler.run.plan import Pace, Planned, Skip
from profiler.run.request import ResolvedRequest
from profiler.run.supervisor import Ending
from profiler.show.output import rendered
from profiler.show.progress import Progress, say, tell, terminal_width

FAILURES = ("oom", "failed", "timeout")  # a case that the plan left out is no failure
FAILED, INTERRUPTED = 1, 130
STREAMED = "jsonl"  # the format in which every row is a text of its own

Find = Callable[[Planned], StoredRow | None]


class RowRecorder:
    """Stores every row before it is shown, and prints what the format prints as rows come, or all at the end.

    A context manager around the sweep: one that breaks off is shown and ended as far as that can be done.
    """

    def __init__(
        self,
        store: Store,
        snapshot: dict[str, Any],
        resolved: ResolvedRequest,
        output: str,
        device: DeviceInfo | None = None,
    ) -> None:
        self.environment = snapshot
        self._store = store
        self.run = store.start_run(sys.argv[1:], snapshot)
        self._output = output
        self.streams = output == STREAMED
        self._place = {task.case.key: index for index, task in enumerate(resolved.tasks)}
        self._subjects = {subject.model_id: subject for subject in resolved.subjects}
        self._tasks = {task.case.key: task for task in resolved.tasks}
        self._device = device
        self.rows: list[Measurement] = []  # of this run, those from earlier ones included
        self._waiting: list[Measurement] = []  # to be printed at the end
        self._lost: OutputLost | None = None  # why rows could not be printed

    def __enter__(self) -> RowRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BrokenPipeError):
            self._store.finish_run(self.run, "finished" if len(self.rows) == len(self._place) else "interrupted")
            again = self._store.command("runs", "show", self.run)
            with suppress(BrokenPipeError):
                say(f"nobody reads the rows any more; those measured are kept: {again}")
        elif error is not None and self._waiting:
            self._print_rest()

    def adopt(self, kept: Mapping[Case, StoredRow]) -> None:
        """Rows from earlier runs."""
        if kept:
            total = len(self._place)
            cases = "case is" if total == 1 else "cases are"
            them = "it" if len(kept) == 1 else "them"
            say(f"{len(kept)} of {total} {cases} stored already; --fresh measures {them} again")
            self._store.adopt(self.run, *(row.id for row in kept.values()))
        tell(plan.fallbacks(kept.values()))
        for row in kept.values():
            self._show(self._with_cautions(row.measurement))

    def take(self, row: StoredRow) -> None:
        """A row that another sweep has stored while this one ran."""
        self._store.adopt(self.run, row.id)
        self._show(self._with_cautions(row.measurement))

    def skip(self, skipped: Iterable[Skip]) -> None:
        """Rows of cases that do not run, with the reason."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        rows = [
            self._whole(Measurement(entry.case, self.environment, "skipped", entry.reason, started_at=now))
            for entry in skipped
        ]
        try:
            self._store.append_all(self.run, rows)
        finally:
            for row in rows:
                self._show(row)

    def append(self, row: Measurement) -> None:
        """A row of this run. One that cannot be stored is shown all the same: there is no other copy of it."""
        row = self._whole(row)
        try:
            self._store.append(self.run, row)
        finally:
            self._show(row)

    def _whole(self, row: Measurement) -> Measurement:
        return replace(self._with_cautions(row), expected=self._expected(row.case))

    def _expected(self, case: Case) -> dict[str, Any]:
        """What is predicted of the case, to stand beside what was measured."""
        task = self._tasks.get(case.key)
        if task is None or self._device is None:
            return {}
        if task.refused is not None:
            return {}
        return estimate.expected(case, task.geometry, self._device, task.stored)

    def finish(self, ending: Ending) -> int:
        """Print what was not printed yet, in the order of the grid; the exit code."""
        self._print_rest()
        self._store.finish_run(self.run, "interrupted" if ending.interrupted else "finished")
        if self._lost is not None:
            say(f"Error: {self._lost.message}\n  Every row is stored: profile runs show {self.run}")
        if ending.interrupted:
            return INTERRUPTED
        failed = self._lost is not None or any(row.outcome in FAILURES for row in self.rows)
        return FAILED if failed else 0

    def _with_cautions(self, row: Measurement) -> Measurement:
        """``row`` with what is to be said of the model by the name it was asked for."""
        subject = self._subjects[row.case.model_id]
        about = (Caution(remark.code, remark.text) for remark in subject.remarks)
        others = (caution for caution in row.cautions if caution.code not in CODES)
        return replace(row, cautions=(*about, *others), checkpoint=subject.checkpoint)

    def _show(self, row: Measurement) -> None:
        self.rows.append(replace(row, samples=()))  # what is shown at the end is kept whole below, and only there
        if self.streams:
            self._print([row])
        else:
            self._waiting.append(row)

    def _print_rest(self) -> None:
        rows, self._waiting = self._waiting, []
        if not self.streams:
            self._print(sorted(rows, key=lambda row: self._place[row.case.key]))

    def _print(self, rows: list[Measurement]) -> None:
        if self._lost is not None:
            return
        text, left_out = rendered(self._output, self.run, rows, terminal_width())
        try:
            click.echo(text, nl=False)
        except OutputLost as error:  # rows are stored before they are shown, so the sweep goes on
            self._lost = error
            return
        if left_out:
            say(left_out)


class Queue:
    """What still waits in a sweep. ``find`` looks for a row that another sweep has stored since this one began."""

    def __init__(
        self,
        cases: Sequence[Planned],
        pace: Pace,
        leases: Leases,
        find: Find,
        recorder: RowRecorder,
        progress: Progress,
    ) -> None:
        self._cases, self._pace, self._leases, self._find = cases, pace, leases, find
        self._recorder, self._progress = recorder, progress
        self._taken: dict[str, int] = {}  # rows that other runs measured meanwhile
        self._waited_for: tuple[str, str] | None = None

    def tasks(self) -> Iterator[Task | None]:
        """Jobs to be done here and now; None while other sweeps measure everything that is left."""
        waiting: Sequence[Planned] = self._cases
        while waiting:
            held: list[tuple[Planned, Holder]] = []
            for planned in waiting:
                holder = yield from self._turn(planned)
                if holder is not None:
                    held.append((planned, holder))
            if len(held) == len(waiting):
                self._wait(*held[0])
                yield None
                self._pace.pause()
            waiting = [planned for planned, _ in held]
        self._tell()

    def _turn(self, planned: Planned) -> Generator[Task, None, Holder | None]:
        """Deal with one case, unless another sweep is measuring it: that one is returned."""
        case = planned.case
        reason = self._pace.refuse(case)
        if reason is not None:
            self._pace.drop(case)
            self._recorder.skip([Skip(case, reason)])
            self._progress.skip()
            return None
        if self._take(planned):
            return None
        holder = self._leases.claim(case.key)
        if holder is not None:
            return holder
        if self._take(planned):  # it was stored while we looked
            self._leases.release(case.key)
        else:
            yield planned.task
        return None

    def _take(self, planned: Planned) -> bool:
        """Whether another sweep has measured a case; its row is then one of this run."""
        row = self._find(planned)
        if row is None:
            return False
        self._pace.drop(planned.case)
        self._recorder.take(row)
        self._progress.taken(row)
        self._taken[row.run] = self._taken.get(row.run, 0) + 1
        return True

    def _wait(self, planned: Planned, holder: Holder) -> None:
        """Say what is waited for, once."""
        if self._waited_for != (waited_for := (planned.case.key, holder.run)):
            self._waited_for = waited_for
            self._progress.waiting(planned.case, holder.run)

    def _tell(self) -> None:
        for run, count in self._taken.items():
            cases = "1 case was" if count == 1 else f"{count:,} cases were"
            say(f"{cases} measured by run {run} at the same time; this run has the same row{'s' * (count > 1)}")
