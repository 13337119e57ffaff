"""The page of `profile gate`: the verdict, a line for each metric of each cell, what to do, what was compared."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from profiler.commands import listing
from profiler.errors import ProfileError
from profiler.gate.state import percent
from profiler.gate.verdict import Verdict
from profiler.reports.base import plain
from profiler.units import UNKNOWN, printable, significant

FORMATS = listing.FORMATS
WIDTH = 118
LEGEND = (
    "Ratios are candidate ÷ base: above 1 is worse. The interval is that of the decision: each end is a one-sided t bound"
    " at a third of 5 %. s: how much equal sides differ from pair to pair here; MDE: the slowdown that nine of ten such"
    " gates find. FAIL: beyond noise, and mean and median at least δ, and most pairs worse; confirmed once."
)


def render(content: Mapping[str, Any], verdicts: Sequence[Verdict], output: str) -> str:
    """In a format of ``FORMATS``, newline included. json has every block; the others have the verdicts."""
    if output == "json":
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
    rows = [_row(verdict) for verdict in content["verdicts"]]
    if output in ("jsonl", "csv"):
        return listing.render([_safe(row) for row in rows] if output == "csv" else rows, dict, output)
    table = listing.render(rows, _cells, output)
    counted = {word: sum(v.word == word for v in verdicts) for word in dict.fromkeys(v.word for v in verdicts)}
    lines = [f"{content['word']}: {', '.join(f'{count} {word}' for word, count in counted.items()) or 'no cells'}"]
    for name, side in content["sides"].items():
        lines.append(f"{name}: {plain(side['name'])}, {plain(side['facts'].get('executable') or UNKNOWN)}")
    lines += [f"  {plain(note)}" for note in content["notes"]]
    lines += ["", *table.splitlines(), *_reasons(verdicts)]
    if content["sides"]:
        spoilt = sum(1 for block in content["blocks"] if block["invalid"]) // 2
        said = f"{len(content['blocks'])} blocks of {content['effort']['reps']} repetitions, {content['clock']} time"
        lines += ["", f"{said}, seed {content['seed']}" + (f"; {spoilt} pairs did not count" if spoilt else "")]
        lines += textwrap.wrap(LEGEND, WIDTH)
    return "\n".join(lines) + "\n"


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """The whole gate in a file. Raises ProfileError."""
    try:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{printable(path)} cannot be written: {printable(error.strerror)}") from None


def _row(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict without the evidence, which only json has room for."""
    return {name: value for name, value in verdict.items() if name not in ("evidence", "confirmation")}


def _cells(row: listing.Row) -> dict[str, str]:
    return {
        "cell": plain(row["cell"], 60),
        "metric": plain(row["metric"]),
        "verdict": row["word"],
        "ratio": UNKNOWN if row["ratio"] is None else significant(row["ratio"], 4),
        "interval": _interval(row["low"], row["high"]),
        "pairs": UNKNOWN if row["pairs"] is None else str(row["pairs"]),
        "δ": _share(row["delta"]),
        "s": _share(row["noise"]),
        "MDE": _share(row["detectable"]),
    }


def _reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """What is not a plain PASS, in words, with what to do."""
    lines: list[str] = []
    for verdict in verdicts:
        if verdict.word != "PASS" or verdict.advice:
            text = f"{plain(verdict.cell)} {plain(verdict.metric)}: {plain(verdict.reason, 400)}{_again(verdict)}"
            text += f". What to do: {plain(verdict.advice)}" if verdict.advice else ""
            lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    return ["", *lines] if lines else []


def _again(verdict: Verdict) -> str:
    """The interval of the confirmation, beside that of the decision in the table."""
    import math

    found = verdict.confirmation
    return "" if found is None else f" ({_interval(math.exp(found.low), math.exp(found.high))})"


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return UNKNOWN
    return f"{significant(low, 4)}–{significant(high, 4)}"


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else percent(value)


def _safe(row: dict[str, Any]) -> dict[str, Any]:
    """Nothing in it that a spreadsheet would run."""
    return {
        name: f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
        for name, value in row.items()
    }
