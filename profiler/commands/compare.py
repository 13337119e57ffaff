"""``profile compare``: compare two runs, with ratios and their intervals."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from profiler.commands import options
from profiler.console import say
from profiler.errors import ProfileError
from profiler.results import comparison, reading
from profiler.results.measurement import Measurement
from profiler.show import compare as show_compare

INCOMPARABLE = 4


@click.command(
    "compare",
    cls=options.DocumentedCommand,
    examples={
        "profile compare 261124-0539 261125-1012": "two stored runs, by the start of their ids",
        "profile compare latest~1 latest": "the last two runs, such as of a server before and after its update",
        "profile compare before.jsonl after.jsonl": "two files written with -o jsonl",
        "profile compare before.sqlite 261125-1012": "the latest run of another store against a run of this one",
    },
)
@click.argument("a")
@click.argument("b")
@click.option(
    "-o",
    "--output",
    type=click.Choice(show_compare.FORMATS, case_sensitive=False),
    default="table",
    show_default=True,
    help="Output format; benchstat imitates the tool of that name.",
)
@options.store()
def compare(a: str, b: str, output: str, store: Path | None) -> int:
    """Compare the cases that two sets of results have in common.

    A and B are stored runs (an id from profile runs, a unique start of one, latest, or latest~1 for the one before),
    files of rows written with -o json or -o jsonl, or other stores, of which the latest run is used. Each ratio is
    the median of B over the median of A, with a 95% interval from the repetitions of both (Welch's t on logarithms).
    Two runs of an unchanged program can differ by more than that, so use profile gate to detect a regression.

    Exit codes: 0 success, 2 usage error, 4 no case was measured in both.
    """
    (name_a, rows_a), (name_b, rows_b) = _side(a, store), _side(b, store)
    found = comparison.compare(_frozen(rows_a), _frozen(rows_b))
    if not found.pairs and not found.failed:
        say(f"A and B have no case in common: {comparison.in_words(found)}")
    click.echo(show_compare.render(found, (name_a, name_b), output), nl=False)
    return 0 if found.pairs else INCOMPARABLE


def _frozen(rows: list[Measurement]) -> list[Measurement]:
    """Exclude the rows from garbage collection: they have no cycles, and it took a fifth of a large comparison."""
    gc.freeze()
    return rows


def _side(name: str, store: Path | None) -> tuple[str, list[Measurement]]:
    if not name.strip():
        raise ProfileError("one of the two names is empty", "Pass a run (see profile runs) or a file of rows.")
    return reading.identified(name, store)
