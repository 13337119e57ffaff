"""The output of ``profile gate``: the verdict, a line for each metric of each case, advice, and what was compared."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from profiler import console, files
from profiler.gate.rule import GateVerdict, nats, worst
from profiler.gate.trial import percent
from profiler.show import output as show_output
from profiler.show.columns import plain
from profiler.units import UNKNOWN, significant

WIDTH = 118  # of text, unless the terminal is narrower
DROPPED = ("s", "pairs", "δ", "MDE", "limit")  # by a terminal that is too narrow, the first first
KIND_LENGTH = 20
CASE_LENGTH = 90  # characters: the id of a test holds its folder, file and parameters
TITLES = ("case", "metric", "verdict", "ratio", "interval", "pairs", "δ", "s", "MDE", "KL, nats", "limit", "most in")
LEFT = 3  # text columns, left-aligned, before the numeric ones

FORMATS = show_output.FORMATS
LEGEND = (
    "Ratios are candidate ÷ base, so above 1 is worse. Intervals are one-sided t bounds at a third of 5%, as the"
    " decision uses them. s: standard deviation between pairs of identical versions. MDE: minimum detectable effect,"
    " the slowdown that nine of ten such gates find. FAIL: beyond noise, mean and median at least δ, most pairs"
    " slower, and confirmed in new processes."
)
STORED_LEGEND = (
    "Ratios are new ÷ baseline, so above 1 is worse. δ: the slowdown that counts as a regression. MDE: minimum"
    " detectable effect, the smallest slowdown that stored times can show."
)


def _width() -> int:
    return min(WIDTH, console.width() or WIDTH)


def headline(verdicts: Sequence[GateVerdict]) -> str:
    """``FAIL: 1 FAIL, 6 PASS``."""
    counted = {word: sum(v.word == word for v in verdicts) for word in dict.fromkeys(v.word for v in verdicts)}
    words = ", ".join(f"{count} {word}" for word, count in counted.items())
    return f"{worst(verdicts)}: {words or 'nothing was measured'}"


def cells(verdict: GateVerdict) -> dict[str, str]:
    """The cells of the table row of one verdict."""
    figures = (
        UNKNOWN if verdict.ratio is None else significant(verdict.ratio, 4),
        interval(verdict.low, verdict.high),
        UNKNOWN if verdict.pairs is None else str(verdict.pairs),
        *(
            UNKNOWN if value is None else percent(value)
            for value in (verdict.delta, verdict.noise, verdict.detectable)
        ),
        UNKNOWN if verdict.kl is None else nats(verdict.kl),
        UNKNOWN if verdict.kl_limit is None else nats(verdict.kl_limit),
        worst_text(verdict),
    )
    words = (plain(verdict.case, CASE_LENGTH), plain(verdict.metric), verdict.word)
    return dict(zip(TITLES, (*words, *figures), strict=True))


def worst_text(verdict: GateVerdict) -> str:
    """``html 0.00043``: the kind of text with the largest divergence, if there is any."""
    kind, value = next(iter((verdict.kinds or {}).items()), ("", 0.0))
    return f"{plain(kind, KIND_LENGTH)} {nats(value)}" if value else UNKNOWN


def table(verdicts: Sequence[GateVerdict]) -> list[str]:
    """Aligned lines that fit the terminal, under their titles, without columns that are empty in every line."""
    rows = [TITLES, *(tuple(cells(verdict).values()) for verdict in verdicts)]
    found = {title: cells for title, *cells in zip(*rows, strict=True) if set(cells) != {UNKNOWN}}
    columns = [(title, *cells) for title, cells in show_output.fitted(found, console.width(), DROPPED).items()]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            text.ljust(width) if place < LEFT else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]


def reasons(verdicts: Sequence[GateVerdict]) -> list[str]:
    """Reason and advice for everything but a plain PASS; metrics with the same reason share a line."""
    said: dict[tuple[str, str, str | None, str | None], list[str]] = {}
    for verdict in verdicts:
        if verdict.word != "PASS" or verdict.advice:
            again = verdict.confirmation
            ends = "" if again is None else f" ({interval(math.exp(again.low), math.exp(again.high))})"
            key = (verdict.case, verdict.reason + ends, verdict.advice, verdict.command)
            said.setdefault(key, []).append(verdict.metric)
    lines: list[str] = []
    for (case, reason, advice, command), metrics in said.items():
        text = f"{plain(case)} {plain(', '.join(metrics))}: {plain(reason, 400)}"
        lines += textwrap.wrap(text, _width(), subsequent_indent="    ")
        if advice:
            lines += textwrap.wrap(f"    → {plain(advice)}", _width(), subsequent_indent="      ")
        if command:
            lines.append(f"      {command}")  # not wrapped, so that it can be pasted
    return lines


def undecided(what: str, option: str) -> str:
    """The warning of a ``what`` whose INCONCLUSIVE is no failure."""
    return (
        "warning: some times are too noisy for a decision. That does not fail the"
        f" {what}; to make it fail, add {option}"
    )


def interval(low: float | None, high: float | None) -> str:
    """``0.983–1.012``."""
    if low is None or high is None:
        return UNKNOWN
    return f"{significant(low, 4)}–{significant(high, 4)}"


def render(content: Mapping[str, Any], verdicts: Sequence[GateVerdict], output: str) -> str:
    """Render in a format of ``FORMATS``. json has every block; the other formats have the verdicts."""
    if output == "json":
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
    if output in ("jsonl", "csv"):
        rows = [_row(verdict) for verdict in content["verdicts"]]
        return show_output.render(rows, dict, output)
    lines = [headline(verdicts)]
    for name, variant in content["sides"].items():
        where = f" of {plain(variant['repository'])}" if variant.get("repository") else ""
        lines.append(
            f"{name}: {plain(variant['name'])}{where}; {plain(variant['facts'].get('executable') or UNKNOWN)}"
        )
    lines += [f"  {plain(note)}" for note in content["notes"]]
    if output == "md":
        lines += ["", *show_output.render([{"verdict": v} for v in verdicts], _cells, "md").splitlines()]
    else:
        lines += ["", *table(verdicts)]
    said = reasons(verdicts)
    lines += ["", *said] if said else []
    return "\n".join([*lines, *_legend(content, verdicts)]) + "\n"


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write the whole gate to a file. Raises ProfileError."""
    files.write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _legend(content: Mapping[str, Any], verdicts: Sequence[GateVerdict]) -> list[str]:
    """How much was measured, and what the figures mean; empty if nothing was timed."""
    if not content["blocks"]:
        timed = any(verdict.detectable is not None for verdict in verdicts)
        return ["", *textwrap.wrap(STORED_LEGEND, _width())] if timed else []
    disturbed = sum(1 for block in content["blocks"] if block["invalid"]) // 2
    said = (
        f"{len(content['blocks'])} measurements of {content['effort']['reps']} repetitions, {content['clock']} time,"
    )
    said += f" seed {content['seed']}" + (f"; {disturbed} pairs did not count" if disturbed else "")
    return ["", said, *textwrap.wrap(LEGEND, _width())]


def _cells(row: show_output.JsonRow) -> dict[str, str]:
    texts = cells(row["verdict"])
    return {title: text.replace("<", "&lt;") for title, text in texts.items()}


def _row(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict without its evidence, which is too long for a row."""
    return {name: value for name, value in verdict.items() if name not in ("evidence", "confirmation")}
