"""Rows on stdout, in the requested format.

Commands that list things pass plain JSON rows to ``render``. Measurements go through a writer: ``writers/NAME.py`` is
the output format ``NAME`` and has ``render(run, measurements) -> str``, which returns the whole text, ending in a
newline unless it is empty. Three functions are optional:

- ``left_out(measurements) -> str | None``: a message for stderr about rows that the format cannot represent
- ``fitted(run, measurements, width, most_notes) -> str``: the text for a terminal of this width (None: no terminal),
  with at most so many notes (None: all)
- ``stream(run, measurements) -> Iterator[str]``: the text row by row, if no row depends on another
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from profiler import console, registry
from profiler.units import UNKNOWN, spreadsheet_cell

if TYPE_CHECKING:  # lists, predictions and the overview do without measurements
    from profiler.results.measurement import Measurement

FORMATS = ("table", "md", "csv", "json", "jsonl")
MAX_NOTES = 5  # below a table, unless all are wanted: more than a person reads at once
SHORTEST_NAME = 16  # characters: a shorter name in a narrow terminal is hard to recognize
LONGEST_NAME = 32  # characters that a name gets, at the expense of other columns, to differ from others
SHORTEST_PROSE = 18  # characters of a line in a column of prose
GAP = 2  # blanks between columns
JsonRow = Mapping[str, Any]
Columns = Mapping[str, Sequence[str]]  # the cells of a table, by title


def output() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``-o`` for a list without measurements."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS, case_sensitive=False),
        default="table",
        show_default=True,
        help="Output format.",
    )


def render(
    rows: Sequence[JsonRow],
    shown: Callable[[JsonRow], Mapping[str, str]],
    output: str,
    drop: Sequence[str] = (),
    prose: str | None = None,
) -> str:
    """``rows`` in a format of ``FORMATS``, including the newline; ``shown`` converts a row to the texts of a table.

    A table fits the terminal by ``fitted``, which explains ``drop`` and ``prose``. csv has the columns of a
    DataFrame, lists as JSON, and guards text against spreadsheets; md escapes text that would break a cell.
    """
    if output == "json":
        return json.dumps(list(rows), indent=2) + "\n"
    if output == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if output == "csv":
        return _csv(rows)
    cells = [dict(shown(row)) for row in rows]
    columns: Columns = {name: [row[name] for row in cells] for name in (cells[0] if cells else ())}
    alignments = {name: "right" if _is_figures(column) else "left" for name, column in columns.items()}
    if output == "md":
        columns = {name: [text.replace("|", "\\|") for text in column] for name, column in columns.items()}
    width = console.width() if output == "table" else None
    columns = fitted(columns, width, drop, prose)
    from tabulate import tabulate

    colalign = [alignments[name] for name in columns] or None
    if width is None:
        style = {"table": "simple", "md": "github"}[output]
        text = tabulate(columns, headers="keys", tablefmt=style, disable_numparse=True, colalign=colalign)
    else:  # without headers, which tabulate would pad
        rules = {
            name: "-" * max(len(line) for cell in (name, *cells) for line in cell.split("\n"))
            for name, cells in columns.items()
        }
        lines = [[*columns], [*rules.values()], *zip(*columns.values(), strict=True)]
        text = tabulate(lines, tablefmt="plain", disable_numparse=True, colalign=colalign)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def fitted(columns: Columns, width: int | None, drop: Sequence[str] = (), prose: str | None = None) -> Columns:
    """The columns that fit a terminal of ``width`` characters; all of them if it is None.

    Columns of ``drop`` go first, in that order, until names of ``SHORTEST_NAME`` characters would fit, or of up to
    ``LONGEST_NAME`` if it takes as many for different ones to look different. Then the longest text is shortened; a
    column ``prose`` is wrapped instead.
    Figures stay whole, so that a table without anything more to drop or to shorten can be too wide.
    """
    if width is None:
        return columns
    kept, widths = dict(columns), {name: max(map(len, [name, *cells])) for name, cells in columns.items()}
    shortest = {
        name: wide
        if _is_figures(columns[name])
        else max(len(name), min(wide, SHORTEST_PROSE) if name == prose else _needed(columns[name]))
        for name, wide in widths.items()
    }
    for name in drop:
        if _total(shortest[each] for each in kept) > width:
            kept.pop(name, None)
    caps = {name: widths[name] for name in kept}
    while _total(caps.values()) > width:
        longest = max(caps, key=lambda name: caps[name] - shortest[name] and caps[name])
        if caps[longest] <= shortest[longest]:
            break
        caps[longest] -= 1
    return {
        name: [textwrap.fill(cell, cap) for cell in kept[name]] if name == prose else _within(kept[name], cap)
        for name, cap in caps.items()
    }


def shortened_cells(cells: Sequence[str], length: int) -> list[str]:
    """The cells in ``length`` characters each, or in as many more as it takes for different ones to look different.

    Options lose characters of their names. If the ends of other texts do not tell them apart, the part where they
    begin to differ is shown.
    """
    different = [*dict.fromkeys(cells)]
    cut = (cell for cell in different if len(cell) > length)
    begin = next((at for at, found in enumerate(zip(*cut, strict=False)) if len(set(found)) > 1), 0)
    for room in range(length, max(map(len, different), default=0)):
        if (brief := _brief_options(different, room)) is not None:
            return [brief[cell] for cell in cells]
        shown = [shortened(cell, room) for cell in different]
        for before in range(min(begin, room // 2), -1, -1):
            if len(set(shown)) == len(different):
                known = dict(zip(different, shown, strict=True))
                return [known[cell] for cell in cells]
            shown = [_from(cell, begin - before, room) for cell in different]
    return list(cells)


def _within(cells: Sequence[str], length: int) -> list[str]:
    """The cells in ``length`` characters each, even if different ones then look alike."""
    found = shortened_cells(cells, length)
    return found if all(len(cell) <= length for cell in found) else [shortened(cell, length) for cell in cells]


def _needed(cells: Sequence[str]) -> int:
    """The characters that the cells of a column need in a narrow table."""
    found = max(map(len, shortened_cells(cells, SHORTEST_NAME)), default=0)
    return found if found <= LONGEST_NAME else SHORTEST_NAME


def _brief_options(different: Sequence[str], length: int) -> dict[str, str] | None:
    """``fla…=on n-c…=4`` for ``flash-attn=on n-cpu-moe=4``: options of at most ``length`` characters, by those that
    are given; None if they are no options or would not look different.
    """
    words = {cell: [word.partition("=") for word in cell.split()] for cell in different}
    if not all(sign and value for each in words.values() for _, sign, value in each):
        return None
    for most in range(max((len(name) for each in words.values() for name, _, _ in each), default=0), 1, -1):
        shown = {
            cell: " ".join(
                f"{name if len(name) <= most else f'{name[: most - 1]}…'}={value}" for name, _, value in each
            )
            for cell, each in words.items()
        }
        if max(map(len, shown.values())) <= length:
            return shown if len(set(shown.values())) == len(different) else None
    return None


def shortened(text: str, length: int) -> str:
    """``text`` with ``…`` in its middle if it is longer than ``length`` characters: both ends of a name tell."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def _from(text: str, start: int, length: int) -> str:
    """``text`` from about ``start``, with ``…`` where something is left out."""
    start = max(0, min(start, len(text) - length))
    found = text[start : start + length]
    found = f"…{found[1:]}" if start else found
    return f"{found[:-1]}…" if start + length < len(text) else found


def wrapped(lines: Sequence[str], width: int | None) -> list[str]:
    """Sentences wrapped at the width of the terminal. Indented lines are commands, which must stay pasteable."""
    if width is None:
        return list(lines)
    return [part for line in lines for part in ([line] if line[:1] in ("", " ") else textwrap.wrap(line, width))]


def folded(lines: Sequence[str], width: int | None) -> list[str]:
    """Lines in ``width`` columns; what does not fit is indented further. Tables stay as they are."""
    if width is None:
        return list(lines)
    parts = ([line] if "\n" in line else textwrap.wrap(line, width, subsequent_indent="    ") for line in lines)
    return [part for each in parts for part in each or [""]]


def constant(columns: Columns, *names: str) -> list[str]:
    """The columns among ``names`` with one value in all rows, which a narrow table can drop without confusion."""
    return [name for name in names if len(set(columns.get(name, ()))) <= 1]


def _total(widths: Iterable[int]) -> int:
    """Width of a table whose columns are this wide."""
    found = list(widths)
    return sum(found) + GAP * (len(found) - 1)


def _is_figures(column: Sequence[str]) -> bool:
    """Whether a column holds figures or unknowns only, which are aligned to the right."""
    return all(cell[:1].isdigit() or cell == UNKNOWN for cell in column) and any(cell != UNKNOWN for cell in column)


def flat(prefix: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Columns in the order of the fields; those of a nested field are named by its path, joined by dots.

    A field that is an object in some rows is treated as one in all.
    """
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, Mapping) for value in values):
            yield from flat(f"{prefix}{name}.", [value if isinstance(value, Mapping) else {} for value in values])
        else:
            yield f"{prefix}{name}", values


def _csv(rows: Sequence[JsonRow]) -> str:
    import csv  # slow to import, and seldom asked for

    columns = dict(flat("", rows))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(spreadsheet_cell, columns))
    for values in zip(*columns.values(), strict=True):
        writer.writerow(spreadsheet_cell(json.dumps(v) if isinstance(v, list) else v) for v in values)
    return text.getvalue()


def rendered(
    output: str,
    run: str | None,
    measurements: Sequence[Measurement],
    width: int | None = None,
    most_notes: int | None = MAX_NOTES,
) -> tuple[str, str | None]:
    """The text of the rows in a format, and a message about rows left out. Raises NotFound for an unknown format.

    ``width`` is that of the terminal in columns; None if the text goes elsewhere. ``most_notes``: of a table.
    """
    writer = registry.load("show.writers", output, "output format")
    left_out = getattr(writer, "left_out", None)
    fitted = getattr(writer, "fitted", None)
    text = fitted(run, measurements, width, most_notes) if fitted else writer.render(run, measurements)
    return text, left_out(measurements) if left_out else None


def streamed(output: str, run: str | None, measurements: Iterable[Measurement]) -> Iterator[str] | None:
    """The text of a format row by row, as rows are read; None for a format that needs all rows at once."""
    stream = getattr(registry.load("show.writers", output, "output format"), "stream", None)
    return None if stream is None else stream(run, measurements)
