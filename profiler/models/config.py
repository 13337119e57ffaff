"""Raw ``config.json`` files: read within bounds, every number checked before it is used, nothing executed.

``auto_map`` and every other key that could name code are never looked at. The bounds are there because a config
may come from anywhere: 10,000 layers or a 20 MiB file cost minutes and gigabytes elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, json_value, read_bytes
from profiler.units import printable

MAX_BYTES = 1024 * 1024  # the largest real config.json is a few tens of KiB

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
    # a window of one would keep every token: transformers slices by ``-window + 1``
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
    "mtp_num_hidden_layers": (0, 1000),
}


class _Required:
    """Says that a field has no default."""


REQUIRED: Final = _Required()


def read(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; ProfileError if it is too large, no regular file, no JSON, or no object."""
    return parse(read_bytes(path, MAX_BYTES), printable(path))


def parse(content: bytes, shown: str) -> dict[str, Any]:
    """The JSON object in ``content``; ``shown`` names it in errors and is printable already."""
    try:
        value = json_value(content, Budget(nbytes=MAX_BYTES))
    except BadContent as error:
        raise ProfileError(f"{shown} is not valid JSON: {printable(error)}") from None
    if not isinstance(value, dict):
        raise ProfileError(f"{shown} holds no JSON object: not a model's config")
    return value


class Config:
    """The fields of one raw config, checked as they are asked for.

    Every method raises ProfileError naming the field, what was found and what is allowed.
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "config") -> None:
        self.raw = raw
        self.where = where

    def number(self, name: str, default: int | _Required = REQUIRED) -> int:
        """An integer within its range in ``RANGES``; absent or null gives ``default``."""
        value = self.optional(name)
        if value is not None:
            return value
        if isinstance(default, _Required):
            raise self.error(f"{name} is missing")
        return default

    def optional(self, name: str) -> int | None:
        """The same, ``None`` when absent or null."""
        value = self.raw.get(name)
        if value is None:
            return None
        low, high = RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(f"{name} is {_shown(value)}, must be a whole number from {low} to {high}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean; absent or null gives ``default``."""
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{name} is {_shown(value)}, must be true or false")
        return value

    def names(self, name: str, length: int, allowed: Collection[str]) -> list[str] | None:
        """A list of ``length`` words out of ``allowed``, such as ``layer_types``; ``None`` when absent."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(f"{name} is {_shown(value)}, must be a list")
        if len(value) != length:
            raise self.error(f"{name} has {len(value)} entries, num_hidden_layers is {length}")
        for entry in value:
            if entry not in allowed:
                known = ", ".join(allowed)
                raise self.error(f"{name} holds {_shown(entry)}, for which there is no rule; known: {known}")
        return value

    def numbers(self, name: str, low: int, high: int) -> list[int] | None:
        """A list of at most 1,000 whole numbers from ``low`` to ``high``; ``None`` when absent."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > 1000 or not all(_is_within(v, low, high) for v in value):
            raise self.error(f"{name} must be a list of whole numbers from {low} to {high}")
        return value

    def part(self, name: str) -> Mapping[str, Any] | None:
        """A JSON object inside, ``None`` when absent."""
        value = self.raw.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{name} is {_shown(value)}, must be an object")
        return value

    def error(self, text: str) -> ProfileError:
        """A contradiction in this config, in words."""
        return ProfileError(f"{self.where}: {text}")

    def divides(self, smaller: str, small: int, larger: str, large: int) -> None:
        """ProfileError unless ``small`` divides ``large``."""
        if large % small:
            raise self.error(f"{larger} ({large}) is not a multiple of {smaller} ({small})")


def _shown(value: object) -> str:
    """A JSON value in a message. An integer of thousands of digits cannot even be turned into text."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return printable(json.dumps(value, ensure_ascii=False, default=repr), 60)


def _is_within(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
