"""Which decode step really ran: times and bytes of two different ones say nothing about a change.

A side may fall back, from the captured step to transformers as shipped or from our loops to plain torch, for want of
a compiler, memory or disk space, or because its code does not know the model.
"""

from __future__ import annotations

from collections.abc import Iterable

from profiler.results.measurement import Measurement
from profiler.units import printable

ADVICE = "mend what made it fall back, or compare transformers as shipped: --path eager"
PLAIN = " on plain torch"
FIGURES = ("cache_bytes", "decode_allocated_bytes", "process_peak_bytes")  # they depend on the step


def of(row: Measurement) -> str:
    """``static``, ``eager``, ``static on plain torch``. A row that says nothing ran what was asked for."""
    found = row.decode_path
    return row.case.path if found is None else found.ran + PLAIN * found.on_plain_torch


def why(row: Measurement) -> str:
    """The step with the reason why it is not the one that was asked for, where there is one."""
    found = row.decode_path
    reason = found and (found.reason or (found.kernels if found.on_plain_torch else None))
    return f"{of(row)} ({printable(reason, 200)})" if reason else of(row)


def difference(base: Measurement, candidate: Measurement) -> str | None:
    """In words, that the rows of two sides ran different steps; ``None`` if they ran the same one."""
    if of(base) == of(candidate):
        return None
    return f"different decode steps ran: the base {why(base)}, the candidate {why(candidate)}"


def unlike_baseline(before: str | None, rows: Iterable[Measurement]) -> str | None:
    """The same against the step of a stored baseline. ``before`` is ``None`` in files from before it was stored."""
    ran = {of(row): row for row in rows if row.outcome == "ok"}
    if len(ran) > 1:
        return f"different decode steps ran in its processes: {', '.join(map(why, ran.values()))}"
    if before is None or not ran or before in ran:
        return None
    return f"different decode steps ran: {printable(before)} in the baseline, {why(*ran.values())} now"


def fallback(row: Measurement) -> str | None:
    """That a case ran another step than was asked for, in one line, or ``None``."""
    return None if of(row) == row.case.path else f"{row.case.label}: --path {row.case.path} ran {why(row)}"
