"""A stored baseline: what cells gave when a person accepted it. It changes by ``--accept`` and by nothing else.

One JSON file, written whole beside the old one, flushed to disk and put in its place: whatever happens, there is a
whole file. Of a cell it keeps the case, the figures that must not vary, the machine, and the times of each accepted
session.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiler import files
from profiler.case import Case
from profiler.errors import NotFound, ProfileError
from profiler.foreign import BadContent, Budget, json_value, read_bytes
from profiler.gate.advice import COMMAND, FrontEnd
from profiler.gate.exact import BOUNDS
from profiler.results.measurement import Measurement
from profiler.results.validity import check, check_part
from profiler.units import MAX_BYTES as MOST_BYTES
from profiler.units import printable

FORMAT = "llm-hwprofile baseline"
SCHEMA = 1
BUDGET = Budget(nbytes=64 * 1024**2, values=2**22)  # thousands of cells with all their sessions
SHORTEST_S, LONGEST_S = 1e-9, 1e9  # of a block: quotients of such times, and their logarithms, stay finite
MOST_SESSIONS = 30  # the oldest go: what a machine did long ago says little of what it does now


@dataclass(frozen=True, slots=True)
class Session:
    """The times of one accepted measurement."""

    at: str  # UTC, ISO 8601
    clock: str  # cpu | wall
    blocks: Mapping[str, tuple[float, ...]]  # metric → median seconds of each block
    reference_s: float | None = None  # of the fixed work of ``reference``


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell."""

    case: Case
    facts: Mapping[str, int]
    environment: Mapping[str, Any]
    threads: int | None
    sessions: tuple[Session, ...]
    step: str | None = None  # the decode step that ran; None in files from before it was stored


@dataclass(frozen=True, slots=True)
class Baseline:
    """The cells of a file, by name: a case's label and key, or a test's id."""

    cells: Mapping[str, Entry]

    def accepted(self, entries: Mapping[str, Entry], same: Mapping[str, bool]) -> Baseline:
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


def _entry(content: Mapping[str, Any]) -> Entry:
    facts = {name: value for name, value in content["facts"].items() if name in BOUNDS}
    if not all(type(value) is int and 0 <= value <= MOST_BYTES for value in facts.values()):
        raise ValueError("a figure is no number of bytes or tokens")
    check(Case, content["case"], "case")
    check(Measurement, {"threads": content["threads"]})
    check_part("environment", content["environment"])
    if not isinstance(ran := content.get("step"), str | None):
        raise ValueError("its decode step is no text")
    return Entry(
        case=Case.from_row(content["case"]),
        facts=facts,
        environment=content["environment"],
        threads=content["threads"],
        sessions=tuple(_session(session) for session in content["sessions"]),
        step=ran,
    )


def _session(content: Mapping[str, Any]) -> Session:
    blocks = {metric: tuple(_times(values)) for metric, values in content["blocks"].items()}
    reference = content["reference_s"]
    return Session(
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
