"""``profile scenarios``: list the grids for ``profile sweep --scenario NAME``, or print one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from profiler.run import grid
from profiler.show import output as show_output
from profiler.units import UNKNOWN


@click.command("scenarios")
@click.argument("name", required=False)
@show_output.output()
def scenarios(name: str | None, output: str) -> None:
    """List the grids for `profile sweep --scenario NAME`, or print the file of one.

    To make your own, run `profile scenarios chat > mine.toml`, edit the file, and run
    `profile sweep --scenario mine.toml`.
    """
    rows = [asdict(grid.load(each)) for each in ([name] if name else grid.names())]
    if name and output == "table":
        click.echo(grid.source(name), nl=False)
        return
    click.echo(show_output.render(rows, _shown, output), nl=False)


def _shown(row: show_output.JsonRow) -> dict[str, str]:
    """The cells of a table row."""
    return {
        "scenario": row["name"],
        "contexts": _list(row["contexts"]),
        "batches": _list(row["batches"]),
        "steps": _list(row["steps"]),
        "quants": _list(row["quants"]),
        "fill": row["fill"] or "prefill",
        "what": row["description"],
    }


def _list(values: Any) -> str:
    return ", ".join(map(str, values)) or UNKNOWN
