"""``-o json``: one array of result rows (``results/row.py``), a row on each line."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.results.measurement import Measurement
from profiler.results.row import dumps, row


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """A JSON array."""
    rows = ",\n".join(dumps(row(run, measurement)) for measurement in measurements)
    return f"[\n{rows}\n]\n" if rows else "[]\n"
