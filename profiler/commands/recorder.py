"""The rows of a sweep: stored first, then shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import click

from profiler.case import Case
from profiler.commands.progress import say, tell, terminal_width
from profiler.console import OutputLost
from profiler.devices.base import DeviceInfo
from profiler.measure.supervisor import Ending
from profiler.models.remark import CODES
from profiler.plan import resume
from profiler.plan.order import Skip
from profiler.plan.request import Work
from profiler.predict import beside
from profiler.reports.base import rendered
from profiler.results.measurement import Caution, Measurement
from profiler.results.store import Store, StoredRow

FAILURES = ("oom", "failed", "timeout")  # a case that the plan left out is no failure
FAILED, INTERRUPTED = 1, 130
STREAMED = "jsonl"  # the format in which every row is a text of its own


class Recorder:
    """Stores every row before it is shown, and prints what the format prints as rows come, or all at the end.

    A context manager around the sweep: one that breaks off is shown and ended as far as that can be done.
    """

    def __init__(
        self, store: Store, snapshot: dict[str, Any], task: Work, output: str, device: DeviceInfo | None = None
    ) -> None:
        self.environment = snapshot
        self._store = store
        self.run = store.start_run(sys.argv[1:], snapshot)
        self._output = output
        self.streams = output == STREAMED
        self._place = {point.case.key: index for index, point in enumerate(task.points)}
        self._subjects = {subject.model_id: subject for subject in task.subjects}
        self._points = {point.case.key: point for point in task.points}
        self._device = device
        self.rows: list[Measurement] = []  # of this run, those from earlier ones included
        self._waiting: list[Measurement] = []  # to be printed at the end
        self._lost: OutputLost | None = None  # why rows could not be printed

    def __enter__(self) -> Recorder:
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
        tell(resume.fallbacks(kept.values()))
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
        point = self._points.get(case.key)
        if point is None or self._device is None:
            return {}
        if point.refused is not None:
            return {}
        return beside.expected(case, point.geometry, self._device, point.stored)

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
