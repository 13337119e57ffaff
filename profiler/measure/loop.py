"""The one measuring loop: warm up, prefill repetitions, snapshot, decode repetitions.

    warm-up prefill + steps → prefill × reps → save → (restore → steps) × reps

Every window is closed by the device's own clock, which synchronises; after each phase the processed tokens and the
cache's length are checked: a figure for a shape nobody asked for is worse than none.

    measure(session, case, Effort(reps=3), beat=print)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from profiler.backends.base import Beat, Session, ShapeMismatch
from profiler.case import Case
from profiler.devices.base import Meter, Peak
from profiler.results.measurement import Caution, Memory, Phase, Sample
from profiler.units import seconds_text


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: repetitions of each phase, and the seconds after which no further one starts."""

    reps: int = 3
    max_phase_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one case gave."""

    samples: tuple[Sample, ...]
    memory: Memory
    cautions: tuple[Caution, ...]


def measure(session: Session, case: Case, effort: Effort, beat: Beat) -> Result:
    """Measure one case on a loaded model.

    Raises ShapeMismatch when a phase did not process what the case asks for, and what the backend raises.
    """
    session.begin(case)
    cautions: list[Caution] = []
    prefills, prefill_peak, retained = _prefill_phase(session, case, effort, beat, cautions)
    decodes, decode_peak = _decode_phase(session, case, effort, beat, cautions)
    weights, unquantized = session.weights()
    cache, _ = session.cache_bytes()
    memory = Memory(
        weights_bytes=weights,
        unquantized_bytes=unquantized,
        cache_bytes=cache,
        retained_bytes=retained,
        prefill_peak_bytes=_headline(prefill_peak),
        decode_peak_bytes=_headline(decode_peak),
        process_peak_bytes=_largest(prefill_peak and prefill_peak.process_bytes, decode_peak.process_bytes),
        reserved_bytes=_largest(prefill_peak and prefill_peak.reserved_bytes, decode_peak.reserved_bytes),
    )
    return Result((*prefills, *decodes), memory, (*session.cautions(), *cautions))


def _prefill_phase(
    session: Session, case: Case, effort: Effort, beat: Beat, cautions: list[Caution]
) -> tuple[list[Sample], Peak | None, int | None]:
    """Fill the cache and leave it saved at depth ``context``: by timed prefills, or with random values."""
    if case.fill == "synthetic":
        beat("fill")
        session.fill()
        _check_length(session, case.context, "fill")
        session.save()
        beat("decode warm-up")
        _decode(session, case, 1, beat)
        return [], None, None

    def once() -> Sample:
        sample = _timed(session.meter, "prefill", session.prefill)
        if sample.tokens != case.batch * case.context:
            raise ShapeMismatch(f"prefill processed {sample.tokens} tokens, not {case.batch * case.context}")
        _check_length(session, case.context, "prefill")
        return sample

    def warm_up() -> float:
        start = session.meter.now()
        once()
        session.save()
        _decode(session, case, case.steps, beat)
        return session.meter.now() - start

    samples, peak = _repeat("prefill", session.meter, effort, beat, cautions, warm_up, lambda last: once())
    _, retained = session.cache_bytes()
    session.save()
    return samples, peak, retained


def _decode_phase(
    session: Session, case: Case, effort: Effort, beat: Beat, cautions: list[Caution]
) -> tuple[list[Sample], Peak]:
    """Decode from the saved cache, over and over."""

    def once(last: bool) -> Sample:
        session.restore(last)
        sample, marks = _decode(session, case, case.steps, beat)
        return sample

    raise NotImplementedError
