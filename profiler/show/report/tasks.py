"""Which tasks do the models of servers solve? The pass rates of ``--tasks`` of ``profile endpoint``, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from profiler.results import tasks
from profiler.run.tasks import NAME
from profiler.show.columns import plain
from profiler.show.report.blocks import MAX_ROWS, Head, Listing, PageBlock, Section, Table, muted
from profiler.show.report.selection import CaseResult, MachineRows

Scores = dict[str, tasks.TaskScore]  # by kind, and of "all"


def sections(machines: Sequence[MachineRows]) -> tuple[Section, ...]:
    """One section, or none without rows of tasks. A set of tasks has a table, since no two sets compare."""
    sets: dict[tuple[str, str], list[tuple[CaseResult, Mapping[str, Any]]]] = {}
    for machine in machines:
        for result in machine.results:
            if result.case.prompt == NAME and (stored := (result.measurement.serving or {}).get("tasks")):
                sets.setdefault((str(stored.get("set")), stored["hash"]), []).append((result, stored))
    if not sets:
        return ()
    said = (
        "Pass rate and its 95% interval (Wilson). Answers that were cut at the limit of tokens count as not passed."
        " Two models are compared by the tasks that only one of them passed (McNemar's exact test, with Holm's"
        " correction for several pairs). Models that it does not tell apart are not ranked by these tasks."
    )
    blocks = [block for (name, _), found in sets.items() for block in _blocks(plain(name, 40), found[:MAX_ROWS])]
    return (Section("tasks", "Which tasks do the models solve?", (*blocks, muted(said))),)


def _blocks(name: str, found: Sequence[tuple[CaseResult, Mapping[str, Any]]]) -> Iterator[PageBlock]:
    """The table of a set, what failed requests do to its rates, and which models differ."""
    scores = [{"all": tasks.score(stored["outcome"]), **tasks.by_kind(stored)} for _, stored in found]
    yield _table(name, [result for result, _ in found], scores)
    models = Counter(result.model for result, _ in found)
    titles = [each.model if models[each.model] == 1 else f"{each.model} {each.group.settings}" for each, _ in found]
    cautions = (tasks.biased(title, each["all"]) for title, each in zip(titles, scores, strict=True))
    lines = [caution for caution in cautions if caution is not None]
    lines += tasks.pair_lines(tasks.pairs(list(zip(titles, (stored for _, stored in found), strict=True))))
    if lines:
        yield Listing(tuple(lines))


def _table(name: str, found: Sequence[CaseResult], scores: Sequence[Scores]) -> Table:
    kinds = list(dict.fromkeys(kind for each in scores for kind in each))
    heads = ("model", "setting", "passed", *map(plain, kinds), "cut", "failed")
    rows = tuple(
        (
            result.model,
            result.group.settings,
            f"{each['all'].passed} of {each['all'].answered}",
            *(tasks.rate_text(each.get(kind)) for kind in kinds),
            str(each["all"].cut),
            str(each["all"].failed),
        )
        for result, each in zip(found, scores, strict=True)
    )
    count = max(each["all"].answered + each["all"].failed for each in scores)
    columns = tuple(Head(head, right=head not in ("model", "setting")) for head in heads)
    keys = tuple(result.keys for result in found)
    return Table(columns, rows, f"{name}: {count} tasks with exact checkers", keys)
