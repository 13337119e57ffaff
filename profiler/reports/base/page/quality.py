"""Scores of models from a file with sources: ``scenarios/quality.toml``, or the reader's own by ``--quality FILE``.

    [[score]]
    model = "gemma-4-e2b"             # as a report names it
    benchmark = "LiveCodeBench v6"    # scores of different benchmarks are never compared
    value = 44.0                      # higher is better
    source = "Gemma 4 model card"     # who published it; required
    quants = ["bf16", "fp32", "fp16"] # the formats it holds for; left out: these three, what makers publish

A score says nothing of a format that it was not taken in: what 4 bits lose is somebody's measurement too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, read_bytes, toml_value
from profiler.quants.base import DTYPE_BYTES
from profiler.reports.base.text import plain
from profiler.units import printable

PLAIN = tuple(DTYPE_BYTES)
REQUIRED, OPTIONAL = ("model", "benchmark", "value", "source"), ("quants",)
BUDGET = Budget(depth=8)  # a list of scores
NAME_LENGTH = 80


@dataclass(frozen=True, slots=True)
class Score:
    """One published figure; texts are ``plain``."""

    model: str
    benchmark: str
    value: float
    source: str
    quants: tuple[str, ...]


def shipped() -> tuple[Score, ...]:
    """Of the file that comes with the profiler."""
    text = (resources.files("profiler.scenarios") / "quality.toml").read_text(encoding="utf-8")
    return parse(text, "quality.toml")


def read(path: Path) -> tuple[Score, ...]:
    """Of a file of the reader's. ProfileError where it cannot be read or an entry is not as above."""
    shown = printable(path)
    try:
        return parse(read_bytes(path, BUDGET.nbytes).decode("utf-8-sig"), shown)
    except UnicodeDecodeError:
        raise ProfileError(f"{shown} is not UTF-8 text") from None


def parse(text: str, name: str) -> tuple[Score, ...]:
    """Scores of a TOML text; ``name`` is for the error."""
    try:
        content = toml_value(text, BUDGET)
    except BadContent as error:
        raise ProfileError(f"{name} is not TOML: {printable(error)}") from None
    entries = content.pop("score", [])
    if content:
        raise ProfileError(f"{name} holds {printable(next(iter(content)), 40)}, and only [[score]] is read", _form())
    if not isinstance(entries, list):
        raise ProfileError(f"{name}: score is no list; each entry begins with [[score]]", _form())
    scores = tuple(_score(entry, f"{name}, entry {number}") for number, entry in enumerate(entries, 1))
    _refuse_contradictions(scores, name)
    return scores


def _refuse_contradictions(scores: tuple[Score, ...], name: str) -> None:
    """ProfileError where two entries give one model different scores of one benchmark in one format."""
    known: dict[tuple[str, str, str], tuple[int, float]] = {}
    for number, score in enumerate(scores, 1):
        for quant in score.quants:
            first, value = known.setdefault((score.model, score.benchmark, quant), (number, score.value))
            if value != score.value:
                raise ProfileError(
                    f"{name}: entries {first} and {number} give {score.model} in {quant} two scores of "
                    f"{score.benchmark}: {value:g} and {score.value:g}",
                    "Keep one of them.",
                )


def _score(entry: Any, where: str) -> Score:
    if not isinstance(entry, Mapping):
        raise ProfileError(f"{where} is not a [[score]] table", _form())
    missing = [name for name in REQUIRED if name not in entry]
    unknown = [printable(name, 40) for name in entry if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        what = f"has no {missing[0]}" if missing else f"has an unknown {unknown[0]}"
        raise ProfileError(f"{where} {what}", _form())
    for field in ("model", "benchmark", "source"):
        if not isinstance(entry[field], str) or not plain(entry[field]):
            why = "is not text" if not isinstance(entry[field], str) else "is empty"
            hint = "Name who published the figure." if field == "source" else _form()
            raise ProfileError(f"{where}: {field} {why}", hint)
    value, quants = entry["value"], entry.get("quants", list(PLAIN))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProfileError(f"{where}: value is no number", _form())
    if not isinstance(quants, list) or not quants or not all(isinstance(quant, str) for quant in quants):
        raise ProfileError(f"{where}: quants is no list of formats", _form())
    texts = [
        plain(entry[name], NAME_LENGTH if name != "source" else 300) for name in ("model", "benchmark", "source")
    ]
    return Score(texts[0], texts[1], float(value), texts[2], tuple(quants))


def _form() -> str:
    return f"An entry has {', '.join(REQUIRED)}, and optionally quants."
