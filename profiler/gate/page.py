"""The page of `profile gate`: the verdict, a line for each metric of each case, what to do, and what was compared."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from profiler import files
from profiler.gate.rule import GateVerdict, worst
from profiler.gate.trial import percent
from profiler.show import output as show_output
from profiler.show.columns import plain
from profiler.units import UNKNOWN, significant

WIDTH = 118
CELL_LENGTH = 90  # characters: the id of a test holds its folder, its file and its parameters
TITLES = ("cell", "metric", "verdict", "ratio", "interval", "pairs", "δ", "s", "MDE")
LEFT = 3  # columns of words, before those of figures

FORMATS = show_output.FORMATS
LEGEND = (
    "Ratios are candidate ÷ base: above 1 is worse. An end of an interval is a one-sided t bound at a third of 5 %,"
    " as the decision needs. s: how much equal sides differ from pair to pair. MDE: the slowdown that nine of ten"
    " such gates find. FAIL: beyond noise, and mean and median at least δ, and most pairs worse; and once more."
)


def headline(verdicts: Sequence[GateVerdict]) -> str:
    """``FAIL: 1 FAIL, 6 PASS``."""
    counted = {word: sum(v.word == word for v in verdicts) for word in dict.fromkeys(v.word for v in verdicts)}
    words = ", ".join(f"{count} {word}" for word, count in counted.items())
    return f"{worst(verdicts)}: {words or 'nothing was measured'}"


def cells(verdict: GateVerdict) -> dict[str, str]:
    """The texts of one line. Figures that one row alone could have are left out where there are none."""
    figures = (
        UNKNOWN if verdict.ratio is None else significant(verdict.ratio, 4),
        interval(verdict.low, verdict.high),
        UNKNOWN if verdict.pairs is None else str(verdict.pairs),
        *(
            UNKNOWN if value is None else percent(value)
            for value in (verdict.delta, verdict.noise, verdict.detectable)
        ),
    )
    words = (plain(verdict.cell, CELL_LENGTH), plain(verdict.metric), verdict.word)
    return dict(zip(TITLES, (*words, *figures), strict=True))


def table(verdicts: Sequence[GateVerdict]) -> list[str]:
    """Aligned lines under their titles, without the figures that none has."""
    rows = [TITLES, *(tuple(cells(verdict).values()) for verdict in verdicts)]
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {UNKNOWN}]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            text.ljust(width) if place < LEFT else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]


def reasons(verdicts: Sequence[GateVerdict]) -> list[str]:
    """What is not a plain PASS, in words, with what to do; the same words of several metrics once."""
    said: dict[tuple[str, str, str | None, str | None], list[str]] = {}
    for verdict in verdicts:
        if verdict.word != "PASS" or verdict.advice:
            again = verdict.confirmation
            ends = "" if again is None else f" ({interval(math.exp(again.low), math.exp(again.high))})"
            key = (verdict.cell, verdict.reason + ends, verdict.advice, verdict.command)
            said.setdefault(key, []).append(verdict.metric)
    lines: list[str] = []
    for (cell, reason, advice, command), metrics in said.items():
        text = f"{plain(cell)} {plain(', '.join(metrics))}: {plain(reason, 400)}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="    ")
        if advice:
            lines += textwrap.wrap(f"    → {plain(advice)}", WIDTH, subsequent_indent="      ")
        if command:
            lines.append(f"      {command}")  # never wrapped: it is there to be pasted
    return lines


def interval(low: float | None, high: float | None) -> str:
    """``0.983–1.012``."""
    if low is None or high is None:
        return UNKNOWN
    return f"{significant(low, 4)}–{significant(high, 4)}"


def render(content: Mapping[str, Any], verdicts: Sequence[GateVerdict], output: str) -> str:
    """In a format of ``FORMATS``, newline included. json has every block; the others have the verdicts."""
    if output == "json":
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
    if output in ("jsonl", "csv"):
        rows = [_row(verdict) for verdict in content["verdicts"]]
        return show_output.render(rows, dict, output)
    lines = [headline(verdicts)]
    for name, variant in content["sides"].items():
        lines.append(f"{name}: {plain(variant['name'])}; {plain(variant['facts'].get('executable') or UNKNOWN)}")
    lines += [f"  {plain(note)}" for note in content["notes"]]
    if output == "md":
        lines += ["", *show_output.render([{"verdict": v} for v in verdicts], _cells, "md").splitlines()]
    else:
        lines += ["", *table(verdicts)]
    said = reasons(verdicts)
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
    return ["", said, *textwrap.wrap(LEGEND, WIDTH)]


def _cells(row: show_output.JsonRow) -> dict[str, str]:
    texts = cells(row["verdict"])
    return {title: text.replace("<", "&lt;") for title, text in texts.items()}


def _row(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict without the evidence, which only json has room for."""
    return {name: value for name, value in verdict.items() if name not in ("evidence", "confirmation")}
