"""Which tasks do the models of servers solve? The pass rates of ``--tasks`` of ``profile endpoint``, by kind."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.results import tasks
from profiler.run.tasks import NAME
from profiler.show.columns import plain
from profiler.show.report.blocks import MAX_ROWS, Head, Section, Table, muted
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import UNKNOWN


def sections(machines: Sequence[MachineRows]) -> tuple[Section, ...]:
    """One section, or none without rows of tasks. A set of tasks has a table, since no two sets compare."""
    sets: dict[tuple[str, str], list[tuple[CaseResult, dict[str, tasks.TaskScore]]]] = {}
    for machine in machines:
        for result in machine.results:
            if result.case.prompt == NAME and (stored := (result.measurement.serving or {}).get("tasks")):
                scores = {"all": tasks.score(stored["outcome"]), **tasks.by_kind(stored)}
                sets.setdefault((str(stored.get("set")), stored["hash"]), []).append((result, scores))
    if not sets:
        return ()
    tables = [_table(plain(name, 40), found) for (name, _), found in sets.items()]
    said = (
        "Pass rate and its 95% interval (Wilson). Answers that were cut at the limit of tokens count as not passed."
        " Models whose intervals overlap are not ranked by these tasks."
    )
    return (Section("tasks", "Which tasks do the models solve?", (*tables, muted(said))),)


def _table(name: str, found: Sequence[tuple[CaseResult, dict[str, tasks.TaskScore]]]) -> Table:
    kinds = list(dict.fromkeys(kind for _, scores in found for kind in scores))
    heads = ("model", "setting", *map(plain, kinds), "cut")
    rows = tuple(
        (
            result.model,
            result.group.settings,
            *(tasks.rate_text(scores.get(kind)) if kind in scores else UNKNOWN for kind in kinds),
            str(scores["all"].cut),
        )
        for result, scores in found[:MAX_ROWS]
    )
    keys = tuple(result.keys for result, _ in found[:MAX_ROWS])
    count = max(scores["all"].answered for _, scores in found)
    columns = tuple(Head(head, right=head not in ("model", "setting")) for head in heads)
    return Table(columns, rows, f"{name}: {count} tasks with exact checkers", keys)
