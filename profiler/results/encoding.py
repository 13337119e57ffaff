"""A measurement as the store keeps it: JSON, with the step times separate as 64-bit floats.

A row has hundreds of step times; as JSON text they would be nine tenths of the file and of the time to read it.
For the same reason samples are stored by column (``{"phase": […], "seconds": […]}``), not as one object each.

msgspec decodes and checks rows in one pass, several times as fast as checking each field in Python. Its types are
derived from the rules of ``validity`` and accept nothing that those refuse. A row that they reject is checked the
slow way, which says what is wrong with it or accepts it after all.
"""

from __future__ import annotations

import gc
import json
import math
import operator
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, asdict, replace
from dataclasses import fields as dataclass_fields
from functools import cache, partial, reduce
from itertools import accumulate
from sys import intern
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType, convert, to_builtins

from profiler.case import Case
from profiler.foreign import Budget, json_value
from profiler.results.measurement import (
    NO_SAMPLES,
    SAMPLE_DEFAULTS,
    Caution,
    DecodePath,
    Energy,
    Measurement,
    Memory,
    Repetitions,
    RunModel,
    Sample,
)
from profiler.results.redact import SHORT, redact_json
from profiler.results.validity import (
    COUNT,
    EXPECTED,
    MAX_SAMPLES,
    MAX_TEXT,
    Allowed,
    Form,
    allowed,
    check_columns,
    check_expected,
    check_field,
    check_part,
    check_row,
    check_times,
    shown,
)

MAX_INT = 2**63 - 1  # the largest integer that msgspec compares
CONFIG = Budget(nbytes=1 << 20, values=1 << 15, depth=12)  # of a config that is kept; most have 1,000 values
JSON = frozenset(
    {"energy", "cautions", "asked", "stopped", "expected", "decode_path", "checkpoint", "serving", "quality"}
)
FIELDS = tuple(field.name for field in dataclass_fields(Measurement) if field.name != "environment")
AS_IT_IS = ("serving",)  # plain JSON, whose nulls say what is unknown
ALWAYS = ("case", "samples", "memory", "cautions")  # written for each row
NULL, EMPTY = Raw(b"null"), Raw(b"{}")
NEEDED = {"phase", "seconds", "tokens", "step_s"}  # required columns of samples

SAMPLE_FIELDS = SAMPLE_DEFAULTS.keys()
MAX_CACHED_PARTS = 1000  # parts that rows share, such as a case or an environment
MAX_PART_BYTES = 4096  # a larger part is not cached
_parts: dict[tuple[str, bytes], Any] = {}
EncodedSteps = bytes | Callable[[], bytes]  # packed, or a function that returns them


def typed_rows(text: str) -> Sequence[Any] | None:
    """The rows of a JSON list as objects with ``FIELDS``; None if one of them is not in our own form.

    ``case`` and ``memory`` are objects with the fields of their classes, and ``samples`` has a column for each field
    of ``Sample``. The fields in ``JSON`` are unparsed text. Missing fields have their defaults.
    """
    try:
        found: list[Any] = _decoder().decode(text)
        return found
    except (msgspec.MsgspecError, RecursionError):
        return None


class Placed(msgspec.Struct):
    """The fields that rows are sorted by."""

    model_id: Any
    quant: Any
    context: Any
    batch: Any
    steps: Any


class _Content(msgspec.Struct):
    case: Placed


def placed(text: str) -> Placed:
    """The sort fields of a stored row; the rest is not parsed. Raises ValueError or TypeError."""
    return _placing().decode(text).case


@cache
def _placing() -> msgspec.json.Decoder[_Content]:
    return msgspec.json.Decoder(_Content)


def columns(samples: Any) -> dict[str, Any]:
    """The columns that are present. Raises ValueError if one is missing or has another length."""
    found: dict[str, Any] = to_builtins(samples)
    if found and not (found.keys() >= NEEDED and len(set(map(len, found.values()))) == 1):
        check_columns(found)
    return found


def expected(text: bytes) -> Any:
    """The field ``expected`` if it follows ``validity.EXPECTED``; None: it needs the slow check."""
    try:
        _expected().decode(text)
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return None


@cache
def _decoder() -> msgspec.json.Decoder[Any]:
    kinds = {name: COUNT if name == "step_s" else rule for name, rule in allowed(Sample).items()}
    lists: list[Any] = [(name, _list(_type(kinds[name])) | UnsetType, UNSET) for name in SAMPLE_DEFAULTS]
    made: dict[str, Any] = {
        "case": _like(Case),
        "memory": _like(Memory),
        "samples": msgspec.defstruct("samples", lists, forbid_unknown_fields=True),
    }
    return msgspec.json.Decoder(list[_like(Measurement, made | dict.fromkeys(JSON, Raw))])  # type: ignore[misc]


@cache
def _expected() -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_struct("expected", EXPECTED))


def _like(kind: type, made: Mapping[str, Any] | None = None) -> Any:
    """A type with exactly the fields of a dataclass; ``made`` gives the types of some of them."""
    made, fields = made or {}, []
    for field in dataclass_fields(kind):
        if field.name in made or field.name != "environment":
            given = made.get(field.name) or _type(allowed(kind)[field.name])
            fields.append((field.name, given, *_default(field, given)))
    return msgspec.defstruct(kind.__name__, fields, forbid_unknown_fields=True, kw_only=True)


def _default(field: Field[Any], kind: Any) -> tuple[Any, ...]:
    """The default of an optional field."""
    if field.name in ALWAYS or (field.default is MISSING and field.default_factory is MISSING):
        return ()
    if kind is Raw:
        return (NULL if field.default is None else EMPTY,)
    return (field.default,)


def _struct(name: str, form: Form) -> Any:
    """The type of objects with exactly the fields of ``form``."""
    fields = [
        (field, (_type(rule) if isinstance(rule, Allowed) else _struct(field, rule)) | UnsetType, UNSET)
        for field, rule in form.items()
    ]
    return msgspec.defstruct(name, fields, forbid_unknown_fields=True)


def _list(kind: Any) -> Any:
    return Annotated[list[kind], Meta(max_length=MAX_SAMPLES)]


def _type(rule: Allowed) -> Any:
    """The type of what ``rule`` allows, or of slightly less."""
    kinds: list[Any] = []
    if int in rule.kinds:
        low, high = math.ceil(rule.low), min(math.floor(rule.high), MAX_INT)
        kinds.append(Annotated[int, Meta(ge=low, le=high)])
    if float in rule.kinds:
        kinds.append(Annotated[float, Meta(ge=rule.low, le=rule.high)])
    if str in rule.kinds:
        kinds.append(Literal[tuple(sorted(rule.words))] if rule.words else Annotated[str, Meta(max_length=MAX_TEXT)])
    kinds += [kind for kind in (bool, type(None)) if kind in rule.kinds]
    return reduce(operator.or_, kinds)


def encode(measurement: Measurement) -> tuple[str, bytes]:
    """JSON without environment, nulls and secrets, and all step times in order, little-endian.

    In the JSON, ``step_s`` of a sample is the number of its steps. Raises ValueError for NaN or infinity.
    """
    content = replace(measurement, samples=NO_SAMPLES, environment={}).to_json()
    del content["environment"]
    steps = [second for sample in measurement.samples for second in sample.step_s]
    clean = redact_json(content | {"samples": measurement.samples.columns})
    kept = {name: clean[name] for name in AS_IT_IS if clean[name] is not None}
    return dumps(_without_nulls(clean) | kept), struct.pack(f"<{len(steps)}d", *steps)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: rows have no cycles, and scanning them takes a third of the reading time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@collector_paused()
def decode(rows: Sequence[tuple[str, EncodedSteps, dict[str, Any]]]) -> list[Measurement]:
    """The inverse of ``encode``, for (JSON, step times, environment) of each row.

    Raises TypeError, KeyError, ValueError or struct.error for invalid content.
    """
    try:
        text = f"[{','.join([content for content, _, _ in rows])}]"  # one parse is a third faster
    except TypeError:
        raise ValueError("its content is not text") from None
    for environment in {id(environment): environment for _, _, environment in rows}.values():
        check_part("environment", environment)
    usual = typed_rows(text) or ()
    contents, make = (usual, _of_typed) if len(usual) == len(rows) else (_loaded(text), _measurement)
    return [
        make(content, steps, environment) for content, (_, steps, environment) in zip(contents, rows, strict=True)
    ]


def encode_model(model: RunModel) -> str:
    """The notes, the checkpoint and the config of a run's model as JSON, without nulls and secrets."""
    notes = [asdict(note) for note in model.notes]
    content = {"cautions": notes, "checkpoint": model.checkpoint}
    with suppress(ValueError):  # one that could not be read again: its shapes are then unknown to readers
        json_value(dumps(model.config), CONFIG)
        content |= {"config": model.config} if model.config else {}
    return dumps(_without_nulls(redact_json(content)))


def decode_model(model_id: str, name: str, content: Any) -> RunModel:
    """The inverse of ``encode_model``. Raises ValueError with the reason for invalid content."""
    rule = allowed(Case)["model"]
    if not rule.takes(name):
        raise ValueError(f"model is {shown(name)}, must be {rule}")
    if not isinstance(content, dict) or content.keys() - {"config"} != {"cautions", "checkpoint"}:
        raise ValueError("what it says about a model is not an object with cautions and checkpoint")
    config = content.get("config", {})
    if not isinstance(config, dict):
        raise ValueError(f"config is {shown(config)}, must be an object")
    for field in ("cautions", "checkpoint"):
        check_field(field, content[field])
    return RunModel(model_id, name, _made("cautions", content["cautions"]), content["checkpoint"], config)


def _loaded(text: str) -> Any:
    try:
        contents = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not all(isinstance(content, dict) for content in contents):
        raise ValueError("its content is not an object")
    return contents


def dumps(content: Any) -> str:
    """Compact JSON. Raises ValueError for NaN, which JSON does not have.

    ASCII only: a path that is not UTF-8 contains characters that SQLite refuses; as escapes they survive.
    """
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _of_typed(row: Any, steps: EncodedSteps, environment: dict[str, Any]) -> Measurement:
    """The measurement of a row whose types and ranges are checked."""
    return Measurement(
        convert(row.case, Case, from_attributes=True),
        environment,
        row.outcome,
        row.reason,
        _samples(columns(row.samples), steps),
        convert(row.memory, Memory, from_attributes=True),
        None if row.energy is NULL else _part("energy", row.energy),
        _part("cautions", row.cautions),
        row.load_s,
        row.threads,
        row.started_at,
        _part("asked", row.asked),
        _part("stopped", row.stopped),
        _part("expected", row.expected),
        None if row.decode_path is NULL else _part("decode_path", row.decode_path),
        _part("checkpoint", row.checkpoint),
        None if row.serving is NULL else _part("serving", row.serving),
        row.case_s,
        row.start_s,
        None if row.quality is NULL else _part("quality", row.quality),
    )


def _part(name: str, raw: Raw) -> Any:
    """A part of a row that may contain unknown fields. Rows with the same text share one object."""
    text = bytes(raw)
    known = _parts.get((name, text), _parts)
    return _new_part(name, text) if known is _parts else known


def _new_part(name: str, text: bytes) -> Any:
    content = expected(text) if name == "expected" else None
    if content is None:
        check_field(name, content := json.loads(text))
    else:
        check_expected(content)
    made = _made(name, content)
    if len(text) <= MAX_PART_BYTES:
        if len(_parts) >= MAX_CACHED_PARTS:
            _parts.clear()
        _parts[name, text] = made
    return made


def _measurement(row: dict[str, Any], steps: EncodedSteps, environment: dict[str, Any]) -> Measurement:
    """The measurement of a row that is checked field by field. Raises ValueError with the reason."""
    check_row(row)
    if row["samples"] != {}:
        check_columns(row["samples"])
        row["samples"]["phase"] = list(map(intern, row["samples"]["phase"]))
    made = {name: _made(name, value) for name, value in row.items()}
    return Measurement(environment=environment, **made | {"samples": _samples(row["samples"], steps)})


def _made(name: str, content: Any) -> Any:
    """A field of ``Measurement`` from checked JSON."""
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


def _samples(columns: dict[str, list[Any]], steps: EncodedSteps) -> Repetitions:
    if columns == {}:
        return NO_SAMPLES
    counts = columns["step_s"]
    if not callable(steps):
        _checked(counts, steps)  # report errors now and not when they are read
    return Repetitions.by_column(columns, partial(_step_times, counts, steps))


def _shared(value: Any) -> Any:
    """One shared string for all rows that have it; the JSON parser creates a new one each time."""
    return intern(value) if type(value) is str and len(value) <= SHORT else value


def _step_times(counts: Sequence[int], steps: EncodedSteps) -> list[tuple[float, ...]]:
    """The step times of each sample, cut from the list of all; packed ones have been checked.

    Raises ValueError or struct.error for invalid content.
    """
    seconds = _checked(counts, steps()) if callable(steps) else _unpacked(steps)
    ends = accumulate(counts)
    return [seconds[end - count : end] for count, end in zip(counts, ends, strict=True)]


def _checked(counts: Sequence[int], packed: bytes) -> tuple[float, ...]:
    seconds = _unpacked(packed)
    check_times(seconds, "samples.step_s")
    if sum(counts) != len(seconds):
        raise ValueError(f"{len(seconds)} step times are stored, but the samples have {sum(counts)} steps")
    return seconds


def _unpacked(packed: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(packed) // 8}d", packed)


def _without_nulls(content: dict[str, Any]) -> dict[str, Any]:
    """Fields that may be null are null by default, so nulls need not be written."""
    return {
        name: _without_nulls(value) if isinstance(value, dict) else value
        for name, value in content.items()
        if value is not None
    }
