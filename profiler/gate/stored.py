"""Times against a stored baseline, and what that can and cannot say.

A stored time was taken at another hour, by other processes. Between such sessions one unchanged program differs by
more than any interval of either shows, so this rule is far blunter than pairs measured side by side:

    FAIL          the lower t bound of now ÷ baseline is above τ
    PASS          the upper t bound is below 1 + δ
    inconclusive  anything between: measure both sides, by ``profile gate``

τ comes from at least ten accepted sessions of the same machine: the larger of 1 + δ and (Q3 + 3 IQR) ÷ median of
their medians, Tukey's far-out fence. With fewer, nobody knows how much sessions differ, and τ is 1.5. Another
machine, driver, library or setting is incomparable, and so is another number of threads.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from profiler.gate import reference
from profiler.gate.advice import SETTLE, FrontEnd
from profiler.gate.baseline import Entry
from profiler.gate.pairs import Rule
from profiler.gate.state import percent
from profiler.gate.verdict import Verdict
from profiler.results import student
from profiler.results.difference import differences
from profiler.results.stats import percentile
from profiler.shell import Command

ENOUGH = 10  # sessions whose quartiles say something
FEW = 0.5  # slowdown that one session can show: CPU time of one program differed by 8 % (sd) between processes on a
# machine under full load, and 3 IQR of that are a third


def threshold(entry: Entry, metric: str, rule: Rule) -> float:
    """τ − 1: the slowdown from which a stored time says FAIL."""
    medians = sorted(
        statistics.median(session.blocks[metric]) for session in entry.sessions if metric in session.blocks
    )
    if len(medians) < ENOUGH:
        return max(rule.delta, FEW)
    first, third = percentile(medians, 0.25), percentile(medians, 0.75)
    return max(rule.delta, (third + 3 * (third - first)) / statistics.median(medians) - 1)


@dataclass(frozen=True, slots=True)
class Now:
    """What was measured of one metric."""

    blocks: Sequence[float]  # median seconds of each
    clock: str
    environment: Mapping[str, object]
    threads: int | None
    reference_s: float | None


def verdict(cell: str, metric: str, entry: Entry, now: Now, rule: Rule, front: FrontEnd, settle: Command) -> Verdict:
    """Of one metric against what is stored of it; ``settle`` is the gate of two sides to send people to."""
    name, changed = f"{metric}_{now.clock}_s", differences(entry.environment, now.environment)
    if now.threads != entry.threads:
        changed.append(f"threads {entry.threads} → {now.threads}")
    if changed:
        reason = f"not the machine of the baseline: {'; '.join(changed[:4])}"
        return Verdict(cell, name, "INCOMPARABLE", reason, SETTLE, str(settle))
    history = [s for s in entry.sessions if s.clock == now.clock and len(s.blocks.get(metric, ())) > 1]
    if not history:
        return Verdict(cell, name, "INCOMPARABLE", "the baseline has no such times", front.if_meant)
    if len(now.blocks) < 2:
        return Verdict(cell, name, "INCONCLUSIVE", "too few blocks without work from outside", "free the machine")
    before = statistics.median(statistics.median(session.blocks[metric]) for session in history)
    mean, low, high = (math.exp(value) for value in _bounds([math.log(t / before) for t in now.blocks], rule.alpha))
    tau = threshold(entry, metric, rule)
    slower = reference.slower(history[-1].reference_s, now.reference_s)
    found = Verdict(
        cell, name, "INCONCLUSIVE", f"a stored time tells slowdowns from {percent(tau)} here", SETTLE, str(settle),
        ratio=mean, low=low, high=high, delta=rule.delta, detectable=tau, before=before,
        now=statistics.median(now.blocks),
    )  # fmt: skip
    if high < 1 + rule.delta:
        reason = f"not slower by {percent(rule.delta)} than when it was stored"
        return replace(found, word="PASS", reason=reason, advice=None, command=None)
    if slower is not None:
        reason = f"the machine itself does fixed work {percent(slower)} slower than when it was stored"
        return replace(found, reason=reason)
    if low > 1 + tau:
        sessions = f"{len(history)} stored session{'s' * (len(history) > 1)}"
        reason = f"slower than {sessions} by more than {percent(tau)}"
        return replace(found, word="FAIL", reason=reason, advice=f"to be sure, {SETTLE}")
    return found


def _bounds(logs: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Mean and one-sided t bounds."""
    mean, sd = math.fsum(logs) / len(logs), statistics.stdev(logs)
    half = student.quantile(1 - alpha, len(logs) - 1) * sd / math.sqrt(len(logs)) if sd else 0.0
    return mean, mean - half, mean + half
