"""``-o table``: one line per case for a terminal, grouped by model, with notes below; also the report in a terminal.

In a terminal, the report has its text and tables; charts are only in the other formats.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate

from profiler.results.measurement import Measurement
from profiler.show.columns import (
    STAYS,
    Column,
    fastest,
    figures,
    heading,
    path_lines,
    plain,
    told_apart,
)
from profiler.show.legend import legend
from profiler.show.notes import Note, few, notes, rows_of_models
from profiler.show.output import MAX_NOTES
from profiler.show.output import fitted as fitted_columns
from profiler.show.report.blocks import Bar, Bars, Code, Figures, Listing, Map, MapCell, Page, Table, Text

WIDTH = 120  # columns, if the output is not a terminal: the same rows always give the same text
INDENT = "  "  # before the rows of a model, and between columns

PAGE_WIDTH = 100  # width of a report that does not go to a terminal
NARROWEST = 40
MAX_ROWS = 16  # rows of a table in the report, so that it fits on a screen
NARROWEST_CELL = 16  # of text; figures are never wrapped
GAP = 2  # columns between cells
MOST_LEADING = 2 / 3  # of the width, for the columns that tell rows apart
MIN_BLOCKS, MAX_BLOCKS = 8, 30  # characters of a bar


def render(
    run: str | None,
    measurements: Sequence[Measurement],
    width: int | None = None,
    most_notes: int | None = MAX_NOTES,
) -> str:
    """The table, at most ``width`` wide if its most important columns fit, and at most so many notes.

    None: as wide as it is where there is no terminal; all notes.
    """
    width = width or WIDTH
    if not measurements:
        return f"run {plain(run)}: no rows\n" if run else "no rows\n"
    grouped = [measurement for group in _by_model(told_apart(measurements)) for measurement in group]
    every, numbers = notes(grouped)
    found_notes, cells = few(every, numbers, most_notes)
    lines = _wrap(" · ".join(heading(run, grouped)), width, "")
    titles, *body = _fitted(figures(cells, grouped), grouped, width)
    lines += ["", titles]
    for group in _by_model(grouped):
        lines += _wrap(plain(group[0].case.model) or "(no name)", width, "")
        lines += body[: len(group)]
        body = body[len(group) :]
    meaning = legend(grouped, titles)
    lines += ["", *_wrap(meaning, width, "")] if meaning else []
    total = rows_of_models(grouped)
    for note in found_notes:
        lines += _wrap(f"[{note.number}] {_note(note, grouped, total)}", width, "    ")
    if more := len(every) - len(found_notes):
        shown = f"profile runs show {plain(run)} --notes all" if run else "--notes all"
        lines += _wrap(f"and {more} more note{'s' * (more != 1)} (+): {shown}", width, "")
    for words in path_lines(grouped, brief=True):
        lines += _wrap(words, width, "    ")
    found = fastest(grouped)
    lines += ["", *_wrap(found, width, "")] if found else []
    return "\n".join(lines) + "\n"


fitted = render


def _by_model(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Rows grouped by model, in order of first appearance. Two models may have the same name."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.case.model, measurement.case.model_id), []).append(measurement)
    return list(groups.values())


def _fitted(columns: list[Column], measurements: Sequence[Measurement], width: int) -> list[str]:
    """Titles and rows as lines, after dropping the least important columns until the rest fits."""
    by_title = {column.title: column for column in columns}
    drop = sorted((column for column in columns if column.worth != STAYS), key=lambda column: column.worth)
    texts = {column.title: [column.cell(each) for each in measurements] for column in columns}
    padded = []
    for title, found in fitted_columns(texts, width - len(INDENT), [column.title for column in drop]).items():
        cells, pad = [title, *found], str.rjust if by_title[title].right else str.ljust
        wide = max(map(len, cells))
        padded.append([pad(cell, wide) for cell in cells])
    return [INDENT + INDENT.join(row).rstrip() for row in zip(*padded, strict=True)]


def _note(note: Note, measurements: Sequence[Measurement], total: Counter[str]) -> str:
    helps = f"; try {note.help}" if note.help else ""
    return f"{note.text}{helps} ({note.named_cases(measurements, total)})"


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent)


def terminal(page: Page, width: int | None = None) -> str:
    """The report for a terminal of ``width`` columns."""
    columns = max(NARROWEST, width or PAGE_WIDTH)
    parts = [_wrapped(page.title, columns), _wrapped(" · ".join(page.summary), columns)]
    for section in page.sections:
        parts += ["", _wrapped(section.title, columns), "─" * min(columns, len(section.title))]
        for block in section.blocks:
            text = _block(block, columns)
            parts += [text, ""] if text else []
        parts.pop()
    return "\n".join(parts).rstrip() + "\n"


def _block(block: object, width: int) -> str:
    if isinstance(block, Text):
        return _wrapped(block.text, width)
    if isinstance(block, Table):
        alignments = ["right" if column.right else "left" for column in block.columns]
        return _grid([column.title for column in block.columns], block.rows, alignments, block.caption, width)
    if isinstance(block, Map):
        rows = [[label, *map(_cell, cells)] for label, cells in block.rows]
        return _grid(
            [block.corner, *block.columns], rows, ["left", *("right" for _ in block.columns)], block.caption, width
        )
    if isinstance(block, Listing):
        return "\n".join(textwrap.fill(f"- {item}", width, subsequent_indent="  ") for item in block.items)
    if isinstance(block, Code):
        return "\n".join(f"  {line}" for line in block.lines)
    if isinstance(block, Bars):
        return _bars(block, width)
    if isinstance(block, Figures):
        return ""
    raise TypeError(f"no text for {type(block).__name__}")


def _bars(block: Bars, width: int) -> str:
    """A line for each bar: its label, the bar in blocks against its ceiling, and its text."""
    labels = max(len(bar.label) for bar in block.rows)
    texts = max(len(bar.text) for bar in block.rows)
    room = min(MAX_BLOCKS, width - labels - texts - 2 * GAP)
    if room < MIN_BLOCKS:  # too narrow for pictures
        return "\n".join(
            [_wrapped(block.title, width), *(_wrapped(f"{bar.label}: {bar.text}", width) for bar in block.rows)]
        )
    drawn = (f"{bar.label:{labels}}  {blocks(bar, room):{room}}  {bar.text}" for bar in block.rows)
    return "\n".join([_wrapped(block.title, width), *drawn])


def blocks(bar: Bar, room: int) -> str:
    """A bar of at most ``room`` characters: full blocks for the figure, light ones up to the ceiling."""
    full = max(1, round(bar.value * room))
    return "█" * full + "░" * (round((bar.ceiling or 0) * room) - full)


def _cell(cell: MapCell) -> str:
    """``~14 tight``; a cell that fits has no word. The other formats also say what limits a case."""
    word = "" if cell.tone in ("fits", "none") or cell.tone == cell.value else f" {cell.tone}"
    return f"{cell.value}{word}"


def _grid(
    titles: Sequence[str], rows: Sequence[Sequence[str]], alignments: Sequence[str], caption: str | None, width: int
) -> str:
    """A table in which text wraps. Columns that do not fit are put below, beside those that tell rows apart."""
    shown = [list(titles), *map(list, rows[:MAX_ROWS])]
    caps = _caps(shown, alignments, width)
    cells = [
        [
            "\n".join(textwrap.wrap(text, cap)) if len(text) > cap else text
            for text, cap in zip(row, caps, strict=True)
        ]
        for row in shown
    ]
    parts = [_wrapped(caption, width)] if caption else []
    rules = ["─" * max(map(len, "\n".join(column).split("\n"))) for column in zip(*cells, strict=True)]
    parts += [
        tabulate(
            [[row[place] for place in chosen] for row in (cells[0], rules, *cells[1:])],
            tablefmt="plain",  # without headers, which tabulate would pad
            colalign=[alignments[place] for place in chosen],
            disable_numparse=True,
        )
        for chosen in _groups(caps, width, _leading(shown, caps, width))
    ]
    if len(rows) > MAX_ROWS:
        parts.append(f"and {len(rows) - MAX_ROWS:,} more lines with --html or --md")
    return "\n".join(line.rstrip() for part in parts for line in part.splitlines())


def _caps(rows: Sequence[Sequence[str]], alignments: Sequence[str], width: int) -> list[int]:
    """Widths of columns: text columns share the space that the figures leave, narrow ones first; half of the width if
    the table has to be cut anyway.
    """
    wanted = [max(1, *map(len, column)) for column in zip(*rows, strict=True)]
    words = sorted(
        (place for place, alignment in enumerate(alignments) if alignment == "left"), key=lambda place: wanted[place]
    )
    room = (
        width
        - GAP * (len(wanted) - 1)
        - sum(wanted[place] for place, alignment in enumerate(alignments) if alignment != "left")
    )
    if room < NARROWEST_CELL * len(words):
        room = width // 2
    for left, place in enumerate(words):
        wanted[place] = min(wanted[place], max(NARROWEST_CELL, room // (len(words) - left)))
        room -= wanted[place]
    return wanted


def _leading(rows: Sequence[Sequence[str]], widths: Sequence[int], width: int) -> int:
    """How many of the first columns tell the rows apart; 1 if they would leave little room for others."""
    for count in range(1, len(widths)):
        if sum(widths[:count]) + GAP * count > MOST_LEADING * width:
            break
        if len({tuple(row[:count]) for row in rows}) == len(rows):
            return count
    return 1


def _groups(widths: Sequence[int], width: int, leading: int) -> list[list[int]]:
    """Groups of columns that fit side by side; each group starts with the ``leading`` first columns."""
    first, start = list(range(leading)), sum(widths[:leading]) + GAP * (leading - 1)
    groups, used = [[*first]], start
    for place in range(leading, len(widths)):
        if used + GAP + widths[place] > width and len(groups[-1]) > leading:
            groups.append([*first])
            used = start
        groups[-1].append(place)
        used += GAP + widths[place]
    return groups


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))
