"""What a person sees on stderr while a sweep runs: the case, its phase, and about how long it will take.

Only a terminal gets it; elsewhere only warnings are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click

from profiler.case import Case
from profiler.results.measurement import Measurement
from profiler.units import printable, seconds_text


def say(text: str) -> None:
    """One line on stderr."""
    click.echo(text, err=True)


class Progress:
    """Context manager around a sweep of ``total`` cases; ``remaining_s`` gives the seconds still to go."""

    def __init__(self, total: int, remaining_s: Callable[[], float], shown: bool) -> None:
        self._total = total
        self._remaining_s = remaining_s
        self._display: Any = _display() if shown else None
        self._task: Any = None

    @staticmethod
    def wanted(streaming: bool) -> bool:
        """Whether there is a terminal for it that rows on stdout do not run through."""
        return sys.stderr.isatty() and not (streaming and sys.stdout.isatty())

    def __enter__(self) -> Progress:
        if self._display is not None:
            self._task = self._display.add_task("start", total=self._total, left="")
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def beat(self, case: Case, phase: str) -> None:
        """A sign of life of a case; an empty ``phase`` leaves the one before."""
        if self._display is not None and phase:
            text = printable(f"{case.label} · {phase}")
            left = f"about {seconds_text(self._remaining_s())} left"
            self._display.update(self._task, description=text, left=left)

    def skip(self) -> None:
        """A case is out of the way."""
        if self._display is not None:
            self._display.advance(self._task)

    def row(self, measurement: Measurement) -> None:
        """A case is done. One that failed is worth a line at once."""
        self.skip()
        if measurement.outcome not in ("ok", "skipped"):
            line = f"warning: {measurement.case.label}: {measurement.outcome}: {measurement.reason}"
            self._line(printable(line, 500))

    def _line(self, text: str) -> None:
        if self._display is None:
            say(text)
        else:
            self._display.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _display() -> Any:
    """rich's progress bar on stderr. Names come from outside, so nothing in them is markup."""
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=20),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
