"""The one measuring loop: each phase warms up once at full shape, then repeats.

    prefill × (1 + reps) → save → (restore → decode) × (1 + reps) → release → one step for the peak

Every window is closed by the device's own clock, which synchronises; after each repetition the processed tokens and
the cache's length are checked: a figure for a shape nobody asked for is worse than none. Time and memory come from
separate passes, since the saved cache that makes decode repeatable would count as peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from profiler.backends.base import Beat, Session, ShapeMismatch, Trial
from profiler.case import Case
from profiler.devices.base import Meter, Peak
from profiler.results.measurement import Caution, Memory, Phase, Sample
from profiler.units import seconds_text

NO_PEAK = Peak(None, None, None)
MAX_WAIT = 0.1  # share of the wanted CPU time that a process may miss before its figure is another program's as well


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
    threads: int | None  # CPU threads the backend computed with


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
    loaded = session.loaded
    memory = Memory(
        weights_bytes=loaded.weights_bytes,
        unquantized_bytes=loaded.unquantized_bytes,
        cache_bytes=cache_bytes,
        retained_bytes=retained,
        prefill_peak_bytes=headline(prefill_peak),
        decode_peak_bytes=headline(decode_peak),
        process_peak_bytes=largest(prefill_peak.process_bytes, decode_peak.process_bytes),
        reserved_bytes=largest(prefill_peak.reserved_bytes, decode_peak.reserved_bytes),
    )
    return Result((*prefills, *decodes), memory, (*loaded.cautions, *trial.cautions(), *cautions), loaded.threads)


def _repeat(
    phase: Phase, once: Callable[[], Sample], effort: Effort, beat: Beat, cautions: list[Caution]
) -> list[Sample]:
    """Warm up with one repetition, then repeat. A warm-up that alone fills the time limit is the measurement."""
    beat(f"{phase} warm-up")
    first = once()
    if first.seconds >= effort.max_phase_s:
        text = f"{phase}: one cold repetition of {seconds_text(first.seconds)}, since it alone reached --max-phase"
        cautions.append(Caution(f"{phase}-cold", text, f"--max-phase {ceil(first.seconds * (effort.reps + 1))}s"))
        cautions.extend(_pressure(phase, [first]))
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
    cautions.extend(_pressure(phase, samples))
    return samples


def _pressure(phase: Phase, samples: list[Sample]) -> list[Caution]:
    """A caution when other work held the cores while this process was ready to run."""
    waited = sum(sample.wait_s or 0 for sample in samples)
    wanted = waited + sum(sample.cpu_s or 0 for sample in samples)
    if not wanted or waited / wanted <= MAX_WAIT:
        return []
    text = f"{phase}: other work held the CPU for {waited / wanted:.0%} of the time this process wanted it"
    return [Caution(f"{phase}-cpu-pressure", text, "--fresh on a quieter machine")]


class _Window:
    """Clocks from its making to ``sample``."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._waited, self._cpu_s, self._start = meter.waited_s(), meter.cpu_s(), meter.now()

    def sample(self, phase: Phase) -> Sample:
        """The seconds until now; tokens and steps are for the caller to fill in."""
        seconds, cpu_s, waited = self._meter.now() - self._start, self._meter.cpu_s(), self._meter.waited_s()
        wait_s = None
        if waited is not None and self._waited is not None:
            wait_s = max(0.0, waited - self._waited)  # a thread that ended takes its count along
        return Sample(phase, seconds, tokens=0, cpu_s=cpu_s - self._cpu_s, wait_s=wait_s)


def _prefill(meter: Meter, trial: Trial, case: Case) -> Sample:
    """One timed prefill of exactly ``context`` tokens into an empty cache."""
    window = _Window(meter)
    tokens = trial.prefill()
    sample = window.sample("prefill")
    if tokens != case.batch * case.context:
        raise ShapeMismatch(f"prefill processed {tokens} tokens instead of {case.batch} × {case.context}")
    _check_length(trial, case.context, "prefill")
    return replace(sample, tokens=tokens)


def _decode(meter: Meter, trial: Trial, case: Case, beat: Beat) -> Sample:
    """``steps`` timed decode steps from the saved cache."""
    trial.restore()
    window = _Window(meter)
    marks = [meter.mark()]
    for _ in range(case.steps):
        trial.step()
        marks.append(meter.mark())
        beat("")
    sample = window.sample("decode")
    tokens = sum(len(step) for step in trial.tokens)
    if tokens != case.batch * case.steps:
        raise ShapeMismatch(f"decode gave {tokens} tokens instead of {case.batch} × {case.steps}")
    _check_length(trial, case.context + case.steps, "decode")
    return replace(sample, tokens=tokens, step_s=tuple(meter.elapsed(marks)))


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
