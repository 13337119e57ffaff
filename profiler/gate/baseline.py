"""A stored baseline: what cells gave when a person accepted it. It changes by ``--accept`` and by nothing else.

One JSON file, written whole beside the old one, flushed to disk and put in its place: whatever happens, there is a
whole file. Of a cell it keeps the case, the figures that must not vary, the machine, and the times of each accepted
session.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiler import files
from profiler.case import Case
from profiler.errors import ProfileError
from profiler.gate.advice import COMMAND, FrontEnd
from profiler.gate.exact import BOUNDS
from profiler.units import bytes_text, printable

FORMAT = "llm-hwprofile baseline"
SCHEMA = 1
MAX_BYTES = 64 * 1024**2
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
        if path.stat().st_size > MAX_BYTES:
            raise _wrong(path, f"it is larger than {bytes_text(MAX_BYTES)}", front)
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise ProfileError(
            f"there is no baseline {printable(path)}", f"To make one of what is measured now, add {front.accept}."
        ) from None
    except OSError as error:
        raise ProfileError(f"the baseline {printable(path)} cannot be read: {printable(error.strerror)}") from None
    except (ValueError, RecursionError):
        raise _wrong(path, "it is not JSON", front) from None
    try:
        return _parsed(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _wrong(path, f"{type(error).__name__}: {printable(error)}", front) from None


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
    if content["schema"] > SCHEMA:
        raise ValueError("a newer version of profile wrote it")
    return Baseline({str(name): _entry(entry) for name, entry in content["cells"].items()})


def _entry(content: Mapping[str, Any]) -> Entry:
    facts = {name: value for name, value in content["facts"].items() if name in BOUNDS}
    if not all(isinstance(value, int) and value >= 0 for value in facts.values()):
        raise ValueError("a figure is no number of bytes or tokens")
    return Entry(
        case=Case.from_row(content["case"]),
        facts=facts,
        environment=dict(content["environment"]),
        threads=content["threads"],
        sessions=tuple(_session(session) for session in content["sessions"]),
    )


def _session(content: Mapping[str, Any]) -> Session:
    blocks = {metric: tuple(_times(values)) for metric, values in content["blocks"].items()}
    reference = content["reference_s"]
    return Session(
        str(content["at"]), str(content["clock"]), blocks, None if reference is None else next(_times([reference]))
    )


def _times(values: Iterable[Any]) -> Iterator[float]:
    for value in values:
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError("a time is no number of seconds")
        yield float(value)


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _wrong(path: Path, why: str, front: FrontEnd) -> ProfileError:
    hint = f"Take it from version control; or delete it, and add {front.accept} to make one of what is measured now."
    return ProfileError(f"{printable(path)} cannot be used as a baseline: {printable(why)}", hint)
