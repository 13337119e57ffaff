"""Energy over time, read off points with straight lines between them.

A counter that moves in steps of some 100 ms is known at the moments at which it moves, so its curve goes through
those: that halves the error at either end of a window. A fine counter is known whenever it is read. Power is
integrated by the trapezoid rule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from profiler.devices.snapshot import Unknown
from profiler.units import seconds_text

STILL_S = 1.0  # counters move every 20 to 100 ms: one that has not for so long does not count
MOST_W = 20_000.0  # beyond it a counter has jumped: no board or package takes a tenth of this
SHORTEST_S = 0.2  # over which that is judged: a coarse counter moves by the energy of its whole step at once

Span = tuple[float, float]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """Joules over time: two points or more."""

    times: Sequence[float]
    joules: Sequence[float]

    def over(self, spans: Iterable[Span]) -> float:
        """Joules of all spans together. Raises Unknown where the curve does not reach."""
        return sum(self._at(end) - self._at(start) for start, end in spans)

    def _at(self, at_s: float) -> float:
        beyond = max(self.times[0] - at_s, at_s - self.times[-1])
        if beyond > STILL_S:
            raise Unknown(f"nothing was read for {seconds_text(beyond)} at an end of the window")
        place = min(max(bisect_right(self.times, at_s), 1), len(self.times) - 1)
        start, end = self.times[place - 1], self.times[place]
        before, after = self.joules[place - 1], self.joules[place]
        return before + (after - before) * (at_s - start) / (end - start)


def of_counter(points: Points, coarse: bool) -> Curve:
    """The curve of a counter read at ``points`` of (seconds, joules). Raises Unknown for one that does not count."""
    if len(points) < 2:
        raise Unknown("the energy counter was not read")
    moves: list[tuple[float, float]] = []
    moved_s = points[0][0]
    for (earlier, before), (at_s, now) in pairwise(points):
        if now < before:
            raise Unknown("the energy counter went backwards")
        if now - before > MOST_W * max(at_s - earlier, SHORTEST_S):
            raise Unknown("the energy counter jumped")
        if now > before:
            moves.append(((earlier + at_s) / 2, now))
            moved_s = at_s
        elif at_s - moved_s > STILL_S:
            raise Unknown(f"the energy counter stood still for {seconds_text(points[-1][0] - moved_s)}")
    if len(moves) < 2 and (coarse or not moves):
        raise Unknown(f"the energy counter moved less than twice in {seconds_text(points[-1][0] - points[0][0])}")
    return _through(moves if coarse else points)


def of_power(points: Points) -> Curve:
    """The integral of power read at ``points`` of (seconds, watts). Raises Unknown where too little was read."""
    if len(points) < 2:
        raise Unknown("power was not read")
    total, sums = 0.0, [(points[0][0], 0.0)]
    for (start, before), (end, after) in pairwise(points):
        if end - start > STILL_S:
            raise Unknown(f"power was not read for {seconds_text(end - start)}")
        total += (end - start) * (before + after) / 2
        sums.append((end, total))
    return _through(sums)


def _through(points: Points) -> Curve:
    return Curve([at_s for at_s, _ in points], [joules for _, joules in points])
