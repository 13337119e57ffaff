"""Which cases of a grid are stored already, and need no second measuring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from profiler.case import Case
from profiler.measure.loop import Effort
from profiler.plan.grid import Point
from profiler.results.environment import environment_key
from profiler.results.store import Store, StoredRow


def stored(points: Iterable[Point], store: Store, snapshot: dict[str, Any], effort: Effort) -> dict[Case, StoredRow]:
    """The ``ok`` rows of ``points`` from an environment as fast as ``snapshot``, with as much effort or more."""
    key = environment_key(snapshot)
    found = {point.case: store.finished(point.case.key, key) for point in points}
    return {case: row for case, row in found.items() if row is not None and _as_thorough(row, effort)}


def _as_thorough(row: StoredRow, effort: Effort) -> bool:
    """What was asked counts, not what was done: fewer repetitions within the same limit would come out again."""
    asked = row.measurement.asked
    return bool(asked.get("reps", 0) >= effort.reps and asked.get("max_phase_s", 0.0) >= effort.max_phase_s)
