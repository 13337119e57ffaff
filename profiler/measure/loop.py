"""The one measuring loop: warm up, prefill repetitions, snapshot, decode repetitions.

    warm-up prefill + steps → prefill × reps → save → (restore → steps) × reps

Every window is closed by the device's own synchronisation, and after each phase the processed tokens and the cache's
length are checked: a figure for a shape nobody asked for is worse than none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from profiler.backends.base import Beat, Session, ShapeMismatch
from profiler.case import Case
from profiler.results.measurement import Caution, Memory, Phase, Sample


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: repetitions of each phase, and the seconds after which no further one starts."""

    reps: int = 3
    max_phase_s: float = 60.0
    warmup: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What one case gave."""

    samples: tuple[Sample, ...]
    memory: Memory
    cautions: tuple[Caution, ...]


def measure(session: Session, case: Case, effort: Effort, beat: Beat) -> Result:
    """Measure one case on a loaded model. Raises ShapeMismatch, OutOfMemory and whatever the backend raises."""
    raise NotImplementedError
