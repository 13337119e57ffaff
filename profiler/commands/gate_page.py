"""The page of `profile gate`: the verdict, a line for each metric of each cell, what to do, what was compared."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from profiler import files
from profiler.commands import listing
from profiler.gate import page
from profiler.gate.verdict import Verdict
from profiler.reports.base import plain
from profiler.units import UNKNOWN

FORMATS = listing.FORMATS
LEGEND = (
    "Ratios are candidate ÷ base: above 1 is worse. An end of an interval is a one-sided t bound at a third of 5 %,"
    " as the decision needs. s: how much equal sides differ from pair to pair. MDE: the slowdown that nine of ten"
    " such gates find. FAIL: beyond noise, and mean and median at least δ, and most pairs worse; and once more."
)


def render(content: Mapping[str, Any], verdicts: Sequence[Verdict], output: str) -> str:
    """In a format of ``FORMATS``, newline included. json has every block; the others have the verdicts."""
    if output == "json":
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
    if output in ("jsonl", "csv"):
        rows = [_row(verdict) for verdict in content["verdicts"]]
        return listing.render(rows, dict, output)
    lines = [page.headline(verdicts)]
    for name, side in content["sides"].items():
        lines.append(f"{name}: {plain(side['name'])}; {plain(side['facts'].get('executable') or UNKNOWN)}")
    lines += [f"  {plain(note)}" for note in content["notes"]]
    if output == "md":
        lines += ["", *listing.render([{"verdict": v} for v in verdicts], _cells, "md").splitlines()]
    else:
        lines += ["", *page.table(verdicts)]
    said = page.reasons(verdicts)
    lines += ["", *said] if said else []
    return "\n".join([*lines, *_legend(content)]) + "\n"


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """The whole gate in a file. Raises ProfileError."""
    files.write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _legend(content: Mapping[str, Any]) -> list[str]:
    """How much was measured, and what the figures mean; only pairs have such."""
    if not content["blocks"]:
        return []
    spoilt = sum(1 for block in content["blocks"] if block["invalid"]) // 2
    said = f"{len(content['blocks'])} blocks of {content['effort']['reps']} repetitions, {content['clock']} time"
    said += f", seed {content['seed']}" + (f"; {spoilt} pairs did not count" if spoilt else "")
    return ["", said, *textwrap.wrap(LEGEND, page.WIDTH)]


def _cells(row: listing.Row) -> dict[str, str]:
    texts = page.cells(row["verdict"])
    return {title: text.replace("<", "&lt;") for title, text in texts.items()}


def _row(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict without the evidence, which only json has room for."""
    return {name: value for name, value in verdict.items() if name not in ("evidence", "confirmation")}
