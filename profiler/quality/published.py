"""KL divergences that others published, in the entries ``[[kl]]`` of ``scenarios/quality.toml``.

    [[kl]]
    model = "qwen3.5-27b"             # the name in the catalog
    engine = "llama.cpp"
    quant = "q4_k_m"
    file = "bartowski Q4_K_M"         # who quantized it: files of one type differ
    value = 0.0056                    # nats
    definition = "mean"               # of the whole distributions over all tokens; other words are other definitions
    scale = "chat texts, context 4,096, from BF16"    # figures of one scale may be compared with each other
    source = "where it was published"

A limit such as ``kl<0.05`` is one of mean divergences, so figures of other definitions never meet or miss it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from profiler.errors import ProfileError
from profiler.foreign import Budget, toml_value
from profiler.units import printable

MEAN = "mean"  # the definition that a limit is about
TEXTS = ("model", "engine", "quant", "file", "definition", "scale", "source")
LENGTH = 200  # characters of a text
FILE = "quality.toml"
FORM = f"A [[kl]] entry has {', '.join(TEXTS)} and value."


@dataclass(frozen=True, slots=True)
class PublishedKl:
    """One published divergence in nats."""

    model: str
    engine: str
    quant: str
    file: str
    definition: str
    scale: str
    source: str
    value: float


@cache
def shipped() -> tuple[PublishedKl, ...]:
    """The divergences that come with the profiler."""
    text = (resources.files("profiler.scenarios") / FILE).read_text(encoding="utf-8")
    return parse(toml_value(text, Budget(depth=8)).get("kl", []), FILE)


def parse(entries: Any, name: str) -> tuple[PublishedKl, ...]:
    """The entries ``[[kl]]`` of a file; ``name`` is for error messages. ProfileError for an invalid one."""
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ProfileError(f"{name}: kl is not a list; each entry begins with [[kl]]", FORM)
    return tuple(_entry(entry, f"{name}, [[kl]] entry {number}") for number, entry in enumerate(entries, 1))


def _entry(entry: Any, where: str) -> PublishedKl:
    if not isinstance(entry, Mapping):
        raise ProfileError(f"{where} is not a table", FORM)
    wanted = (*TEXTS, "value")
    missing = [field for field in wanted if field not in entry]
    unknown = [printable(field, 40) for field in entry if field not in wanted]
    if missing or unknown:
        what = f"has no {missing[0]}" if missing else f"has an unknown {unknown[0]}"
        raise ProfileError(f"{where} {what}", FORM)
    if wrong := [field for field in TEXTS if not isinstance(entry[field], str) or not entry[field].strip()]:
        raise ProfileError(f"{where}: {wrong[0]} is not text", FORM)
    value = entry["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ProfileError(f"{where}: value is not a number of nats", FORM)
    return PublishedKl(value=float(value), **{field: printable(entry[field].strip(), LENGTH) for field in TEXTS})
