"""``profile report``: show which models to run on this machine, what fits, how fast, and why."""

from __future__ import annotations

from pathlib import Path

import click

from profiler.commands import options
from profiler.console import say, width
from profiler.results import reading
from profiler.results.encoding import collector_paused
from profiler.show.report import files
from profiler.units import printable


@click.command(
    "report",
    cls=options.DocumentedCommand,
    examples={
        "profile report": "everything in the store, in the terminal",
        "profile report --html fit.html --md fit.md": "a page to share, as HTML and as Markdown",
        "profile report latest~1 latest": "the last two runs; profile runs lists all of them",
        "profile report latest laptop.jsonl --html both.html": "beside the rows of another machine",
    },
)
@click.argument("names", nargs=-1, metavar="[RUN|FILE]...")
@options.html()
@click.option(
    "--md",
    type=options.FilePath(),
    metavar="FILE",
    help="Write the report as Markdown, with its charts as SVG files in a folder next to it.",
)
@click.option(
    "--scores",
    "--quality",  # its first name
    "quality",
    type=options.FilePath(),
    metavar="FILE",
    help="Quality scores of models, with sources, instead of the built-in ones. --quality is its former name.",
)
@click.option(
    "--paths",
    is_flag=True,
    help="Show absolute paths in full on a page, as in the terminal. They are shortened to names otherwise.",
)
@options.store()
def report(
    names: tuple[str, ...], html: Path | None, md: Path | None, quality: Path | None, paths: bool, store: Path | None
) -> int:
    """Show which models to run on this machine: what fits, how fast, and why.

    The report covers the runs you name, or the newest row of every case in the store. A FILE of rows (profile runs
    show RUN -o jsonl) or another store is shown beside them, as are the rows of several machines. A case that was not
    measured is predicted, and marked as such, if the shapes of its model are known. Without --html or --md, the
    report goes to the terminal.
    """
    from profiler.show.report import page as report_page
    from profiler.show.report import quality as scores
    from profiler.show.writers import table

    files.check(html, store, md, quality)
    files.check(md, store, quality)
    known = scores.read(quality) if quality else None
    paths = paths or (html is None and md is None)  # nobody shares what is in the terminal
    with reading.sources(names, store) as (first, *others), collector_paused():
        if first.name:  # no run of the store is named
            first, others = reading.RowSource("", ()), [first, *others]
        page = report_page.page(
            first.rows, first.run, first.runs, known, configs=first.configs, others=others, paths=paths
        )
    for warning in page.warnings:
        say(warning)
    if html is not None:
        files.write_html(html, page)
    if md is not None:
        files.write_markdown(md, page)
    for path in (html, md):
        if path is not None:
            say(f"wrote {printable(path)}")
    if html is None and md is None:
        click.echo(table.terminal(page, width()), nl=False)
    return 0
