"""The plan of a sweep: which cases run, in which order, and why the others do not.

Models load as rarely as can be: the cases of one load stand together, smallest first, so that an out-of-memory case
comes after those that fit. A case is left out only for a reason in words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial

from profiler.case import Case
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.measure import steady
from profiler.measure.effort import Effort
from profiler.plan.grid import Point
from profiler.predict import estimate as estimates
from profiler.predict.estimate import Estimate, host_of
from profiler.results.energy import RESOLVED_S
from profiler.units import bytes_text

CASE_S = 0.5  # inputs, snapshots and bookkeeping of a case


@dataclass(frozen=True, slots=True)
class Planned:
    """A case that will run, and what it is expected to take."""

    point: Point
    takes: Estimate
    load_s: float  # of its model; only the first case of a load pays it
    run_s: float  # warm-ups and repetitions of both phases

    @property
    def case(self) -> Case:
        """The case itself."""
        return self.point.case


@dataclass(frozen=True, slots=True)
class Skip:
    """A case that will not run, and the reason in words."""

    case: Case
    reason: str
    takes: Estimate | None = None  # what it would take


@dataclass(frozen=True, slots=True)
class Plan:
    """Cases in the order they run; equal ``load_key`` stand together."""

    cases: tuple[Planned, ...]
    skipped: tuple[Skip, ...] = ()

    @property
    def seconds(self) -> float:
        """Estimate for all of it."""
        loads = {planned.case.load_key: planned.load_s for planned in self.cases}
        return sum(loads.values()) + sum(planned.run_s for planned in self.cases)


def make(points: Iterable[Point], device: DeviceInfo, effort: Effort, available_bytes: int) -> Plan:
    """Order ``points`` and leave out what cannot run on ``device`` with ``available_bytes`` of its memory."""
    planned: list[Planned] = []
    skipped: list[Skip] = []
    host = cache(partial(host_of, device))
    for point in points:
        try:
            if point.refused is not None:
                takes = estimate(point, host(point.case.threads), effort).takes if point.stored is not None else None
                skipped.append(Skip(point.case, point.refused, takes))
                continue
            entry = estimate(point, host(point.case.threads), effort)
        except ProfileError as error:  # of this model in this quantization: the others are as they were
            skipped.append(Skip(point.case, error.message))
            continue
        reason = _impossible(point, device) or _too_large(entry.takes, available_bytes, device)
        if reason is None:
            planned.append(entry)
        else:
            skipped.append(Skip(point.case, reason, entry.takes))
    return Plan(tuple(_by_load(planned)), tuple(skipped))


def estimate(point: Point, host: Target, effort: Effort) -> Planned:
    """What a case is expected to take on ``host``."""
    takes = estimates.estimate(point.case, point.geometry, host, point.stored)
    synthetic = point.case.fill == "synthetic"
    start = takes.fill_s.value if synthetic else _phase_s(takes.prefill_s.value, effort)
    decode = _phase_s(takes.step_s.value * point.case.steps, effort)
    return Planned(
        point=point,
        takes=takes,
        load_s=takes.load_s.value,
        run_s=CASE_S + start + decode,
    )


def size(case: Case) -> tuple[int, int, int]:
    """Sort key within a load: by tokens in the cache, then by depth."""
    return case.context * case.batch, case.context, case.steps


def _impossible(point: Point, device: DeviceInfo) -> str | None:
    """Why this device or this model cannot serve the case at any size of memory."""
    reason = point.quant.unavailable(device)
    if reason is not None:
        return f"{point.quant.name} cannot run on {device.name}: {reason}"
    positions = point.geometry.max_position  # a few decode steps past the last one are measured all the same
    if point.case.context > positions:
        return f"needs {point.case.context:,} positions, the model has {positions:,}"
    return None


def _too_large(predicted: Estimate, available_bytes: int, device: DeviceInfo) -> str | None:
    """Only what is certain: even the lower bound does not fit."""
    needed = predicted.peak.low
    if needed <= available_bytes:
        return None
    weights, cache = bytes_text(predicted.weights.low), bytes_text(predicted.cache.low)
    reason = (
        f"needs at least {bytes_text(needed)} (weights {weights}, cache {cache}), has {bytes_text(available_bytes)}"
    )
    if device.memory_limit is not None:
        reason += f"; {device.memory_limit} allows {bytes_text(device.memory_bytes)}"
    return f"{reason}; {predicted.left_plain}" if predicted.left_plain else reason


def _by_load(planned: list[Planned]) -> list[Planned]:
    """Loads in the order of their first case, smallest cases first within each."""
    loads = {planned_case.case.load_key: index for index, planned_case in reversed(list(enumerate(planned)))}
    return sorted(planned, key=lambda entry: (loads[entry.case.load_key], size(entry.case)))


def _phase_s(once_s: float, effort: Effort) -> float:
    """Seconds of one phase as ``measure.loop`` runs it."""
    again_s = max(RESOLVED_S, once_s) if effort.energy else 0.0
    return once_s * steady.likely(once_s, effort) + again_s
