"""A running sweep asks for the time that is left at every row and beat: that must not cost more in a longer one."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from fakes.lab import make_case, source

from profiler import case as cases
from profiler.case import Task
from profiler.run.plan import Pace


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def planned(count: int, loads: int, seconds: random.Random) -> list[Task]:
    entries = []
    for number in range(count):
        case = make_case(context=number + 1, seed=number % loads)
        run_s = seconds.choice([0.5, 1.0, 2.0, 7.5])
        entries.append(Task(case, source(), load_s=1.0 + number % loads, run_s=run_s))
    return sorted(entries, key=lambda entry: entry.case.seed)


class Walking:
    """The same, worked out anew each time from every case that waits: slow, and easy to believe."""

    def __init__(self, entries: list[Task], budget_s: float, clock: Clock) -> None:
        self.waiting, self.budget_s, self.clock = {entry.case: entry for entry in entries}, budget_s, clock
        self.loaded: set[str] = set()
        self.ran: dict[str, tuple[float, float]] = {}

    def ratio(self, entry: Task) -> float:
        ran, estimated = self.ran.get(entry.case.load_key, (1.0, 1.0))
        return ran / estimated

    def likely_ratio(self, entry: Task) -> float:
        if entry.case.load_key in self.ran or not self.ran:
            return self.ratio(entry)
        return sum(ran for ran, _ in self.ran.values()) / sum(estimated for _, estimated in self.ran.values())

    def remaining_s(self) -> float:
        loads = {e.case.load_key: e.load_s for e in self.waiting.values() if e.case.load_key not in self.loaded}
        return sum(loads.values()) + sum(e.run_s * self.likely_ratio(e) for e in self.waiting.values())

    def refuses(self, entry: Task) -> bool:
        key, left = entry.case.load_key, self.budget_s - self.clock.seconds
        needed = entry.run_s * self.ratio(entry) + (0.0 if key in self.loaded else entry.load_s)
        firsts: dict[str, float] = {}
        for other in self.waiting.values():
            name = other.case.load_key
            if name not in self.loaded:
                firsts[name] = min(firsts.get(name, 1e9), other.load_s + other.run_s)
        reserve = sum(first for first in firsts.values() if first <= left) if key in self.loaded else 0.0
        return needed > left - reserve


@pytest.mark.parametrize("seed", range(6))
def test_updated_sums_equal_sums_over_all_cases(seed: int) -> None:
    chance, clock = random.Random(seed), Clock()
    entries = planned(120, 7, chance)
    budget = chance.choice([60.0, 200.0, 1000.0])
    pace, walking = Pace(entries, budget, clock), Walking(entries, budget, clock)
    refused = 0
    for entry in entries:
        assert pace.remaining_s() == pytest.approx(walking.remaining_s())
        assert (pace.refuse(entry.case) is not None) == walking.refuses(entry)
        del walking.waiting[entry.case]
        if pace.refuse(entry.case) is not None:
            pace.drop(entry.case)
            refused += 1
            continue
        key, measured = entry.case.load_key, chance.random() < 0.8
        taken = entry.run_s * chance.choice([0.5, 1.0, 2.0])
        clock.seconds += taken
        if measured:
            if key not in walking.loaded:
                clock.seconds += entry.load_s
            walking.loaded.add(key)
            ran, estimated = walking.ran.get(key, (0.0, 0.0))
            walking.ran[key] = ran + taken, estimated + entry.run_s
        else:
            walking.loaded.discard(key)
        pace.note(entry.case, entry.load_s, measured)
    assert pace.remaining_s() == 0.0
    assert refused or budget == 1000.0


def cpu_s_a_case(count: int, loads: int) -> float:
    """Of everything that a sweep asks of its pace, for one case."""
    entries = planned(count, loads, random.Random(0))
    clock, best = Clock(), float("inf")
    for _ in range(3):
        pace = Pace(entries, 1e12, clock)
        start = time.process_time()
        for entry in entries:
            pace.refuse(entry.case)
            pace.remaining_s()
            pace.note(entry.case, 0.1, True)
            pace.remaining_s()
        best = min(best, time.process_time() - start)
    return best / count


@pytest.mark.parametrize("loads", [1, 50, 500])
def test_a_case_costs_the_same_in_a_sweep_of_ten_thousand_as_of_five_hundred(loads: int) -> None:
    assert cpu_s_a_case(10_000, loads) < 4 * cpu_s_a_case(500, min(loads, 500))


def test_the_digests_of_a_case_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    digest = cases.digest
    monkeypatch.setattr(cases, "digest", lambda content: asked.append(1) or digest(content))
    case = make_case()
    assert [case.key, case.load_key] * 3 == [case.key, case.load_key] * 3
    assert len(asked) == 2
    other = replace(case, context=case.context + 1)
    assert other.key != case.key and other.load_key == case.load_key
