"""When a phase is warm, and when it has been measured enough: the two stopping rules of the loop.

**Warm-up.** Repetitions at full shape until the last five neither drift (Theil–Sen slope × 5 below 1 % of the median)
nor spread (interquartile range below 2 %), at most ``WARMUPS`` of them, and none starts once they have taken
``WARMUP_S`` seconds: a phase of five seconds or more gets the one that loads code, starts threads and touches memory,
and no more. On a machine with other work the spread never settles; then the caps end it, and the row says so. A
case that this process has measured before, as the blocks of a gate do, warms up for ``AGAIN_S`` at most: code and
memory are there.

**Repetitions.** ``-r N``: so many. Else until the 95 % interval of the rate (``results.stats``) is within the
precision asked for, without what processes differ by, which no repetition narrows. Looking after every repetition
makes the interval cover a little less than it says, and that neighbours count as alike where they look so by chance
makes it cover more: together 95 to 97 % for independent noise of 0.5 to 8 %, in 1200 simulated phases each. Either
way ``max_phase_s`` ends them earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal

from profiler.measure.effort import Effort
from profiler.results import trend
from profiler.results.measurement import Sample
from profiler.results.stats import summarize

WARMUPS = 20
WARMUP_S = 5.0
AGAIN_S = 1.0
USUAL = 10  # repetitions that a precision of 2 % takes where they spread by 2 %; what a plan reckons with
INVALID_SHARE = 4  # one repetition in so many may be replaced, and one in any case

Stop = Literal["precision", "reps", "cap", "time", "cold", "invalid"]
"""Why a phase ended: precision reached · the number asked for · the most that precision may take · ``--max-phase`` ·
the first repetition alone filled that · too many were invalid."""


def is_warm(warmups: Sequence[Sample], effort: Effort, again: bool = False) -> bool:
    """Whether the repetitions so far are warm-up enough; at least one is. ``again``: measured here before."""
    seconds = [sample.seconds for sample in warmups]
    if len(seconds) >= WARMUPS or sum(seconds) >= min(AGAIN_S if again else WARMUP_S, effort.max_phase_s):
        return True
    return trend.steady(seconds) is True


def stop(samples: Sequence[Sample], effort: Effort) -> Stop | None:
    """Why no further repetition is needed after ``samples``, invalid ones among them; None: go on."""
    valid = [sample for sample in samples if sample.invalid is None]
    replaced = len(samples) - len(valid)
    if effort.reps is None and len(valid) >= effort.fewest and _is_precise(valid, effort.precision):
        return "precision"
    if len(valid) >= effort.most:
        return "cap" if effort.reps is None else "reps"
    if replaced > max(1, effort.most // INVALID_SHARE):
        return "invalid"
    if sum(sample.seconds for sample in samples) < effort.max_phase_s or replaced == len(samples) <= 1:
        return None
    return "time" if valid else "invalid"


def likely(once_s: float, effort: Effort) -> int:
    """How often a phase of ``once_s`` seconds is likely to run, warm-ups included."""
    if once_s >= effort.max_phase_s:
        return 1
    warmups = min(trend.WINDOW, ceil(min(WARMUP_S, effort.max_phase_s) / once_s))
    return warmups + min(effort.reps or USUAL, ceil(effort.max_phase_s / once_s))


def _is_precise(samples: Sequence[Sample], precision: float) -> bool:
    if not all(sample.seconds > 0 for sample in samples):
        return False
    rate = summarize([sample.tokens / sample.seconds for sample in samples])
    return rate is not None and rate.relative_half is not None and rate.relative_half <= precision
