"""What was skipped, and what to be careful about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.reports.base.page import words
from profiler.reports.base.page.blocks import Block, Head, Listing, Section, Table, muted
from profiler.reports.base.page.side import Fact, Side
from profiler.reports.base.remarks import NOTE_LENGTH, Note
from profiler.reports.base.text import plain

MOST = 40  # reasons, and cautions
CASES = 4  # that a reason names
_FIGURES = re.compile(r"\d[\d.,]*(?: ?[KMG]?i?B\b)?")


def skipped(sides: Sequence[Side]) -> Section:
    """Cases without a result, by outcome and reason."""
    reasons: dict[tuple[str, str, str], list[Fact]] = {}
    for side in sides:
        where = side.title if len(sides) > 1 else ""
        for fact in side.facts:
            if not fact.ok:
                reason = plain(fact.reason or "no reason was recorded", NOTE_LENGTH)
                reasons.setdefault((where, fact.outcome, reason), []).append(fact)
    title = "What was not measured, and why?"
    if not reasons:
        return Section("skipped", title, (muted("Nothing: every case has a result."),))
    several = len(sides) > 1
    heads = ("machine", "outcome", "reason", "cases") if several else ("outcome", "reason", "cases")
    rows = tuple(
        (*((where,) if several else ()), outcome, reason, words.several([words.case(fact) for fact in facts], CASES))
        for (where, outcome, reason), facts in list(reasons.items())[:MOST]
    )
    blocks: list[Block] = [Table(tuple(Head(name, right=False) for name in heads), rows)]
    if len(reasons) > MOST:
        blocks.append(muted(f"{MOST} of {len(reasons):,} reasons are shown."))
    return Section("skipped", title, tuple(blocks))


def cautions(sides: Sequence[Side]) -> Section:
    """Everything not to take at face value, once, with the cases it is true of."""
    blocks: list[Block] = []
    for side in sides:
        where = f"{side.title}: " if len(sides) > 1 else ""
        found = _alike(side)
        items = tuple(f"{where}{_caution(each, side.ok)}" for each in found[:MOST])
        blocks += [Listing(items)] if items else []
        if len(found) > MOST:
            blocks.append(muted(f"{where}{MOST} of {len(found):,} cautions are shown."))
    return Section("cautions", "What should I be careful about?", tuple(blocks or [muted("Nothing was noted.")]))


@dataclass
class _Alike:
    """A note for cautions that differ in their figures only."""

    note: Note
    vary: bool = False


def _alike(side: Side) -> list[_Alike]:
    found: dict[tuple[str, str], _Alike] = {}
    for fact in side.ok:
        for caution in fact.cautions:
            text = plain(caution.text, NOTE_LENGTH)
            helps = plain(caution.help) if caution.help else None
            alike = found.setdefault((caution.code, _FIGURES.sub("0", text)), _Alike(Note(0, text, helps)))
            alike.vary |= text != alike.note.text
            alike.note.help = helps if helps == alike.note.help else None
            alike.note.cases.append(fact)
    return list(found.values())


def _caution(alike: _Alike, rows: Sequence[Fact]) -> str:
    note = alike.note
    helps = f"; try {note.help}" if note.help else ""
    return f"{note.text}{helps} ({'the figures vary: ' if alike.vary else ''}{note.named_cases(rows)})"
