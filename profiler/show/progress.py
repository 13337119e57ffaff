"""Progress of a sweep on stderr: each finished case, and the estimated time for the rest.

A terminal also gets a bar with the current case and phase. Elsewhere, a sweep of under a minute prints only warnings.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from profiler import console
from profiler.case import Case
from profiler.results import stats
from profiler.results.measurement import PHASES, Measurement
from profiler.results.stats import Summary
from profiler.show.columns import figure, noisy_text
from profiler.show.output import SHORTEST_NAME, shortened
from profiler.units import printable, seconds_text, whole_seconds_text

SHORT_S = 60.0  # a log of a sweep that is estimated to be shorter gets no line per case
FEW_S = 5.0
REFRESH_S = 0.4  # between two refreshes of a line, which take CPU time from what is measured
WITH_BAR = 120  # columns of a terminal that has room for a bar too
BESIDE_LABEL = 46  # columns for the count of cases, the time since the start and the time left
ROUNDED = ((120.0, 5), (600.0, 15), (math.inf, 60))  # up to how many seconds an estimate is rounded, and to what


def show_live(text: str) -> None:
    """Show ``text`` as the last line on stderr, a terminal, instead of the text of the previous call; "" removes it.

    It is a single write without a thread, so that it does not delay what is being measured.
    """
    width = console.size()[0]
    sys.stderr.write(f"\r\x1b[K{printable(text, 500)[: width - 1]}")
    sys.stderr.flush()


class Watched:
    """Context manager around something that takes about ``usual_s``: says so, and follows it on a terminal.

    A log gets a line when it starts and one each time that it has taken as long again.
    """

    def __init__(self, what: str, usual_s: float) -> None:
        self._what, self._usual_s = what, usual_s
        self._start, self._shown_at, self._now = time.monotonic(), -math.inf, ""
        self._lines = 0  # that a log got, after the first

    def __enter__(self) -> Watched:
        if not sys.stderr.isatty():
            console.say(f"{self._what}, which takes {left_text(self._usual_s).removesuffix(' left')}")
        return self

    def tick(self, now: str) -> None:
        """Show what is being done, the time since the start and the time left. An empty ``now`` keeps the text."""
        at = time.monotonic()
        elapsed_s, before, self._now = at - self._start, self._now, now or self._now
        doing = f"{self._what}: {self._now}" if self._now else self._what
        if not sys.stderr.isatty():
            if elapsed_s > (self._lines + 1) * self._usual_s:
                self._lines = int(elapsed_s / self._usual_s)
                console.say(f"{doing}; {whole_seconds_text(elapsed_s)} so far, which is longer than usual")
            return
        if at - self._shown_at < REFRESH_S and self._now == before:
            return
        self._shown_at = at
        show_live(f"{doing} · {whole_seconds_text(elapsed_s)} · {left_text(self._usual_s - elapsed_s)}")

    def __exit__(self, *error: object) -> None:
        if sys.stderr.isatty():
            show_live("")


class Progress:
    """Context manager around a sweep of ``total`` cases; ``remaining_s`` returns the estimated seconds left.

    ``shown``: draw a bar. ``lines``: print a line per finished case; None: only with the bar, and in a log of a long
    sweep.
    """

    def __init__(self, total: int, remaining_s: Callable[[], float], shown: bool, lines: bool | None = None) -> None:
        self._total, self._done = total, 0
        self._remaining_s = remaining_s
        self._lines = shown or (not sys.stderr.isatty() and remaining_s() > SHORT_S) if lines is None else lines
        self._start = self._last = time.monotonic()
        self._display: Any = _display() if shown else None
        self._task: Any = None

    @staticmethod
    def wanted(streaming: bool) -> bool:
        """Whether stderr is a terminal on which the bar would not mix with streamed rows."""
        return sys.stderr.isatty() and not (streaming and sys.stdout.isatty())

    def __enter__(self) -> Progress:
        if self._display is not None:
            elapsed = _Now(lambda: whole_seconds_text(time.monotonic() - self._start))
            self._task = self._display.add_task("start", total=self._total, left="", elapsed=elapsed)
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def beat(self, case: Case, phase: str) -> None:
        """A sign of life from a case; an empty ``phase`` keeps the previous text."""
        if self._display is not None and phase:
            room = max(SHORTEST_NAME, console.size()[0] - BESIDE_LABEL - len(phase))
            text = printable(f"{shortened(case.label, room)} · {phase}")
            self._display.update(self._task, description=text, left=_Now(self._left))

    def waiting(self, case: Case, run: str) -> None:
        """Say that the sweep is waiting for ``run``, another sweep, which is measuring ``case``."""
        self._line(printable(f"waiting for run {run}, which is measuring {case.label}", 500))
        if self._display is not None:
            self._display.update(self._task, description=printable(f"{case.label} · waiting for run {run}"), left="")

    def row(self, measurement: Measurement, run: str | None = None) -> None:
        """Count a case that has its row, and print a warning if it failed. ``run``: the other run that measured
        it."""
        self._done += 1
        if self._display is not None:
            self._display.advance(self._task)
        now = time.monotonic()
        taken, self._last = now - self._last, now
        if measurement.outcome == "ok" and self._lines:
            label = measurement.case.label
            by_other = printable(f"{self._done}/{self._total} {label}: measured by run {run}", 500)
            self._line(self._finished(measurement, taken) if run is None else by_other)
        if measurement.outcome not in ("ok", "skipped"):
            line = f"warning: {measurement.case.label}: {measurement.outcome}: {measurement.reason}"
            self._line(printable(line, 500))

    def _finished(self, measurement: Measurement, taken_s: float) -> str:
        """``1/8 gemma-3-270m fp32 c=64 b=1: prefill 8.8 t/s, decode 1.7 t/s, 31.0 s; about 4m 00s left``"""
        rates = ((phase, stats.rate(measurement, phase)) for phase in PHASES)
        figures = [f"{phase} {rate_words(rate)}" for phase, rate in rates if rate]
        words = f"{self._done}/{self._total} {measurement.case.label}: {', '.join([*figures, seconds_text(taken_s)])}"
        left = f"; {self._left(0.0)}" if self._done < self._total else ""
        return printable(words + left, 500)

    def _left(self, elapsed_s: float | None = None) -> str:
        """The time for the rest, ``elapsed_s`` after the last row. Estimates are no better than a few seconds."""
        return left_text(self._remaining_s() - (time.monotonic() - self._last if elapsed_s is None else elapsed_s))

    def _line(self, text: str) -> None:
        if self._display is None:
            console.say(text)
        else:
            self._display.console.print(text, markup=False, highlight=False, soft_wrap=True)


def left_text(seconds: float) -> str:
    """The estimated time left in words, rounded to what an estimate is worth."""
    if seconds < -FEW_S:
        return "longer than expected"
    if seconds < FEW_S:
        return "a few seconds left"
    step = next(step for limit, step in ROUNDED if seconds < limit)
    return f"about {whole_seconds_text(step * round(seconds / step))} left"


def rate_words(rate: Summary) -> str:
    """``8.8 t/s``, or why there is no figure."""
    return noisy_text(rate) if rate.wide else f"{figure(rate.median, rate.relative_half)} t/s"


class _Now:
    """A text when the bar is drawn, which is twice a second; a case may have no beat for minutes."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text()


def _display() -> Any:
    """rich's progress bar on stderr. Markup is off, because names come from outside."""
    from rich import progress
    from rich.console import Console

    columns, lines = console.size()  # rich would use an unchecked COLUMNS
    bar = (progress.BarColumn(bar_width=20),) if columns >= WITH_BAR else ()
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        *bar,
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[elapsed]}", markup=False),
        progress.TextColumn("{task.fields[left]}", markup=False),
        refresh_per_second=1 / REFRESH_S,
        console=Console(stderr=True, width=columns, height=lines),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
