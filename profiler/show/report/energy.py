"""How much energy? Joules and watts of each phase, if they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from profiler.show.columns import plain
from profiler.show.report import selection
from profiler.show.report.blocks import MAX_ROWS, Head, PageBlock, Section, Table, muted
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import UNKNOWN, significant

FIGURES = ("prefill_j", "decode_j")
OF_REQUESTS = ("request_j", "request_j_per_token", "request_w")  # of a server, prefill and decode together
Joules = Mapping[str, Any]


def section(machines: Sequence[MachineRows]) -> Section:
    """A table of the rows with energy figures, or the reasons why there are none."""
    found = [(machine, result, result.energy) for machine in machines for result in machine.ok if result.energy]
    known = [(machine, result, joules) for machine, result, joules in found if _any(joules)]
    if not known:
        return Section(
            "energy", "How much energy does it take?", (muted(f"No energy figures{_why(j for *_, j in found)}."),)
        )
    tables = _tables(known[:MAX_ROWS], len(machines) > 1)
    blocks = [*tables, muted(_meters(joules for *_, joules in known))]
    suspect = [selection.case(result) for _, result, joules in known if joules.get("suspect")]
    if suspect:
        blocks.append(
            muted(f"The energy counter and the measured power disagree for {selection.several(suspect, 4)}.")
        )
    if len(known) > MAX_ROWS:
        blocks.append(muted(f"Only {MAX_ROWS} cases are shown; profile runs show RUN -o json has all."))
    return Section("energy", "How much energy does it take?", tuple(blocks))


def _any(joules: Joules) -> bool:
    return any(joules.get(name) is not None for name in (*FIGURES, *OF_REQUESTS))


def _why(found: Iterable[Joules]) -> str:
    """The reasons in the rows, or what to do if energy was not requested."""
    reasons = dict.fromkeys(plain(joules["reason"], 200).rstrip(".") for joules in found if joules.get("reason"))
    return f": {selection.several(list(reasons), 3)}" if reasons else ". Add --energy to the sweep"


def _meters(found: Iterable[Joules]) -> str:
    known = dict.fromkeys((joules.get("source"), joules.get("scope")) for joules in found)
    texts = [" of ".join(plain(part, 60) for part in pair if part) for pair in known if any(pair)]
    by = f", measured by {selection.several(texts, 4)}" if texts else ""
    return f"Mean over the repetitions, including idle power{by}."


def _tables(known: Sequence[tuple[MachineRows, CaseResult, Joules]], several: bool) -> Iterator[PageBlock]:
    """A table of the rows whose phases were measured, and one of the rows of servers."""
    phases = ("prefill J", "decode J", "J per prompt token", "J per output token", "prefill W", "decode W")
    names = (*FIGURES, "prefill_j_per_token", "decode_j_per_token", "prefill_w", "decode_w")
    requests = ("J per request", "J per output token, prefill included", "W")
    for heads, fields in ((phases, names), (requests, OF_REQUESTS)):
        rows = tuple(
            (
                *((machine.title,) if several else ()),
                selection.case(result),
                *(UNKNOWN if joules.get(name) is None else significant(joules[name]) for name in fields),
            )
            for machine, result, joules in known
            if any(joules.get(name) is not None for name in fields)
        )
        if rows:
            machine = (Head("machine", right=False),) if several else ()
            yield Table((*machine, Head("case", right=False), *map(Head, heads)), rows)
