"""``-o json``: an array of result rows (``results/row.py``), one per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from profiler.results.measurement import Measurement
from profiler.results.row import line


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """A JSON array."""
    return "".join(stream(run, measurements))


def stream(run: str | None, measurements: Iterable[Measurement]) -> Iterator[str]:
    """The text of ``render``, row by row."""
    before = "[\n"
    for measurement in measurements:
        yield before + line(run, measurement)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"
