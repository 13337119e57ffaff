"""``profile scenarios``: the named grids for ``profile sweep --scenario``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from profiler.commands import listing
from profiler.plan import scenario
from profiler.units import UNKNOWN


@click.command("scenarios")
@listing.output()
def scenarios(output: str) -> None:
    """List the grids that `profile sweep --scenario NAME` measures.

    Your own: copy one of the shipped TOML files and give its path.
    """
    rows = [asdict(scenario.load(name)) for name in scenario.names()]
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
