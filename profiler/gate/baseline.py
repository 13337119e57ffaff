"""A stored baseline: what its cases gave when a person accepted it, and times compared with it.

It changes by ``--accept`` and by nothing else.

One JSON file, written whole beside the old one, flushed to disk and put in its place: whatever happens, there is a
whole file. Of a cell it keeps the case, the figures that must not vary, the machine, and the times of each accepted
session.

A stored time was taken at another hour, by other processes. Between such sessions one unchanged program differs by
more than any interval of either shows, so this rule is far blunter than pairs measured side by side:

    FAIL          the lower t bound of now ÷ baseline is above τ
    PASS          the upper t bound is below 1 + δ
    inconclusive  anything between: measure both sides, by ``profile gate``

τ comes from at least ten accepted sessions of the same machine: the larger of 1 + δ and (Q3 + 3 IQR) ÷ median of
their medians, Tukey's far-out fence. With fewer, nobody knows how much sessions differ, and τ is 1.5. Another
machine, driver, library or setting is incomparable, and so is another number of threads.

**The reference** is a fixed piece of work that depends on this machine and on nothing that is gated. Rescaling a
model's time by such work would put one wrong number in place of another, since no small program slows down as a model
does. It is only asked whether the machine itself is slower than when the baseline was stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiler import backends, files
from profiler.case import Case, Task
from profiler.decode_path import EAGER
from profiler.errors import NotFound, ProfileError
from profiler.foreign import BadContent, Budget, json_value, read_bytes
from profiler.gate.bench import threads_of
from profiler.gate.rule import BOUNDS, GateVerdict, RegressionRule
from profiler.gate.trial import percent
from profiler.results import stats
from profiler.results.environment import differences
from profiler.results.measurement import Measurement
from profiler.results.stats import percentile
from profiler.results.validity import check, check_part
from profiler.shell import Command, command
from profiler.units import MAX_BYTES as MOST_BYTES
from profiler.units import printable

SETTLE = "measure both sides in turns, where REV is a revision, an environment or a command to compare with"

FORMAT = "llm-hwprofile baseline"
SCHEMA = 1
BUDGET = Budget(nbytes=64 * 1024**2, values=2**22)  # thousands of cells with all their sessions
SHORTEST_S, LONGEST_S = 1e-9, 1e9  # of a block: quotients of such times, and their logarithms, stay finite
MOST_SESSIONS = 30  # the oldest go: what a machine did long ago says little of what it does now

SLOWER = 0.15  # what two runs of the work on one idle machine never differ by, as the best of several
SIZE = 4 * 1024**2  # bytes: beyond the caches that one core has to itself
TIMES = 5

ENOUGH = 10  # sessions whose quartiles say something
FEW = 0.5  # slowdown that one session can show: CPU time of one program differed by 8 % (sd) between processes on a


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """One of the two ways to a stored baseline."""

    accept: str  # the option that writes what is measured now

    @property
    def if_meant(self) -> str:
        """What to do about a change that is no mistake."""
        return f"if it is meant: add {self.accept}"


COMMAND = FrontEnd("--accept")

PYTEST = FrontEnd("--profile-gate-accept")


def settle(task: Task) -> Command:
    """The gate of two sides that settles what a stored time cannot. REV is for a person to fill in."""
    case, source = task.case, task.source
    model = case.model if source.kind == "catalog" else source.argument()
    sizes = ("-c", str(case.context), "-b", str(case.batch), "-n", str(case.steps))
    options = {
        "--device": (case.device, None),
        "--backend": (case.backend, backends.DEFAULT),
        "--path": (case.path, EAGER),
        "--fill": (case.fill, "prefill"),
        "--weights": (case.weights, "synthetic" if source.kind == "catalog" else "real"),
        "--threads": (case.threads, threads_of(case.device, None)),
    }
    others = {name: str(value) for name, (value, usual) in options.items() if value not in (None, usual)}
    return command(
        ("profile", "gate", "--base", "REV", "-m", model, "-q", case.quant),
        sizes,
        *others.items(),
        REV="a revision, an environment or a command",
    )


@dataclass(frozen=True, slots=True)
class BaselineSession:
    """The times of one accepted measurement."""

    at: str  # UTC, ISO 8601
    clock: str  # cpu | wall
    blocks: Mapping[str, tuple[float, ...]]  # metric → median seconds of each block
    reference_s: float | None = None  # of the fixed work of ``reference``


@dataclass(frozen=True, slots=True)
class BaselineEntry:
    """One cell."""

    case: Case
    facts: Mapping[str, int]
    environment: Mapping[str, Any]
    threads: int | None
    sessions: tuple[BaselineSession, ...]
    step: str | None = None  # the decode step that ran; None in files from before it was stored


@dataclass(frozen=True, slots=True)
class Baseline:
    """The cells of a file, by name: a case's label and key, or a test's id."""

    cells: Mapping[str, BaselineEntry]

    def accepted(self, entries: Mapping[str, BaselineEntry], same: Mapping[str, bool]) -> Baseline:
        """With ``entries`` in place of their namesakes. Sessions add up where ``same`` says that only time
        differs.
        """
        cells = dict(self.cells)
        for name, entry in entries.items():
            if same.get(name) and name in cells:
                sessions = (*cells[name].sessions, *entry.sessions)[-MOST_SESSIONS:]
                entry = replace(entry, sessions=sessions)
            cells[name] = entry
        return Baseline(cells)


def read(path: Path, front: FrontEnd = COMMAND) -> Baseline:
    """The baseline in a file. Raises ProfileError for one that is not there, or not whole, or of a newer version."""
    try:
        content = read_bytes(path, BUDGET.nbytes)
    except NotFound:
        raise ProfileError(
            f"there is no baseline {printable(path)}", f"To make one of what is measured now, add {front.accept}."
        ) from None
    try:
        return _parsed(json_value(content, BUDGET))
    except ProfileError as error:
        raise ProfileError(f"{printable(path)} cannot be used as a baseline: {error.message}", error.hint) from None
    except BadContent as error:
        raise _wrong(path, f"it is not JSON: {printable(error)}", front) from None
    except KeyError as error:
        raise _wrong(path, f"it has no {printable(error)}", front) from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _wrong(path, printable(error), front) from None


def write(path: Path, baseline: Baseline) -> None:
    """Put the file in place whole and for good. Raises ProfileError; the old file is then as it was."""
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cells": {name: asdict(entry) for name, entry in sorted(baseline.cells.items())},
    }
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=True) + "\n"
    files.write(path, text)


def _parsed(content: Any) -> Baseline:
    if content["format"] != FORMAT:
        raise ValueError("it is no baseline")
    if type(content["schema"]) is not int or content["schema"] > SCHEMA:
        raise ProfileError("a newer version of profile wrote it", "Update profile, or name another file.")
    return Baseline({str(name): _entry(entry) for name, entry in content["cells"].items()})


def _entry(content: Mapping[str, Any]) -> BaselineEntry:
    facts = {name: value for name, value in content["facts"].items() if name in BOUNDS}
    if not all(type(value) is int and 0 <= value <= MOST_BYTES for value in facts.values()):
        raise ValueError("a figure is no number of bytes or tokens")
    check(Case, content["case"], "case")
    check(Measurement, {"threads": content["threads"]})
    check_part("environment", content["environment"])
    if not isinstance(ran := content.get("step"), str | None):
        raise ValueError("its decode step is no text")
    return BaselineEntry(
        case=Case.from_row(content["case"]),
        facts=facts,
        environment=content["environment"],
        threads=content["threads"],
        sessions=tuple(_session(session) for session in content["sessions"]),
        step=ran,
    )


def _session(content: Mapping[str, Any]) -> BaselineSession:
    blocks = {metric: tuple(_times(values)) for metric, values in content["blocks"].items()}
    reference = content["reference_s"]
    return BaselineSession(
        str(content["at"]), str(content["clock"]), blocks, None if reference is None else next(_times([reference]))
    )


def _times(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        if type(value) not in (int, float) or not SHORTEST_S <= value <= LONGEST_S:
            raise ValueError("a time is no number of seconds")
        yield float(value)


def _wrong(path: Path, why: str, front: FrontEnd) -> ProfileError:
    hint = f"Take it from version control; or delete it, and add {front.accept} to make one of what is measured now."
    return ProfileError(f"{printable(path)} cannot be used as a baseline: {printable(why)}", hint)


def reference_seconds() -> float:
    """CPU seconds of hashing and copying a few megabytes, the best of several."""
    block = bytes(range(256)) * (SIZE // 256)
    found = []
    for _ in range(TIMES):
        start = time.process_time()
        hashlib.sha256(block).digest()
        for _ in range(4):
            bytearray(block)
        found.append(time.process_time() - start)
    return min(found)


def machine_slower(before: float | None, now: float | None) -> float | None:
    """By how much the machine is slower than it was, if that explains anything; None if not, or not known."""
    if not before or not now or now / before - 1 <= SLOWER:
        return None
    return now / before - 1


# machine under full load, and 3 IQR of that are a third
def threshold(entry: BaselineEntry, metric: str, rule: RegressionRule) -> float:
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


def verdict(
    cell: str, metric: str, entry: BaselineEntry, now: Now, rule: RegressionRule, front: FrontEnd, settle: Command
) -> GateVerdict:
    """Of one metric against what is stored of it; ``settle`` is the gate of two sides to send people to."""
    name, changed = f"{metric}_{now.clock}_s", differences(entry.environment, now.environment)
    if now.threads != entry.threads:
        changed.append(f"threads {entry.threads} → {now.threads}")
    if changed:
        reason = f"not the machine of the baseline: {'; '.join(changed[:4])}"
        return GateVerdict(cell, name, "INCOMPARABLE", reason, SETTLE, str(settle))
    history = [s for s in entry.sessions if s.clock == now.clock and len(s.blocks.get(metric, ())) > 1]
    if not history:
        return GateVerdict(cell, name, "INCOMPARABLE", "the baseline has no such times", front.if_meant)
    if len(now.blocks) < 2:
        return GateVerdict(cell, name, "INCONCLUSIVE", "too few blocks without work from outside", "free the machine")
    before = statistics.median(statistics.median(session.blocks[metric]) for session in history)
    mean, low, high = (math.exp(value) for value in _bounds([math.log(t / before) for t in now.blocks], rule.alpha))
    tau = threshold(entry, metric, rule)
    slower = machine_slower(history[-1].reference_s, now.reference_s)
    found = GateVerdict(
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
    half = stats.quantile(1 - alpha, len(logs) - 1) * sd / math.sqrt(len(logs)) if sd else 0.0
    return mean, mean - half, mean + half
