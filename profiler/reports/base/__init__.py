"""What a person sees of measurements: columns, figures with the digits they deserve, notes, and an answer.

A file ``reports/NAME.py`` is the output format ``NAME`` of ``-o`` and gives ``render(run, measurements) -> str``: the
whole text, ending in a newline unless it is empty. A format that cannot hold every row also gives
``left_out(measurements) -> str | None``, the sentence that says so on stderr; one that can follow a terminal's width
gives ``fitted(run, measurements, width) -> str``, and one whose rows do not depend on each other
``stream(run, measurements)``, which yields the text row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from profiler import registry
from profiler.reports.base.best import answer
from profiler.reports.base.cells import figure, rate_cell
from profiler.reports.base.columns import STAYS, Column, figures, heading, legend
from profiler.reports.base.paths import path_lines
from profiler.reports.base.remarks import Note, notes
from profiler.reports.base.text import plain
from profiler.results.measurement import Measurement

__all__ = [
    "STAYS",
    "Column",
    "Note",
    "answer",
    "figure",
    "figures",
    "heading",
    "legend",
    "notes",
    "path_lines",
    "plain",
    "rate_cell",
    "rendered",
    "streamed",
]


def rendered(
    output: str, run: str | None, measurements: Sequence[Measurement], width: int | None = None
) -> tuple[str, str | None]:
    """Text of the rows in a format, and what that format had to leave out. Raises NotFound for an unknown format.

    ``width`` is that of the terminal the text goes to, in columns; None where it goes elsewhere.
    """
    report = registry.load("reports", output, "output format")
    left_out = getattr(report, "left_out", None)
    fitted = getattr(report, "fitted", None)
    text = fitted(run, measurements, width) if fitted and width else report.render(run, measurements)
    return text, left_out(measurements) if left_out else None


def streamed(output: str, run: str | None, measurements: Iterable[Measurement]) -> Iterator[str] | None:
    """The text of a format row by row, as rows are read; None for a format that needs all of them at once."""
    stream = getattr(registry.load("reports", output, "output format"), "stream", None)
    return None if stream is None else stream(run, measurements)
