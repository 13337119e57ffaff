"""``-o jsonl``: one result row (``results/row.py``) per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from profiler.results.measurement import Measurement
from profiler.results.row import line


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """JSON lines."""
    return "".join(stream(run, measurements))


def stream(run: str | None, measurements: Iterable[Measurement]) -> Iterator[str]:
    """The text of ``render``, row by row."""
    return (line(run, measurement) + "\n" for measurement in measurements)
