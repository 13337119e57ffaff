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

from profiler.case import Case
from profiler.results.measurement import USUAL, Caution, DecodePath, Energy, Measurement, Memory, Repetitions, Sample
from profiler.results.redact import SHORT, redact_json
from profiler.results.validity import check_columns, check_part, check_row, check_times

SAMPLE_FIELDS = USUAL.keys()

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
        contents = json.loads(f"[{','.join(content for content, _, _ in rows)}]")  # at once: a third faster
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    for environment in {id(environment): environment for _, _, environment in rows}.values():
        check_part("environment", environment)
    return [
        _measurement(content, steps, environment)
        for content, (_, steps, environment) in zip(contents, rows, strict=True)
    ]


def dumps(content: Any) -> str:
    """Compact JSON; raises ValueError for NaN, which is no JSON.

    ASCII only: a path whose name is not UTF-8 has characters that SQLite refuses; as escapes they come back whole.
    """
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _measurement(row: dict[str, Any], steps: Steps, environment: dict[str, Any]) -> Measurement:
    check_row(row)
    row["samples"] = _samples(row["samples"], steps)
    row["case"] = Case(**{name: _shared(value) for name, value in row["case"].items()})
    row["memory"] = Memory(**row["memory"])
    if "energy" in row:
        row["energy"] = Energy.from_json(row["energy"])
    if "decode_path" in row:
        row["decode_path"] = DecodePath(**row["decode_path"])
    row["cautions"] = tuple([Caution(**caution) for caution in row["cautions"]])
    return Measurement(environment=environment, **row)


def _samples(columns: dict[str, list[Any]], steps: Steps) -> Sequence[Sample]:
    if columns == {}:
        return ()
    check_columns(columns)
    if not callable(steps):
        _step_times(columns["step_s"], steps)  # what cannot be is said now
    columns["phase"] = list(map(intern, columns["phase"]))
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
