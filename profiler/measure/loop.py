"""The one measuring loop: each phase warms up once at full shape, then repeats.

    prefill × (1 + reps) → save → (restore → decode) × (1 + reps) → release → one step for the peak

Every window is closed by the device's own clock, which synchronises; after each repetition the processed tokens and
the cache's length are checked: a figure for a shape nobody asked for is worse than none. Time and memory come from
separate passes, since the saved cache that makes decode repeatable would count as peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from profiler.backends.base import Beat, Session, ShapeMismatch, Trial
from profiler.case import Case
from profiler.devices.base import Meter, Peak
from profiler.results.measurement import Caution, Memory, Phase, Sample
from profiler.units import seconds_text

NO_PEAK = Peak(None, None, None)


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

    Raises ShapeMismatch when a phase did not process what the case asks for, and whatever the backend raises.
    """
    meter, trial = session.meter, session.begin(case)
    prefills: list[Sample] = []
    cautions: list[Caution] = []
    prefill_peak, retained = NO_PEAK, None
    if case.fill == "synthetic":
        beat("fill")
        trial.fill()
        _check_length(trial, case.context, "fill")
    else:
        meter.reset_peak()
        prefills = _repeat("prefill", lambda: _prefill(meter, trial, case), effort, beat, cautions)
        prefill_peak, retained = meter.peak(), trial.cache().retained_bytes
    trial.save()
    decodes = _repeat("decode", lambda: _decode(meter, trial, case, beat), effort, beat, cautions)
    cache_bytes = trial.cache().storage_bytes
    decode_peak = _step_peak(meter, trial)
    memory = Memory(
        weights_bytes=session.loaded.weights_bytes,
        unquantized_bytes=session.loaded.unquantized_bytes,
        cache_bytes=cache_bytes,
        retained_bytes=retained,
        prefill_peak_bytes=headline(prefill_peak),
        decode_peak_bytes=headline(decode_peak),
        process_peak_bytes=largest(prefill_peak.process_bytes, decode_peak.process_bytes),
        reserved_bytes=largest(prefill_peak.reserved_bytes, decode_peak.reserved_bytes),
    )
    return Result((*prefills, *decodes), memory, (*session.loaded.cautions, *cautions))


def _repeat(
    phase: Phase, once: Callable[[], Sample], effort: Effort, beat: Beat, cautions: list[Caution]
) -> list[Sample]:
    """Warm up with one repetition, then repeat. A warm-up that alone fills the time limit is the measurement."""
    beat(f"{phase} warm-up")
    first = once()
    if first.seconds >= effort.max_phase_s:
        text = f"{phase}: one cold repetition of {seconds_text(first.seconds)}, since it alone reached --max-phase"
        cautions.append(Caution(f"{phase}-cold", text, f"--max-phase {ceil(first.seconds * (effort.reps + 1))}s"))
        return [first]
    samples: list[Sample] = []
    spent = 0.0
    while len(samples) < effort.reps and (not samples or spent < effort.max_phase_s):
        beat(f"{phase} {len(samples) + 1}/{effort.reps}")
        samples.append(once())
        spent += samples[-1].seconds
    if len(samples) < effort.reps:
        text = f"{phase}: {len(samples)} of {effort.reps} repetitions within --max-phase {effort.max_phase_s:g}s"
        cautions.append(Caution(f"{phase}-few", text, f"--max-phase {ceil(first.seconds * (effort.reps + 1))}s"))
    return samples


def _prefill(meter: Meter, trial: Trial, case: Case) -> Sample:
    """One timed prefill of exactly ``context`` tokens into an empty cache."""
    cpu, start = meter.cpu_s(), meter.now()
    tokens = trial.prefill()
    seconds, cpu = meter.now() - start, meter.cpu_s() - cpu
    if tokens != case.batch * case.context:
        raise ShapeMismatch(f"prefill processed {tokens} tokens instead of {case.batch} × {case.context}")
    _check_length(trial, case.context, "prefill")
    return Sample("prefill", seconds, tokens, cpu_s=cpu)


def _decode(meter: Meter, trial: Trial, case: Case, beat: Beat) -> Sample:
    """``steps`` timed decode steps from the saved cache."""
    trial.restore()
    cpu, start = meter.cpu_s(), meter.now()
    marks = [meter.mark()]
    for _ in range(case.steps):
        trial.step()
        marks.append(meter.mark())
        beat("")
    seconds, cpu = meter.now() - start, meter.cpu_s() - cpu
    tokens = sum(len(step) for step in trial.tokens)
    if tokens != case.batch * case.steps:
        raise ShapeMismatch(f"decode gave {tokens} tokens instead of {case.batch} × {case.steps}")
    _check_length(trial, case.context + case.steps, "decode")
    return Sample("decode", seconds, tokens, step_s=tuple(meter.elapsed(marks)), cpu_s=cpu)


def _step_peak(meter: Meter, trial: Trial) -> Peak:
    """Peak of one decode step without the saved copy of the cache."""
    trial.release()
    meter.reset_peak()
    trial.step()
    return meter.peak()


def _check_length(trial: Trial, expected: int, phase: str) -> None:
    length = trial.cache().length
    if length != expected:
        raise ShapeMismatch(f"after {phase} the cache holds {length} tokens instead of {expected}")


def headline(peak: Peak) -> int | None:
    """The figure of a phase: live tensors where the device counts them, else the process."""
    return peak.process_bytes if peak.allocated_bytes is None else peak.allocated_bytes


def largest(*values: int | None) -> int | None:
    """The largest of the known values; None when none is."""
    return max((value for value in values if value is not None), default=None)
