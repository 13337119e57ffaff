"""The output of a sweep: progress on stderr and, for ``profile sweep``, rows on stdout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import click

from profiler.case import Case
from profiler.console import OutputLost, say, tell, width
from profiler.results.measurement import Measurement
from profiler.results.store import Store
from profiler.run.plan import SweepPlan
from profiler.run.request import ResolvedRequest
from profiler.run.sweep import SweepListener
from profiler.show import plan as show_plan
from profiler.show.output import MAX_NOTES, rendered
from profiler.show.progress import Progress

STREAMED = "jsonl"  # the format whose rows can be printed one by one


class ProgressPrinter(SweepListener):
    """Prints messages and progress of a sweep on stderr."""

    lines: bool | None = True  # whether to print a line per finished case; None: decided by ``Progress``
    streams = False  # whether rows are printed on stdout meanwhile
    _progress: Progress | None = None  # while cases are measured

    def say(self, text: str) -> None:
        say(text)

    def reused(self, count: int, total: int) -> None:
        cases = "case" if total == 1 else "cases"
        rows, them = ("reuses a stored row", "it") if count == 1 else ("reuse stored rows", "them")
        self.say(f"{count} of {total} {cases} {rows}; --fresh measures {them} again")

    def planned(self, plan: SweepPlan, budget_s: float | None) -> None:
        tell(show_plan.warning(plan, budget_s))

    def measuring(self, total: int, remaining_s: Callable[[], float]) -> Progress:
        self._progress = Progress(total, remaining_s, Progress.wanted(self.streams), self.lines)
        return self._progress

    def row(self, row: Measurement, run: str | None = None) -> None:
        if self._progress is not None:
            self._progress.row(row, run)

    def beat(self, case: Case, phase: str) -> None:
        if self._progress is not None:
            self._progress.beat(case, phase)

    def waiting(self, case: Case, run: str) -> None:
        if self._progress is not None:
            self._progress.waiting(case, run)


class RowPrinter(ProgressPrinter):
    """Prints the rows as they come if the format allows it, otherwise all at the end.

    A context manager around the sweep: if the sweep fails, it prints the rows so far.
    """

    lines = None

    def __init__(
        self, store: Store, resolved: ResolvedRequest, output: str, most_notes: int | None = MAX_NOTES
    ) -> None:
        self._store, self._output, self._most_notes = store, output, most_notes
        self.streams = output == STREAMED
        self._place = {task.case.key: index for index, task in enumerate(resolved.tasks)}
        self._shown = 0
        self._waiting: list[Measurement] = []  # rows to print at the end
        self._lost: OutputLost | None = None  # why rows could not be printed

    def started(self, run: str) -> None:
        self.run = run

    def __enter__(self) -> RowPrinter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BrokenPipeError):
            self._store.finish_run(self.run, "finished" if self._shown == len(self._place) else "interrupted")
            again = self._store.command("runs", "show", self.run)
            with suppress(BrokenPipeError):
                say(f"the reader of the rows has gone; measured rows are stored: {again}")
        elif error is not None and self._waiting:
            self._print_rest()

    def row(self, row: Measurement, run: str | None = None) -> None:
        self._shown += 1
        if self.streams:
            self._print([row])
        else:
            self._waiting.append(row)
        super().row(row, run)

    def finish(self) -> bool:
        """Print the remaining rows in the order of the grid; return whether stdout accepted all rows."""
        self._print_rest()
        if self._lost is not None:
            say(f"Error: {self._lost.message}\n  Every row is stored: profile runs show {self.run}")
        return self._lost is None

    def _print_rest(self) -> None:
        rows, self._waiting = self._waiting, []
        if not self.streams:
            self._print(sorted(rows, key=lambda row: self._place[row.case.key]))

    def _print(self, rows: list[Measurement]) -> None:
        if self._lost is not None:
            return
        text, left_out = rendered(self._output, self.run, rows, width(), self._most_notes)
        try:
            click.echo(text, nl=False)
        except OutputLost as error:  # rows are stored before they are shown, so the sweep continues
            self._lost = error
            return
        if left_out:
            say(left_out)
