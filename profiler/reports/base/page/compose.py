"""The page: which machines there are, and the sections in the order of a person's questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from profiler.reports.base.columns import FAKE
from profiler.reports.base.page import (
    advice,
    aside,
    ceiling,
    energy,
    fits,
    frontier,
    memory,
    provenance,
    quality,
    speed,
)
from profiler.reports.base.page.blocks import Page, Section, muted
from profiler.reports.base.page.forecast import Forecast
from profiler.reports.base.page.quality import Score
from profiler.reports.base.page.side import Side, sides
from profiler.reports.base.page.words import several
from profiler.reports.base.text import plain
from profiler.results.measurement import Measurement
from profiler.results.store import Run

MOST_SIDES = 4  # machines that can be read beside each other


def page(
    measurements: Iterable[Measurement],
    run: str | None = None,
    runs: Sequence[Run] = (),
    scores: Sequence[Score] | None = None,
) -> Page:
    """The report of rows. ``run`` names them if they are of one; ``scores`` None: those that ship.

    Rows of a store are read as they are needed: it must be open until the page is there.
    """
    counted = Counted(measurements)
    found = sides(counted)
    shown = found[:MOST_SIDES]
    facts = _facts(found, run, counted.count)
    if not shown:
        return Page("Hardware fit", facts, (Section("run", "No rows", (muted("There is nothing to report yet."),)),))
    if len(found) > MOST_SIDES:
        facts = (*facts, f"the first {MOST_SIDES} of {len(found)} machines; name runs to choose others")
    forecasts = [Forecast.of(side) for side in shown]
    known = quality.shipped() if scores is None else scores
    sections = (
        advice.section(shown, forecasts),
        fits.section(shown, forecasts),
        speed.section(shown),
        ceiling.section(shown, forecasts),
        memory.section(shown, forecasts),
        energy.section(shown),
        frontier.section(shown, known),
        aside.skipped(shown),
        aside.cautions(shown),
        provenance.environment(shown),
        provenance.commands(runs, run),
    )
    return Page(f"Hardware fit: {several([side.title for side in shown], MOST_SIDES)}", facts, sections)


class Counted:
    """Rows, counted as they go by."""

    def __init__(self, rows: Iterable[Measurement]) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Measurement]:
        for row in self.rows:
            self.count += 1
            yield row


def _facts(found: Sequence[Side], run: str | None, rows: int) -> tuple[str, ...]:
    """What is true of the whole page. Nobody may take made-up figures for a measurement."""
    parts = ["FAKE FIGURES"] if any(side.facts[0].case.backend == FAKE for side in found) else []  # it has its own
    parts += [f"run {plain(run)}"] if run else []
    cases = sum(len(side.facts) for side in found)
    again = rows - cases
    models = len({model for side in found for model in side.models})
    measured = sum(len(side.ok) for side in found)
    parts += [f"{measured:,} of {cases:,} cases measured", f"{models:,} model{'s' * (models != 1)}"]
    parts += [f"{again:,} older {'row' if again == 1 else 'rows'} of the same cases left out"] if again else []
    kinds = {fact.case.weights for side in found for fact in side.facts}
    parts += [f"{plain(next(iter(kinds)))} weights"] if len(kinds) == 1 else []
    return tuple(parts)
