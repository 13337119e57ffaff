"""Stored rows, decoded and checked in one go by msgspec: several times as fast as a look at each field in Python.

The types are made from the rules of ``validity`` and accept nothing that those refuse. A row that they do not accept
is left to the slow way, which says what is wrong with it, or accepts it after all.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field
from dataclasses import fields as dataclass_fields
from functools import cache, reduce
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from msgspec.structs import astuple

from profiler.case import Case
from profiler.results.measurement import USUAL, Measurement, Memory, Sample
from profiler.results.validity import COUNT, EXPECTED, MOST_SAMPLES, MOST_TEXT, Allowed, Form, allowed, check_columns

LARGEST_INT = 2**63 - 1  # that msgspec compares
JSON = frozenset({"energy", "cautions", "asked", "stopped", "expected", "decode_path", "checkpoint"})
FIELDS = tuple(field.name for field in dataclass_fields(Measurement) if field.name != "environment")
ALWAYS = ("case", "samples", "memory", "cautions")  # are written for each row
NULL, EMPTY = Raw(b"null"), Raw(b"{}")
NEEDED = {"phase", "seconds", "tokens", "step_s"}  # columns of samples, where there are any


def rows(text: str) -> Sequence[Any] | None:
    """The rows of a JSON list as objects with ``FIELDS``; None if one of them is not as we write them.

    ``case`` and ``memory`` are objects with the fields of their classes, and ``samples`` has a column for each field
    of ``Sample``. The fields in ``JSON`` are text that was not looked at. What a row leaves out has its default.
    """
    try:
        found: list[Any] = _decoder().decode(text)
        return found
    except (msgspec.MsgspecError, RecursionError):
        return None


def columns(samples: Any) -> dict[str, Any]:
    """Those that are there. Raises ValueError where one is missing, or of another length."""
    found = {name: column for name, column in zip(USUAL, astuple(samples), strict=True) if column is not UNSET}
    if found and not (found.keys() >= NEEDED and len(set(map(len, found.values()))) == 1):
        check_columns(found)
    return found


def expected(text: bytes) -> Any:
    """The field ``expected`` if all that is in it is as ``validity.EXPECTED`` has it; None: look at it."""
    try:
        _expected().decode(text)
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return None


@cache
def _decoder() -> msgspec.json.Decoder[Any]:
    kinds = {name: COUNT if name == "step_s" else rule for name, rule in allowed(Sample).items()}
    lists: list[Any] = [(name, _list(_type(kinds[name])) | UnsetType, UNSET) for name in USUAL]
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
    """The type of objects with the fields of a dataclass and no others; ``made``: the types of some of them."""
    made, fields = made or {}, []
    for field in dataclass_fields(kind):
        if field.name in made or field.name != "environment":
            given = made.get(field.name) or _type(allowed(kind)[field.name])
            fields.append((field.name, given, *_default(field, given)))
    return msgspec.defstruct(kind.__name__, fields, forbid_unknown_fields=True, kw_only=True)


def _default(field: Field[Any], kind: Any) -> tuple[Any, ...]:
    """Of a field that may be left out."""
    if field.name in ALWAYS or (field.default is MISSING and field.default_factory is MISSING):
        return ()
    if kind is Raw:
        return (NULL if field.default is None else EMPTY,)
    return (field.default,)


def _struct(name: str, form: Form) -> Any:
    """The type of objects that have no other fields than those of ``form``."""
    fields = [
        (field, (_type(rule) if isinstance(rule, Allowed) else _struct(field, rule)) | UnsetType, UNSET)
        for field, rule in form.items()
    ]
    return msgspec.defstruct(name, fields, forbid_unknown_fields=True)


def _list(kind: Any) -> Any:
    return Annotated[list[kind], Meta(max_length=MOST_SAMPLES)]


def _type(rule: Allowed) -> Any:
    """The type of what ``rule`` takes, or of a little less."""
    kinds: list[Any] = []
    if int in rule.kinds:
        low, high = math.ceil(rule.low), min(math.floor(rule.high), LARGEST_INT)
        kinds.append(Annotated[int, Meta(ge=low, le=high)])
    if float in rule.kinds:
        kinds.append(Annotated[float, Meta(ge=rule.low, le=rule.high)])
    if str in rule.kinds:
        kinds.append(Literal[tuple(sorted(rule.words))] if rule.words else Annotated[str, Meta(max_length=MOST_TEXT)])
    kinds += [kind for kind in (bool, type(None)) if kind in rule.kinds]
    return reduce(operator.or_, kinds)
