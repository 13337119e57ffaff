"""``profile runs``: list stored runs; ``profile runs show`` prints the rows of one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from profiler.commands import options
from profiler.console import say, tell, width
from profiler.results.database import sweep_into
from profiler.results.encoding import collector_paused
from profiler.results.reading import grid_places, in_grid_order
from profiler.results.store import Run, Store, default_path, existing, is_named
from profiler.show import durations, lists
from profiler.show import output as show_output
from profiler.show.output import rendered, streamed
from profiler.units import printable

AT_ONCE = 200  # rows written together


@click.group(invoke_without_command=True)
@options.store()
@show_output.output()
@click.pass_context
def runs(context: click.Context, store: Path | None, output: str) -> None:
    """List the stored runs, oldest first.

    A run that has not ended is in progress or was killed; the same profile sweep command continues it. The table
    truncates long commands; -o json has them in full. A store that --store or PROFILER_STORE names must exist.
    """
    context.obj = store
    if context.invoked_subcommand is not None:
        return
    path = store or default_path()
    found: list[Run] = []
    if existing(path) or is_named(store):
        with Store.open(path, create=False) as opened:
            found = opened.runs()
    if not found:
        say(f"no run is stored in {printable(path)} yet; {sweep_into(path)} measures one")
    click.echo(lists.runs(found, output), nl=False)


@runs.command()
@click.argument("run", required=False)
@options.output()
@options.notes()
@click.option("--time", "timed", is_flag=True, help="Print where the time of each case went instead.")
@options.store()
@click.pass_obj
def show(
    group_store: Path | None, run: str | None, output: str, most_notes: int | None, timed: bool, store: Path | None
) -> None:
    """Print the rows of a run.

    RUN is an id from profile runs, a unique start of one, or latest~1 for the run before the latest. Without it, the
    latest run is printed.
    """
    with Store.open(store or group_store, create=False) as opened, collector_paused():
        found = opened.find_run(run)
        if timed:
            finished_at = next((each.finished_at for each in opened.runs() if each.id == found), None)
            click.echo(durations.render(opened.rows(found), finished_at, output), nl=False)
            return
        parts = streamed(output, found, opened.in_order(found, grid_places))
        if parts is not None:
            while text := "".join(islice(parts, AT_ONCE)):
                click.echo(text, nl=False)
            return
        text, left_out = rendered(output, found, in_grid_order(opened.rows(found)), width(), most_notes)
    click.echo(text, nl=False)
    tell(left_out)
