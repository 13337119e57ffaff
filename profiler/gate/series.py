"""Pairs of blocks of one cell, as far as they are measured, and how the next one is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler.gate import step
from profiler.gate.bench import Bench
from profiler.gate.block import Block, Clock, record, unlike
from profiler.gate.side import Side
from profiler.measure.supervisor import Job
from profiler.results.measurement import Phase

RESTART = 3  # pairs after which both processes are new: some are slow from start to end, by luck of layout
MOST_SPOILT = 0.25  # of the pairs: with more, it is the machine that is measured

Kept = list[dict[str, Any]]


class Unfit(Exception):
    """The pairs cannot be had; the message says why."""


class Broken(Exception):
    """A side did not run the cell to its end."""

    def __init__(self, block: Block, by_base: bool) -> None:
        super().__init__(f"{block.row.outcome}: {block.row.reason}")
        self.by_base = by_base


@dataclass(slots=True)
class Series:
    """One cell: base in ``sides[0]``, candidate in ``sides[1]``."""

    job: Job
    metrics: Sequence[Phase]
    clock: Clock
    planned: int  # pairs at most
    logs: dict[Phase, list[float]] = field(default_factory=dict)  # ln(candidate ÷ base), a value a pair
    first: tuple[Block, Block] | None = None  # base and candidate, for what does not vary
    spoilt: int = 0
    other_step: str | None = None  # that the two of a pair ran different decode steps

    @property
    def pairs(self) -> int:
        return len(next(iter(self.logs.values()), ()))

    def add(self, base: Block, candidate: Block) -> str | None:
        """Take a pair, or return why it does not count."""
        spoilt = base.spoilt(self.clock) or candidate.spoilt(self.clock) or unlike(base, candidate)
        values = {m: (base.seconds(m, self.clock), candidate.seconds(m, self.clock)) for m in self.metrics}
        if self.first is None:
            self.first = (base, candidate)
        self.other_step = self.other_step or step.difference(base.row, candidate.row)
        if spoilt is None:
            missing = [metric for metric, both in values.items() if None in both]
            if missing:
                raise Unfit(
                    f"a repetition of {missing[0]} has no {self.clock} time: it is shorter than the clock tells"
                )
        if spoilt is not None:
            self.spoilt += 1
            if self.spoilt > MOST_SPOILT * self.planned:
                raise Unfit(f"{self.spoilt} of {self.pairs + self.spoilt} pairs were spoilt from outside: {spoilt}")
            return spoilt
        for metric, (a, b) in values.items():
            assert a is not None and b is not None  # checked above
            self.logs.setdefault(metric, []).append(math.log(b / a))
        return None


class Stage:
    """A purpose for which pairs are measured: the noise of the base against itself, the gate, its confirmation.

    ``slots``: the side in each slot; ``base_slot``: which of them is the base. The order within a pair is drawn anew
    each time.
    """

    def __init__(
        self, name: str, bench: Bench, slots: tuple[Side, Side], base_slot: int, seed: int, kept: Kept
    ) -> None:
        self._name, self._bench, self._slots, self._base, self._kept = name, bench, slots, base_slot, kept
        self._random = random.Random(f"{seed} {name}")
        self._since = RESTART  # pairs since the processes were started

    def advance(self, every: Sequence[Series], until: int, broken: Callable[[Series, Exception], None]) -> None:
        """Measure pairs of each series in turn, up to ``until``. ``broken`` hears of those that end before."""
        going = list(every)
        while going:
            if self._since >= RESTART:
                self._bench.start(self._slots)
                self._since = 0
            self._since += 1
            for series in list(going):
                try:
                    self._pair(series)
                except (Unfit, Broken) as error:
                    broken(series, error)
                    going.remove(series)
                    self._since = RESTART if isinstance(error, Broken) else self._since
                else:
                    if series.pairs >= until:
                        going.remove(series)

    def _pair(self, series: Series) -> None:
        order = (0, 1) if self._random.random() < 0.5 else (1, 0)
        ran = {slot: self._bench.block(slot, series.job) for slot in order}
        blocks = [ran[slot] for slot in order]
        base, candidate = ran[self._base], ran[1 - self._base]
        failed = next((block for block in (base, candidate) if block.row.outcome != "ok"), None)
        number, spoilt = series.pairs + series.spoilt + 1, None
        try:
            if failed is None:
                spoilt = series.add(base, candidate)
        except Unfit as error:
            spoilt = str(error)
            raise
        finally:
            self._kept += record(self._name, number, blocks, spoilt)
        if failed is not None:
            raise Broken(failed, by_base=failed is base or self._slots[0] is self._slots[1])
