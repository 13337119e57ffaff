"""``profile scenarios``: list the workloads for ``--scenario NAME``, or print one."""

from __future__ import annotations

import click

from profiler.run import grid
from profiler.show import lists
from profiler.show import output as show_output


@click.command("scenarios")
@click.argument("name", required=False)
@show_output.output()
def scenarios(name: str | None, output: str) -> None:
    """List the workloads for `profile sweep --scenario NAME` and `profile fit --scenario NAME`, or print one.

    To make your own, run `profile scenarios chat > mine.toml`, edit the file, and run
    `profile sweep --scenario mine.toml`.
    """
    if name and output == "table":
        click.echo(grid.source(name), nl=False)
        return
    click.echo(lists.scenarios([grid.load(each) for each in ([name] if name else grid.names())], output), nl=False)
