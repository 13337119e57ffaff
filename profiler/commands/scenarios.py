"""``profile scenarios``: list the workloads for ``--scenario NAME``, or print one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from profiler.run import grid
from profiler.show import output as show_output
from profiler.units import UNKNOWN

DROPPED = ("answer tokens",)  # by a terminal that is too narrow
MAX_SHOWN = 5  # numbers of a list that a table shows


@click.command("scenarios")
@click.argument("name", required=False)
@show_output.output()
def scenarios(name: str | None, output: str) -> None:
    """List the workloads for `profile sweep --scenario NAME` and `profile fit --scenario NAME`, or print one.

    To make your own, run `profile scenarios chat > mine.toml`, edit the file, and run
    `profile sweep --scenario mine.toml`.
    """
    rows = [asdict(grid.load(each)) for each in ([name] if name else grid.names())]
    if name and output == "table":
        click.echo(grid.source(name), nl=False)
        return
    click.echo(show_output.render(rows, _shown, output, DROPPED, prose="use case"), nl=False)


def _shown(row: show_output.JsonRow) -> dict[str, str]:
    """The table row of a scenario; ``-o json`` has all fields."""
    return {
        "scenario": row["name"],
        "contexts": _list(row["contexts"]),
        "batches": _list(row["batches"]),
        "answer tokens": UNKNOWN if row["answer_tokens"] is None else f"{row['answer_tokens']:,}",
        "use case": row["stands_for"] or row["description"],
    }


def _list(values: Sequence[int]) -> str:
    """Numbers in the form of the command line; only the ends of a long list: ``1k … 128k``."""
    shown = [f"{value // 1024}k" if value % 1024 == 0 else str(value) for value in values]
    return ", ".join(shown) if len(shown) <= MAX_SHOWN else f"{shown[0]} … {shown[-1]}"
