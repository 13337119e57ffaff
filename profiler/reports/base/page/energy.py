"""How much energy? Joules and watts of each phase, where a meter gave some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from profiler.reports.base.page import words
from profiler.reports.base.page.blocks import Block, Head, Section, Table, muted
from profiler.reports.base.page.side import Fact, Side
from profiler.reports.base.text import plain
from profiler.units import UNKNOWN, significant

MOST_ROWS = 60
FIGURES = ("prefill_j", "decode_j")
Joules = Mapping[str, Any]


def section(sides: Sequence[Side]) -> Section:
    """A table of the rows that have energy; else the reasons why none has."""
    found = [(side, fact, fact.energy) for side in sides for fact in side.ok]
    known = [(side, fact, joules) for side, fact, joules in found if joules and _any(joules)]
    if not known:
        return Section(
            "energy", "How much energy does it take?", (muted(f"No energy: {_why(j for *_, j in found)}."),)
        )
    blocks = [_table(known[:MOST_ROWS], len(sides) > 1), muted(_meters(joules for *_, joules in known))]
    suspect = [words.case(fact) for _, fact, joules in known if joules.get("suspect")]
    if suspect:
        blocks.append(muted(f"Two meters disagree, so take it with care: {words.several(suspect, 4)}."))
    if len(known) > MOST_ROWS:
        blocks.append(muted(f"{MOST_ROWS} cases are shown; profile runs show RUN -o json has all."))
    return Section("energy", "How much energy does it take?", tuple(blocks))


def _any(joules: Joules) -> bool:
    return any(joules.get(name) is not None for name in FIGURES)


def _why(found: Iterable[Joules | None]) -> str:
    """The reasons that rows give; else that nothing was metered."""
    reasons = dict.fromkeys(
        plain(joules["reason"], 200).rstrip(".") for joules in found if joules and joules.get("reason")
    )
    return words.several(list(reasons), 3) if reasons else "nobody asked for it; profile sweep --energy measures it"


def _meters(found: Iterable[Joules]) -> str:
    known = dict.fromkeys((joules.get("source"), joules.get("scope")) for joules in found)
    texts = [" of ".join(plain(part, 60) for part in pair if part) for pair in known if any(pair)]
    by = f", by {words.several(texts, 4)}" if texts else ""
    return f"Mean of the repetitions, what the device takes when idle included{by}."


def _table(known: Sequence[tuple[Side, Fact, Joules]], several: bool) -> Block:
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("case", right=False),
        *map(Head, ("prefill J", "decode J", "J per prompt token", "J per output token", "prefill W", "decode W")),
    )
    names = (*FIGURES, "prefill_j_per_token", "decode_j_per_token", "prefill_w", "decode_w")
    rows = tuple(
        (
            *((side.title,) if several else ()),
            words.case(fact),
            *(UNKNOWN if joules.get(name) is None else significant(joules[name]) for name in names),
        )
        for side, fact, joules in known
    )
    return Table(columns, rows)
