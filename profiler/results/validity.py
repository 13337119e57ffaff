"""Checks that the fields of a row have possible values: the right types, within possible ranges.

A row may come from somebody else, or from a file that was edited. A batch of −4 or a NaN would become a figure
without a warning, so a row is checked before it becomes a ``Measurement``. The types are those of the dataclasses, so
that new fields are checked too. Every function here raises a ValueError that names the field, its value and the
allowed values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from functools import cache
from itertools import compress
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from profiler.case import SERVER, Case, options_of
from profiler.results.measurement import (
    PHASES,
    TASK_VERDICTS,
    Caution,
    DecodePath,
    Energy,
    Measurement,
    Memory,
    PhaseEnergy,
    Sample,
)
from profiler.units import MAX_BYTES, printable

MAX_TEXT = 64 * 1024  # characters
MAX_COUNT = 2**53  # integers that a float represents exactly
MAX_NUMBER = 1e18  # for floats: sums and products of a few stay finite
MAX_SAMPLES = 100_000  # repetitions of a row
PROCESSES_APART = 1.0  # standard deviation ÷ median, which a share of a time cannot reach

RANGES: dict[str, tuple[float, float]] = {  # fields that must not be 0, or may be negative
    "context": (1, MAX_COUNT),
    "batch": (1, MAX_COUNT),
    "steps": (1, MAX_COUNT),
    "ubatch": (1, MAX_COUNT),
    "threads": (1, MAX_COUNT),
    "tokens": (1, MAX_COUNT),
    "seconds": (1e-9, 1e9),
    "seed": (0, 2**63),
    "wait_s": (-MAX_NUMBER, MAX_NUMBER),  # differences of counters that are read one after the other
    "drain_s": (-MAX_NUMBER, MAX_NUMBER),
    "counter_j": (-MAX_NUMBER, MAX_NUMBER),
    "power_j": (-MAX_NUMBER, MAX_NUMBER),
    "temperature_c": (-300, 10_000),
}


@dataclass(frozen=True, slots=True)
class Allowed:
    """The values that one field may have."""

    kinds: frozenset[type]
    low: float = 0
    high: float = MAX_NUMBER
    words: frozenset[str] = frozenset()  # empty: any text

    def takes(self, value: Any) -> bool:
        """Whether ``value`` is allowed. NaN is in no range."""
        kind = type(value)
        if kind not in self.kinds:
            return False
        if kind is int or kind is float:
            return bool(self.low <= value <= self.high)
        if kind is str:
            return value in self.words if self.words else len(value) <= MAX_TEXT
        return True

    def __str__(self) -> str:
        words = ["null"] if NoneType in self.kinds else []
        if int in self.kinds:
            kind = "a number" if float in self.kinds else "a whole number"
            words.insert(0, f"{kind} from {self.low:g} to {self.high:g}")
        if str in self.kinds:
            text = " or ".join(sorted(self.words)) or f"a text of at most {MAX_TEXT:,} characters"
            words.insert(0, text)
        if bool in self.kinds:
            words.insert(0, "true or false")
        if dict in self.kinds:
            words.insert(0, "an object")
        if list in self.kinds:
            words.insert(0, "a list")
        return " or ".join(words)


Form = Mapping[str, "Allowed | Form"]

NUMBER = Allowed(frozenset({int, float, NoneType}))
SIZE = Allowed(frozenset({int, float, NoneType}), 1e-15)  # something that figures are divided by
TEXT = Allowed(frozenset({str, NoneType}))
FLAG = Allowed(frozenset({bool, NoneType}))
ANY = Allowed(frozenset({int, float, str, bool, NoneType}), -MAX_NUMBER)
COUNT = Allowed(frozenset({int}), high=MAX_COUNT)
AMOUNT = Allowed(frozenset({int, float}))
TASK_WORD = Allowed(frozenset({str}))
SIZES = {"tokens": Allowed(frozenset({int}), 1, MAX_COUNT), "same": COUNT}  # of ``quality.blocks``

# The fields of semi-structured parts that reports read. Other names may have any JSON value.
ENVIRONMENT: Form = {
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
        "features": Allowed(frozenset({list, NoneType})),
        "uuid_hash": TEXT,
        "driver": TEXT,
        "power_limit_w": NUMBER,
    },
    "system": TEXT,
    "python": TEXT,
    "libraries": {},
    "settings": {},
    "source": {"commit": TEXT, "changed": FLAG},
    "server": {"kind": TEXT, "version": TEXT},
}
ASKED = {
    "reps": NUMBER,
    "precision": NUMBER,
    "max_phase_s": NUMBER,
    "max_memory_bytes": NUMBER,
    "energy": FLAG,
    "quality": TEXT,
    "quick": FLAG,
}
FIGURE = {"value": SIZE, "low": NUMBER, "high": NUMBER, "basis": TEXT, "rows": NUMBER}
EXPECTED: Form = {
    "peak_bytes": FIGURE,
    "load_peak_bytes": FIGURE,
    "prefill_tps": FIGURE,
    "decode_tps": FIGURE,
    "prefill_bound": TEXT,
    "decode_bound": TEXT,
    "path": TEXT,
    "between": {"prefill": NUMBER, "decode": NUMBER, "basis": TEXT},
    "ceiling_s": {"prefill": NUMBER, "step": NUMBER},
    "utilization": {"prefill_s": NUMBER, "step_s": NUMBER, "basis": TEXT},
    "plain": {
        **dict.fromkeys(("peak_bytes", "rest_bytes", "prefill_tps", "decode_tps"), FIGURE),
        **dict.fromkeys(("parameters", "version", "bytes_s", "flop_s"), NUMBER),
        "calibrated": FLAG,
    },
}
WHOLE: dict[str, tuple[str, ...]] = {  # parts of ``expected`` whose fields are read without checking for them
    **dict.fromkeys(
        ("peak_bytes", "load_peak_bytes", "prefill_tps", "decode_tps"), ("value", "low", "high", "basis")
    ),
    "between": ("basis",),
    "ceiling_s": ("prefill", "step"),
    "utilization": ("prefill_s", "step_s", "basis"),
}
STOPPED = {"prefill": TEXT, "decode": TEXT}
PERCENTILES: Form = {"n": NUMBER, "p50": NUMBER, "p95": NUMBER, "p99": NUMBER}
LIST = Allowed(frozenset({list, NoneType}))
SERVING: Form = {
    **dict.fromkeys(("server", "server_version", "url", "prompt", "scenario", "language", "tokens_by"), TEXT),
    **dict.fromkeys(("requests", "failed", "wall_s", "cold_ttft_s", "client_delay_s"), NUMBER),
    **dict.fromkeys(("total_tps", "requests_per_s", "goodput_per_s", "slo_met", "slowest_stream_tps"), NUMBER),
    **dict.fromkeys(("loaded_context", "max_context", "slots", "file_bytes", "vram_bytes", "client_delay_s"), NUMBER),
    "tokens_per_1000_characters": NUMBER,
    **dict.fromkeys(("prompt_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"), LIST),
    **dict.fromkeys(("first_byte_s", "ttft_s", "ttft_reasoning_s", "ttft_answer_s", "itl_s"), PERCENTILES),
    **dict.fromkeys(("tpot_s", "e2e_s", "prefill_tps", "decode_tps", "characters_per_s"), PERCENTILES),
    "tokens_per_chunk": PERCENTILES,
    "cached": FLAG,
    "fixed_length": FLAG,
    "tasks": {"set": TEXT, "hash": TEXT, **dict.fromkeys(("kind", "name", "outcome", "reason"), LIST)},
    "unknown": {},
}
QUALITY: Form = {
    **dict.fromkeys(("definition", "window", "error", "rest", "seconds"), NUMBER),
    "text": dict.fromkeys(("name", "hash", "license", "tokens_hash"), TEXT),
    "reference": dict.fromkeys(("model", "model_id", "dtype", "packed", "device"), TEXT),
    "blocks": dict.fromkeys(("kind", "document", "tokens", "kl", "same", "nll", "reference_nll"), LIST),
    "tails": {},
    "decode": {
        "path": TEXT,
        **dict.fromkeys(("tokens", "kl", "same", "prompt_kl", "prompt_same"), NUMBER),
        "reason": TEXT,
    },
    "reason": TEXT,
}
PARTS: dict[str, Form] = {
    "asked": ASKED,
    "expected": EXPECTED,
    "environment": ENVIRONMENT,
    "stopped": STOPPED,
    "checkpoint": {},
    "serving": SERVING,
    "quality": QUALITY,
}
NULLABLE = ("serving", "quality")  # parts that most rows do not have
OBJECTS: dict[str, type] = {"case": Case, "memory": Memory, "cautions": Caution, "decode_path": DecodePath}
MAX_DEPTH = 8  # nested lists and objects, where names are free


@cache
def allowed(kind: type) -> Mapping[str, Allowed]:
    """The allowed values of each field of a dataclass, by name."""
    hints = get_type_hints(kind)
    return {field.name: _allowed(field.name, hints[field.name]) for field in dataclass_fields(kind)}


def check_row(row: Mapping[str, Any], path_name: str = "decode_path") -> None:
    """Raise ValueError unless ``row`` can be a stored measurement; samples and environment are not checked.

    ``path_name``: the name of its decode path in the file.
    """
    for name in ("case", "memory", "cautions"):
        if name not in row:
            raise KeyError(name)
    for name, value in row.items():
        if name != "samples":
            check_field(name, value, path_name)


def check_field(name: str, value: Any, path_name: str = "decode_path") -> None:
    """Raise ValueError unless ``value`` is allowed for the field ``name``; ``path_name`` as for a row."""
    if name in PARTS:
        if value is not None or name not in NULLABLE:
            check_part(name, value)
        return
    rule = allowed(Measurement).get(name)
    if rule is None:
        raise ValueError(f"{printable(name, 60)} is not a field that this version of profile knows")
    if not rule.takes(value):
        raise ValueError(f"{name} is {shown(value)}, must be {rule}")
    if name == "energy" and value:
        _check_energy(value)
    elif name in OBJECTS and value:
        for each in value if name == "cautions" else [value]:
            check(OBJECTS[name], each, path_name if name == "decode_path" else name)


def _check_energy(energy: Mapping[str, Any]) -> None:
    check(Energy, energy, "energy")
    for phase in PHASES:
        if (part := energy.get(phase)) is not None:
            if isinstance(part, dict) and part.get("repetitions") == part.get("seconds") == part.get("tokens") == 0:
                part = {name: value for name, value in part.items() if name not in ("seconds", "tokens")}
            check(PhaseEnergy, part or None, f"energy.{phase}")  # without a counter, nothing is repeated


def check_tokens(case: Mapping[str, Any], phases: Sequence[str], tokens: Sequence[int]) -> None:
    """Raise ValueError unless each repetition processed the tokens of its case; only a server counts its own."""
    if SERVER in options_of(str(case.get("options", ""))):
        return
    context, batch, steps = (case.get(name) for name in ("context", "batch", "steps"))
    if not (type(context) is type(batch) is type(steps) is int):
        raise ValueError("case has no context, batch or steps")
    expected = {("prefill", batch * context), ("decode", batch * steps)}
    if other := set(zip(phases, tokens, strict=True)) - expected:
        phase, count = min(other, key=str)
        raise ValueError(f"{phase} has repetitions of {shown(count)} tokens, which do not match case")


def check_columns(columns: Any, where: str = "samples", names: Mapping[str, str] | None = None) -> None:
    """Raise ValueError unless ``columns``, with a list for each field of ``Sample``, can be repetitions of a row.

    ``step_s`` has the number of steps of each. ``where`` and ``names``: their names in the file.
    """
    names = names or {}
    if not isinstance(columns, dict):
        raise ValueError(f"{where} is {shown(columns)}, must be an object")
    fields = allowed(Sample)
    if unknown := [name for name in columns if name not in fields]:
        raise ValueError(f"{where} has an unknown column, {printable(unknown[0], 60)}")
    if missing := [name for name in ("phase", "seconds", "tokens", "step_s") if name not in columns]:
        raise ValueError(f"{where} has no {missing[0]}")
    for name, values in columns.items():
        rule = COUNT if name == "step_s" else fields[name]
        if not isinstance(values, list):
            raise ValueError(f"{_at(where, names.get(name, name))} is {shown(values)}, must be a list")
        if not _all(rule, values):
            wrong = next(value for value in values if not rule.takes(value))
            raise ValueError(f"{_at(where, names.get(name, name))} contains {shown(wrong)}, must be {rule}")
    sizes = {len(values) for values in columns.values()}
    if len(sizes) > 1 or max(sizes) > MAX_SAMPLES:
        raise ValueError(f"{where} has columns of {max(sizes):,} and {min(sizes):,} entries")


def check(kind: type, content: Any, where: str = "") -> None:
    """Raise ValueError unless ``content`` is a mapping with fields that the dataclass ``kind`` allows."""
    if not isinstance(content, dict):
        raise ValueError(f"{where or 'it'} is {shown(content)}, must be an object")
    fields = allowed(kind)
    if _is_usual(fields, content):
        return
    for name, value in content.items():
        if name not in fields:
            raise ValueError(f"{_at(where, name)} is not a field that this version of profile knows")
        if not fields[name].takes(value):
            raise ValueError(f"{_at(where, name)} is {shown(value)}, must be {fields[name]}")


def check_times(seconds: Sequence[float], where: str) -> None:
    """Raise ValueError unless all floats in ``seconds`` can be the time of a step."""
    if seconds and not (min(seconds) >= 0 and max(seconds) <= MAX_NUMBER and math.isfinite(sum(seconds))):
        wrong = next(value for value in seconds if not 0 <= value <= MAX_NUMBER)
        raise ValueError(f"{where} contains {shown(wrong)}, must be a number from 0 to {MAX_NUMBER:g}")


def check_part(name: str, content: Any) -> None:
    """Raise ValueError unless ``content`` can be the part ``name`` of ``PARTS`` of a row."""
    _check_form(content, PARTS[name], name)
    if name == "expected":
        check_expected(content)
    if name == "serving" and content.get("tasks"):
        _check_tasks(content["tasks"])
    if name == "quality":
        _check_blocks(content.get("blocks") or {})


def _check_tasks(tasks: Mapping[str, Any]) -> None:
    """Raise ValueError unless the columns of ``serving.tasks`` are complete and describe the same tasks."""
    if not isinstance(tasks.get("hash"), str):
        raise ValueError("serving.tasks has no hash")
    columns = [tasks.get(name) for name in ("kind", "name", "outcome")]
    if not all(isinstance(values, list) and all(map(TASK_WORD.takes, values)) for values in columns):
        raise ValueError("serving.tasks has no lists of texts as kind, name and outcome")
    if other := [each for each in columns[2] or () if each not in TASK_VERDICTS]:
        raise ValueError(f"serving.tasks.outcome contains {shown(other[0])}, must be {' or '.join(TASK_VERDICTS)}")
    if len({len(values or ()) for values in columns}) > 1:
        raise ValueError("serving.tasks has columns of different lengths")


def _check_blocks(blocks: Mapping[str, Any]) -> None:
    """Raise ValueError unless the columns of ``quality.blocks`` are complete and describe the same blocks."""
    if not blocks:
        return
    for name in QUALITY["blocks"]:  # type: ignore[union-attr]
        if not isinstance(values := blocks.get(name), list):
            raise ValueError(f"quality.blocks has no {name}")
        rule = Allowed(frozenset({str})) if name in ("kind", "document") else SIZES.get(name, AMOUNT)
        if wrong := [value for value in values if not rule.takes(value)]:
            raise ValueError(f"quality.blocks.{name} contains {shown(wrong[0])}, must be {rule}")
    if len({len(values) for values in blocks.values()}) > 1:
        raise ValueError("quality.blocks has columns of different lengths")


def check_expected(content: Mapping[str, Any]) -> None:
    """Raise ValueError unless each part of ``expected`` that is present is complete."""
    for part, needed in WHOLE.items():
        if (known := content.get(part)) and (missing := [field for field in needed if known.get(field) is None]):
            raise ValueError(f"expected.{part} has no {missing[0]}")
    between = content.get("between") or {}
    for phase in PHASES:
        if (between.get(phase) or 0) >= PROCESSES_APART:
            raise ValueError(f"expected.between.{phase} is {shown(between[phase])}, must be a number from 0 to 1")


def shown(value: Any) -> str:
    """A value in a message, on one line."""
    if isinstance(value, Mapping | list | tuple):
        return "an object" if isinstance(value, Mapping) else "a list"
    return "null" if value is None else printable(repr(value), 60)


def _check_form(content: Any, form: Form, where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {shown(content)}, must be an object")
    if _is_usual(form, content):
        return
    for name, value in content.items():
        rule = form.get(name)
        if rule is None:
            _check_plain(value, _at(where, name), MAX_DEPTH)
        elif isinstance(rule, Allowed):
            if not rule.takes(value):
                raise ValueError(f"{where}.{name} is {shown(value)}, must be {rule}")
            if isinstance(value, list):
                _check_plain(value, f"{where}.{name}", MAX_DEPTH)
        elif value is not None:
            _check_form(value, rule, f"{where}.{name}")


def _check_plain(value: Any, where: str, depth: int) -> None:
    """Raise ValueError unless ``value`` is JSON of a reasonable size."""
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"{where} is nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            _check_plain(each, where, depth - 1)
    elif not ANY.takes(value):
        raise ValueError(f"{where} is {shown(value)}, must be {ANY}")


def _allowed(name: str, hint: Any) -> Allowed:
    kinds_of = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    kinds: set[type] = set()
    words: set[str] = set()
    for each in kinds_of:
        origin = get_origin(each)
        if origin is Literal:
            words |= set(get_args(each))
            kinds.add(str)
        elif origin is dict or is_dataclass(each):
            kinds.add(dict)
        elif origin in (tuple, list):
            kinds |= {list, tuple}
        else:
            kinds |= {int, float} if each is float else {each}
    low, high = RANGES.get(
        name, (0, MAX_BYTES if name.endswith("_bytes") else MAX_NUMBER if float in kinds else MAX_COUNT)
    )
    return Allowed(frozenset(kinds), low, high, frozenset(words))


def _all(rule: Allowed, values: list[Any]) -> bool:
    """Whether ``rule`` allows every value. A column has one type, so all values are checked together."""
    kinds = set(map(type, values))
    if not kinds <= rule.kinds:
        return False
    if kinds == {str}:
        return set(values) <= rule.words if rule.words else max(map(len, values)) <= MAX_TEXT
    if kinds <= {int, float}:
        total = sum(values)
        return not values or (total == total and rule.low <= min(values) and max(values) <= rule.high)  # NaN ≠ NaN
    return all(map(rule.takes, values))


class _Shape:
    """Objects with the same names in the same order and values of the same types, as most objects of a store."""

    def __init__(self, rules: Sequence[Allowed], kinds: Sequence[type]) -> None:
        self.numbers = [kind in (int, float) for kind in kinds]
        self.texts = [kind is str for kind in kinds]
        self.lows = [rule.low for rule, number in zip(rules, self.numbers, strict=True) if number]
        self.highs = [rule.high for rule, number in zip(rules, self.numbers, strict=True) if number]

    def holds(self, values: Collection[Any]) -> bool:
        """Whether numbers are in range and texts not too long; the types are already checked."""
        numbers = tuple(compress(values, self.numbers))
        return (
            all(map(operator.le, self.lows, numbers))
            and all(map(operator.le, numbers, self.highs))
            and max(map(len, compress(values, self.texts)), default=0) <= MAX_TEXT
        )


_SHAPES: dict[tuple[Any, ...], _Shape] = {}
_MAX_SHAPES = 1000


def _is_usual(form: Form, content: Mapping[str, Any]) -> bool:
    """Whether ``content`` passes the fast check for its shape; if not, a slower check finds the error."""
    kinds = tuple(map(type, content.values()))
    key = (id(form), *content, *kinds)
    shape = _SHAPES.get(key)
    if shape is None:
        rules = [form.get(name) for name in content]
        plain = [rule for rule in rules if isinstance(rule, Allowed) and not rule.words]
        fit = len(plain) == len(kinds) < 100 and len(_SHAPES) < _MAX_SHAPES
        if not fit or list in kinds or not all(kind in rule.kinds for kind, rule in zip(kinds, plain, strict=True)):
            return False
        shape = _SHAPES[key] = _Shape(plain, kinds)
    return shape.holds(content.values())


def _at(where: str, name: Any) -> str:
    return f"{where}.{printable(name, 60)}" if where else printable(name, 60)
