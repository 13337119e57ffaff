"""The plan of a sweep: which cases run, in what order and within what time, and why the others are skipped.

Each model loads as few times as possible: the cases of one load are adjacent, smallest first, so that a case that
runs out of memory comes after those that fit. Every skipped case has a reason.

**Budget.** The cheapest cases come first, and one case of every load (model × quantization) before a second one of
any. During the sweep, measured times correct the estimates for the same load, and a case that no longer fits the
budget is skipped.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from heapq import heappop, heappush

from profiler import backends
from profiler.case import Case, Task
from profiler.cost.cases import CaseEstimate, estimate_case, host_of, is_placed
from profiler.cost.learned import NOTHING, Learned
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.results.energy import RESOLVED_S
from profiler.run import quality, repetitions
from profiler.run.repetitions import Effort
from profiler.units import bytes_text, seconds_text

CASE_S = 0.5  # inputs, cache snapshots and bookkeeping of a case

BudgetClock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Tasks with their estimates, in the order in which they run; equal ``load_key``s are adjacent."""

    tasks: tuple[Task, ...]
    skipped: tuple[Task, ...] = ()  # each with its reason

    @property
    def seconds(self) -> float:
        """Estimated seconds for the whole plan."""
        loads = {task.case.load_key: task.load_s for task in self.tasks}
        return sum(loads.values()) + sum(task.run_s for task in self.tasks)


def make(
    tasks: Iterable[Task],
    device: DeviceInfo,
    effort: Effort,
    available_bytes: int,
    learned: Learned = NOTHING,
) -> SweepPlan:
    """Order ``tasks`` and skip what cannot run on ``device`` with ``available_bytes`` of its memory."""
    planned: list[Task] = []
    first: dict[str, str] = {}  # by reference for the quality: the load that computes it
    skipped: list[Task] = []
    host = cache(partial(host_of, device))
    for task in tasks:
        if task.reason is None or task.checkpoint_format is not None:
            try:
                task = plan_case(task, host(task.case.threads), effort, learned)
                reference = quality.reference_id(task.case, effort.quality)
                if first.setdefault(reference, task.case.load_key) == task.case.load_key:
                    task = replace(task, load_s=task.load_s + quality.reference_s(task, effort.quality))
            except ProfileError as error:  # only this model in this quantization is affected
                task = replace(task, reason=error.message)
        if task.reason is None:
            task = replace(task, reason=_obstacle(task, device, available_bytes))
        (planned if task.reason is None else skipped).append(task)
    return SweepPlan(tuple(_by_load(planned, effort.quick)), tuple(skipped))


def plan_case(task: Task, host: Target, effort: Effort, learned: Learned = NOTHING) -> Task:
    """``task``, which comes from a grid, with its estimates on ``host``."""
    assert task.geometry is not None
    estimate = estimate_case(task.case, task.geometry, host, task.checkpoint_format, learned)
    synthetic = task.case.fill == "synthetic"
    start = estimate.fill_s.value if synthetic else _phase_s(estimate.prefill_s.value, effort)
    decode = _phase_s(estimate.step_s.value * task.case.steps, effort)
    scored = quality.seconds(task.case, estimate, effort.quality)
    return replace(task, estimate=estimate, load_s=estimate.load_s.value, run_s=CASE_S + start + decode + scored)


def size(case: Case, quick: bool = False) -> tuple[int, int, int]:
    """Sort key within a load: by tokens in the cache, then by depth. In a quick look, the case with most decode steps
    comes before those that share its measurement.
    """
    return case.context * case.batch, case.context, -case.steps if quick else case.steps


def _obstacle(task: Task, device: DeviceInfo, available_bytes: int) -> str | None:
    """Why this backend, device or model cannot run the case; None if it can."""
    assert task.quant is not None and task.geometry is not None and task.estimate is not None
    refusal = backends.find(task.case.backend).refusal(task.case)
    if refusal is not None:
        return refusal
    reason = task.quant.unavailable(device)
    if reason is not None:
        return f"{task.quant.name} cannot run on {device.name}: {reason}"
    positions = task.geometry.max_position  # a few decode steps beyond the limit are allowed
    if task.case.context > positions:
        return f"the model supports at most {positions:,} tokens"
    return None if is_placed(task.case) else _too_large(task.estimate, available_bytes, device)


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


def _by_load(tasks: list[Task], quick: bool) -> list[Task]:
    """Loads in the order of their first case, smallest cases first within each."""
    loads = {task.case.load_key: index for index, task in reversed(list(enumerate(tasks)))}
    return sorted(tasks, key=lambda task: (loads[task.case.load_key], size(task.case, quick)))


def _phase_s(once_s: float, effort: Effort) -> float:
    """Seconds of all repetitions of a phase, of which one takes ``once_s``."""
    again_s = max(RESOLVED_S, once_s) if effort.energy else 0.0
    return once_s * repetitions.likely(once_s, effort) + again_s


def choose(plan: SweepPlan, budget_s: float) -> SweepPlan:
    """The part of ``plan`` that fits ``budget_s`` by its estimates, cheapest loads first; the rest is skipped."""
    loads = sorted(_loads(plan.tasks).values(), key=_first_s)
    left = budget_s
    kept: set[Case] = set()
    skipped = list(plan.skipped)
    others: list[Task] = []
    for load in loads:
        needed = _first_s(load)
        if needed > left:
            skipped += [_over_budget(task, task.load_s + task.run_s, budget_s, left) for task in load]
            continue
        left -= needed
        first, *more = sorted(load, key=_run_s)
        kept.add(first.case)
        others += more
    for task in sorted(others, key=_run_s):
        if task.run_s > left:
            skipped.append(_over_budget(task, task.run_s, budget_s, left))
            continue
        left -= task.run_s
        kept.add(task.case)
    tasks = [task for load in loads for task in load if task.case in kept]
    return SweepPlan(tuple(tasks), tuple(skipped))


class Pace:
    """Compares a running sweep with its estimates. Without a budget it only estimates the remaining time.

    Progress asks for the remaining time at every row and beat. Sums are therefore updated and not recomputed: a query
    and a row cost the same in a sweep of ten thousand cases as in one of ten.
    """

    def __init__(
        self, tasks: Sequence[Task], budget_s: float | None = None, clock: BudgetClock = time.monotonic
    ) -> None:
        self._clock = clock
        self._budget_s = budget_s
        self._waiting = {task.case: task for task in tasks}
        self._loads = {key: _LoadGroup(load) for key, load in _loads(tasks).items()}
        self._rest_s = 0.0  # remaining seconds, without those of
        self._fresh_s = 0.0  # the cases of loads of which none has finished, by their estimates
        for load in self._loads.values():
            self._count(load, +1)
        self._ran_s = self._ran_estimated_s = 0.0  # of all finished cases, as they took and as they were estimated
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
        with self._changing(case) as (load, task):
            if measured and not load.loaded:
                taken -= load_s or 0.0
            load.loaded = measured
            if measured:
                taken -= prepare_s  # a new batch compiles the step again, a new context does not
                load.ran_s += max(0.0, taken)
                load.estimated_s += task.run_s
                self._ran_s += max(0.0, taken)
                self._ran_estimated_s += task.run_s

    def drop(self, case: Case) -> None:
        """Record that a case will not run."""
        with self._changing(case):
            pass

    def pause(self) -> None:
        """Exclude the time since the last row from the estimates, because it was spent waiting."""
        self._last = self._clock()

    def remaining_s(self) -> float:
        """The remaining seconds, as finished cases correct the estimates: those of the same load if there are any."""
        return max(0.0, self._rest_s + self._fresh_s * self._common_ratio) if self._waiting else 0.0

    def left_s(self, case: Case) -> float | None:
        """Estimated seconds until the row of ``case``, which is running; None if it takes longer than estimated."""
        task, load = self._waiting.get(case), self._loads[case.load_key]
        if task is None:
            return None
        needed = (0.0 if load.loaded else load.load_s) + task.run_s * self._ratio(load)
        left = needed - (self._clock() - self._last)
        return left if left > 0 else None

    @property
    def _common_ratio(self) -> float:
        """Seconds taken per estimated second, of all finished cases."""
        return self._ran_s / self._ran_estimated_s if self._ran_estimated_s else 1.0

    def _ratio(self, load: _LoadGroup) -> float:
        return load.ratio if load.estimated_s else self._common_ratio

    def _count(self, load: _LoadGroup, sign: int) -> None:
        fresh = 0.0 if load.estimated_s else load.run_s
        self._rest_s += sign * (load.rest_s - fresh)
        self._fresh_s += sign * fresh

    @contextmanager
    def _changing(self, case: Case) -> Iterator[tuple[_LoadGroup, Task]]:
        """Remove a case from the waiting ones and keep the sums correct while its load changes."""
        key = case.load_key
        load, task = self._loads[key], self._waiting.pop(case)
        self._count(load, -1)
        load.take(task)
        yield load, task
        self._count(load, +1)
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

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.load_s = tasks[0].load_s
        self.loaded = False
        self.ran_s = self.estimated_s = 0.0
        self.reserved_s = 0.0  # reserved in the budget for its first case
        self._waiting = len(tasks)
        self.run_s = math.fsum(task.run_s for task in tasks)  # of the waiting cases, by their estimates
        self._cheapest = Counter(task.run_s for task in tasks)
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
        return (0.0 if self.loaded else self.load_s) + self.run_s * self.ratio

    @property
    def first_s(self) -> float:
        """Seconds to load the model and measure the cheapest waiting case; 0 if it is loaded or nothing waits."""
        if self.loaded or not self._waiting:
            return 0.0
        while not self._cheapest[self._by_cost[-1]]:
            self._by_cost.pop()
        return self.load_s + self._by_cost[-1]

    def take(self, task: Task) -> None:
        """Remove a waiting task."""
        self._waiting -= 1
        self.run_s -= task.run_s
        self._cheapest[task.run_s] -= 1


def _loads(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    loads: dict[str, list[Task]] = {}
    for task in tasks:
        loads.setdefault(task.case.load_key, []).append(task)
    return loads


def _run_s(task: Task) -> float:
    return task.run_s


def _first_s(load: Sequence[Task]) -> float:
    """Seconds to load a model and measure its cheapest case."""
    return load[0].load_s + min(task.run_s for task in load)


def _over_budget(task: Task, needed_s: float, budget_s: float, left_s: float) -> Task:
    return replace(task, reason=_reason(needed_s, budget_s, left_s))


def _reason(needed_s: float, budget_s: float, left_s: float) -> str:
    budget, needed, left = map(seconds_text, (budget_s, needed_s, left_s))
    return f"does not fit the budget of {budget}: estimated {needed}, {left} left"
