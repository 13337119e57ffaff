"""Tables of commands that list things: plain JSON rows, and how they look to people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from profiler.units import UNKNOWN, spreadsheet_cell

FORMATS = ("table", "md", "csv", "json", "jsonl")

Row = Mapping[str, Any]


def output() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``-o`` for a list that holds no measurements."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS, case_sensitive=False),
        default="table",
        show_default=True,
        help="Output format.",
    )


def render(rows: Sequence[Row], shown: Callable[[Row], Mapping[str, str]], output: str) -> str:
    """``rows`` in a format of ``FORMATS``, newline included; ``shown`` turns one into texts for people.

    csv flattens what is nested to JSON and guards text against spreadsheets; table and md escape what would break a
    cell.
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
    sides = ["right" if _is_figures([row[name] for row in cells]) else "left" for name in (cells[0] if cells else ())]
    text = tabulate(cells, headers="keys", tablefmt=style, disable_numparse=True, colalign=sides or None)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _is_figures(column: Sequence[str]) -> bool:
    """Whether a column holds figures, with units or unknown, which read best when their ends stand together."""
    return all(cell[:1].isdigit() or cell == UNKNOWN for cell in column) and any(cell != UNKNOWN for cell in column)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = ((name, json.dumps(v) if isinstance(v, list | dict) else v) for name, v in row.items())
        writer.writerow({name: spreadsheet_cell(value) for name, value in flat})
    return text.getvalue()
