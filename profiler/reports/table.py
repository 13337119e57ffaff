"""``-o table``: for a terminal. One line a case, grouped by model, notes below."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from profiler.reports.base import STAYS, Column, Note, answer, figures, heading, legend, notes, path_lines, plain
from profiler.reports.base.remarks import rows_of_models
from profiler.results.measurement import Measurement

WIDTH = 120  # columns, unless it goes to a terminal: the same rows always give the same text
INDENT = "  "  # before the rows of a model, and as it happens what tabulate puts between columns


def render(run: str | None, measurements: Sequence[Measurement], width: int = WIDTH) -> str:
    """The table, at most ``width`` wide as long as the columns that matter most fit."""
    if not measurements:
        return f"run {plain(run)}: no rows\n" if run else "no rows\n"
    grouped = [measurement for group in _by_model(measurements) for measurement in group]
    remarks, numbers = notes(grouped)
    lines = _wrap(" · ".join(heading(run, grouped)), width, "")
    titles, *body = _fitted(figures(numbers, grouped), grouped, width)
    lines += ["", titles]
    for group in _by_model(grouped):
        lines += _wrap(plain(group[0].case.model) or "(no name)", width, "")
        lines += body[: len(group)]
        body = body[len(group) :]
    meaning = legend(grouped)
    lines += ["", *_wrap(meaning, width, "")] if meaning else []
    total = rows_of_models(grouped)
    for note in remarks:
        lines += _wrap(f"[{note.number}] {_note(note, grouped, total)}", width, "    ")
    for words in path_lines(grouped, brief=True):
        lines += _wrap(words, width, "    ")
    found = answer(grouped)
    lines += ["", *_wrap(found, width, "")] if found else []
    return "\n".join(lines) + "\n"


fitted = render


def _by_model(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Rows of each model together, models in the order they come. One name may stand for two models."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.case.model, measurement.case.model_id), []).append(measurement)
    return list(groups.values())


def _fitted(columns: list[Column], measurements: Sequence[Measurement], width: int) -> list[str]:
    """Titles and rows as lines, without the columns of least worth that had to go for the rest to fit."""
    texts = {column: [column.title, *map(column.cell, measurements)] for column in columns}
    while _width(texts) > width:
        least = min(texts, key=lambda column: column.worth)
        if least.worth == STAYS:
            break
        del texts[least]
    text = tabulate(
        list(zip(*texts.values(), strict=True)),  # titles as a first row: tabulate pads what it knows to be a header
        tablefmt="plain",
        colalign=["right" if column.right else "left" for column in texts],
        disable_numparse=True,
    )
    return [f"{INDENT}{line}".rstrip() for line in text.splitlines()]


def _width(texts: Mapping[Column, Sequence[str]]) -> int:
    return sum(len(INDENT) + max(map(len, cells)) for cells in texts.values())


def _note(note: Note, measurements: Sequence[Measurement], total: Counter[str]) -> str:
    helps = f"; try {note.help}" if note.help else ""
    return f"{note.text}{helps} ({note.named_cases(measurements, total)})"


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent)
