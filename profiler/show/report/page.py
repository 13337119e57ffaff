"""Composes the page: the machines, and the sections in order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any

from profiler import backends
from profiler.results.measurement import Measurement
from profiler.results.reading import RowSource
from profiler.results.store import Run
from profiler.run.own_build import named
from profiler.show.columns import plain
from profiler.show.report import advice, appendix, ceiling, divergence, energy, fits, memory, quality, speed, tasks
from profiler.show.report.blocks import Page, Section, muted
from profiler.show.report.models import without_kind
from profiler.show.report.predictions import Configs, Forecast
from profiler.show.report.quality import Score
from profiler.show.report.selection import MachineRows, machines, several

# The folders of an absolute path: not those of a relative one, of a URL, or of "tokens/s".
FOLDERS = re.compile(
    r"""(?<![\w.:/~…-])(?:~[\w.-]*/|/(?=[^\s/]))(?:[^\s/'"`,;:()<>]+/)+|\b[A-Za-z]:[\\/](?:[^\s\\/'"]+[\\/])+"""
)
MAX_MACHINES = 4  # machines that a reader can compare side by side


def page(
    measurements: Iterable[Measurement],
    run: str | None = None,
    runs: Sequence[Run] = (),
    scores: Sequence[Score] | None = None,
    *,
    configs: Configs = MappingProxyType({}),
    others: Sequence[RowSource] = (),
    paths: bool = False,
) -> Page:
    """The report of rows. ``run`` is their run, if there is only one. ``scores``: None for the built-in ones.

    ``configs``: those of the models, as the store has them. ``others``: files of rows and other stores. ``paths``:
    with absolute paths in full. Rows of a store are read lazily, so it must stay open until the page is composed.
    """
    counted = Counted(measurements)
    sources = [(plain(each.name, 60), Counted(each.rows)) for each in others]
    found = machines(counted, sources)
    shown = found[:MAX_MACHINES]
    summary = _summary(found, run, counted.count + sum(rows.count for _, rows in sources))
    if not shown:
        return Page(
            "Hardware fit", summary, (Section("run", "No rows", (muted("There is nothing to report yet."),)),)
        )
    if len(found) > MAX_MACHINES:
        summary = (*summary, f"the first {MAX_MACHINES} of {len(found)} machines; name runs to choose others")
    known_configs = {name: config for each in others for name, config in each.configs.items()} | dict(configs)
    forecasts = [Forecast.of(machine, known_configs) for machine in shown]
    # A reader's own scores are of whatever bears the name; those that ship are of the published model alone.
    doubted = {model for forecast in forecasts for model in forecast.doubted}
    known = [score for score in quality.shipped() if score.model not in doubted] if scores is None else scores
    every_run = [*(each for other in others for each in other.runs), *runs]
    folder = next(named(every_run), None)
    build = folder if paths or folder is None else appendix.local_name(folder)
    sections = (
        advice.section(shown, forecasts, appendix.typed_models(every_run, paths), build),
        fits.section(shown, forecasts),
        speed.section(shown),
        *filter(None, [divergence.section(shown)]),
        ceiling.section(shown, forecasts),
        memory.section(shown, forecasts),
        energy.section(shown),
        quality.section(shown, known),
        *tasks.sections(shown),
        appendix.skipped(shown),
        appendix.cautions(shown),
        appendix.environment(shown),
        appendix.commands(every_run, run, paths),
    )
    title = f"Hardware fit: {several([machine.title for machine in shown], MAX_MACHINES)}"
    unmatched = None if scores is None else quality.unmatched(scores, found)
    whole = Page(title, summary, sections)
    return replace(whole if paths else without_paths(whole), warnings=() if unmatched is None else (unmatched,))


def without_paths(content: Any) -> Any:
    """``content`` (a page, or a part of one) with absolute paths shortened to their last part.

    A page is made to be shared, and folders tell the name of the person, of clients and of projects.
    """
    if isinstance(content, str):
        return FOLDERS.sub("…/", content) if "/" in content or "\\" in content else content
    if isinstance(content, tuple):
        return tuple(map(without_paths, content))
    if isinstance(content, dict):
        return {without_paths(name): without_paths(value) for name, value in content.items()}
    if is_dataclass(content) and not isinstance(content, type):
        values = {each.name: getattr(content, each.name) for each in fields(content)}
        return replace(content, **{name: without_paths(value) for name, value in values.items()})
    return content


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
    models = len({without_kind(model) for machine in found for model in machine.models})
    measured = sum(len(machine.ok) for machine in found)
    parts += [f"{measured:,} of {cases:,} cases measured", f"{models:,} model{'s' * (models != 1)}"]
    parts += [f"{again:,} older {'row' if again == 1 else 'rows'} of the same cases left out"] if again else []
    kinds = {group.case.weights for machine in found for group in machine.groups}
    parts += [f"{plain(next(iter(kinds)))} weights"] if len(kinds) == 1 else []
    return tuple(parts)
