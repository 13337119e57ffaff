"""Outside text on one line of a report."""

from __future__ import annotations

from profiler.results.redact import redact
from profiler.units import printable

LONGEST = 100_000  # characters of outside text that are looked at


def plain(text: object, limit: int = 200) -> str:
    """Outside text on one line, without control characters and secrets."""
    clean = printable(" ".join(str(text).split()), LONGEST)  # before redact: a control character may hide a token
    return printable(redact(clean), limit)
