"""One phase: warm-ups, then repetitions until there are enough, each timed and watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from profiler.backends.base import Beat, Session
from profiler.devices.base import Meter, Pressure, Watcher
from profiler.measure.effort import Effort
from profiler.measure.steady import Stop, is_warm, stop
from profiler.results.measurement import Phase, Sample


@dataclass(frozen=True, slots=True)
class Measured:
    """A phase as it went: every repetition in order, why it ended, and the counters around those that were timed."""

    samples: tuple[Sample, ...]
    stopped: Stop
    before: Pressure
    after: Pressure


class Repetition:
    """One repetition from its making to ``end``, by the clocks of the device and what watches it."""

    def __init__(self, meter: Meter, watcher: Watcher) -> None:
        self._watcher = watcher
        self._watcher.start()
        self._window = meter.window()  # last: nothing of ours is inside

    def end(self, phase: Phase) -> Sample:
        """Wait until the device has finished what was launched; tokens and steps are for the caller to fill in."""
        lap = self._window.close()
        seen = self._watcher.stop(lap.seconds)
        return Sample(
            phase,
            lap.seconds,
            tokens=0,
            cpu_s=lap.cpu_s,
            wait_s=lap.wait_s,
            device_s=lap.device_s,
            drain_s=lap.drain_s,
            invalid=seen.invalid,
            ended_s=seen.ended_s,
            sm_mhz=seen.sm_mhz,
            temperature_c=seen.temperature_c,
            capped=seen.capped,
        )


def repeat(
    phase: Phase, once: Callable[[], Sample], session: Session, effort: Effort, beat: Beat, again: bool = False
) -> Measured:
    """Warm up, then repeat ``once`` as ``effort`` says. A first repetition that alone takes that long is all.

    ``again``: this process has measured the case before.
    """
    before = session.meter.pressure()
    warmups, samples = _warmed(phase, once, effort, beat, again), []
    if warmups[0].seconds >= effort.max_phase_s:
        samples, warmups = warmups, []
    else:
        before = session.meter.pressure()
    ended: Stop | None = "cold" if samples and samples[0].invalid is None else None
    while ended is None and (ended := stop(samples, effort)) is None:
        beat(f"{phase} {len(samples) + 1}{'/' if effort.reps else ' of at most '}{effort.most}")
        samples.append(once())
    marked = (replace(sample, warmup=True) for sample in warmups)
    return Measured((*marked, *samples), ended, before, session.meter.pressure())


def _warmed(phase: Phase, once: Callable[[], Sample], effort: Effort, beat: Beat, again: bool) -> list[Sample]:
    """The warm-ups: at least one, which may turn out to be all there is time for."""
    beat(f"{phase} warm-up")
    warmups = [once()]
    while not is_warm(warmups, effort, again):
        beat(f"{phase} warm-up {len(warmups) + 1}")
        warmups.append(once())
    return warmups
