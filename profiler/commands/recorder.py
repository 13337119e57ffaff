"""The rows of a sweep: stored first, then shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import click

from profiler.case import Case
from profiler.commands.progress import say
from profiler.measure.supervisor import Ending
from profiler.plan.order import Skip
from profiler.plan.request import Work
from profiler.reports.base import rendered
from profiler.results.measurement import Caution, Measurement
from profiler.results.store import Store, StoredRow

FAILURES = ("oom", "failed", "timeout")  # a case that the plan left out is no failure
FAILED, INTERRUPTED = 1, 130
STREAMED = "jsonl"  # the format in which every row is a text of its own


class Recorder:
    """Stores every row before it is shown, and prints what the format prints as rows come, or all at the end."""

    def __init__(self, store: Store, snapshot: dict[str, Any], task: Work, output: str) -> None:
        self.environment = snapshot
        self._store = store
        self._run = store.start_run(sys.argv[1:], snapshot)
        self._output = output
        self.streams = output == STREAMED
        self._place = {point.case: index for index, point in enumerate(task.points)}
        self._cautions = {
            subject.model_id: tuple(Caution("model", text) for text in subject.cautions) for subject in task.subjects
        }
        self._rows: list[Measurement] = []

    def adopt(self, kept: Mapping[Case, StoredRow]) -> None:
        """Rows from earlier runs."""
        if kept:
            say(f"{len(kept)} of {len(self._place)} cases are stored already; --fresh measures them again")
        for row in kept.values():
            self._store.adopt(self._run, row.id)
            self._show(row.measurement)

    def skip(self, skipped: Iterable[Skip]) -> None:
        """Rows of cases that do not run, with the reason."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        for entry in skipped:
            self.append(Measurement(entry.case, self.environment, "skipped", entry.reason, started_at=now))

    def append(self, row: Measurement) -> None:
        """A row of this run."""
        row = replace(row, cautions=(*self._cautions[row.case.model_id], *row.cautions))
        self._store.append(self._run, row)
        self._show(row)

    def finish(self, ending: Ending) -> int:
        """Print what was not printed yet, in the order of the grid; the exit code."""
        self._store.finish_run(self._run, "interrupted" if ending.interrupted else "finished")
        if not self.streams:
            self._print(sorted(self._rows, key=lambda row: self._place[row.case]))
        if ending.interrupted:
            return INTERRUPTED
        return FAILED if any(row.outcome in FAILURES for row in self._rows) else 0

    def _show(self, row: Measurement) -> None:
        self._rows.append(row)
        if self.streams:
            self._print([row])

    def _print(self, rows: list[Measurement]) -> None:
        text, left_out = rendered(self._output, self._run, rows)
        click.echo(text, nl=False)
        if left_out:
            say(left_out)
