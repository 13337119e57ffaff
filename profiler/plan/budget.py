"""Keeping a sweep within a time: which cases to choose by estimates, and which to drop when the estimates were off.

Cheapest informative first: one case of every load (model × quantization) before a second one of any. While the sweep
runs, what it measured corrects the estimates of the same load, and a case that no longer fits is skipped.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush

from profiler.case import Case
from profiler.plan.order import Plan, Planned, Skip, size
from profiler.units import seconds_text

Clock = Callable[[], float]


def choose(plan: Plan, budget_s: float) -> Plan:
    """The part of ``plan`` that fits ``budget_s`` by estimates, cheapest loads first; the rest becomes skips."""
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
    return Plan(tuple(cases), tuple(skipped))


class Pace:
    """How a running sweep does against its estimates. Without a budget it refuses nothing and only tells the rest.

    Progress asks for the rest at every row and beat, so sums are kept rather than taken: each question and each row
    costs the same in a sweep of ten thousand cases as in one of ten.
    """

    def __init__(
        self, cases: Sequence[Planned], budget_s: float | None = None, clock: Clock = time.monotonic
    ) -> None:
        self._clock = clock
        self._budget_s = budget_s
        self._waiting = {entry.case: entry for entry in cases}
        self._loads = {key: _Load(load) for key, load in _loads(cases).items()}
        self._remaining_s = math.fsum(load.rest_s for load in self._loads.values())
        self._reserved_s = 0.0  # for the first case of every load that still waits for it
        self._dearest: list[tuple[float, str]] = []  # a heap of (−seconds, load key); some entries are out of date
        for key in self._loads:
            self._reserve(key)
        self._started = self._last = clock()

    def refuse(self, case: Case) -> str | None:
        """Why a case no longer fits the budget, in words; None if it does.

        A further case of a load leaves room for the first one of every load that still waits.
        """
        if self._budget_s is None:
            return None
        load = self._loads[case.load_key]
        left = self._budget_s - (self._clock() - self._started)
        needed = (0.0 if load.loaded else load.load_s) + self._waiting[case].run_s * load.ratio
        room = left - self._reserved(left) if load.loaded else left
        return None if needed <= room else _reason(needed, self._budget_s, max(0.0, room))

    def note(self, case: Case, load_s: float | None, measured: bool, prepare_s: float = 0.0) -> None:
        """A case has given its row; ``load_s`` is what its worker took to load, ``prepare_s`` to compile its step.

        Only a case that was ``measured`` corrects estimates; after another the next one loads the model again.
        """
        now = self._clock()
        taken = now - self._last
        self._last = now
        with self._changing(case) as (load, entry):
            if measured and not load.loaded:
                taken -= load_s or 0.0
            load.loaded = measured
            if measured:
                taken -= prepare_s  # of another batch it is compiled again, of another context not
                load.ran_s += max(0.0, taken)
                load.estimated_s += entry.run_s

    def drop(self, case: Case) -> None:
        """A case will not run."""
        with self._changing(case):
            pass

    def pause(self) -> None:
        """What has passed since the last row was spent waiting, and says nothing of how long cases take."""
        self._last = self._clock()

    def remaining_s(self) -> float:
        """Corrected estimate of what is still to do."""
        return max(0.0, self._remaining_s) if self._waiting else 0.0

    @contextmanager
    def _changing(self, case: Case) -> Iterator[tuple[_Load, Planned]]:
        """Take a case out of those that wait, and keep the sums right whatever else changes in its load."""
        key = case.load_key
        load, entry = self._loads[key], self._waiting.pop(case)
        self._remaining_s -= load.rest_s
        load.take(entry)
        yield load, entry
        self._remaining_s += load.rest_s
        self._reserve(key)

    def _reserve(self, key: str) -> None:
        """Note anew what the first case of a load needs."""
        load = self._loads[key]
        self._reserved_s -= load.reserved_s
        load.reserved_s = load.first_s
        if load.reserved_s:
            self._reserved_s += load.reserved_s
            heappush(self._dearest, (-load.reserved_s, key))

    def _reserved(self, left: float) -> float:
        """Seconds that the first cases of the waiting loads need, as far as they can still run at all."""
        while self._dearest and -self._dearest[0][0] > left:  # nor can it later: what is left only shrinks
            seconds, key = heappop(self._dearest)
            load = self._loads[key]
            if load.reserved_s == -seconds:
                self._reserved_s -= load.reserved_s
                load.reserved_s = 0.0
        return max(0.0, self._reserved_s)


class _Load:
    """The cases of one load that still wait, and how those that ran did against their estimates."""

    def __init__(self, entries: Sequence[Planned]) -> None:
        self.load_s = entries[0].load_s
        self.loaded = False
        self.ran_s = self.estimated_s = 0.0
        self.reserved_s = 0.0  # what the budget keeps for its first case
        self._waiting = len(entries)
        self._run_s = math.fsum(entry.run_s for entry in entries)
        self._cheapest = Counter(entry.run_s for entry in entries)
        self._by_cost = sorted(self._cheapest, reverse=True)

    @property
    def ratio(self) -> float:
        """Seconds taken for each that was estimated."""
        return self.ran_s / self.estimated_s if self.estimated_s else 1.0

    @property
    def rest_s(self) -> float:
        """Estimate of what still waits."""
        if not self._waiting:
            return 0.0
        return (0.0 if self.loaded else self.load_s) + self._run_s * self.ratio

    @property
    def first_s(self) -> float:
        """Loading the model and measuring the cheapest case that waits; 0 where it is loaded, or none waits."""
        if self.loaded or not self._waiting:
            return 0.0
        while not self._cheapest[self._by_cost[-1]]:
            self._by_cost.pop()
        return self.load_s + self._by_cost[-1]

    def take(self, entry: Planned) -> None:
        """One of them no longer waits."""
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
    """Loading a model and measuring its cheapest case."""
    return load[0].load_s + min(entry.run_s for entry in load)


def _skip(entry: Planned, needed_s: float, budget_s: float, left_s: float) -> Skip:
    return Skip(entry.case, _reason(needed_s, budget_s, left_s), entry.takes)


def _reason(needed_s: float, budget_s: float, left_s: float) -> str:
    budget, needed, left = map(seconds_text, (budget_s, needed_s, left_s))
    return f"does not fit the budget of {budget}: estimated {needed}, {left} left"
