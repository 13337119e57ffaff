"""What a device says of itself while something runs on it: snapshots, and what they say of each window.

``Telemetry`` looks when it is told to; ``sampler.Sampler`` has it look 25 times a second. Nothing here raises into a
measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from profiler.devices.base import Consumed, Figure, Overview, Reading
from profiler.devices.curve import Span
from profiler.devices.history import History
from profiler.devices.snapshot import Snapshot, Source, Unknown
from profiler.units import printable

TICK_S = 0.04  # two ticks of doubt in a window of ten seconds are less than 1 % of its energy
OTHERS_EVERY = 25  # snapshots: processes come and go slowly, and are dearer to ask for
IDLE_S = 5.0  # an idle board's counter moves as often as a busy one's, and its power does not change


class Telemetry:
    """Snapshots of one device from ``open`` to ``close``, one at each ``look``; a ``Watcher`` of its repetitions.

    ``clock`` is the one that repetitions are timed with, and ``pause`` waits by it.
    """

    def __init__(
        self,
        source: Source,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.source = source
        self.gone: str | None = None  # why there are no more snapshots
        self.last: Snapshot | None = None
        self._others: int | None = None  # since ``begin``, the most
        self._clock, self._pause = clock, pause
        self._history = History()
        self._looks = 0
        self._is_open = self._watches = False
        self._idle: Figure | None = None

    def open(self) -> Telemetry:
        """Have a first snapshot, or a reason why there will be none."""
        self._watches = True
        self._guarded(self._open)
        self.look()
        return self

    def begin(self, energy: bool) -> None:
        """A new case: forget the snapshots so far, ask again for what was not told; open where there is a need."""
        self._history.clear()
        self._others, self._looks = None, 0
        self._guarded(self.source.begin)
        if not self._watches and (energy or self.source.guards):
            self.open()

    def start(self) -> None:
        """A repetition is about to begin: the device is watched all the time."""

    def stop(self, seconds: float) -> Reading:
        """What the device was like in a window of so many seconds that has just ended."""
        if not self._watches:
            return Reading()
        now = self._clock()
        self._settle(now)
        return self._history.reading((now - seconds, now))

    def consumed(self, spans: Sequence[Span]) -> Consumed | None:
        """Energy of windows since ``begin``; None if nobody watched."""
        if not self._watches:
            return None
        counter, power, name = self.counted_j(spans), self.integrated_j(spans), self.source.name
        by_power = "energy" in self.source.unknown and power[0] is not None
        return Consumed(f"{name}-{'power' if by_power else 'counter'}", self.source.scope, counter, power)

    def overview(self) -> Overview:
        """Other processes since ``begin``, and whether a slowdown would have been seen."""
        return Overview(self.blind, self._others) if self.source.guards else Overview()

    @property
    def blind(self) -> str | None:
        """Why a slowdown may have gone unseen."""
        reasons = self.source.unknown.get("reasons")
        return self.gone or (None if reasons is None else f"it does not tell why its clocks are low ({reasons})")

    def close(self) -> None:
        """No more snapshots."""
        self._give_up("the telemetry was closed")
        self._close()

    def counted_j(self, spans: Sequence[Span]) -> Figure:
        """Joules of windows by the energy counter, or why not."""
        return self._figure("energy", spans, lambda: self._history.counted_j(spans, self.source.coarse))

    def integrated_j(self, spans: Sequence[Span]) -> Figure:
        """Joules of windows by the power that was read, or why not."""
        return self._figure("power", spans, lambda: self._history.integrated_j(spans))

    def idle_w(self) -> Figure:
        """Watts while nothing runs, or why not. Waits ``IDLE_S`` the first time it is asked."""
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
        """Take a snapshot now, unless they have been given up."""
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

    def _figure(self, what: str, spans: Sequence[Span], ask: Callable[[], float]) -> Figure:
        if not spans:
            return None, "nothing was measured"
        self._settle(spans[-1][1])
        if self.gone is not None:
            return None, self.gone
        if what in self.source.unknown:
            return None, f"the device does not tell its {what} ({self.source.unknown[what]})"
        try:
            return ask(), None
        except Unknown as reason:
            return None, str(reason)

    def _settle(self, after_s: float) -> None:
        """Have a snapshot from after ``after_s``, or none any more."""
        if self._history.last_s <= after_s:
            self.look()

    def _give_up(self, reason: str) -> None:
        self.gone = self.gone or printable(reason)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Whatever goes wrong in a source is a reason, and no error of the measurement."""
        try:
            call()
        except Unknown as reason:
            self._give_up(str(reason))
        except Exception as error:
            self._give_up(f"the telemetry failed: {type(error).__name__}: {error}")
