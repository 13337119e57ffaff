"""Short words and figures that several sections share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from profiler.reports.base.cells import figure
from profiler.reports.base.page.side import Fact
from profiler.results.stats import Summary
from profiler.units import KIB, UNKNOWN

LIMITS: dict[object, tuple[str, str]] = {  # what holds a case back: in a cell, and in a sentence
    "bandwidth": ("reads", "reading weights and cache"),
    "compute": ("computes", "arithmetic"),
    "launches": ("launches", "starting operators one after the other"),
    "experts": ("experts", "reading experts"),
    "memory": ("memory", "memory"),
    "host memory": ("host", "reading weights from the host's memory"),
}


def tokens(count: int) -> str:
    """``128``, ``32k``."""
    return f"{count // KIB}k" if count >= KIB and count % KIB == 0 else f"{count:,}"


def rate(summary: Summary | None) -> str:
    """The median rate with the digits that its interval supports."""
    return UNKNOWN if summary is None else figure(summary.median, summary.relative_half)


def ranged(summary: Summary | None) -> str:
    """``14.2 (13.8–14.7)``: with its 95 % interval, where it has one."""
    if summary is None:
        return UNKNOWN
    if summary.low is None or summary.high is None:
        return f"{rate(summary)} (measured once)"
    ends = (figure(end, summary.relative_half) for end in (summary.low, summary.high))
    return f"{rate(summary)} ({'–'.join(ends)})"


def case(fact: Fact) -> str:
    """``gemma-4-e2b nf4 c=4096 b=1``, as everywhere; with what else tells it from others."""
    return f"{fact.model} {fact.series} c={fact.case.context} b={fact.case.batch}"


def joined(parts: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *some, last = parts
    return f"{', '.join(some)} and {last}" if some else last


def several(names: Sequence[str], most: int) -> str:
    """At most ``most`` of them, and how many more there are."""
    more = len(names) - most
    return joined(names) if more <= 0 else f"{', '.join(names[:most])} and {more:,} more"
