"""``profile scenarios``: list the grids for ``profile sweep --scenario NAME``, or print one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from profiler.commands import listing
from profiler.plan import scenario
from profiler.units import UNKNOWN


@click.command("scenarios")
@click.argument("name", required=False)
@listing.output()
def scenarios(name: str | None, output: str) -> None:
    """List the grids for `profile sweep --scenario NAME`, or print the file of one.

    To make your own, run `profile scenarios chat > mine.toml`, edit the file, and run
    `profile sweep --scenario mine.toml`.
    """
    rows = [asdict(scenario.load(each)) for each in ([name] if name else scenario.names())]
    if name and output == "table":
        click.echo(scenario.source(name), nl=False)
        return
    click.echo(listing.render(rows, _shown, output), nl=False)


def _shown(row: listing.Row) -> dict[str, str]:
    """A scenario for people."""
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
