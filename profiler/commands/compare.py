"""``profile compare``: two runs side by side, ratios with intervals."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from profiler.commands import compare_page, options
from profiler.commands.progress import say
from profiler.errors import ProfileError
from profiler.foreign import exists
from profiler.results import comparison, row_reader
from profiler.results.measurement import Measurement
from profiler.results.store import Store
from profiler.units import printable

INCOMPARABLE = 4


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "-o",
    "--output",
    type=click.Choice(compare_page.FORMATS, case_sensitive=False),
    default="table",
    show_default=True,
    help="Format on stdout; benchstat: text laid out as by that tool.",
)
@options.store()
def compare(a: str, b: str, output: str, store: Path | None) -> int:
    """Compare the cases that A and B have in common.

    Each is a stored run (its id or the start of one: profile runs), a file of rows that -o jsonl or -o json printed,
    or another store, of which the latest run is taken. Ratios are B over A: of the medians, with a 95 % interval
    from the repetitions of both sides (Welch's t on their logarithms). Two runs of one unchanged program may differ
    by more than their repetitions show: to tell a regression, profile gate.

    Exit code: 0 fine, 2 usage, 4 no case that both have measured.
    """
    found = comparison.compare(_frozen(_rows(a, store)), _frozen(_rows(b, store)))
    if not found.pairs and not found.failed:
        say(f"A and B have no case in common: {comparison.in_words(found)}")
    click.echo(compare_page.render(found, (a, b), output), nl=False)
    return 0 if found.pairs else INCOMPARABLE


def _frozen(rows: list[Measurement]) -> list[Measurement]:
    """Left out of what the collector walks: rows hold no cycles, and this is a fifth of comparing two large runs."""
    gc.freeze()
    return rows


def _rows(name: str, store: Path | None) -> list[Measurement]:
    """The rows of a run or of a file; a file of that name goes first."""
    if not name.strip():
        raise ProfileError("one of the two names is an empty text", "Give a run (profile runs) or a file of rows.")
    path = Path(name)
    if exists(path):
        return row_reader.read(path)
    if path.suffix in (".jsonl", ".json", ".sqlite"):
        raise ProfileError(f"there is no file {printable(name)}", "Give a run (profile runs) or a file of rows.")
    with Store.open(store, create=False) as opened:
        return opened.rows(opened.find_run(name))
