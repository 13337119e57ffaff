"""The quantization that a config states for its checkpoint.

transformers reads ``quantization_config``; MLX writes ``quantization`` (and since 2025 a copy under the other name).
Method names are those of transformers 5.23, ``quantizers/auto.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from profiler import registry
from profiler.models.account import in_text_model
from profiler.units import printable

KEYS = ("quantization_config", "compression_config", "quantization")
MLX = "mlx"
BITSANDBYTES = "bitsandbytes"
COMPRESSED = "compressed-tensors"
UNNAMED = "unnamed"
INT_FORMATS = {4: "int4", 8: "int8"}
LEFT_OUT = "modules_to_not_convert"  # the field with modules that are not quantized, for most methods
LEFT_OUT_BY: Mapping[str, str] = {BITSANDBYTES: "llm_int8_skip_modules", COMPRESSED: "ignore"}
WILDCARD = ".*"
MAX_WILDCARDS = 4  # in one name of a module
MAX_EXPRESSIONS = 64  # names with wildcards, each of which is compared with every module


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Modules that a config says are not quantized, by their names in the text model."""

    words: tuple[str, ...]
    plain: frozenset[str]
    expressions: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, stated: list[Any]) -> LeftOut:
        """From the list in the config."""
        words = tuple(in_text_model(f"{word}.")[:-1] for word in stated if isinstance(word, str) and word)
        wild = [word.split(WILDCARD) for word in words if 1 <= word.count(WILDCARD) <= MAX_WILDCARDS]
        return cls(
            words,
            frozenset(word for word in words if WILDCARD not in word),
            tuple(
                re.compile(rf"(?:{WILDCARD.join(map(re.escape, parts))})(?:(?<=\.)|(?=\.|$))")
                for parts in wild[:MAX_EXPRESSIONS]
            ),
        )

    def __contains__(self, module: str) -> bool:
        """Whether transformers (``should_convert_module``) would leave ``module`` unquantized: a word matches whole
        components at the start of the path, or its end. ``mlp.gate`` does not match ``mlp.gate_proj``.

        transformers treats each word as a regular expression; here only ``.*`` is special.
        """
        steps = [at for at, letter in enumerate(module) if letter == "."]
        begins = (module[:end] for at in (*steps, len(module)) for end in (at, at + 1))
        ends = (module[at:] for at in range(len(module)))
        return (
            not self.plain.isdisjoint(begins)
            or not self.plain.isdisjoint(ends)
            or any(expression.match(module) for expression in self.expressions)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scheme:
    """One quantization scheme, as stated in a config."""

    method: str  # awq, gptq, fp8 …, ``mlx``, or an unknown method's printable name
    name: str  # the quantization's name for -q
    rate: str | None  # the storage type whose speed applies; None: chosen by bytes per element
    config: Mapping[str, Any]
    left_out: LeftOut | None = None  # None: the config states no list

    @property
    def bits(self) -> int | None:
        """Bits per weight, if the config states one number."""
        return _whole(self.config.get("bits"))

    def number(self, name: str) -> int | None:
        """A positive integer of the scheme; ``None`` if it is absent, -1 or invalid."""
        return _whole(self.config.get(name))

    @property
    def left_out_by(self) -> str:
        """The field of the config that names modules which are not quantized."""
        return LEFT_OUT_BY.get(self.method, LEFT_OUT)

    def leaves_out(self, module: str) -> bool:
        """Whether the config says that a module of the text model is not quantized."""
        return self.left_out is not None and module in self.left_out


def of(raw: Mapping[str, Any]) -> Scheme | None:
    """The scheme in a raw config, for the whole model or its text part; ``None`` if there is none."""
    inner = raw.get("text_config")
    for part in (raw, inner if isinstance(inner, dict) else {}):
        for key in KEYS:
            stated = part.get(key)
            if isinstance(stated, dict) and stated:
                return _scheme(stated)
    return None


def _scheme(stated: Mapping[str, Any]) -> Scheme:
    method, ours = _method(stated), _of_ours(stated)
    name, rate = _named(method, stated) if ours is None else (ours, ours)
    left_out = stated.get(LEFT_OUT_BY.get(method, LEFT_OUT))
    return Scheme(method, name, rate, stated, LeftOut.of(left_out) if isinstance(left_out, list) else None)


def _of_ours(stated: Mapping[str, Any]) -> str | None:
    """The quantization in ``profiler/quants`` that such a config means; ``None`` if there is none."""
    for name in registry.names("quants"):
        form = registry.load("quants", name, "quantization").QUANT.stored
        if form is not None and form.matches(stated):
            return name
    return None


def _method(stated: Mapping[str, Any]) -> str:
    """The method that transformers would choose: bitsandbytes' flags take precedence over ``quant_method``."""
    if stated.get("load_in_4bit") or stated.get("load_in_8bit"):
        return BITSANDBYTES
    method = stated.get("quant_method")
    if isinstance(method, str) and method:
        return printable(method, 40)
    if "bits" in stated and "group_size" in stated:
        return MLX
    return UNNAMED


def _named(method: str, stated: Mapping[str, Any]) -> tuple[str, str | None]:
    """The quantization's name, and the storage type whose speed applies."""
    bits = _whole(stated.get("bits"))
    if method == BITSANDBYTES:
        return "fp4-dq", "fp4"  # the only one of its quantizations that is not in profiler/quants
    if method in ("awq", "gptq"):
        return method if bits in (4, None) else f"{method}-{bits}bit", INT_FORMATS.get(bits or 4)
    if method == MLX:
        mode = stated.get("mode")
        if isinstance(mode, str) and mode != "affine":
            return f"mlx-{printable(mode, 20)}", None
        return f"mlx-{bits}bit", INT_FORMATS.get(bits or 0)
    return method, {"fp8": "fp8", "mxfp8": "fp8", "mxfp4": "nvfp4", "nvfp4": "nvfp4"}.get(method)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**20 else None
