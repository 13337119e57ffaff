"""Which stored rows a sweep uses instead of measuring their cases again.

A row is reused if it is ``ok``, comes from an environment as fast as this one, and was measured the same way, as
thoroughly as is requested now, and within the memory limit. The request is compared and not the repetitions, because
the same request would again end with as few.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from profiler import decode_path
from profiler.case import Case
from profiler.devices.base import kind_of
from profiler.results import stats
from profiler.results.environment import environment_key
from profiler.results.measurement import Measurement
from profiler.results.store import Store, StoredRow
from profiler.run import quality
from profiler.run.repetitions import MIN_REPS, Effort
from profiler.units import printable


class ReusableRows:
    """The rows of ``store`` that a sweep with this environment, effort and limit of host memory can reuse.

    A row may call the model by another name. None: there is no store, so no rows. Raises StoreError.
    """

    def __init__(
        self, store: Store | None, environment: dict[str, Any], effort: Effort, max_memory_bytes: int | None
    ) -> None:
        self._store, self._effort, self._max_memory_bytes = store, effort, max_memory_bytes
        self._environment_key = environment_key(environment)
        self._newest_id = 0 if store is None else store.newest_id()
        self._machine_state = cache(decode_path.machine_state)

    def find(self, case: Case) -> StoredRow | None:
        """The newest row of the case, if it can be reused."""
        return self._find(case, after=0)

    def find_new(self, case: Case) -> StoredRow | None:
        """The newest row that can be reused and was stored since this object was made: it is as fresh as our own."""
        return self._find(case, after=self._newest_id)

    def _find(self, case: Case, after: int) -> StoredRow | None:
        row = None if self._store is None else self._store.finished(case.key, self._environment_key, after)
        if row is None or not _is_as_thorough(row.measurement, self._effort):
            return None
        fits = _stayed_within(row.measurement, self._max_memory_bytes) and self._ran_alike(row.measurement)
        return row if fits else None

    def _ran_alike(self, row: Measurement) -> bool:
        """Whether the decode step would run here as it did in the row: on the same fallback, or without one.

        The state of this machine is compared because a full cache folder or a missing compiler changes the speed, but
        not the environment that a row records.
        """
        path = row.decode_path
        if path is None or not kind_of(row.case.device).is_host:
            return path is None or path.machine != decode_path.SHORT_OF_MEMORY
        if path.machine is not None:
            return path.machine == self._machine_state()
        return path.on_plain_torch or path.kernels is None or decode_path.compiler() is not None


def fallbacks(reused: Iterable[StoredRow]) -> str | None:
    """A message if some of the reused rows were measured on a fallback."""
    found = [row.measurement for row in reused if row.measurement.decode_path and row.measurement.decode_path.machine]
    if not found:
        return None
    path = found[0].decode_path
    why = path.reason or path.kernels if path else None
    rows_were, them = ("reused row was", "it") if len(found) == 1 else ("reused rows were", "them")
    fallback = f"measured on a fallback that this machine still needs ({printable(why, 200)})"
    return f"{len(found)} {rows_were} {fallback}; --fresh measures {them} again"


def _is_as_thorough(row: Measurement, effort: Effort) -> bool:
    """Whether the row was measured with at least the effort that is requested now.

    Repetitions requested by number may satisfy a requested precision, and vice versa.
    """
    if not quality.has(row, effort.quality):
        return False
    if row.asked.get("max_phase_s", 0.0) < effort.max_phase_s or (effort.energy and not row.asked.get("energy")):
        return False
    phases = set(row.samples.columns.get("phase", ()))
    done = min((len(row.samples.of(phase)) for phase in phases), default=0)
    if row.asked.get("quick") and not effort.quick and done < MIN_REPS:  # fewer may be close by chance
        return False
    if effort.reps is not None:
        return bool(max(row.asked.get("reps", 0), done) >= effort.reps)
    if row.asked.get("precision", 1.0) <= effort.precision:
        return True
    halves = [rate.within for phase in phases if (rate := stats.rate(row, phase))]
    return bool(halves) and all(half is not None and half <= effort.precision for half in halves)


def _stayed_within(row: Measurement, limit: int | None) -> bool:
    """Whether the worker of a row stayed within ``limit`` bytes of host memory: by its own limit, or as measured."""
    if limit is None:
        return True
    held_to = row.asked.get("max_memory_bytes")
    on_host = kind_of(row.case.device).is_host  # a GPU's peak is its own memory
    peak = row.memory.process_peak_bytes if on_host else None
    return any(known is not None and known <= limit for known in (held_to, peak))
