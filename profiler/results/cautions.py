"""Everything to be careful about in a row: what was noted while it ran, and what its samples show by themselves."""

from __future__ import annotations

from profiler.results import stats
from profiler.results.measurement import Caution, Measurement, Phase

ENOUGH_REPS = 5  # the interval of five repetitions is far narrower than that of two: t is 2.8 instead of 12.7
PHASES: tuple[Phase, ...] = ("prefill", "decode")


def cautions(measurement: Measurement) -> tuple[Caution, ...]:
    """Stored cautions first; then one for each phase whose repetitions say next to nothing together."""
    return (*measurement.cautions, *(found for phase in PHASES if (found := _spread(measurement, phase))))


def _spread(measurement: Measurement, phase: Phase) -> Caution | None:
    summary = stats.rate(measurement, phase)
    if summary is None or not summary.wide:
        return None
    text = f"{phase}: repetitions differ too much to compare ({summary.n} of them): free the machine"
    cut_short = summary.n < measurement.asked.get("reps", 0)  # by the limit of a phase: more would not be run either
    return Caution("spread", text, "a longer --max-phase" if cut_short else f"-r {max(ENOUGH_REPS, summary.n + 2)}")
