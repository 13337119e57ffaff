"""A measurement as the store keeps it: JSON, with the seconds of single steps beside it as 64-bit floats.

A row holds hundreds of step times; as JSON text they would be nine tenths of the file and of the time to read it.
For the same reason samples are kept by column (``{"phase": […], "seconds": […]}``), not as one object each.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from sys import intern
from typing import Any

from msgspec import Raw, convert

from profiler.case import Case
from profiler.results import typed
from profiler.results.measurement import USUAL, Caution, DecodePath, Energy, Measurement, Memory, Repetitions, Sample
from profiler.results.redact import SHORT, redact_json
from profiler.results.validity import check_columns, check_expected, check_field, check_part, check_row, check_times

SAMPLE_FIELDS = USUAL.keys()
MOST_PARTS = 1000  # of rows, that are remembered
LONGEST_PART = 4096  # bytes

_parts: dict[tuple[str, bytes], Any] = {}

Steps = bytes | Callable[[], bytes]  # packed, or how to get them


def encode(measurement: Measurement) -> tuple[str, bytes]:
    """JSON without environment, nulls and secrets, and all step times in order, little-endian.

    In the JSON, ``step_s`` of a sample is the number of its step times. Raises ValueError for NaN or infinity.
    """
    content = replace(measurement, samples=(), environment={}).to_json()
    del content["environment"]
    samples = measurement.samples
    columns: dict[str, list[Any]] = {name: [getattr(sample, name) for sample in samples] for name in SAMPLE_FIELDS}
    steps = [second for taken in columns["step_s"] for second in taken]
    columns["step_s"] = [len(taken) for taken in columns["step_s"]]
    known = {name: column for name, column in columns.items() if any(value != USUAL[name] for value in column)}
    content = _without_nulls(redact_json(content | {"samples": known}))
    return dumps(content), struct.pack(f"<{len(steps)}d", *steps)


def decode(rows: Sequence[tuple[str, Steps, dict[str, Any]]]) -> list[Measurement]:
    """The inverse of ``encode``, of (JSON, step times, environment) each.

    Raises TypeError, KeyError, ValueError or struct.error for what it did not write, and for what cannot be.
    """
    try:
        text = f"[{','.join([content for content, _, _ in rows])}]"  # at once: a third faster
    except TypeError:
        raise ValueError("its content is not text") from None
    for environment in {id(environment): environment for _, _, environment in rows}.values():
        check_part("environment", environment)
    usual = typed.rows(text) or ()
    contents, make = (usual, _of_typed) if len(usual) == len(rows) else (_loaded(text), _measurement)
    return [
        make(content, steps, environment) for content, (_, steps, environment) in zip(contents, rows, strict=True)
    ]


def _loaded(text: str) -> Any:
    try:
        contents = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not all(isinstance(content, dict) for content in contents):
        raise ValueError("its content is no object")
    return contents


def dumps(content: Any) -> str:
    """Compact JSON; raises ValueError for NaN, which is no JSON.

    ASCII only: a path whose name is not UTF-8 has characters that SQLite refuses; as escapes they come back whole.
    """
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _of_typed(row: Any, steps: Steps, environment: dict[str, Any]) -> Measurement:
    """The measurement of a row whose types and ranges have been checked."""
    return Measurement(
        convert(row.case, Case, from_attributes=True),
        environment,
        row.outcome,
        row.reason,
        _samples(typed.columns(row.samples), steps),
        convert(row.memory, Memory, from_attributes=True),
        None if row.energy is typed.NULL else _part("energy", row.energy),
        _part("cautions", row.cautions),
        row.load_s,
        row.threads,
        row.started_at,
        _part("asked", row.asked),
        _part("stopped", row.stopped),
        _part("expected", row.expected),
        None if row.decode_path is typed.NULL else _part("decode_path", row.decode_path),
        _part("checkpoint", row.checkpoint),
    )


def _part(name: str, raw: Raw) -> Any:
    """A part of a row that may hold more than we know. Rows in which it has the same text share one object."""
    text = bytes(raw)
    known = _parts.get((name, text), _parts)
    return _new_part(name, text) if known is _parts else known


def _new_part(name: str, text: bytes) -> Any:
    content = typed.expected(text) if name == "expected" else None
    if content is None:
        check_field(name, content := json.loads(text))
    else:
        check_expected(content)
    made = _made(name, content)
    if len(text) <= LONGEST_PART:
        if len(_parts) >= MOST_PARTS:
            _parts.clear()
        _parts[name, text] = made
    return made


def _measurement(row: dict[str, Any], steps: Steps, environment: dict[str, Any]) -> Measurement:
    """The same of a row that has to be looked at field by field; ValueError says what is wrong with it."""
    check_row(row)
    if row["samples"] != {}:
        check_columns(row["samples"])
        row["samples"]["phase"] = list(map(intern, row["samples"]["phase"]))
    made = {name: _made(name, value) for name, value in row.items()}
    return Measurement(environment=environment, **made | {"samples": _samples(row["samples"], steps)})


def _made(name: str, content: Any) -> Any:
    """A field as a ``Measurement`` has it, of JSON that has been checked."""
    if name == "case":
        return Case(**{field: _shared(value) for field, value in content.items()})
    if name == "memory":
        return Memory(**content)
    if name == "cautions":
        return tuple([Caution(**caution) for caution in content])
    if name == "energy":
        return Energy.from_json(content) if content is not None else None
    if name == "decode_path":
        return DecodePath(**content) if content is not None else None
    return content


def _samples(columns: dict[str, list[Any]], steps: Steps) -> Sequence[Sample]:
    if columns == {}:
        return ()
    if not callable(steps):
        _step_times(columns["step_s"], steps)  # what cannot be is said now
    return Repetitions(columns, partial(_step_times, columns["step_s"], steps))


def _shared(value: Any) -> Any:
    """One text for all rows that have it: JSON makes a new one for each."""
    return intern(value) if type(value) is str and len(value) <= SHORT else value


def _step_times(counts: Sequence[int], steps: Steps) -> list[tuple[float, ...]]:
    """Those of each sample, from all of them in a row. Raises ValueError or struct.error for what cannot be."""
    packed = steps() if callable(steps) else steps
    seconds = struct.unpack(f"<{len(packed) // 8}d", packed)
    check_times(seconds, "samples.step_s")
    if sum(counts) != len(seconds):
        raise ValueError(f"{len(seconds)} step times are stored where {sum(counts)} are counted")
    ends = list(accumulate(counts))
    return [seconds[end - count : end] for count, end in zip(counts, ends, strict=True)]


def _without_nulls(content: dict[str, Any]) -> dict[str, Any]:
    """Every field of a row that may be null is null by default, so it need not be written."""
    return {
        name: _without_nulls(value) if isinstance(value, dict) else value
        for name, value in content.items()
        if value is not None
    }
