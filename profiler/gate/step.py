"""What a gate makes of sides that ran different decode steps (``results.decoded``)."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.results import decoded
from profiler.results.measurement import Measurement
from profiler.units import printable

ADVICE = "mend what made it fall back, or compare transformers as shipped: --path eager"
FIGURES = ("cache_bytes", "decode_allocated_bytes", "process_peak_bytes")  # they depend on the step


def difference(base: Measurement, candidate: Measurement) -> str | None:
    """In words, that the rows of two sides ran different steps; ``None`` if they ran the same one."""
    return decoded.difference(base, candidate, ("the base", "the candidate"))


def unlike_baseline(before: str | None, rows: Iterable[Measurement]) -> str | None:
    """The same against the step of a stored baseline. ``before`` is ``None`` in files from before it was stored."""
    ran = {decoded.step(row): row for row in rows if row.outcome == "ok"}
    if len(ran) > 1:
        return f"different decode steps ran in its processes: {', '.join(map(decoded.in_words, ran.values()))}"
    if before is None or not ran or before in ran:
        return None
    return f"different decode steps ran: {printable(before)} in the baseline, {decoded.in_words(*ran.values())} now"


def fallback(row: Measurement) -> str | None:
    """That a case ran another step than was asked for, in one line, or ``None``."""
    if decoded.step(row) == row.case.path:
        return None
    return f"{row.case.label}: --path {row.case.path} ran {decoded.in_words(row)}"
