"""The plan of a sweep: which cases run, in what order and within what time, and why the others are skipped.

Each model loads as few times as possible: the cases of one load are adjacent, smallest first, so that a case that
runs out of memory comes after those that fit. Every skipped case has a reason.

**Budget.** The cheapest cases come first, and one case of every load (model × quantization) before a second one of
any. During the sweep, measured times correct the estimates for the same load, and a case that no longer fits the
budget is skipped.

**Resuming.** Stored rows of cases that were measured the same way and as thoroughly are reused.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from heapq import heappop, heappush
from typing import Any

from profiler import backends, decode_path
from profiler.case import Case
from profiler.cost.cases import CaseEstimate, estimate_case, host_of, is_placed
from profiler.cost.learned import NOTHING, Learned
from profiler.devices.base import DeviceInfo, kind_of
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.results import stats
from profiler.results.energy import RESOLVED_S
from profiler.results.environment import environment_key
from profiler.results.measurement import Measurement
from profiler.results.store import Store, StoredRow
from profiler.run import repetitions
from profiler.run.grid import GridTask
from profiler.run.repetitions import Effort
from profiler.units import bytes_text, printable, seconds_text

CASE_S = 0.5  # inputs, cache snapshots and bookkeeping of a case

BudgetClock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Planned:
    """A task that will run, with its estimates."""

    task: GridTask
    estimate: CaseEstimate
    load_s: float  # of the model; only the first case of a load pays it
    run_s: float  # warm-ups and repetitions of both phases

    @property
    def case(self) -> Case:
        """The case of the task."""
        return self.task.case


@dataclass(frozen=True, slots=True)
class Skip:
    """A case that will not run, and the reason."""

    case: Case
    reason: str
    estimate: CaseEstimate | None = None


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Cases in the order in which they run; equal ``load_key``s are adjacent."""

    cases: tuple[Planned, ...]
    skipped: tuple[Skip, ...] = ()

    @property
    def seconds(self) -> float:
        """Estimated seconds for the whole plan."""
        loads = {planned.case.load_key: planned.load_s for planned in self.cases}
        return sum(loads.values()) + sum(planned.run_s for planned in self.cases)


def make(
    tasks: Iterable[GridTask],
    device: DeviceInfo,
    effort: Effort,
    available_bytes: int,
    learned: Learned = NOTHING,
) -> SweepPlan:
    """Order ``tasks`` and skip what cannot run on ``device`` with ``available_bytes`` of its memory."""
    planned: list[Planned] = []
    skipped: list[Skip] = []
    host = cache(partial(host_of, device))
    for task in tasks:
        try:
            if task.refused is not None and task.checkpoint_format is None:
                skipped.append(Skip(task.case, task.refused))
                continue
            entry = plan_case(task, host(task.case.threads), effort, learned)
        except ProfileError as error:  # only this model in this quantization is affected
            skipped.append(Skip(task.case, error.message))
            continue
        reason = task.refused or _impossible(task, device)
        if reason is None and not is_placed(task.case):
            reason = _too_large(entry.estimate, available_bytes, device)
        if reason is None:
            planned.append(entry)
        else:
            skipped.append(Skip(task.case, reason, entry.estimate))
    return SweepPlan(tuple(_by_load(planned)), tuple(skipped))


def plan_case(task: GridTask, host: Target, effort: Effort, learned: Learned = NOTHING) -> Planned:
    """A case with its estimated time on ``host``."""
    estimate = estimate_case(task.case, task.geometry, host, task.checkpoint_format, learned)
    synthetic = task.case.fill == "synthetic"
    start = estimate.fill_s.value if synthetic else _phase_s(estimate.prefill_s.value, effort)
    decode = _phase_s(estimate.step_s.value * task.case.steps, effort)
    return Planned(task, estimate, load_s=estimate.load_s.value, run_s=CASE_S + start + decode)


def size(case: Case) -> tuple[int, int, int]:
    """Sort key within a load: by tokens in the cache, then by depth."""
    return case.context * case.batch, case.context, case.steps


def _impossible(task: GridTask, device: DeviceInfo) -> str | None:
    """Why this backend, device or model cannot run the case, whatever the memory."""
    refusal = backends.find(task.case.backend).refusal(task.case)
    if refusal is not None:
        return refusal
    reason = task.quant.unavailable(device)
    if reason is not None:
        return f"{task.quant.name} cannot run on {device.name}: {reason}"
    positions = task.geometry.max_position  # a few decode steps beyond the limit are allowed
    if task.case.context > positions:
        return f"the model supports at most {positions:,} tokens"
    return None


def _too_large(predicted: CaseEstimate, available_bytes: int, device: DeviceInfo) -> str | None:
    """The reason if the case certainly does not fit: even the lower bound exceeds the memory."""
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
    """Seconds of all repetitions of a phase, of which one takes ``once_s``."""
    again_s = max(RESOLVED_S, once_s) if effort.energy else 0.0
    return once_s * repetitions.likely(once_s, effort) + again_s


def choose(plan: SweepPlan, budget_s: float) -> SweepPlan:
    """The part of ``plan`` that fits ``budget_s`` by its estimates, cheapest loads first; the rest is skipped."""
    loads = sorted(_loads(plan.cases).values(), key=_first_s)
    left = budget_s
    kept: set[Case] = set()
    skipped = list(plan.skipped)
    seconds: list[tuple[float, Planned]] = []
    for load in loads:
        needed = _first_s(load)
        if needed > left:
            skipped += [_skip(entry, entry.load_s + entry.run_s, budget_s, left) for entry in load]
            continue
        left -= needed
        first, *others = sorted(load, key=_run_s)
        kept.add(first.case)
        seconds += [(entry.run_s, entry) for entry in others]
    for needed, entry in sorted(seconds, key=lambda pair: pair[0]):
        if needed > left:
            skipped.append(_skip(entry, needed, budget_s, left))
            continue
        left -= needed
        kept.add(entry.case)
    cases = [entry for load in loads for entry in sorted(load, key=lambda e: size(e.case)) if entry.case in kept]
    return SweepPlan(tuple(cases), tuple(skipped))


class Pace:
    """Compares a running sweep with its estimates. Without a budget it only estimates the remaining time.

    Progress asks for the remaining time at every row and beat. Sums are therefore updated and not recomputed: a query
    and a row cost the same in a sweep of ten thousand cases as in one of ten.
    """

    def __init__(
        self, cases: Sequence[Planned], budget_s: float | None = None, clock: BudgetClock = time.monotonic
    ) -> None:
        self._clock = clock
        self._budget_s = budget_s
        self._waiting = {entry.case: entry for entry in cases}
        self._loads = {key: _LoadGroup(load) for key, load in _loads(cases).items()}
        self._remaining_s = math.fsum(load.rest_s for load in self._loads.values())
        self._reserved_s = 0.0  # for the first case of every load that has not started
        self._dearest: list[tuple[float, str]] = []  # a heap of (−seconds, load key); some entries are outdated
        for key in self._loads:
            self._reserve(key)
        self._started = self._last = clock()

    def refuse(self, case: Case) -> str | None:
        """Why a case no longer fits the budget; None if it does.

        A case of a model that is loaded must leave room for the first case of every load that has not started.
        """
        if self._budget_s is None:
            return None
        load = self._loads[case.load_key]
        left = self._budget_s - (self._clock() - self._started)
        needed = (0.0 if load.loaded else load.load_s) + self._waiting[case].run_s * load.ratio
        room = left - self._reserved(left) if load.loaded else left
        return None if needed <= room else _reason(needed, self._budget_s, max(0.0, room))

    def note(self, case: Case, load_s: float | None, measured: bool, prepare_s: float = 0.0) -> None:
        """Record that a case has its row. ``load_s``: time to load the model; ``prepare_s``: to compile its step.

        Only a case that was ``measured`` corrects the estimates. After a failure, the next case loads the model
        again.
        """
        now = self._clock()
        taken = now - self._last
        self._last = now
        with self._changing(case) as (load, entry):
            if measured and not load.loaded:
                taken -= load_s or 0.0
            load.loaded = measured
            if measured:
                taken -= prepare_s  # a new batch compiles the step again, a new context does not
                load.ran_s += max(0.0, taken)
                load.estimated_s += entry.run_s

    def drop(self, case: Case) -> None:
        """Record that a case will not run."""
        with self._changing(case):
            pass

    def pause(self) -> None:
        """Exclude the time since the last row from the estimates, because it was spent waiting."""
        self._last = self._clock()

    def remaining_s(self) -> float:
        """Corrected estimate of the remaining seconds."""
        return max(0.0, self._remaining_s) if self._waiting else 0.0

    @contextmanager
    def _changing(self, case: Case) -> Iterator[tuple[_LoadGroup, Planned]]:
        """Remove a case from the waiting ones and keep the sums correct while its load changes."""
        key = case.load_key
        load, entry = self._loads[key], self._waiting.pop(case)
        self._remaining_s -= load.rest_s
        load.take(entry)
        yield load, entry
        self._remaining_s += load.rest_s
        self._reserve(key)

    def _reserve(self, key: str) -> None:
        """Update the seconds that the budget reserves for the first case of a load."""
        load = self._loads[key]
        self._reserved_s -= load.reserved_s
        load.reserved_s = load.first_s
        if load.reserved_s:
            self._reserved_s += load.reserved_s
            heappush(self._dearest, (-load.reserved_s, key))

    def _reserved(self, left: float) -> float:
        """Seconds that the first cases of waiting loads need, without those that can no longer run."""
        while self._dearest and -self._dearest[0][0] > left:  # it can never run, since the time left only shrinks
            seconds, key = heappop(self._dearest)
            load = self._loads[key]
            if load.reserved_s == -seconds:
                self._reserved_s -= load.reserved_s
                load.reserved_s = 0.0
        return max(0.0, self._reserved_s)


class _LoadGroup:
    """The waiting cases of one load, and how the finished ones compare with their estimates."""

    def __init__(self, entries: Sequence[Planned]) -> None:
        self.load_s = entries[0].load_s
        self.loaded = False
        self.ran_s = self.estimated_s = 0.0
        self.reserved_s = 0.0  # reserved in the budget for its first case
        self._waiting = len(entries)
        self._run_s = math.fsum(entry.run_s for entry in entries)
        self._cheapest = Counter(entry.run_s for entry in entries)
        self._by_cost = sorted(self._cheapest, reverse=True)

    @property
    def ratio(self) -> float:
        """Seconds taken per estimated second."""
        return self.ran_s / self.estimated_s if self.estimated_s else 1.0

    @property
    def rest_s(self) -> float:
        """Estimated seconds of the waiting cases."""
        if not self._waiting:
            return 0.0
        return (0.0 if self.loaded else self.load_s) + self._run_s * self.ratio

    @property
    def first_s(self) -> float:
        """Seconds to load the model and measure the cheapest waiting case; 0 if it is loaded or nothing waits."""
        if self.loaded or not self._waiting:
            return 0.0
        while not self._cheapest[self._by_cost[-1]]:
            self._by_cost.pop()
        return self.load_s + self._by_cost[-1]

    def take(self, entry: Planned) -> None:
        """Remove a waiting case."""
        self._waiting -= 1
        self._run_s -= entry.run_s
        self._cheapest[entry.run_s] -= 1


def _loads(cases: Sequence[Planned]) -> dict[str, list[Planned]]:
    loads: dict[str, list[Planned]] = {}
    for entry in cases:
        loads.setdefault(entry.case.load_key, []).append(entry)
    return loads


def _run_s(entry: Planned) -> float:
    return entry.run_s


def _first_s(load: Sequence[Planned]) -> float:
    """Seconds to load a model and measure its cheapest case."""
    return load[0].load_s + min(entry.run_s for entry in load)


def _skip(entry: Planned, needed_s: float, budget_s: float, left_s: float) -> Skip:
    return Skip(entry.case, _reason(needed_s, budget_s, left_s), entry.estimate)


def _reason(needed_s: float, budget_s: float, left_s: float) -> str:
    budget, needed, left = map(seconds_text, (budget_s, needed_s, left_s))
    return f"does not fit the budget of {budget}: estimated {needed}, {left} left"


def reusable_rows(
    tasks: Iterable[GridTask], store: Store, snapshot: dict[str, Any], effort: Effort, max_memory_bytes: int | None
) -> dict[Case, StoredRow]:
    """Stored ``ok`` rows of ``tasks`` from an environment as fast as ``snapshot``, with at least the same effort.

    With ``max_memory_bytes``, only rows that are known to have stayed within it. A row may call the model by another
    name.
    """
    key, here = environment_key(snapshot), cache(decode_path.machine_state)
    found = {}
    for case in (task.case for task in tasks):
        row = store.finished(case.key, key)
        if row is None or not _as_thorough(row.measurement, effort):
            continue
        if _keeps_to(row.measurement, max_memory_bytes) and _runs_alike(row.measurement, here):
            found[case] = row
    return found


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


def _runs_alike(row: Measurement, here: Callable[[], str]) -> bool:
    """Whether the decode step would run here as it did in the row: on the same fallback, or without one.

    ``here`` returns the state of this machine. It is compared because a full cache folder or a missing compiler
    changes the speed, but not the environment that a row records.
    """
    path = row.decode_path
    if path is None or not kind_of(row.case.device).is_host:
        return path is None or path.machine != decode_path.SHORT_OF_MEMORY
    if path.machine is not None:
        return path.machine == here()
    return path.on_plain_torch or path.kernels is None or decode_path.compiler() is not None


def _as_thorough(row: Measurement, effort: Effort) -> bool:
    """Whether the row was measured with at least the effort that is requested now.

    The requests are compared and not the repetitions, because the same request would again end with as few.
    Repetitions requested by number may satisfy a requested precision, and vice versa.
    """
    if row.asked.get("max_phase_s", 0.0) < effort.max_phase_s or (effort.energy and not row.asked.get("energy")):
        return False
    phases = set(row.samples.columns.get("phase", ()))
    if effort.reps is not None:
        done = min((len(row.samples.of(phase)) for phase in phases), default=0)
        return bool(max(row.asked.get("reps", 0), done) >= effort.reps)
    if row.asked.get("precision", 1.0) <= effort.precision:
        return True
    halves = [rate.within for phase in phases if (rate := stats.rate(row, phase))]
    return bool(halves) and all(half is not None and half <= effort.precision for half in halves)


def _keeps_to(row: Measurement, limit: int | None) -> bool:
    """Whether the worker of a row stayed within ``limit`` bytes of host memory: by its own limit, or as measured."""
    if limit is None:
        return True
    held_to = row.asked.get("max_memory_bytes")
    on_host = kind_of(row.case.device).is_host  # a GPU's peak is its own memory
    peak = row.memory.process_peak_bytes if on_host else None
    return any(known is not None and known <= limit for known in (held_to, peak))
