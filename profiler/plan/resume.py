"""Which cases of a grid are stored already, and need no second measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

from profiler import paths
from profiler.case import Case
from profiler.measure.effort import Effort
from profiler.plan.grid import Point
from profiler.results import stats
from profiler.results.environment import environment_key
from profiler.results.measurement import Measurement
from profiler.results.store import Store, StoredRow
from profiler.units import printable


def stored(
    points: Iterable[Point], store: Store, snapshot: dict[str, Any], effort: Effort, max_memory_bytes: int | None
) -> dict[Case, StoredRow]:
    """The ``ok`` rows of ``points`` from an environment as fast as ``snapshot``, with as much effort or more.

    With ``max_memory_bytes`` only those known to keep to it. A row has the case that was asked for: its own may bear
    another name of the same model, or one that ``redact`` has changed.
    """
    key, here = environment_key(snapshot), cache(paths.machine_state)
    found = {}
    for case in (point.case for point in points):
        row = store.finished(case.key, key)
        if row is None or not _as_thorough(row.measurement, effort):
            continue
        if _keeps_to(row.measurement, max_memory_bytes) and _runs_alike(row.measurement, here):
            found[case] = replace(row, measurement=replace(row.measurement, case=case))
    return found


def fallbacks(stored_rows: Iterable[StoredRow]) -> str | None:
    """That some of the rows taken from the store were measured on a fallback, in one line."""
    found = [
        row.measurement for row in stored_rows if row.measurement.decode_path and row.measurement.decode_path.machine
    ]
    if not found:
        return None
    path = found[0].decode_path
    why = path.reason or path.kernels if path else None
    rows_were, them = ("stored row was", "it") if len(found) == 1 else ("stored rows were", "them")
    fallback = f"measured on a fallback that this machine still needs ({printable(why, 200)})"
    return f"{len(found)} {rows_were} {fallback}; --fresh measures {them} again"


def _runs_alike(row: Measurement, here: Callable[[], str]) -> bool:
    """Whether the decode step would run here as it did in the row: on the same fallback, or on none. ``here`` gives
    the state of this machine.

    A cache folder that was full, or a compiler that was missing, changes speed and nothing else that a row records.
    """
    path = row.decode_path
    if path is None or row.case.device.partition(":")[0] != "cpu":
        return path is None or path.machine != paths.SHORT_OF_MEMORY
    if path.machine is not None:
        return path.machine == here()
    return path.on_plain_torch or path.kernels is None or paths.compiler() is not None


def _as_thorough(row: Measurement, effort: Effort) -> bool:
    """What was asked counts, not what was done: fewer repetitions within the same limit would come out again.

    A number of repetitions may also be had by asking for a precision, and the other way round.
    """
    if row.asked.get("max_phase_s", 0.0) < effort.max_phase_s or (effort.energy and not row.asked.get("energy")):
        return False
    phases = {sample.phase for sample in row.samples}
    if effort.reps is not None:
        done = min((len(row.of(phase)) for phase in phases), default=0)
        return bool(max(row.asked.get("reps", 0), done) >= effort.reps)
    if row.asked.get("precision", 1.0) <= effort.precision:
        return True
    halves = [rate.within for phase in phases if (rate := stats.rate(row, phase))]
    return bool(halves) and all(half is not None and half <= effort.precision for half in halves)


def _keeps_to(row: Measurement, limit: int | None) -> bool:
    """Whether the worker of a row took no more host memory than ``limit``: it was held to that, or it is measured."""
    if limit is None:
        return True
    held_to = row.asked.get("max_memory_bytes")
    on_host = row.case.device.partition(":")[0] == "cpu"  # a GPU's peak is of its own memory
    peak = row.memory.process_peak_bytes if on_host else None
    return any(known is not None and known <= limit for known in (held_to, peak))
