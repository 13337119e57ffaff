"""Verdicts as text for people: a line for each, then in words what is not a plain PASS and what to do."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from profiler.gate.state import percent
from profiler.gate.verdict import Verdict, worst
from profiler.reports.base import plain
from profiler.units import UNKNOWN, significant

WIDTH = 118
CELL_LENGTH = 90  # characters: the id of a test holds its folder, its file and its parameters
TITLES = ("cell", "metric", "verdict", "ratio", "interval", "pairs", "δ", "s", "MDE")
LEFT = 3  # columns of words, before those of figures


def headline(verdicts: Sequence[Verdict]) -> str:
    """``FAIL: 1 FAIL, 6 PASS``."""
    counted = {word: sum(v.word == word for v in verdicts) for word in dict.fromkeys(v.word for v in verdicts)}
    words = ", ".join(f"{count} {word}" for word, count in counted.items())
    return f"{worst(verdicts)}: {words or 'nothing was measured'}"


def cells(verdict: Verdict) -> dict[str, str]:
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


def table(verdicts: Sequence[Verdict]) -> list[str]:
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


def reasons(verdicts: Sequence[Verdict]) -> list[str]:
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
