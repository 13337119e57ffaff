"""Raw ``config.json`` files. Sizes are bounded, every number is checked before use, and nothing is executed.

Fields are read as transformers reads them. Each family repeats the declarations of transformers' config class (names,
types, defaults), and ``Config`` checks a raw config against them, because transformers refuses values of another
type. ``tests/torch/test_config_fields.py`` compares the declarations with transformers' own.

``auto_map`` and other keys that could name code are ignored. The bounds exist because a config may come from
anywhere: 10,000 layers or a 20 MiB file would cost minutes and gigabytes later on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, json_value, read_bytes
from profiler.units import printable

MAX_BYTES = 1024 * 1024  # the largest real config.json is a few tens of KiB

# Configs of hybrid models have an infinite limit for time steps. JSON has no word for that: files have the bare word
# ``Infinity``, which Python writes and reads, or transformers' own form, ``{"__float__": "Infinity"}``.
NOT_FINITE = "__float__"

SIZE = (1, 2**17)  # widths: hidden, feed-forward, vocabulary of a head
HEADS = (1, 1024)
RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "num_hidden_layers": (1, 1000),
    "hidden_size": SIZE,
    "vocab_size": (1, 2**22),
    "vocab_size_per_layer_input": (1, 2**22),
    "hidden_size_per_layer_input": (0, 2**14),
    "intermediate_size": (1, 2**20),
    "intermediate_size_mlp": (1, 2**20),
    "moe_intermediate_size": (1, 2**20),
    "shared_expert_intermediate_size": (0, 2**20),
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_global_key_value_heads": HEADS,
    "head_dim": (1, 2**14),
    "global_head_dim": (1, 2**14),
    "linear_num_key_heads": HEADS,
    "linear_num_value_heads": HEADS,
    "linear_key_head_dim": (1, 2**14),
    "linear_value_head_dim": (1, 2**14),
    "linear_conv_kernel_dim": (1, 64),
    "max_position_embeddings": (1, 2**30),
    # a window of 1 would keep every token, because transformers slices by ``-window + 1``
    "sliding_window": (2, 2**30),
    "attention_chunk_size": (2, 2**30),
    "sliding_window_pattern": (1, 1000),
    "full_attention_interval": (1, 1000),
    "max_window_layers": (0, 1000),
    "num_kv_shared_layers": (0, 999),
    "num_experts": (1, 2**14),
    "num_local_experts": (1, 2**14),
    "num_experts_per_tok": (1, 2**14),
    "top_k_experts": (1, 2**14),
    "interleave_moe_layer_step": (1, 1000),
    "no_rope_layer_interval": (1, 1000),
    "decoder_sparse_step": (1, 1000),
    "mtp_num_hidden_layers": (0, 1000),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a config class of transformers."""

    kinds: tuple[Any, ...]  # the members of the annotation: int, NoneType, list[int], Literal[...]
    default: Any

    def takes(self, value: object) -> bool:
        """Whether transformers accepts ``value`` here; it distinguishes integers, floats and booleans."""
        return any(_is_of(value, kind) for kind in self.kinds)

    @property
    def wanted(self) -> str:
        """The accepted values, for messages."""
        return " or ".join(_words(kind) for kind in self.kinds)


@cache
def declared(fields: type) -> Mapping[str, Field]:
    """The fields, by name, of a class that repeats one of transformers' config classes."""
    hints = get_type_hints(fields)
    union = (UnionType, Union)
    return {
        name: Field(get_args(hint) if get_origin(hint) in union else (hint,), getattr(fields, name))
        for name, hint in hints.items()
    }


class Anything:
    """Declares no fields, so that any field may hold anything until it is read."""


def read(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. ProfileError if it is too large, not a regular file, or not a JSON object."""
    return parse(read_bytes(path, MAX_BYTES), printable(path))


def parse(content: bytes, shown: str) -> dict[str, Any]:
    """The JSON object in ``content``. ``shown`` names it in errors and must be printable.

    ``NaN`` and ``Infinity`` become the objects that transformers writes for them. They are accepted only in fields
    that no family declares, because they are not numbers.
    """
    try:
        value = json_value(content, Budget(nbytes=MAX_BYTES), lambda word: {NOT_FINITE: word})
    except BadContent as error:
        raise ProfileError(f"{shown} is not valid JSON: {printable(error)}") from None
    if not isinstance(value, dict):
        raise ProfileError(f"{shown} is not a JSON object, so it is not a model's config")
    return value


class Config:
    """The fields of one raw config, checked when they are read.

    ``fields`` declares names, types and defaults as transformers does. ``names`` maps a field to its name in the file
    where they differ, as in GGUF. Every method raises ProfileError with the field, its value and the allowed values.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        where: str = "config",
        fields: type = Anything,
        *,
        model_type: str = "",
        names: Mapping[str, str] = MappingProxyType({}),
        cautions: tuple[str, ...] = (),
    ) -> None:
        self.raw = raw
        self.where = where
        self.fields = declared(fields)
        self.model_type = model_type
        self.names = names
        self.cautions = cautions

    def check(self) -> None:
        """ProfileError for the first declared field whose type transformers refuses."""
        for name, field in self.fields.items():
            if name in self.raw and not field.takes(self.raw[name]):
                raise self.refused(name, self._wanted(name))

    def __contains__(self, name: str) -> bool:
        """Whether the config sets ``name`` to anything but null."""
        return self.raw.get(name) is not None

    def value(self, name: str) -> Any:
        """The config's value, or the declared default if it has none."""
        field = self.fields.get(name)
        return self.raw.get(name, field.default if field else None)

    def number(self, name: str, default: int | None = None) -> int:
        """An integer within ``RANGES``; ``default`` is for fields that transformers does not declare."""
        value = default if default is not None and name not in self.raw else self.value(name)
        if name not in self.raw and value is None:
            raise self.error(f"{self.named(name)} is missing")
        if not _is_within(value, *RANGES[name]):
            raise self.refused(name, f"a whole number from {RANGES[name][0]} to {RANGES[name][1]}", value)
        found: int = value
        return found

    def optional(self, name: str) -> int | None:
        """Like ``number``, but ``None`` for null, and for an absent field without a default."""
        return None if self.value(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """A boolean. Null counts as false; an absent field has its declared default."""
        value = self.value(name)
        if not isinstance(value, bool | None):
            raise self.refused(name, "true or false")
        return bool(value)

    def names_of(
        self, name: str, length: int, allowed: Collection[str], older: Mapping[str, str] = MappingProxyType({})
    ) -> list[str] | None:
        """A list of ``length`` words from ``allowed``, such as ``layer_types``; ``None`` when absent or null.

        ``older`` maps older words to allowed ones.
        """
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.refused(name, "a list")
        for entry in value:
            if not isinstance(entry, str) or older.get(entry, entry) not in allowed:
                known = ", ".join(allowed)
                raise self.error(f"{self.named(name)} holds {shown(entry)}, which is not supported; known: {known}")
        if len(value) != length:
            count = self.named("num_hidden_layers")
            raise self.error(f"{self.named(name)} has {len(value)} entries, but {count} is {length}")
        return [older.get(entry, entry) for entry in value]

    def numbers(self, name: str) -> list[int] | None:
        """A list of integers; ``None`` when absent or null."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            raise self.error(f"{self.named(name)} must be a list of whole numbers")
        return value

    def part(self, name: str) -> Mapping[str, Any] | None:
        """A nested JSON object; ``None`` when absent or null."""
        value = self.raw.get(name)
        if value is not None and not is_object(value):
            raise self.refused(name, "an object")
        return value

    def named(self, name: str) -> str:
        """The field's name in the file."""
        return self.names.get(name, name)

    def refused(self, name: str, wanted: str, value: object = None) -> ProfileError:
        """The error for an unusable value; ``wanted`` describes the usable ones."""
        found = self.raw.get(name, value)
        return self.error(f"{self.named(name)} is {shown(found)}, must be {wanted}")

    def error(self, text: str) -> ProfileError:
        """An error about this config."""
        return ProfileError(f"{self.where}: {text}")

    def divides(self, smaller: str, small: int, larger: str, large: int) -> None:
        """ProfileError unless ``small`` divides ``large``."""
        if large % small:
            unstated = ", the default" if smaller in self.fields and smaller not in self.raw else ""
            part = f"{self.named(smaller)} ({small}{unstated})"
            raise self.error(f"{self.named(larger)} ({large}) is not a multiple of {part}")

    def _wanted(self, name: str) -> str:
        """The values that a field accepts, for messages."""
        field = self.fields.get(name)
        if name in RANGES and (field is None or int in field.kinds):
            low, high = RANGES[name]
            rest = " or null" if field and NoneType in field.kinds else ""
            return f"a whole number from {low} to {high}{rest}"
        return field.wanted if field else "another value"


def shown(value: object) -> str:
    """A JSON value for a message. Python cannot convert integers of thousands of digits to text."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    if isinstance(value, dict):
        return "an object" if is_object(value) else printable(value[NOT_FINITE], 60)
    if isinstance(value, list):
        return "a list"
    return printable(json.dumps(value, ensure_ascii=False, default=repr), 60)


def is_object(value: object) -> bool:
    """Whether a JSON value is an object, not a number that JSON has no word for."""
    return isinstance(value, dict) and NOT_FINITE not in value


def _is_within(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_of(value: object, kind: Any) -> bool:
    """Whether a JSON value matches an annotation, by the rules of ``huggingface_hub.dataclasses.strict``."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(entry, get_args(kind)[0]) for entry in value)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    origin = get_origin(kind) or kind
    return is_object(value) if origin is dict else isinstance(value, origin)


def _words(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"a list of {'whole numbers' if get_args(kind)[0] is int else 'words'}"
    if get_origin(kind) is Literal:
        return " or ".join(f'"{value}"' for value in get_args(kind))
    return WORDS[get_origin(kind) or kind]


WORDS: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number with a decimal point",
    bool: "true or false",
    str: "text",
    dict: "an object",
    NoneType: "null",
}
