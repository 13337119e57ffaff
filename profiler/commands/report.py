"""``profile report``: what to run on this machine, what fits, how fast and why: a page in the terminal or a file."""

from __future__ import annotations

from pathlib import Path

import click

from profiler.commands import options, page_files
from profiler.commands.progress import say, terminal_width
from profiler.errors import NotFound
from profiler.results.measurement import Measurement
from profiler.results.store import Run, Store, collector_paused
from profiler.units import printable


@click.command("report")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@options.html()
@click.option(
    "--md",
    type=options.FilePath(),
    metavar="FILE",
    help="Write Markdown, with its charts as SVG in a folder beside it.",
)
@click.option(
    "--quality",
    type=options.FilePath(),
    metavar="FILE",
    help="Scores of models, with sources, instead of those that ship.",
)
@options.store()
def report(
    names: tuple[str, ...], html: Path | None, md: Path | None, quality: Path | None, store: Path | None
) -> int:
    """Report what fits this machine: of RUNs, or of everything in the store, the newest row of each case.

    Rows of several machines stand side by side. Without --html and --md the page goes to the terminal. What was not
    measured is predicted where the catalog knows the model, and marked as such.
    """
    from profiler.reports.base.page import compose, terminal
    from profiler.reports.base.page import quality as scores

    for path in (html, md):
        page_files.check(path)
    known = scores.read(quality) if quality else None
    with Store.open(store, create=False) as opened, collector_paused():
        rows, runs, run = read(opened, names)
        page = compose.page(rows, run, runs, known)
    if html is not None:
        page_files.write_html(html, page)
    if md is not None:
        page_files.write_markdown(md, page)
    for path in (html, md):
        if path is not None:
            say(f"wrote {printable(path)}")
    if html is None and md is None:
        click.echo(terminal.terminal(page, terminal_width()), nl=False)
    return 0


def read(store: Store, names: tuple[str, ...]) -> tuple[list[Measurement], list[Run], str | None]:
    """Rows, the runs they are of, and the run's id if there is one only. NotFound where there is nothing.

    The rows may be looked at as long as ``store`` is open.
    """
    chosen = list(dict.fromkeys(store.find_run(name) for name in names))
    runs = [run for run in store.runs() if not chosen or run.id in chosen]
    rows = [row for run in chosen for row in store.each(run)] if chosen else list(store.latest())
    first = store.command("sweep")
    if not rows:
        raise NotFound("there are no rows to report", f"Measure something first: {first}")
    return rows, runs, chosen[0] if len(chosen) == 1 else None
