"""Energy of a phase: of its timed repetitions where they are long, else of a window of ten seconds of its own.

A counter of energy moves every 100 ms or so, and repetitions are often shorter. So the phase is repeated back to back
for ``RESOLVED_S`` seconds, with nobody looking between repetitions, and one window holds them all. What little lies
between them (going back to the saved cache) counts by its share of the time; where that is not little, the figure is
unknown (``results/energy.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from profiler.backends.base import Beat, Session
from profiler.devices.base import Consumed
from profiler.results.energy import RESOLVED_S
from profiler.results.measurement import Energy, Phase, PhaseEnergy, Sample

LONG_S = 1.0  # ten moves of a counter: the ends of such a repetition are known well enough by themselves


class EnergyBook:
    """Energy of the phases of one case as they come: where it was asked for, or is free with long repetitions."""

    def __init__(self, session: Session, asked: bool, beat: Beat) -> None:
        self._watcher, self._meter, self._asked, self._beat = session.watcher, session.meter, asked, beat
        self._parts: dict[Phase, PhaseEnergy] = {}
        self._how: Consumed | None = None
        self._idle_w: float | None = None
        self._reason: str | None = None
        if asked:
            beat("idle")
            self._idle_w, self._reason = self._watcher.idle_w()

    def enter(self, phase: Phase, samples: Sequence[Sample], unwatched: Callable[[], Sample]) -> None:
        """Take the energy of a phase that has just been measured; ``unwatched`` runs it once more."""
        timed = [sample for sample in samples if not sample.warmup and sample.invalid is None]
        spans = [(sample.ended_s - sample.seconds, sample.ended_s) for sample in timed if sample.ended_s is not None]
        if spans and sum(s.seconds for s in timed) >= RESOLVED_S and all(s.seconds >= LONG_S for s in timed):
            self._note(phase, timed, spans)
        elif self._asked and self._idle_w is None:  # a device that does not tell: nothing is repeated for it
            self._parts[phase] = PhaseEnergy(0, 0.0, 0.0, 0, counter_reason=self._reason, power_reason=self._reason)
        elif self._asked:
            self._repeat(phase, unwatched)

    @property
    def energy(self) -> Energy | None:
        """What is known; None where nobody asked and nothing was free."""
        if not self._parts:
            return None
        source, scope = (None, None) if self._how is None else (self._how.source, self._how.scope)
        return Energy(
            source, scope, self._parts.get("prefill"), self._parts.get("decode"), self._idle_w, self._reason
        )

    def _repeat(self, phase: Phase, unwatched: Callable[[], Sample]) -> None:
        samples: list[Sample] = []
        start = now = self._meter.now()
        while now - start < RESOLVED_S:
            self._beat(f"{phase} energy {(now - start) / RESOLVED_S:.0%}")
            samples.append(unwatched())
            now = self._meter.now()
        slowed = self._watcher.stop(now - start).invalid
        self._note(phase, samples, [(start, now)], slowed)

    def _note(
        self, phase: Phase, samples: Sequence[Sample], spans: Sequence[tuple[float, float]], slowed: str | None = None
    ) -> None:
        consumed = self._watcher.consumed(spans)
        if consumed is None:  # free where somebody looks, and nobody does
            return
        self._how = consumed
        self._parts[phase] = PhaseEnergy(
            repetitions=len(samples),
            seconds=sum(sample.seconds for sample in samples),
            window_s=sum(end - start for start, end in spans),
            tokens=sum(sample.tokens for sample in samples),
            counter_j=consumed.counter[0],
            counter_reason=consumed.counter[1],
            power_j=consumed.power[0],
            power_reason=consumed.power[1],
            invalid=slowed,
        )
