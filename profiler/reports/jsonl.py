"""``-o jsonl``: a result row (``results/row.py``) on each line."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.results.measurement import Measurement
from profiler.results.row import dumps, row


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """JSON lines."""
    return "".join(dumps(row(run, measurement)) + "\n" for measurement in measurements)
