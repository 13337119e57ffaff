"""Keeping a sweep within a time: which cases to choose by estimates, and which to drop when the estimates were off.

Cheapest informative first: one case of every load (model × quantization) before a second one of any. While the sweep
runs, what it measured corrects the estimates of the same load, and a case that no longer fits is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

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
    """How a running sweep does against its estimates. Without a budget it refuses nothing and only tells the rest."""

    def __init__(
        self, cases: Sequence[Planned], budget_s: float | None = None, clock: Clock = time.monotonic
    ) -> None:
        self._clock = clock
        self._budget_s = budget_s
        self._waiting = {entry.case: entry for entry in cases}
        self._loaded: set[str] = set()
        self._ran: dict[str, tuple[float, float]] = {}  # load key → seconds taken, seconds estimated
        self._started = self._last = clock()

    def refuse(self, case: Case) -> str | None:
        """Why a case no longer fits the budget, in words; None if it does.

        A further case of a load leaves room for the first one of every load that still waits.
        """
        if self._budget_s is None:
            return None
        left = self._budget_s - (self._clock() - self._started)
        needed = self._seconds(self._waiting[case])
        room = left - self._reserve(left) if case.load_key in self._loaded else left
        return None if needed <= room else _reason(needed, self._budget_s, max(0.0, room))

    def note(self, case: Case, load_s: float | None, measured: bool, prepare_s: float = 0.0) -> None:
        """A case has given its row; ``load_s`` is what its worker took to load, ``prepare_s`` to compile its step.

        Only a case that was ``measured`` corrects estimates; after another the next one loads the model again.
        """
        now = self._clock()
        taken = now - self._last
        self._last = now
        entry = self._waiting.pop(case)
        if not measured:
            self._loaded.discard(case.load_key)
            return
        if case.load_key not in self._loaded:
            taken -= load_s or 0.0
        taken -= prepare_s  # of another batch it is compiled again, of another context not
        self._loaded.add(case.load_key)
        ran, estimated = self._ran.get(case.load_key, (0.0, 0.0))
        self._ran[case.load_key] = ran + max(0.0, taken), estimated + entry.run_s

    def drop(self, case: Case) -> None:
        """A case will not run."""
        self._waiting.pop(case)

    def remaining_s(self) -> float:
        """Corrected estimate of what is still to do."""
        loads = {case.load_key: entry.load_s for case, entry in self._waiting.items()}
        loading = sum(seconds for key, seconds in loads.items() if key not in self._loaded)
        return loading + sum(entry.run_s * self._ratio(case) for case, entry in self._waiting.items())

    def _seconds(self, entry: Planned) -> float:
        loading = 0.0 if entry.case.load_key in self._loaded else entry.load_s
        return loading + entry.run_s * self._ratio(entry.case)

    def _ratio(self, case: Case) -> float:
        ran, estimated = self._ran.get(case.load_key, (1.0, 1.0))
        return ran / estimated

    def _reserve(self, left: float) -> float:
        """Seconds that the first cases of the waiting loads need, as far as they can still run at all."""
        waiting = _loads([entry for case, entry in self._waiting.items() if case.load_key not in self._loaded])
        firsts = (_first_s(load) for load in waiting.values())
        return sum(seconds for seconds in firsts if seconds <= left)


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
