"""Snapshots in the order they were taken, and what they say of a stretch of time."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from profiler.devices import curve
from profiler.devices.base import Reading
from profiler.devices.curve import Span
from profiler.devices.snapshot import SLOWED, SW_POWER_CAP, Snapshot

MARGIN_S = 0.5  # of snapshots on either side of a window, so that steps of a counter enclose it
TRACE = 0.001  # share of the time, by the driver's counters: a slowdown below it changes no figure
ENOUGH = 3  # snapshots of a clock for a median


class History:
    """Grows at its end; ``clear`` keeps the last snapshot."""

    def __init__(self) -> None:
        self._snapshots: list[Snapshot] = []

    def add(self, snapshot: Snapshot) -> None:
        """Append a snapshot; in the place of the last if no time has passed since."""
        if snapshot.at_s <= self.last_s:
            del self._snapshots[-1]
        self._snapshots.append(snapshot)

    def clear(self) -> None:
        """Forget all but the last snapshot, which may begin the next window."""
        del self._snapshots[:-1]

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._snapshots)

    @property
    def last_s(self) -> float:
        """When the last snapshot was taken; before all time if there is none."""
        return self._snapshots[-1].at_s if self._snapshots else float("-inf")

    def reading(self, span: Span) -> Reading:
        """What the device was like in ``span``. It is invalid where clocks were forced down."""
        around = self._around([span], 0.0)
        inside = [snapshot for snapshot in around if span[0] <= snapshot.at_s <= span[1]]
        clocks = [snapshot.sm_mhz for snapshot in inside if snapshot.sm_mhz is not None]
        slowed = [words for bit, words in SLOWED.items() if _share(bit, inside, around)]
        return Reading(
            invalid=" and ".join(slowed) or None,
            ended_s=span[1],
            capped=_share(SW_POWER_CAP, inside, around),
            sm_mhz=statistics.median(clocks) if len(clocks) >= ENOUGH else None,
            temperature_c=max((s.temperature_c for s in inside if s.temperature_c is not None), default=None),
        )

    def counted_j(self, spans: Sequence[Span], coarse: bool) -> float:
        """Joules of ``spans`` by the energy counter. Raises Unknown."""
        around = self._around(spans, MARGIN_S)
        return curve.of_counter([(s.at_s, s.energy_j) for s in around if s.energy_j is not None], coarse).over(spans)

    def integrated_j(self, spans: Sequence[Span]) -> float:
        """Joules of ``spans`` by the power at each snapshot. Raises Unknown."""
        around = self._around(spans, 0.0)
        return curve.of_power([(s.at_s, s.power_w) for s in around if s.power_w is not None]).over(spans)

    def _around(self, spans: Sequence[Span], margin_s: float) -> list[Snapshot]:
        """The snapshots from the last before ``spans`` to the first after them, and a margin."""
        snapshots = self._snapshots[:]  # the other thread goes on
        times = [snapshot.at_s for snapshot in snapshots]
        first = max(0, bisect_right(times, spans[0][0] - margin_s) - 1)
        return snapshots[first : bisect_right(times, spans[-1][1] + margin_s) + 1]


def _share(bit: int, inside: Sequence[Snapshot], around: Sequence[Snapshot]) -> float | None:
    """Share of the time for which a reason held: the larger of what was sampled and what the driver counted.

    The counter misses nothing but is not everywhere; a sample is.
    """
    seen = [bool(snapshot.reasons & bit) for snapshot in inside if snapshot.reasons is not None]
    sampled = sum(seen) / len(seen) if seen else None
    known = [share for share in (sampled, _counted(bit, around)) if share is not None]
    return max(known) if known else None


def _counted(bit: int, around: Sequence[Snapshot]) -> float | None:
    """The share by the driver's counter; None where there is none, or it cannot be what it is taken for."""
    counts = [(snapshot.at_s, held) for snapshot in around for number, held in snapshot.limited_s if number == bit]
    if len(counts) < 2:
        return None
    backwards = any(later < earlier for (_, earlier), (_, later) in pairwise(counts))
    share = (counts[-1][1] - counts[0][1]) / (counts[-1][0] - counts[0][0])
    if backwards or share > 1.1:  # a number that another driver uses for something else
        return None
    return min(share, 1.0) if share >= TRACE else 0.0
