"""``-o md``: a table in GitHub's Markdown for an issue or a README; also the report, with its charts as SVG files.

Every character of outside text that Markdown would interpret is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from urllib.parse import quote

from profiler.results.measurement import Measurement
from profiler.show.columns import Column, fastest, figures, heading, path_lines, plain, told_apart
from profiler.show.legend import legend
from profiler.show.notes import few, notes, rows_of_models
from profiler.show.report.blocks import Bars, Code, Figures, Listing, Map, MapCell, Page, PageBlock, Table, Text
from profiler.show.writers.table import blocks

_ACTIVE = re.compile(r"[\\`*_\[\]#|~$]|^[-+=]")  # Markdown syntax
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", ":": "&#58;", ".": "&#46;"}
_ENTITY = re.compile(r"[&<>@]|:(?=//)|(?<=www)\.", re.IGNORECASE)  # markup, mentions, bare links

BLOCKS = 20  # characters of a bar
_TICKS = re.compile(r"`+")


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """Heading, table and notes."""
    if not measurements:
        return "no rows\n"
    measurements = told_apart(measurements)
    found_notes, cells = few(*notes(measurements), None)
    columns = [Column("model", lambda m: plain(m.case.model), 9, right=False), *figures(cells, measurements)]
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
    for note in found_notes:
        helps = f"; try {escaped(note.help)}" if note.help else ""
        cases = escaped(note.named_cases(measurements, total))
        lines.append(f"{note.number}. **{cases}**: {escaped(note.text)}{helps}")
    lines += [f"- {escaped(words)}" for words in path_lines(measurements, brief=True)]
    found = fastest(measurements)
    lines += ["", escaped(found)] if found else []
    return "\n".join(lines).rstrip("\n") + "\n"


def escaped(text: str) -> str:
    """``text`` escaped, so that Markdown shows it unchanged: no markup, link, mention, HTML or table column."""
    return _ENTITY.sub(lambda found: _ENTITIES[found[0]], _ACTIVE.sub(r"\\\g<0>", text))


def line(cells: Iterable[str]) -> str:
    """A row of a table; the cells must be escaped."""
    return f"| {' | '.join(cells)} |"


def markdown(page: Page, images: Mapping[int, str]) -> str:
    """The report. ``images``: the address of a chart by ``id`` of its figure; without one, only the title is
    shown.
    """
    parts = [f"# {escaped(page.title)}", " · ".join(map(escaped, page.summary))]
    for section in page.sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [
            _pictures(block, images) if isinstance(block, Figures) else _block(block) for block in section.blocks
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def address(folder: str, file: str) -> str:
    """The relative link to a file in a folder next to the text."""
    return f"{quote(folder)}/{quote(file)}"


@singledispatch
def _block(block: PageBlock) -> str:
    raise TypeError(f"no Markdown for {type(block).__name__}")


@_block.register
def _text(block: Text) -> str:
    if block.lead:
        return f"> {escaped(block.text)}"
    return escaped(block.text)


@_block.register
def _table(block: Table) -> str:
    lines = [
        line(column.title and escaped(column.title) for column in block.columns),
        line("---:" if column.right else "---" for column in block.columns),
        *(line(map(escaped, row)) for row in block.rows),
    ]
    return _captioned(block.caption, lines)


@_block.register
def _map(block: Map) -> str:
    lines = [
        line(map(escaped, (block.corner, *block.columns))),
        line(["---", *("---:" for _ in block.columns)]),
        *(line([escaped(label), *map(_cell, cells)]) for label, cells in block.rows),
    ]
    return _captioned(block.caption, lines)


@_block.register
def _bars(block: Bars) -> str:
    lines = [
        line(["", "", ""]),
        line(["---", "---", "---"]),
        *(line([escaped(bar.label), blocks(bar, BLOCKS), escaped(bar.text)]) for bar in block.rows),
    ]
    return _captioned(block.title, lines)


@_block.register
def _listing(block: Listing) -> str:
    return "\n".join(f"- {escaped(item)}" for item in block.items)


@_block.register
def _code(block: Code) -> str:
    """A fenced code block, with a fence longer than any run of backticks inside."""
    content = "\n".join(block.lines)
    fence = "`" * max(3, *(len(run) + 1 for run in _TICKS.findall(content)), 3)
    return f"{fence}sh\n{content}\n{fence}"


def _cell(cell: MapCell) -> str:
    value = f"**{escaped(cell.value)}**" if cell.measured else escaped(cell.value)
    span = f" ({escaped(cell.span)})" if cell.span else ""
    return f"{value}{span}<br>{escaped(cell.detail)}" if cell.detail else f"{value}{span}"


def _captioned(caption: str | None, lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return f"{escaped(caption)}\n\n{text}" if caption else text


def _pictures(block: Figures, images: Mapping[int, str]) -> str:
    title = [f"### {escaped(block.title)}"] if block.title and block.items else []
    pictures = (
        f"![{escaped(figure.title)}]({images[id(figure)]})\n\n{escaped(figure.title)}"
        for figure in block.items
        if id(figure) in images
    )
    return "\n\n".join([*title, *pictures])
