"""Telemetry: snapshots of a device while something runs on it, and the energy and clocks of each timed window.

``Telemetry`` takes a snapshot on request; ``sampler.Sampler`` takes 25 per second. Nothing here raises an error into
a measurement.

A coarse counter updates about every 100 ms and is known exactly only then, so its curve goes through its updates,
which halves the error at both ends of a window. A fine counter is exact whenever it is read. Power is integrated by
the trapezoid rule.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from profiler.devices.base import Consumed, FigureOrReason, Overview, Reading
from profiler.units import printable, seconds_text

# Bits of NVML's clocks event reasons (nvml.h, nvmlClocksEventReasons).
SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x04, 0x08, 0x20, 0x40, 0x80
SLOWED = {  # a repetition under one of these does not count
    HW_SLOWDOWN: "hardware slowdown",
    SW_THERMAL: "thermal slowdown by the driver",
    HW_THERMAL: "thermal slowdown by the hardware",
    POWER_BRAKE: "power brake",
}

STILL_S = 1.0  # counters update every 20 to 100 ms: one without an update for this long is ignored
MAX_W = 20_000.0  # a counter that implies more has jumped: no board or package draws a tenth of it
SHORTEST_S = 0.2  # shortest time over which MAX_W is judged: a coarse counter adds the energy of 100 ms at once
TimeSpan = tuple[float, float]
Points = Sequence[tuple[float, float]]

MARGIN_S = 0.5  # snapshots this long before and after a window are used, so that counter updates enclose it
TRACE = 0.001  # share of the time that a clock limit may apply without any effect on a figure
ENOUGH = 3  # snapshots needed for a median clock

TICK_S = 0.04  # two ticks of doubt in a window of ten seconds are less than 1% of its energy
OTHERS_EVERY = 25  # snapshots: processes change slowly, and listing them is more expensive
IDLE_S = 5.0  # an idle board's counter updates as often as a busy one's, and its power is constant


class Unknown(Exception):
    """A figure is not available; the message says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A device at one moment; ``None`` for what it does not report."""

    at_s: float  # on the clock of the measurement
    energy_j: float | None = None  # a counter: only differences matter
    power_w: float | None = None  # at this moment, not an average
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    reasons: int | None = None  # why clocks are below their maximum: bits as above
    limited_s: tuple[tuple[int, float], ...] = ()  # (bit, seconds it has held since the driver's load)


class TelemetrySource(Protocol):
    """The source of snapshots. All calls come from one thread; each may be slow, or never return."""

    name: str  # nvml, rapl: the source of the energy in a row
    scope: str  # gpu-board, cpu-package: what the energy covers
    coarse: bool  # its energy counter updates less often than it is read
    guards: bool  # it reports throttling, so it is worth watching even without energy
    unknown: dict[str, str]  # quantity → why it is not reported

    def open(self) -> None:
        """Open the source. Raises Unknown if nothing can be read."""

    def begin(self) -> None:
        """Retry the quantities that were not reported."""

    def read(self, at_s: float) -> Snapshot:
        """The device now. Raises Unknown if it is lost."""

    def others(self) -> int | None:
        """Other processes that compute there now, None if not reported. More expensive than ``read``."""

    def close(self) -> None:
        """Release what ``open`` acquired."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Joules over time: two points or more."""

    times: Sequence[float]
    joules: Sequence[float]

    def over(self, spans: Iterable[TimeSpan]) -> float:
        """Total joules of all spans. Raises Unknown outside the curve."""
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
    """The curve of a counter read at ``points`` of (seconds, joules). Raises Unknown if it does not count."""
    if len(points) < 2:
        raise Unknown("the energy counter was not read")
    moves: list[tuple[float, float]] = []
    moved_s = points[0][0]
    for (earlier, before), (at_s, now) in pairwise(points):
        if now < before:
            raise Unknown("the energy counter went backwards")
        if now - before > MAX_W * max(at_s - earlier, SHORTEST_S):
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
    """The integral of power read at ``points`` of (seconds, watts). Raises Unknown if there are too few."""
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


class History:
    """Snapshots in order; ``clear`` keeps the last one."""

    def __init__(self) -> None:
        self._snapshots: list[Snapshot] = []

    def add(self, snapshot: Snapshot) -> None:
        """Append a snapshot; it replaces the last one if no time has passed."""
        if snapshot.at_s <= self.last_s:
            del self._snapshots[-1]
        self._snapshots.append(snapshot)

    def clear(self) -> None:
        """Drop all but the last snapshot, which may begin the next window."""
        del self._snapshots[:-1]

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._snapshots)

    @property
    def last_s(self) -> float:
        """Time of the last snapshot; minus infinity if there is none."""
        return self._snapshots[-1].at_s if self._snapshots else float("-inf")

    def reading(self, span: TimeSpan) -> Reading:
        """The state of the device in ``span``. It is invalid if the clocks were throttled."""
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

    def counted_j(self, spans: Sequence[TimeSpan], coarse: bool) -> float:
        """Joules of ``spans`` by the energy counter. Raises Unknown."""
        around = self._around(spans, MARGIN_S)
        return of_counter([(s.at_s, s.energy_j) for s in around if s.energy_j is not None], coarse).over(spans)

    def integrated_j(self, spans: Sequence[TimeSpan]) -> float:
        """Joules of ``spans`` by the power at each snapshot. Raises Unknown."""
        around = self._around(spans, 0.0)
        return of_power([(s.at_s, s.power_w) for s in around if s.power_w is not None]).over(spans)

    def _around(self, spans: Sequence[TimeSpan], margin_s: float) -> list[Snapshot]:
        """The snapshots from the last before ``spans`` to the first after them, plus a margin."""
        snapshots = self._snapshots[:]  # the other thread goes on
        times = [snapshot.at_s for snapshot in snapshots]
        first = max(0, bisect_right(times, spans[0][0] - margin_s) - 1)
        return snapshots[first : bisect_right(times, spans[-1][1] + margin_s) + 1]


def _share(bit: int, inside: Sequence[Snapshot], around: Sequence[Snapshot]) -> float | None:
    """Share of the time for which a reason applied: the larger of the sampled and the counted share.

    The driver's counter misses nothing but is not always available; samples are.
    """
    seen = [bool(snapshot.reasons & bit) for snapshot in inside if snapshot.reasons is not None]
    sampled = sum(seen) / len(seen) if seen else None
    known = [share for share in (sampled, _counted(bit, around)) if share is not None]
    return max(known) if known else None


def _counted(bit: int, around: Sequence[Snapshot]) -> float | None:
    """The share by the driver's counter; None without one, or if its value is impossible."""
    counts = [(snapshot.at_s, held) for snapshot in around for number, held in snapshot.limited_s if number == bit]
    if len(counts) < 2:
        return None
    backwards = any(later < earlier for (_, earlier), (_, later) in pairwise(counts))
    share = (counts[-1][1] - counts[0][1]) / (counts[-1][0] - counts[0][0])
    if backwards or share > 1.1:  # another driver uses the number for something else
        return None
    return min(share, 1.0) if share >= TRACE else 0.0


class Telemetry:
    """Snapshots of one device from ``open`` to ``close``, one at each ``look``; a ``Watcher`` of its repetitions.

    ``clock`` is the clock of the repetitions, and ``pause`` waits on it.
    """

    def __init__(
        self,
        source: TelemetrySource,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.source = source
        self.gone: str | None = None  # why there are no more snapshots
        self.last: Snapshot | None = None
        self._others: int | None = None  # the most since ``begin``
        self._clock, self._pause = clock, pause
        self._history = History()
        self._looks = 0
        self._is_open = self._watches = False
        self._idle: FigureOrReason | None = None

    def open(self) -> Telemetry:
        """Take a first snapshot, or record why there will be none."""
        self._watches = True
        self._guarded(self._open)
        self.look()
        return self

    def begin(self, energy: bool) -> None:
        """Start a new case: drop the snapshots, retry missing quantities, and open the source if needed."""
        self._history.clear()
        self._others, self._looks = None, 0
        self._guarded(self.source.begin)
        if not self._watches and (energy or self.source.guards):
            self.open()

    def start(self) -> None:
        """A repetition is about to begin; the device is watched all the time."""

    def stop(self, seconds: float) -> Reading:
        """The state of the device in the window of ``seconds`` that has just ended."""
        if not self._watches:
            return Reading()
        now = self._clock()
        self._settle(now)
        return self._history.reading((now - seconds, now))

    def consumed(self, spans: Sequence[TimeSpan]) -> Consumed | None:
        """Energy of windows since ``begin``; None if the device was not watched."""
        if not self._watches:
            return None
        counter, power, name = self.counted_j(spans), self.integrated_j(spans), self.source.name
        by_power = "energy" in self.source.unknown and power[0] is not None
        return Consumed(f"{name}-{'power' if by_power else 'counter'}", self.source.scope, counter, power)

    def overview(self) -> Overview:
        """Other processes since ``begin``, and whether throttling would have been detected."""
        return Overview(self.blind, self._others) if self.source.guards else Overview()

    @property
    def blind(self) -> str | None:
        """Why throttling could not be detected."""
        reasons = self.source.unknown.get("reasons")
        return self.gone or (None if reasons is None else f"it does not report why its clocks are low ({reasons})")

    def close(self) -> None:
        """Take no more snapshots, and release the source."""
        self._give_up("the telemetry was closed")
        self._close()

    def counted_j(self, spans: Sequence[TimeSpan]) -> FigureOrReason:
        """Joules of windows by the energy counter, or the reason."""
        return self._figure("energy", spans, lambda: self._history.counted_j(spans, self.source.coarse))

    def integrated_j(self, spans: Sequence[TimeSpan]) -> FigureOrReason:
        """Joules of windows by integrated power, or the reason."""
        return self._figure("power", spans, lambda: self._history.integrated_j(spans))

    def idle_w(self) -> FigureOrReason:
        """Watts while nothing runs, or the reason. Waits ``IDLE_S`` on the first call."""
        if self._idle is None:
            start = self._clock()
            if self.gone is None:
                self._pause(IDLE_S)
            span = (start, self._clock())
            joules, reason = self.counted_j([span])
            if joules is None:
                joules = self.integrated_j([span])[0]
            seconds = span[1] - span[0]
            self._idle = (None, reason) if joules is None else (joules / seconds, None)
        return self._idle

    def look(self) -> None:
        """Take a snapshot now, unless the source has been given up."""
        if self.gone is None:
            self._guarded(self._look)

    def _open(self) -> None:
        self.source.open()
        self._is_open = True

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._guarded(self.source.close)

    def _look(self) -> None:
        snapshot = self.source.read(self._clock())
        if self._looks % OTHERS_EVERY == 0:
            seen = (self._others, self.source.others())
            self._others = max((count for count in seen if count is not None), default=None)
        self._looks += 1
        self._keep(snapshot)

    def _keep(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        self._history.add(snapshot)

    def _figure(self, what: str, spans: Sequence[TimeSpan], ask: Callable[[], float]) -> FigureOrReason:
        if not spans:
            return None, "nothing was measured"
        self._settle(spans[-1][1])
        if self.gone is not None:
            return None, self.gone
        if what in self.source.unknown:
            return None, f"the device does not report its {what} ({self.source.unknown[what]})"
        try:
            return ask(), None
        except Unknown as reason:
            return None, str(reason)

    def _settle(self, after_s: float) -> None:
        """Make sure that there is a snapshot after ``after_s``, unless the source has been given up."""
        if self._history.last_s <= after_s:
            self.look()

    def _give_up(self, reason: str) -> None:
        self.gone = self.gone or printable(reason)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Turn any failure of a source into a reason, so that the measurement continues."""
        try:
            call()
        except Unknown as reason:
            self._give_up(str(reason))
        except Exception as error:
            self._give_up(f"the telemetry failed: {type(error).__name__}: {error}")
