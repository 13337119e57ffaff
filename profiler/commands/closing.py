"""What is said on stderr before and after a sweep: how long it will take, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.commands import dry_run
from profiler.plan.order import Plan
from profiler.plan.refusal import Refusal
from profiler.results.measurement import Measurement
from profiler.units import printable

LONG_S = 600.0  # from here on a person should have been told before waiting
REASON_LENGTH = 300


def warning(plan: Plan, budget_s: float | None) -> str | None:
    """That a sweep without a budget will take long, and what to do about it."""
    if budget_s is not None or plan.seconds <= LONG_S:
        return None
    return f"{dry_run.summary(plan)}. --budget 30m picks what fits; --dry-run shows the plan"


def ending(rows: Sequence[Measurement], total: int, interrupted: bool, resumed: bool) -> str | None:
    """That a sweep of ``total`` cases was interrupted, or measured nothing at all; None if it did what was asked."""
    measured = sum(row.outcome != "skipped" for row in rows)
    if interrupted:
        again = "the same command goes on where it stopped" if resumed else "without --fresh, it goes on from there"
        return f"stopped: {measured} of {total} {'case' if total == 1 else 'cases'} measured; {again}"
    if measured or not rows:
        return None
    return f"nothing measured: {printable(rows[0].case.label)}: {printable(rows[0].reason, REASON_LENGTH)}"


def refused(models: Sequence[Refusal]) -> str | None:
    """That models of the list have no rows: said again below the table, where it is not scrolled away."""
    if not models:
        return None
    names = ", ".join(printable(each.name, 80) for each in models)
    return f"no rows for {names}: refused, as said above"
