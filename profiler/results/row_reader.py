"""Measurements from a file: what ``-o jsonl`` or ``-o json`` printed, or another store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from profiler.case import Case
from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, json_value, open_file, why
from profiler.results.measurement import SCHEMA, Caution, DecodePath, Measurement, Memory, Phase, Sample
from profiler.results.store import Store
from profiler.results.validity import check_columns, check_row
from profiler.units import bytes_text, printable

SQLITE = b"SQLite format 3\0"  # how such a file begins (sqlite.org/fileformat.html)
MAX_BYTES = 1 << 30  # of a file of rows: a hundred thousand of them with their samples
LINE = Budget(nbytes=1 << 24, values=1 << 19, depth=16, twice=True)  # of one row: a hundred thousand repetitions
ARRAY = Budget(nbytes=1 << 28, values=1 << 23, depth=17, twice=True)  # of all rows, which -o json prints as one value
MAX_SAMPLES = 1 << 21  # repetitions of all rows of a file
COLUMNS = {"cpu_s": "cpu_seconds", "wait_s": "wait_seconds"}  # of samples, as a row calls them
MEMORY = {each.name for each in dataclass_fields(Memory)}  # a row has what is derived of them too


def read(path: Path) -> list[Measurement]:
    """The rows of a file; of a store, those of its latest run.

    Raises ProfileError for what is neither, with the number of the row that is wrong and its field.
    """
    with open_file(path) as file:
        try:
            start = file.peek(len(SQLITE))[: len(SQLITE)]  # type: ignore[attr-defined]
            if start == SQLITE:
                with Store.read_only(path) as store:
                    return store.rows()
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise ProfileError(
                    f"{printable(path)} is larger than {bytes_text(MAX_BYTES)}: no file of result rows"
                )
            contents = _array(path, file) if start.lstrip().startswith(b"[") else _lines(path, file)
            return _measurements(contents, path)
        except OSError as error:
            raise ProfileError(f"{printable(path)} cannot be read: {why(error)}") from None


def _array(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    content = file.read(ARRAY.nbytes + 1)
    if len(content) > ARRAY.nbytes:
        raise ProfileError(
            f"{printable(path)} is larger than {bytes_text(ARRAY.nbytes)}, too much for one list", "Use -o jsonl."
        )
    yield from enumerate(_loaded(content, path, 1, ARRAY), 1)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    number = 0
    while line := file.readline(LINE.nbytes + 1):
        number += 1
        if line.strip():
            yield number, _loaded(line, path, number, LINE)


def _loaded(text: bytes, path: Path, line: int, budget: Budget) -> Any:
    try:
        return json_value(text, budget)
    except BadContent as error:
        raise _no_row(path, line, f"it is not JSON: {error}") from None


def _measurements(contents: Iterable[tuple[int, Any]], path: Path) -> list[Measurement]:
    found: list[Measurement] = []
    environments: dict[str, dict[str, Any]] = {}  # rows of one run share theirs, as they do in a store
    samples = 0
    for number, content in contents:
        row = _measurement(content, path, number)
        environment = environments.setdefault(repr(row.environment), row.environment)
        found.append(row if environment is row.environment else replace(row, environment=environment))
        samples += len(row.samples)
        if samples > MAX_SAMPLES:
            raise _no_row(path, number, f"the rows up to it have more than {MAX_SAMPLES:,} repetitions")
    return found


def from_row(row: Mapping[str, Any]) -> Measurement:
    """The measurement that a public row was made of, without what the row leaves out (the single steps).

    Raises KeyError, TypeError, ValueError or AttributeError for what is no row, or cannot be one (``validity``).
    """
    if not isinstance(row, Mapping):
        raise ValueError("it is no object")
    if type(row["schema"]) is not int or row["schema"] > SCHEMA:
        raise ValueError("a newer version of profile wrote it")
    memory = row["memory"]
    content: dict[str, Any] = {
        **{name: row[name] for name in ("case", "outcome", "reason", "load_s", "threads", "started_at")},
        "memory": {name: value for name, value in memory.items() if name in MEMORY},
        **{name: row[name] for name in ("cautions", "asked", "environment")},
        "decode_path": row.get("path"),
        "expected": _expected(row),
        "checkpoint": row.get("checkpoint") or {},
    }
    check_row(content, "path")
    path = content["decode_path"]
    return Measurement(
        **content
        | {
            "case": Case.from_row(content["case"]),
            "samples": (*_samples("prefill", row["prefill"]), *_samples("decode", row["decode"])),
            "memory": Memory(**content["memory"]),
            "cautions": tuple(Caution(**caution) for caution in content["cautions"]),
            "decode_path": DecodePath(**path) if path else None,
        }
    )


def _expected(row: Mapping[str, Any]) -> dict[str, Any]:
    """How much processes differ, without which an interval would be narrower than the row's own."""
    phases = {phase: row[phase] for phase in ("prefill", "decode") if row[phase] is not None}
    known = {phase: value for phase, each in phases.items() if (value := each.get("tps_between")) is not None}
    if not known:
        return {}
    if not all(type(value) in (int, float) and 0 <= value < 1 for value in known.values()):
        raise ValueError("tps_between, how much processes differ, is no share")
    return {"between": {**known, "basis": next(phases[phase].get("between_basis") for phase in known)}}


def _samples(phase: Phase, content: Mapping[str, Any] | None) -> Iterable[Sample]:
    if content is None:
        return []
    seconds = content["seconds"]
    count = len(seconds)
    cpu, waited = (content.get(name) or [None] * count for name in ("cpu_seconds", "wait_seconds"))
    columns = {
        "phase": [phase] * count,
        "seconds": seconds,
        "tokens": [content["tokens"]] * count,
        "cpu_s": cpu,
        "wait_s": waited,
        "step_s": [0] * count,
    }
    check_columns(columns, phase, COLUMNS)
    return [
        Sample(phase, s, content["tokens"], cpu_s=c, wait_s=w) for s, c, w in zip(seconds, cpu, waited, strict=True)
    ]


def _measurement(content: Any, path: Path, line: int) -> Measurement:
    try:
        return from_row(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else printable(error)
        raise _no_row(path, line, what) from None


def _no_row(path: Path, line: int, why: str) -> ProfileError:
    hint = "Rows are what -o jsonl or -o json of sweep and of runs show print."
    return ProfileError(f"row {line} of {printable(path)} is no result row: {printable(why)}", hint)
