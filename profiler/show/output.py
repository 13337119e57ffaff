"""Rows on stdout, in the requested format.

Commands that list things pass plain JSON rows to ``render``. Measurements go through a writer: ``writers/NAME.py`` is
the output format ``NAME`` and has ``render(run, measurements) -> str``, which returns the whole text, ending in a
newline unless it is empty. Three functions are optional:

- ``left_out(measurements) -> str | None``: a message for stderr about rows that the format cannot represent
- ``fitted(run, measurements, width) -> str``: the text for a terminal of this width
- ``stream(run, measurements) -> Iterator[str]``: the text row by row, if no row depends on another
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from profiler import registry
from profiler.results.measurement import Measurement
from profiler.units import UNKNOWN, spreadsheet_cell

FORMATS = ("table", "md", "csv", "json", "jsonl")
JsonRow = Mapping[str, Any]


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


def render(rows: Sequence[JsonRow], shown: Callable[[JsonRow], Mapping[str, str]], output: str) -> str:
    """``rows`` in a format of ``FORMATS``, including the newline; ``shown`` converts a row to the texts of a table.

    csv encodes nested values as JSON and guards text against spreadsheets; md escapes text that would break a cell.
    """
    if output == "json":
        return json.dumps(list(rows), indent=2) + "\n"
    if output == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if output == "csv":
        return _csv(rows)
    cells = [dict(shown(row)) for row in rows]
    if output == "md":
        cells = [{name: text.replace("|", "\\|") for name, text in row.items()} for row in cells]
    from tabulate import tabulate

    style = {"table": "simple", "md": "github"}[output]
    alignments = [
        "right" if _is_figures([row[name] for row in cells]) else "left" for name in (cells[0] if cells else ())
    ]
    text = tabulate(cells, headers="keys", tablefmt=style, disable_numparse=True, colalign=alignments or None)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _is_figures(column: Sequence[str]) -> bool:
    """Whether a column holds figures or unknowns only, which are aligned to the right."""
    return all(cell[:1].isdigit() or cell == UNKNOWN for cell in column) and any(cell != UNKNOWN for cell in column)


def _csv(rows: Sequence[JsonRow]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = ((name, json.dumps(v) if isinstance(v, list | dict) else v) for name, v in row.items())
        writer.writerow({name: spreadsheet_cell(value) for name, value in flat})
    return text.getvalue()


def rendered(
    output: str, run: str | None, measurements: Sequence[Measurement], width: int | None = None
) -> tuple[str, str | None]:
    """The text of the rows in a format, and a message about rows left out. Raises NotFound for an unknown format.

    ``width`` is that of the terminal in columns; None if the text goes elsewhere.
    """
    writer = registry.load("show.writers", output, "output format")
    left_out = getattr(writer, "left_out", None)
    fitted = getattr(writer, "fitted", None)
    text = fitted(run, measurements, width) if fitted and width else writer.render(run, measurements)
    return text, left_out(measurements) if left_out else None


def streamed(output: str, run: str | None, measurements: Iterable[Measurement]) -> Iterator[str] | None:
    """The text of a format row by row, as rows are read; None for a format that needs all rows at once."""
    stream = getattr(registry.load("show.writers", output, "output format"), "stream", None)
    return None if stream is None else stream(run, measurements)
