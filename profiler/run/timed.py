"""The measuring loop for backends whose own program repeats a phase and times it (``Backend.times_itself``).

    reserve → prefill repetitions → decode repetitions

The samples are those that the program prints, so a row has the rate that a user of the program sees. When a phase has
enough of them is decided by the rules of ``repetitions``, whenever the program has printed some.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from profiler.backends.base import TimedCase, TimedSession
from profiler.case import Case
from profiler.results.energy import RESOLVED_S
from profiler.results.measurement import Measurement, Phase, Repetitions, Sample
from profiler.run.loop import EnergyBook
from profiler.run.repetitions import FEWEST, Effort, Measured, Repeater, Stop, disturbances, overview_cautions, stop

PHASES: tuple[Phase, ...] = ("prefill", "decode")


def measure(session: TimedSession, case: Case, repeater: Repeater) -> Measurement:
    """Measure one case. The row has no environment and does not know what loading the model took.

    Raises ShapeMismatch if the program measured something else, and whatever the backend raises.
    """
    effort = repeater.effort
    session.watcher.begin(effort.energy)
    book = EnergyBook(session, repeater)
    run = session.begin(case)
    phases = {phase: _repeat(phase, run, session, effort) for phase in PHASES}
    if effort.energy:
        for phase, measured in phases.items():
            _enter_energy(book, phase, run, measured)
    return Measurement(
        case,
        environment={},  # the parent adds it
        outcome="ok",
        samples=Repetitions(sample for measured in phases.values() for sample in measured.samples),
        memory=run.memory(),
        cautions=(
            *run.cautions(),
            *disturbances(phases, os.cpu_count() or 1, run.threads),
            *overview_cautions(session.watcher.overview(), case.device),
        ),
        energy=book.energy,
        threads=run.threads,
        stopped={phase: measured.stopped for phase, measured in phases.items()},
        decode_path=run.path(),
    )


def _repeat(phase: Phase, run: TimedCase, session: TimedSession, effort: Effort) -> Measured:
    """Repetitions of one phase, until ``effort`` is satisfied."""
    before = session.meter.pressure()
    samples: list[Sample] = []
    stopped: Stop | None = None
    session.watcher.start()
    with closing(run.repeat(phase, effort.reps or FEWEST, effort.max_phase_s)) as groups:
        for group in groups:
            seen = session.watcher.stop(sum(sample.seconds for sample in group))
            samples += [
                replace(
                    sample,
                    invalid=seen.invalid,
                    sm_mhz=seen.sm_mhz,
                    temperature_c=seen.temperature_c,
                    capped=seen.capped,
                )
                for sample in group
            ]
            stopped = _stopped(samples, effort)
            if stopped is not None:
                break
            session.watcher.start()
    if stopped == "cold":
        samples[0] = replace(samples[0], warmup=False)
    return Measured(tuple(samples), stopped or "time", before, session.meter.pressure())


def _stopped(samples: Sequence[Sample], effort: Effort) -> Stop | None:
    if samples[0].warmup and samples[0].seconds >= effort.max_phase_s:
        return "cold"  # there is no time for more
    timed = [sample for sample in samples if not sample.warmup]
    return stop(timed, effort) if timed else None


def _enter_energy(book: EnergyBook, phase: Phase, run: TimedCase, measured: Measured) -> None:
    """The energy of as many further repetitions as the counters need, in one window."""
    once_s = measured.samples[-1].seconds

    def window() -> list[Sample]:
        count = max(2, round(RESOLVED_S / once_s) + 1)
        with closing(run.repeat(phase, count, float("inf"))) as groups:
            return [sample for group in groups for sample in group][:count]

    book.enter_window(phase, window)
