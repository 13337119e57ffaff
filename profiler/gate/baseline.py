"""A stored baseline: the figures and times of cases that a user accepted, and the comparison with them.

Only ``--accept`` changes it. The file is one JSON document, replaced atomically and flushed to disk. For each case it
holds the case itself, the figures that must not vary, the machine, and the times of each accepted session.

Stored times come from another hour and other processes. Between such sessions an unchanged program varies by more
than the interval of either shows, so this rule is much coarser than pairs measured in turns:

    FAIL          the lower t bound of now ÷ baseline is above τ
    PASS          the upper t bound is below 1 + δ
    inconclusive  anything between; pairs measured in turns can decide (see ``trial``)

τ comes from at least ten accepted sessions of the same machine: the larger of 1 + δ and (Q3 + 3 IQR) ÷ median of
their medians (Tukey's far-out fence). With fewer sessions their spread is unknown, and τ is 1.5. Another machine,
driver, library version or number of threads is incomparable.

**The reference** is fixed CPU work that depends on the machine but on nothing that is gated. It is used only to ask
whether the machine itself is slower than when the baseline was stored. It does not rescale the times: no small
program slows down as a model does, so the result would be just as wrong.
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
from typing import Any, get_args

from profiler import backends, files
from profiler.case import Case, Task, options_of
from profiler.decode_path import EAGER
from profiler.errors import NotFound, ProfileError
from profiler.foreign import BadContent, Budget, json_value, read_bytes
from profiler.gate.bench import METRICS, GateClock, threads_of
from profiler.gate.numerics import Predictions
from profiler.gate.rule import BOUNDS, GateVerdict, RegressionRule
from profiler.gate.trial import percent
from profiler.results import stats
from profiler.results.environment import differences
from profiler.results.measurement import Measurement
from profiler.results.stats import percentile
from profiler.results.validity import check, check_part, shown
from profiler.shell import Command, command
from profiler.units import MAX_BYTES, printable

MORE_REQUESTS = "send more requests, such as profile endpoint -r 20, and accept a few runs of the old version"
COMPARE_VERSIONS = (
    "measure both versions in turns, where REV is a revision, an environment or a command to compare with"
)
COMPARE_BUILDS = "measure both builds in turns, where OLD_DIR is the folder of the earlier build"

FORMAT = "llm-hwprofile baseline"
SCHEMA = 1
CLOCKS = get_args(GateClock)
BUDGET = Budget(nbytes=64 * 1024**2, values=2**22)  # thousands of cases with all their sessions
SHORTEST_S, LONGEST_S = 1e-9, 1e9  # of a block: ratios of such times, and their logarithms, are finite
MAX_SESSIONS = 30  # the oldest are dropped: they say little about the machine of today

MAX_SLOWER = 0.15  # reference work on one idle machine, each time the best of several runs, never differed by as much
REFERENCE_BYTES = 4 * 1024**2  # more than the private caches of a core
REFERENCE_RUNS = 5  # of the reference work, of which the fastest counts

MIN_SESSIONS = 10  # for meaningful quartiles
# Slowdown that a single session can show. CPU time of one program varied by 8% (standard deviation) between
# processes on a machine under full load, and 3 IQR of that are a third.
FEW_SESSIONS_DELTA = 0.5


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """How the user reached the baseline, which decides the options that messages name."""

    accept: str  # the option that stores the current measurements

    @property
    def if_meant(self) -> str:
        """Advice for an intended change."""
        return f"if this is intended, add {self.accept}"


COMMAND = FrontEnd("--accept")

PYTEST = FrontEnd("--profile-gate-accept")


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do when stored times cannot decide: advice and, if there is one, a command to paste."""

    text: str
    command: str | None = None


def advice_for(task: Task) -> Advice:
    """What to do when stored times cannot decide a case. In the command, the user replaces REV or OLD_DIR."""
    if task.case.server is not None:
        return Advice(MORE_REQUESTS)
    return Advice(
        COMPARE_BUILDS if backends.find(task.case.backend).find_build else COMPARE_VERSIONS, str(_pairs(task))
    )


def _pairs(task: Task) -> Command:
    case, source = task.case, task.source
    model = case.model if source.kind == "catalog" else source.argument()
    sizes = ("-c", str(case.context), "-b", str(case.batch), "-n", str(case.steps))
    traits = backends.find(case.backend)
    options = {
        "--device": (case.device, None),
        "--backend": (case.backend, backends.DEFAULT),
        "--path": (case.path, EAGER),
        "--fill": (case.fill, "prefill"),
        "--weights": (case.weights, "synthetic" if source.kind == "catalog" else "real"),
        "--threads": (case.threads, threads_of(case.device, None)),
    }
    others = {name: str(value) for name, (value, usual) in options.items() if value not in (None, usual)}
    others |= {f"--{name}": value for name, value in options_of(case.options).items()}
    quant = () if traits.gguf and case.weights == "real" else ("-q", case.quant)  # a file has its own
    blank, meaning = "REV", "a revision, an environment or a command"
    if traits.find_build is not None:
        blank, meaning = "OLD_DIR", "the folder of the earlier build"
    return command(
        ("profile", "gate", "--base", blank, "-m", model), quant, sizes, *others.items(), **{blank: meaning}
    )


@dataclass(frozen=True, slots=True)
class BaselineSession:
    """The times of one accepted measurement."""

    at: str  # UTC, ISO 8601
    clock: str  # cpu | wall
    blocks: Mapping[str, tuple[float, ...]]  # metric → median seconds of each block
    reference_s: float | None = None  # CPU seconds of the reference


@dataclass(frozen=True, slots=True)
class BaselineEntry:
    """One case of a baseline."""

    case: Case
    figures: Mapping[str, int]
    environment: Mapping[str, Any]
    threads: int | None
    sessions: tuple[BaselineSession, ...]
    step: str | None = None  # the decode step that ran; None in older files, which do not store it
    predictions: Predictions | None = None  # None if the backend gives none, and in older files

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON. The figures are stored as ``facts``, their name since the first version."""
        return {"facts" if name == "figures" else name: value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Baseline:
    """The cases of a file, by name: a case's label and key, or a test's id."""

    entries: Mapping[str, BaselineEntry]

    def accepted(self, entries: Mapping[str, BaselineEntry], same: Mapping[str, bool]) -> Baseline:
        """A baseline in which ``entries`` replace those of the same name.

        Where ``same`` is true, only the times are new, and they are added as one more session.
        """
        merged = dict(self.entries)
        for name, entry in entries.items():
            if same.get(name) and name in merged:
                sessions = (*merged[name].sessions, *entry.sessions)[-MAX_SESSIONS:]
                entry = replace(entry, sessions=sessions)
            merged[name] = entry
        return Baseline(merged)


def read(path: Path, front: FrontEnd = COMMAND) -> Baseline:
    """Read a baseline file. Raises ProfileError if it is missing, damaged or written by a newer version."""
    try:
        content = read_bytes(path, BUDGET.nbytes)
    except NotFound:
        raise ProfileError(
            f"there is no baseline {printable(path)}", f"To store the current measurements, add {front.accept}."
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
    """Write the file atomically. Raises ProfileError, and then leaves the old file unchanged."""
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cells": {name: entry.to_json() for name, entry in sorted(baseline.entries.items())},
    }
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=True) + "\n"
    files.write(path, text)


def _parsed(content: Any) -> Baseline:
    if _object(content, "it")["format"] != FORMAT:
        raise ValueError("it is not a baseline")
    if type(schema := content["schema"]) is not int or schema < 1:
        raise ValueError(f"schema is {shown(schema)}, must be a whole number from 1")
    if schema > SCHEMA:
        raise ProfileError("a newer version of profile wrote it", "Update profile, or name another file.")
    cells = _object(content["cells"], "cells")
    return Baseline({name: _entry(_object(entry, printable(name, 80))) for name, entry in cells.items()})


def _entry(content: Mapping[str, Any]) -> BaselineEntry:
    figures = {name: value for name, value in _object(content["facts"], "facts").items() if name in BOUNDS}
    if not all(type(value) is int and 0 <= value <= MAX_BYTES for value in figures.values()):
        raise ValueError("a figure is not a number of bytes or tokens")
    check(Case, content["case"], "case")
    check(Measurement, {"threads": content["threads"]})
    check_part("environment", content["environment"])
    if not isinstance(ran := content.get("step"), str | None):
        raise ValueError("its decode step is not a text")
    return BaselineEntry(
        case=Case.from_row(content["case"]),
        figures=figures,
        environment=content["environment"],
        threads=content["threads"],
        sessions=tuple(_session(_object(each, "a session")) for each in _list(content["sessions"], "sessions")),
        step=ran,
        predictions=None if (stored := content.get("predictions")) is None else _predictions(stored),
    )


def _predictions(content: Any) -> Predictions:
    return Predictions.from_json(_object(content, "predictions"))


def _session(content: Mapping[str, Any]) -> BaselineSession:
    if (clock := content["clock"]) not in CLOCKS:
        raise ValueError(f"the clock of a session is {shown(clock)}, must be {' or '.join(CLOCKS)}")
    by_metric = _object(content["blocks"], "blocks")
    if unknown := by_metric.keys() - set(METRICS):
        raise ValueError(f"blocks holds {shown(min(unknown))}, must be {' or '.join(METRICS)}")
    blocks = {metric: tuple(_times(_list(values, metric))) for metric, values in by_metric.items()}
    reference = content["reference_s"]
    return BaselineSession(
        str(content["at"]), clock, blocks, None if reference is None else next(_times([reference]))
    )


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shown(value)}, must be an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {shown(value)}, must be a list")
    return value


def _times(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        if type(value) not in (int, float) or not SHORTEST_S <= value <= LONGEST_S:
            raise ValueError("a time is not a number of seconds")
        yield float(value)


def _wrong(path: Path, why: str, front: FrontEnd) -> ProfileError:
    hint = f"Restore it from version control, or delete it and add {front.accept} to store the current measurements."
    return ProfileError(f"{printable(path)} cannot be used as a baseline: {printable(why)}", hint)


def reference_seconds() -> float:
    """CPU seconds for hashing and copying a few megabytes, the best of several."""
    block = bytes(range(256)) * (REFERENCE_BYTES // 256)
    found = []
    for _ in range(REFERENCE_RUNS):
        start = time.process_time()
        hashlib.sha256(block).digest()
        for _ in range(4):
            bytearray(block)
        found.append(time.process_time() - start)
    return min(found)


def machine_slower(before: float | None, now: float | None) -> float | None:
    """By how much the machine itself is slower than before; None if not significantly, or unknown."""
    if not before or not now or now / before - 1 <= MAX_SLOWER:
        return None
    return now / before - 1


def timed(entry: BaselineEntry, metric: str, clock: str) -> list[BaselineSession]:
    """The sessions of an entry that a time by ``clock`` can be compared with."""
    return [each for each in entry.sessions if each.clock == clock and len(each.blocks.get(metric, ())) > 1]


def threshold(history: Sequence[BaselineSession], metric: str, rule: RegressionRule) -> float:
    """τ − 1: the slowdown above which a comparison with the sessions of ``timed`` fails."""
    medians = sorted(statistics.median(session.blocks[metric]) for session in history)
    if len(medians) < MIN_SESSIONS:
        return max(rule.delta, FEW_SESSIONS_DELTA)
    first, third = percentile(medians, 0.25), percentile(medians, 0.75)
    return max(rule.delta, (third + 3 * (third - first)) / statistics.median(medians) - 1)


@dataclass(frozen=True, slots=True)
class NewTimes:
    """The current measurement of one metric."""

    blocks: Sequence[float]  # median seconds of each
    clock: str
    environment: Mapping[str, object]
    threads: int | None
    reference_s: float | None


def verdict(
    case: str, metric: str, entry: BaselineEntry, now: NewTimes, rule: RegressionRule, front: FrontEnd, advice: Advice
) -> GateVerdict:
    """The verdict on one metric against its stored times; ``advice`` is for when it cannot decide."""
    name, changed = f"{metric}_{now.clock}_s", differences(entry.environment, now.environment)
    if now.threads != entry.threads:
        changed.append(f"threads {entry.threads} → {now.threads}")
    if changed:
        reason = f"this is not the machine of the baseline: {'; '.join(changed[:4])}"
        return GateVerdict(case, name, "INCOMPARABLE", reason, advice.text, advice.command)
    history = timed(entry, metric, now.clock)
    if not history:
        return GateVerdict(case, name, "INCOMPARABLE", "the baseline has no times for it", front.if_meant)
    if len(now.blocks) < 2:
        reason = "other work disturbed all blocks but one" if now.blocks else "other work disturbed all blocks"
        return GateVerdict(case, name, "INCONCLUSIVE", reason, "stop other work on the machine")
    before = statistics.median(statistics.median(session.blocks[metric]) for session in history)
    mean, low, high = (math.exp(value) for value in _bounds([math.log(t / before) for t in now.blocks], rule.alpha))
    tau = threshold(history, metric, rule)
    slower = machine_slower(history[-1].reference_s, now.reference_s)
    coarse = f"stored times resolve only slowdowns above {percent(tau)} here"
    found = GateVerdict(
        case, name, "INCONCLUSIVE", coarse, advice.text, advice.command,
        ratio=mean, low=low, high=high, delta=rule.delta, detectable=tau, before=before,
        now=statistics.median(now.blocks),
    )  # fmt: skip
    if high < 1 + rule.delta:
        reason = f"not slower by {percent(rule.delta)} than the baseline"
        return replace(found, word="PASS", reason=reason, advice=None, command=None)
    if slower is not None:
        reason = f"the machine itself is {percent(slower)} slower at fixed work than when the baseline was stored"
        return replace(found, reason=reason)
    if low > 1 + tau:
        sessions = f"{len(history)} stored session{'s' * (len(history) > 1)}"
        reason = f"more than {percent(tau)} slower than {sessions}"
        return replace(found, word="FAIL", reason=reason, advice=f"to be sure, {advice.text}")
    return found


def _bounds(logs: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Mean and one-sided t bounds."""
    mean, sd = math.fsum(logs) / len(logs), statistics.stdev(logs)
    half = stats.quantile(1 - alpha, len(logs) - 1) * sd / math.sqrt(len(logs)) if sd else 0.0
    return mean, mean - half, mean + half
