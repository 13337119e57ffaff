"""Outside text on one line of a report."""

from __future__ import annotations

from functools import lru_cache

from profiler.results.redact import redact
from profiler.units import printable

LONGEST = 100_000  # characters of outside text that are looked at


def plain(text: object, limit: int = 200) -> str:
    """Outside text on one line, without control characters and secrets."""
    return _plain(str(text), limit)


@lru_cache(maxsize=4096)  # thousands of rows share a few names, and looking for secrets takes long
def _plain(text: str, limit: int) -> str:
    clean = printable(" ".join(text.split()), LONGEST)  # before redact: a control character may hide a token
    return printable(redact(clean), limit)
