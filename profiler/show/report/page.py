"""Composes the page: the machines, and the sections in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from profiler import backends
from profiler.results.measurement import Measurement
from profiler.results.store import Run
from profiler.show.columns import plain
from profiler.show.report import advice, appendix, ceiling, energy, memory, quality, speed
from profiler.show.report.blocks import Page, Section, muted
from profiler.show.report.predictions import Forecast
from profiler.show.report.quality import Score
from profiler.show.report.selection import MachineRows, machines, several

MOST_MACHINES = 4  # machines that a reader can compare side by side


def page(
    measurements: Iterable[Measurement],
    run: str | None = None,
    runs: Sequence[Run] = (),
    scores: Sequence[Score] | None = None,
) -> Page:
    """The report of rows. ``run`` is their run, if there is only one. ``scores``: None for the built-in ones.

    Rows of a store are read lazily, so it must stay open until the page is composed.
    """
    counted = Counted(measurements)
    found = machines(counted)
    shown = found[:MOST_MACHINES]
    summary = _summary(found, run, counted.count)
    if not shown:
        return Page(
            "Hardware fit", summary, (Section("run", "No rows", (muted("There is nothing to report yet."),)),)
        )
    if len(found) > MOST_MACHINES:
        summary = (*summary, f"the first {MOST_MACHINES} of {len(found)} machines; name runs to choose others")
    forecasts = [Forecast.of(machine) for machine in shown]
    # A reader's own scores are of whatever bears the name; those that ship are of the published model alone.
    doubted = {model for forecast in forecasts for model in forecast.doubted}
    known = [score for score in quality.shipped() if score.model not in doubted] if scores is None else scores
    sections = (
        advice.section(shown, forecasts),
        memory.map_section(shown, forecasts),
        speed.section(shown),
        ceiling.section(shown, forecasts),
        memory.section(shown, forecasts),
        energy.section(shown),
        quality.section(shown, known),
        appendix.skipped(shown),
        appendix.cautions(shown),
        appendix.environment(shown),
        appendix.commands(runs, run),
    )
    title = f"Hardware fit: {several([machine.title for machine in shown], MOST_MACHINES)}"
    unmatched = None if scores is None else quality.unmatched(scores, found)
    return Page(title, summary, sections, () if unmatched is None else (unmatched,))


class Counted:
    """Counts rows while they are iterated over."""

    def __init__(self, rows: Iterable[Measurement]) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Measurement]:
        for row in self.rows:
            self.count += 1
            yield row


def _summary(found: Sequence[MachineRows], run: str | None, rows: int) -> tuple[str, ...]:
    """The line below the title. Invented figures are marked, so that they are not mistaken for measurements."""
    parts = ["FAKE FIGURES"] if any(backends.simulated(machine.results[0].case.backend) for machine in found) else []
    parts += [f"run {plain(run)}"] if run else []
    cases = sum(len(machine.results) for machine in found)
    again = rows - cases
    models = len({model for machine in found for model in machine.models})
    measured = sum(len(machine.ok) for machine in found)
    parts += [f"{measured:,} of {cases:,} cases measured", f"{models:,} model{'s' * (models != 1)}"]
    parts += [f"{again:,} older {'row' if again == 1 else 'rows'} of the same cases left out"] if again else []
    kinds = {group.case.weights for machine in found for group in machine.groups}
    parts += [f"{plain(next(iter(kinds)))} weights"] if len(kinds) == 1 else []
    return tuple(parts)
