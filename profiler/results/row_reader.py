"""Measurements from a file: what ``-o jsonl`` or ``-o json`` printed, or another store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from profiler.case import Case
from profiler.errors import ProfileError
from profiler.results.measurement import SCHEMA, Caution, DecodePath, Measurement, Memory, Phase, Sample
from profiler.results.store import Store
from profiler.units import bytes_text, printable

SQLITE = b"SQLite format 3\0"  # how such a file begins (sqlite.org/fileformat.html)
MAX_BYTES = 1 << 30  # of a file of rows: a hundred thousand of them with their samples
MEMORY = {each.name for each in dataclass_fields(Memory)}  # a row has what is derived of them too
OUTCOMES = ("ok", "oom", "skipped", "failed", "timeout")


def read(path: Path) -> list[Measurement]:
    """The rows of a file; of a store, those of its latest run.

    Raises ProfileError for what is neither, with the number of the line that is wrong.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(SQLITE))
        if start == SQLITE:
            with Store.open(path, create=False) as store:
                return store.rows()
        if path.stat().st_size > MAX_BYTES:
            raise ProfileError(f"{printable(path)} is larger than {bytes_text(MAX_BYTES)}: no file of result rows")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{printable(path)} cannot be read: {printable(error.strerror)}") from None
    except UnicodeDecodeError:
        raise ProfileError(f"{printable(path)} is neither a store nor text", "Write rows with -o jsonl.") from None
    if text.lstrip().startswith("["):
        contents = list(enumerate(_loaded(text, path, 1), 1))
    else:
        contents = [(n, _loaded(line, path, n)) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [_measurement(content, path, number) for number, content in contents]


def from_row(row: Mapping[str, Any]) -> Measurement:
    """The measurement that a public row was made of, without what the row leaves out (the single steps).

    Raises KeyError, TypeError, ValueError or AttributeError for what is no row.
    """
    if row["schema"] > SCHEMA:
        raise ValueError("a newer version of profile wrote it")
    if row["outcome"] not in OUTCOMES:
        raise ValueError("its outcome is none")
    fields = {name: row[name] for name in ("outcome", "reason", "load_s", "threads", "started_at")}
    return Measurement(
        case=_case(row["case"]),
        environment=dict(row["environment"]),
        samples=(*_samples("prefill", row["prefill"]), *_samples("decode", row["decode"])),
        memory=Memory(**{name: value for name, value in row["memory"].items() if name in MEMORY}),
        cautions=tuple(Caution(**caution) for caution in row["cautions"]),
        asked=dict(row["asked"]),
        decode_path=DecodePath(**path) if (path := row.get("path")) else None,
        checkpoint=dict(row.get("checkpoint") or {}),
        expected=_expected(row),
        **fields,
    )


def _expected(row: Mapping[str, Any]) -> dict[str, Any]:
    """How much processes differ, without which an interval would be narrower than the row's own."""
    phases = {phase: row[phase] for phase in ("prefill", "decode") if row[phase] is not None}
    known = {phase: value for phase, each in phases.items() if (value := each.get("tps_between")) is not None}
    if not known:
        return {}
    if not all(type(value) in (int, float) and 0 <= value < 1 for value in known.values()):
        raise ValueError("how much processes differ is no share")
    return {"between": {**known, "basis": next(phases[phase].get("between_basis") for phase in known)}}


def _case(content: Mapping[str, Any]) -> Case:
    case = Case.from_row(dict(content))
    if not all(isinstance(count, int) for count in (case.context, case.batch, case.steps)):
        raise ValueError("its case has a size that is no whole number")
    return case


def _samples(phase: Phase, content: Mapping[str, Any] | None) -> Iterable[Sample]:
    if content is None:
        return []
    tokens, seconds = int(content["tokens"]), [float(value) for value in content["seconds"]]
    if tokens < 1 or not all(0 < value < float("inf") for value in seconds):
        raise ValueError(f"its {phase} has no time or no tokens")
    cpu, waited = (content.get(name) or [None] * len(seconds) for name in ("cpu_seconds", "wait_seconds"))
    return [Sample(phase, s, tokens, cpu_s=c, wait_s=w) for s, c, w in zip(seconds, cpu, waited, strict=True)]


def _loaded(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _no_row(path, line, "it is no JSON") from None


def _measurement(content: Any, path: Path, line: int) -> Measurement:
    try:
        return from_row(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else printable(error)
        raise _no_row(path, line, what) from None


def _no_row(path: Path, line: int, why: str) -> ProfileError:
    hint = "Rows are what -o jsonl or -o json of sweep and of runs show print."
    return ProfileError(f"row {line} of {printable(path)} is no result row: {printable(why)}", hint)
