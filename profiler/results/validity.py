"""Whether what a row says can be: every field of its type and in a range in which it can lie.

A row may be somebody else's, edited, or of a store that was tampered with. What is read as a batch of −4 or as a NaN
becomes a figure without a warning, so a row is checked before it is a ``Measurement``. The types are those of the
dataclasses, so that a field which is added to one of them is checked too. Everything here raises ValueError that
names the field, what was found and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from functools import cache, lru_cache
from operator import itemgetter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from profiler.case import Case
from profiler.results.measurement import Caution, DecodePath, Energy, Measurement, Memory, PhaseEnergy, Sample
from profiler.units import MAX_BYTES, printable

MOST_TEXT = 64 * 1024  # characters
MOST_COUNT = 2**53  # whole numbers that a float holds exactly
LEAST, MOST = 1e-15, 1e18  # of floats that are not 0: sums, products and quotients of some of them stay finite
MOST_SAMPLES = 100_000  # repetitions of a row
PROCESSES_APART = 1.0  # standard deviation ÷ median, which a share of a time cannot reach

RANGES: dict[str, tuple[float, float]] = {  # of fields that may not be 0, or may be less
    "context": (1, MOST_COUNT),
    "batch": (1, MOST_COUNT),
    "steps": (1, MOST_COUNT),
    "ubatch": (1, MOST_COUNT),
    "threads": (1, MOST_COUNT),
    "tokens": (1, MOST_COUNT),
    "seconds": (1e-9, 1e9),
    "seed": (0, 2**63),
    "wait_s": (-MOST, MOST),  # differences of counters that are read one after the other
    "drain_s": (-MOST, MOST),
    "counter_j": (-MOST, MOST),
    "power_j": (-MOST, MOST),
    "temperature_c": (-300, 10_000),
}
# What reports read of the semi-structured parts. Names that are not here may hold any JSON.
NUMBER, TEXT, FLAG = (int, float), (str,), (bool,)
ENVIRONMENT: dict[str, Any] = {
    "cpu": {"title": TEXT, "cores": NUMBER, "cores_installed": NUMBER, "governor": TEXT},
    "memory_bytes": NUMBER,
    "swap_bytes": NUMBER,
    "virtual": FLAG,
    "limits": {"memory_bytes": NUMBER, "cores": NUMBER},
    "device": {
        "name": TEXT,
        "kind": TEXT,
        "title": TEXT,
        "memory_bytes": NUMBER,
        "free_bytes": NUMBER,
        "features": list,
        "uuid_hash": TEXT,
        "driver": TEXT,
        "power_limit_w": NUMBER,
    },
    "system": TEXT,
    "python": TEXT,
    "libraries": {},
    "settings": {},
    "source": {"commit": TEXT, "changed": FLAG},
}
ASKED = {"reps": NUMBER, "precision": NUMBER, "max_phase_s": NUMBER, "max_memory_bytes": NUMBER, "energy": FLAG}
FIGURE = {"value": NUMBER, "low": NUMBER, "high": NUMBER, "basis": TEXT}
EXPECTED: dict[str, Any] = {
    "peak_bytes": FIGURE,
    "load_peak_bytes": FIGURE,
    "prefill_tps": FIGURE,
    "decode_tps": FIGURE,
    "prefill_bound": TEXT,
    "decode_bound": TEXT,
    "path": TEXT,
    "between": {"prefill": NUMBER, "decode": NUMBER, "basis": TEXT},
    "ceiling_s": {"prefill": NUMBER, "step": NUMBER},
}
WHOLE: dict[str, tuple[str, ...]] = {  # parts of ``expected`` that are read without asking what is in them
    **dict.fromkeys(("peak_bytes", "load_peak_bytes", "prefill_tps", "decode_tps"), tuple(FIGURE)),
    "between": ("basis",),
    "ceiling_s": ("prefill", "step"),
}
STOPPED = {"prefill": TEXT, "decode": TEXT}
PARTS: dict[str, dict[str, Any]] = {
    "asked": ASKED,
    "expected": EXPECTED,
    "environment": ENVIRONMENT,
    "stopped": STOPPED,
    "checkpoint": {},
}
NEEDED = dict.fromkeys(("phase", "seconds", "tokens", "step_s"))  # columns of samples
MOST_DEPTH = 8  # lists and objects inside each other, where names are free


@dataclass(frozen=True, slots=True)
class Allowed:
    """What one field may hold."""

    kinds: frozenset[type]
    low: float
    high: float
    words: frozenset[str] = frozenset()  # empty: any text

    def takes(self, value: Any) -> bool:
        """Whether ``value`` can be what the field holds. NaN is in no range."""
        kind = type(value)
        if kind not in self.kinds:
            return False
        if kind is int or kind is float:
            return self.low <= value <= self.high and (kind is int or not 0 < abs(value) < LEAST)
        if kind is str:
            return value in self.words if self.words else len(value) <= MOST_TEXT
        return True

    def __str__(self) -> str:
        words = ["null"] if NoneType in self.kinds else []
        if int in self.kinds:
            kind = "a number" if float in self.kinds else "a whole number"
            words.insert(0, f"{kind} from {self.low:g} to {self.high:g}")
        if str in self.kinds:
            text = " or ".join(sorted(self.words)) or f"a text of at most {MOST_TEXT:,} characters"
            words.insert(0, text)
        if bool in self.kinds:
            words.insert(0, "true or false")
        if dict in self.kinds:
            words.insert(0, "an object")
        if list in self.kinds:
            words.insert(0, "a list")
        return " or ".join(words)


@cache
def allowed(kind: type) -> Mapping[str, Allowed]:
    """By name, what each field of a dataclass may hold."""
    hints = get_type_hints(kind)
    return {field.name: _allowed(field.name, hints[field.name]) for field in dataclass_fields(kind)}


def check_row(row: Mapping[str, Any], path_name: str = "decode_path") -> None:
    """ValueError unless ``row`` can be a stored measurement, apart from its samples and its environment.

    ``path_name``: what its decode path is called in the file.
    """
    check(Measurement, {name: value for name, value in row.items() if name != "samples"})
    check(Case, row["case"], "case")
    check(Memory, row["memory"], "memory")
    for caution in row["cautions"]:
        check(Caution, caution, "cautions")
    if path := row.get("decode_path"):
        check(DecodePath, path, path_name)
    if energy := row.get("energy"):
        check(Energy, energy, "energy")
        for phase in ("prefill", "decode"):
            if part := energy.get(phase):
                check(PhaseEnergy, part, f"energy.{phase}")


def check_columns(columns: Any, where: str = "samples", names: Mapping[str, str] | None = None) -> None:
    """ValueError unless ``columns``, which hold a list for each field of a ``Sample``, can be repetitions of a row.

    ``step_s`` holds how many steps each has. ``where`` and ``names``: what they are called in the file.
    """
    names = names or {}
    if not isinstance(columns, Mapping):
        raise ValueError(f"{where} is {shown(columns)}, must be an object")
    fields = allowed(Sample)
    if columns.keys() - fields.keys():
        unknown = next(name for name in columns if name not in fields)
        raise ValueError(f"{where} has an unknown column, {printable(unknown, 60)}")
    if not columns.keys() >= NEEDED.keys():
        missing = next(name for name in NEEDED if name not in columns)
        raise ValueError(f"{where} has no {missing}")
    for name, values in columns.items():
        if not isinstance(values, list):
            raise ValueError(f"{_at(where, names.get(name, name))} is {shown(values)}, must be a list")
        rule = _COUNT if name == "step_s" else fields[name]
        if not _all(rule, values):
            wrong = next(value for value in values if not rule.takes(value))
            raise ValueError(f"{_at(where, names.get(name, name))} holds {shown(wrong)}, must be {rule}")
    sizes = set(map(len, columns.values()))
    if len(sizes) > 1 or max(sizes) > MOST_SAMPLES:
        raise ValueError(f"{where} has columns of {max(sizes):,} and {min(sizes):,} entries")


def check(kind: type, content: Any, where: str = "") -> None:
    """ValueError unless ``content`` is a mapping whose fields ``kind``, a dataclass, can hold."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where or 'it'} is {shown(content)}, must be an object")
    if _surely(kind, content):
        for name in content.keys() & PARTS.keys():
            check_part(name, content[name], where)
        return
    fields = allowed(kind)
    for name, value in content.items():
        if name not in fields:
            raise ValueError(f"{_at(where, name)} is not a field that this version of profile knows")
        rule = fields[name]
        if not rule.takes(value):
            raise ValueError(f"{_at(where, name)} is {shown(value)}, must be {rule}")
        if name in PARTS:
            check_part(name, value, where)


def _surely(kind: type, content: Mapping[str, Any]) -> bool:
    """Whether every field of ``content`` is allowed, its ``PARTS`` aside, told at once; False leaves it open.

    Rows of one store have the same fields of the same types, so what these allow is looked up once for all of them,
    and numbers are compared together.
    """
    form = _form(kind, tuple(content), tuple(map(type, content.values())))
    if form is None:
        return False
    ranges, texts, others = form
    for pick, low, high in ranges:
        values = pick(content)
        if not (low <= min(values) and max(values) <= high):
            return False
    return all(rule.takes(content[name]) for name, rule in others) and max(map(len, texts(content))) <= MOST_TEXT


Pick = Callable[[Mapping[str, Any]], tuple[Any, ...]]


@lru_cache(maxsize=512)
def _form(
    kind: type, names: tuple[str, ...], types: tuple[type, ...]
) -> tuple[list[tuple[Pick, float, float]], Pick, list[tuple[str, Allowed]]] | None:
    """What to compare of a mapping with these fields: whole numbers by their range, texts, and others one by one."""
    fields, numbers = allowed(kind), dict[tuple[float, float], list[str]]()
    texts, others = list[str](), list[tuple[str, Allowed]]()
    for name, found in zip(names, types, strict=True):
        rule = fields.get(name)
        if rule is None or found not in rule.kinds:
            return None
        if found is int:
            numbers.setdefault((rule.low, rule.high), []).append(name)
        elif found is str and not rule.words:
            texts.append(name)
        elif found in (float, str):
            others.append((name, rule))
    return [(_picked(some), low, high) for (low, high), some in numbers.items()], _picked(texts), others


def _picked(names: Sequence[str]) -> Pick:
    """Takes these fields out of a mapping, as a tuple whatever their number."""
    return itemgetter(*names, names[0]) if names else lambda content: ("",)


def check_times(seconds: Sequence[float], where: str) -> None:
    """ValueError unless all of ``seconds``, which are floats, can be the time of a step."""
    if seconds and not (min(seconds) >= 0 and max(seconds) <= MOST and math.isfinite(sum(seconds))):
        wrong = next(value for value in seconds if not 0 <= value <= MOST)
        raise ValueError(f"{where} holds {shown(wrong)}, must be a number from 0 to {MOST:g}")


def check_part(name: str, content: Any, where: str = "") -> None:
    """ValueError unless ``content`` can be the part ``name`` of ``PARTS`` of a row."""
    if type(content) is not dict or not _tree_fits(content, PARTS[name]):
        _check_tree(content, PARTS[name], _at(where, name))
    if name != "expected" or not content:
        return
    for part in WHOLE.keys() & content.keys():
        missing = [field for field in WHOLE[part] if content[part] and content[part].get(field) is None]
        if missing:
            raise ValueError(f"{_at(where, name)}.{part} has no {missing[0]}")
    between = content.get("between") or {}
    for phase in ("prefill", "decode"):
        if phase in between and not 0 <= (between[phase] or 0) < PROCESSES_APART:
            raise ValueError(f"{_at(where, name)}.between.{phase} is {shown(between[phase])}, must be a share of one")


def shown(value: Any) -> str:
    """A value in a message, on one line."""
    if isinstance(value, Mapping | list | tuple):
        return "an object" if isinstance(value, Mapping) else "a list"
    return "null" if value is None else printable(repr(value), 60)


def _tree_fits(content: dict[str, Any], form: Mapping[str, Any]) -> bool:
    """Whether ``_check_tree`` would find nothing, told fast; False leaves it open."""
    for name, value in content.items():
        kinds = form.get(name)
        if type(value) is dict:
            if type(kinds) is not dict or not _tree_fits(value, kinds):
                return False
        elif (
            type(value) is list
            or (kinds is not None and type(kinds) is not tuple)
            or not (_ANY if kinds is None or value is None else _OF[kinds]).takes(value)
        ):
            return False
    return True


def _check_tree(content: Any, form: Mapping[str, Any], where: str) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is {shown(content)}, must be an object")
    for name, value in content.items():
        kinds = form.get(name)
        at = _at(where, name)
        if value is None or kinds is None:
            _check_plain(value, at, MOST_DEPTH)
        elif isinstance(kinds, Mapping):
            _check_tree(value, kinds, at)
        elif kinds is list:
            if not isinstance(value, list) or not all(map(_ANY.takes, value)):
                raise ValueError(f"{at} is {shown(value)}, must be a list of texts")
        elif not _OF[kinds].takes(value):
            raise ValueError(f"{at} is {shown(value)}, must be {_OF[kinds]}")


def _check_plain(value: Any, where: str, depth: int) -> None:
    """ValueError unless ``value`` is JSON of the usual size."""
    if isinstance(value, Mapping | list):
        if not depth:
            raise ValueError(f"{where} is nested too deeply")
        for each in value.values() if isinstance(value, Mapping) else value:
            _check_plain(each, where, depth - 1)
    elif not _ANY.takes(value):
        raise ValueError(f"{where} is {shown(value)}, must be {_ANY}")


def _allowed(name: str, hint: Any) -> Allowed:
    options = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    kinds: set[type] = set()
    words: set[str] = set()
    for option in options:
        origin = get_origin(option)
        if origin is Literal:
            words |= set(get_args(option))
            kinds.add(str)
        elif origin is dict or is_dataclass(option):
            kinds.add(dict)
        elif origin in (tuple, list):
            kinds |= {list, tuple}
        else:
            kinds |= {int, float} if option is float else {option}
    low, high = RANGES.get(
        name, (0, MAX_BYTES if name.endswith("_bytes") else MOST if float in kinds else MOST_COUNT)
    )
    return Allowed(frozenset(kinds), low, high, frozenset(words))


def _all(rule: Allowed, values: list[Any]) -> bool:
    """Whether ``rule`` takes every value; fast for the usual column, which is of one kind and in range."""
    kinds = set(map(type, values))
    if kinds <= {int} and kinds <= rule.kinds:
        return not values or (rule.low <= min(values) and max(values) <= rule.high)
    if kinds == {float} and kinds <= rule.kinds and max(rule.low, LEAST) <= min(values):
        return max(values) <= rule.high and not math.isnan(sum(values))
    if kinds == {str} and kinds <= rule.kinds and rule.words:
        return rule.words.issuperset(values)
    return all(map(rule.takes, values))


def _at(where: str, name: Any) -> str:
    return f"{where}.{printable(name, 60)}" if where else printable(name, 60)


_COUNT = Allowed(frozenset({int}), 0, MOST_COUNT)
_ANY = Allowed(frozenset({int, float, str, bool, NoneType}), -MOST, MOST)
_OF = {
    NUMBER: Allowed(frozenset(NUMBER), 0, MOST),
    TEXT: Allowed(frozenset(TEXT), 0, 0),
    FLAG: Allowed(frozenset(FLAG), 0, 0),
}
