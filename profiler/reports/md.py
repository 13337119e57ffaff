"""``-o md``: a table for an issue or a README (GitHub's Markdown), every character of outside text escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from profiler.reports.base import Column, answer, figures, heading, legend, notes, path_lines, plain
from profiler.reports.base.remarks import rows_of_models
from profiler.results.measurement import Measurement

_ACTIVE = re.compile(r"[\\`*_\[\]#|~$]|^[-+=]")  # what Markdown reads as its own
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", ":": "&#58;", ".": "&#46;"}
_ENTITY = re.compile(r"[&<>@]|:(?=//)|(?<=www)\.", re.IGNORECASE)  # markup, mentions of people, bare links


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """Heading, table and notes."""
    if not measurements:
        return "no rows\n"
    remarks, numbers = notes(measurements)
    columns = [Column("model", lambda m: plain(m.case.model), 9, right=False), *figures(numbers, measurements)]
    lines = [
        " · ".join(escaped(part) for part in heading(run, measurements)),
        "",
        line(column.title for column in columns),
        line("---:" if column.right else "---" for column in columns),
        *(line(escaped(column.cell(measurement)) for column in columns) for measurement in measurements),
        "",
    ]
    meaning = legend(measurements)
    lines += [meaning, ""] if meaning else []
    total = rows_of_models(measurements)
    for note in remarks:
        helps = f"; try {escaped(note.help)}" if note.help else ""
        cases = escaped(note.named_cases(measurements, total))
        lines.append(f"{note.number}. **{cases}**: {escaped(note.text)}{helps}")
    lines += [f"- {escaped(words)}" for words in path_lines(measurements, brief=True)]
    found = answer(measurements)
    lines += ["", escaped(found)] if found else []
    return "\n".join(lines).rstrip("\n") + "\n"


def escaped(text: str) -> str:
    """``text`` so that Markdown shows it as it is: no markup, link, mention, HTML or column of its own."""
    return _ENTITY.sub(lambda found: _ENTITIES[found[0]], _ACTIVE.sub(r"\\\g<0>", text))


def line(cells: Iterable[str]) -> str:
    """A row of a table; the cells are escaped already."""
    return f"| {' | '.join(cells)} |"
