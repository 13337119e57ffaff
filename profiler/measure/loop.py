"""The one measuring loop: each phase warms up until it is steady, then repeats until its figure is precise.

    prefill × (warm-ups + n) → save → (restore → decode) × (warm-ups + n) → release → one step for the peak

``phase.repeat`` runs one phase by the two rules of ``steady``; ``phase.Repetition`` times one. Every window is opened
and closed by the device (``devices.base.Meter.window``), so no caller can forget to synchronise. What watches the
device from outside (``Session.watcher``) is started before and asked after it: its ``Reading`` gives the repetition's
energy, and may call it invalid, which has it replaced. Every repetition is kept as a ``Sample``; warm-ups and invalid
ones are marked and count in no statistic.

After each repetition the processed tokens and the cache's length are checked: a figure for a shape nobody asked for
is worse than none. Time and memory come from separate passes, since the saved cache that makes decode repeatable
would count as peak.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from profiler.backends.base import Beat, Session, ShapeMismatch, Trial
from profiler.case import Case
from profiler.devices.base import Meter, Unwatched, Watcher
from profiler.measure.cautions import company, disturbances
from profiler.measure.effort import Effort
from profiler.measure.energy import EnergyBook
from profiler.measure.footprint import NO_PEAK, Footprint, footprint, step_footprint, taken_apart
from profiler.measure.phase import Measured, Repetition, repeat
from profiler.results.measurement import Caution, DecodePath, Energy, Memory, Phase, Sample

__all__ = ["Effort", "Result", "measure"]

UNWATCHED = Unwatched()


@dataclass(frozen=True, slots=True)
class Result:
    """What one case gave. ``samples`` are all repetitions, also those that do not count."""

    samples: tuple[Sample, ...]
    memory: Memory
    cautions: tuple[Caution, ...]
    threads: int | None  # CPU threads the backend computed with
    stopped: dict[str, str]  # by phase, why it ended: a ``steady.Stop``
    decode_path: DecodePath | None
    energy: Energy | None


def measure(session: Session, case: Case, effort: Effort, beat: Beat, again: bool = False) -> Result:
    """Measure one case on a loaded model; ``again``, if this process has done so before.

    Raises ShapeMismatch when a phase did not process what the case asks for, and whatever the backend raises.
    """
    meter, trial = session.meter, session.begin(case)
    session.watcher.begin(effort.energy)
    book = EnergyBook(session, effort.energy, beat)

    def prefill_once(watcher: Watcher) -> Sample:
        return _prefill(meter, watcher, trial, case)

    def decode_once(watcher: Watcher) -> Sample:
        return _decode(meter, watcher, trial, case, beat)

    phases: dict[Phase, Measured] = {}
    prefill = Footprint(NO_PEAK, NO_PEAK, None)
    if case.fill == "synthetic":
        beat("fill")
        trial.fill()
        _check_length(trial, case.context, "fill")
    else:
        meter.reset_peak()
        phases["prefill"] = repeat("prefill", lambda: prefill_once(session.watcher), session, effort, beat, again)
        prefill = footprint(meter, trial)
        book.enter("prefill", phases["prefill"].samples, lambda: prefill_once(UNWATCHED))
    trial.save()
    phases["decode"] = repeat("decode", lambda: decode_once(session.watcher), session, effort, beat, again)
    book.enter("decode", phases["decode"].samples, lambda: decode_once(UNWATCHED))
    after = trial.cache()
    decode = step_footprint(meter, trial)
    loaded, cores = session.loaded, os.cpu_count() or 1
    return Result(
        samples=tuple(sample for measured in phases.values() for sample in measured.samples),
        memory=taken_apart(session.loaded, prefill, decode, after),
        cautions=(
            *loaded.cautions,
            *trial.cautions(),
            *(found for phase, measured in phases.items() for found in disturbances(phase, measured, cores)),
            *company(session.watcher.overview(), case.device),
        ),
        energy=book.energy,
        threads=loaded.threads,
        stopped={phase: measured.stopped for phase, measured in phases.items()},
        decode_path=trial.path(),
    )


def _prefill(meter: Meter, watcher: Watcher, trial: Trial, case: Case) -> Sample:
    """One timed prefill of exactly ``context`` tokens into an empty cache."""
    repetition = Repetition(meter, watcher)
    tokens = trial.prefill()
    sample = repetition.end("prefill")
    if tokens != case.batch * case.context:
        raise ShapeMismatch(f"prefill processed {tokens} tokens instead of {case.batch} × {case.context}")
    _check_length(trial, case.context, "prefill")
    return replace(sample, tokens=tokens)


def _decode(meter: Meter, watcher: Watcher, trial: Trial, case: Case, beat: Beat) -> Sample:
    """``steps`` timed decode steps from the saved cache."""
    trial.restore()
    repetition = Repetition(meter, watcher)
    marks = [meter.mark()]
    for _ in range(case.steps):
        trial.step()
        marks.append(meter.mark())
        beat("")
    sample = repetition.end("decode")
    tokens = sum(len(step) for step in trial.tokens)
    if tokens != case.batch * case.steps:
        raise ShapeMismatch(f"decode gave {tokens} tokens instead of {case.batch} × {case.steps}")
    _check_length(trial, case.context + case.steps, "decode")
    return replace(sample, tokens=tokens, step_s=tuple(meter.elapsed(marks)))


def _check_length(trial: Trial, expected: int, phase: str) -> None:
    length = trial.cache().length
    if length != expected:
        raise ShapeMismatch(f"after {phase} the cache holds {length} tokens instead of {expected}")
