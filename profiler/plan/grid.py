"""Lists and ranges as people type them, and the grid of cases that they span.

-c 4096 · -c 1k,4k · -c 1k -c 4k · -c 1k-128k*2 (each twice the last) · -b 1-8+1 (each one more)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from profiler.case import PREFILL_CHUNK_CPU, Case
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.models.geometry import Geometry
from profiler.models.remark import Remark
from profiler.models.source import Source
from profiler.models.stored import Stored
from profiler.plan.quantization import Choice, choices
from profiler.quants.base import Quant
from profiler.units import parse_count, printable

MOST_COMMAS = 16  # of one path
MAX_CASES = 100_000  # a slip of the keyboard, not a plan: at a second each it would run for a day

LISTS = "Lists: 512,4k · ranges: 1k-128k*2, 1-8+1."

_RANGE = re.compile(r"^(?P<first>\w+)-(?P<last>\w+)(?:(?P<rule>[*+])(?P<by>\w+))?$")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as it will be measured: with the weights that were chosen for it."""

    name: str
    source: Source
    geometry: Geometry
    weights: str  # real | synthetic
    model_id: str  # identity of the config, and of real weights
    remarks: tuple[Remark, ...] = ()  # what to know of it, whatever is measured
    stored: Stored | None = None  # how its real weights are stored
    checkpoint: dict[str, Any] = field(default_factory=dict)  # what the files hold that its weights come from

    @property
    def cautions(self) -> tuple[str, ...]:
        """The remarks in words."""
        return tuple(remark.text for remark in self.remarks)


@dataclass(frozen=True, slots=True)
class Axes:
    """What the grid spans; each axis in the order it was asked for."""

    subjects: tuple[Subject, ...]
    quants: tuple[Quant, ...]  # empty: each model's own, else the device's
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    paths: tuple[str, ...] = ("eager",)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all cases of a sweep."""

    backend: str = "hf"
    fill: str = "prefill"
    ubatch: int = PREFILL_CHUNK_CPU
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A case and what predictions must know of it."""

    case: Case
    source: Source
    geometry: Geometry
    quant: Quant
    stored: Stored | None = None  # the checkpoint, where it is run as it is stored
    refused: str | None = None  # why it cannot be measured so, in words
    note: str | None = None  # what becomes of the weights while they are loaded, in words


def runnable(points: Iterable[Point]) -> list[Point]:
    """``points``, for a caller that has no rows of skipped cases. ProfileError for the first that is refused."""
    found = list(points)
    for point in found:
        if point.refused is not None:
            raise ProfileError(f"{printable(point.case.model, 80)}: {point.refused}")
    return found


def words(values: Iterable[str]) -> tuple[str, ...]:
    """The words of a repeated, comma-separated option: no empty ones, no duplicates, order kept."""
    return tuple(dict.fromkeys(word for value in values for word in map(str.strip, value.split(",")) if word))


def model_names(values: Iterable[str]) -> tuple[str, ...]:
    """The models of a repeated, comma-separated option. What exists as a file or folder is one model, commas and all.

    ``a,b/model,gemma-3-1b`` is two models if there is a folder ``a,b/model``: the longest path that exists counts.
    """
    found: dict[str, None] = {}
    for value in values:
        parts = value.split(",")
        while parts:
            most = min(len(parts), MOST_COMMAS + 1)
            taken = next((n for n in range(most, 1, -1) if _exists(",".join(parts[:n]).strip())), 1)
            name = ",".join(parts[:taken]).strip()
            found |= {name: None} if name else {}
            parts = parts[taken:]
    return tuple(found)


def _exists(path: str) -> bool:
    try:
        return Path(os.path.expanduser(path)).exists()  # Path.expanduser would take a folder called ~ for the home
    except PermissionError:  # resolving it will say so
        return True
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, no such user
        return False


def counts(option: str, values: Iterable[str]) -> tuple[int, ...]:
    """The positive integers of a list option, at most ``MAX_CASES``. Raises ProfileError that names ``option``."""
    found: dict[int, None] = {}
    for word in words(values):
        try:
            numbers = _numbers(word)
            # Counted before they are made: a list may name many ranges, and the same number again and again.
            if len(numbers) > MAX_CASES - len(found):
                raise ValueError(f"the list has more than {MAX_CASES:,} numbers")
        except ValueError as error:
            raise ProfileError(f"{option}: {error}", LISTS) from None
        found.update(dict.fromkeys(numbers))
    if not found:
        raise ProfileError(f"{option}: the list is empty", LISTS)
    return tuple(found)


def points(axes: Axes, settings: Settings, device: DeviceInfo) -> list[Point]:
    """Every case of the grid, models outermost. Raises ProfileError for a grid nobody means to run."""
    size = 1
    for axis in (axes.subjects, axes.quants, axes.paths, axes.contexts, axes.batches, axes.steps):
        size *= max(1, len(axis))
    if size > MAX_CASES:
        raise ProfileError(
            f"the grid has {size:,} cases, more than {MAX_CASES:,}", "Ask for fewer points on an axis."
        )
    return [
        _point(subject, choice, _case(subject, choice.quant, path, context, batch, steps, settings, device))
        for subject in axes.subjects
        for choice, path, context, batch, steps in product(
            choices(subject.source, subject.weights, subject.stored, axes.quants, device),
            axes.paths,
            axes.contexts,
            axes.batches,
            axes.steps,
        )
    ]


def _point(subject: Subject, choice: Choice, case: Case) -> Point:
    return Point(case, subject.source, subject.geometry, choice.quant, choice.stored, choice.refused, choice.note)


def _case(
    subject: Subject,
    quant: Quant,
    path: str,
    context: int,
    batch: int,
    steps: int,
    settings: Settings,
    device: DeviceInfo,
) -> Case:
    return Case(
        model=subject.name,
        model_id=subject.model_id,
        weights=subject.weights,
        quant=quant.name,
        dtype=quant.dtype or device.default_dtype,
        device=device.name,
        backend=settings.backend,
        path=path,
        context=context,
        batch=batch,
        steps=steps,
        fill=settings.fill,
        ubatch=min(settings.ubatch, context),
        threads=settings.threads,
        seed=settings.seed,
    )


def _numbers(word: str) -> Sequence[int]:
    """One number, or the numbers of a range, the last included where the rule reaches it. Raises ValueError."""
    match = _RANGE.match(word)
    if match is None:
        return [_number(word)]
    first, last = _number(match["first"]), _number(match["last"])
    if first > last:
        rising = f"{match['last']}-{match['first']}{match['rule'] or '*'}{match['by'] or 2}"
        raise ValueError(f"{printable(word)!r} counts down, and ranges go up: {printable(rising)}")
    if match["rule"] is None:
        raise ValueError(f"{printable(word)!r} is a range without a step, such as {printable(word)}*2 or +1")
    by = _number(match["by"])
    if match["rule"] == "+":
        return range(first, last + 1, by)
    if by == 1:
        raise ValueError(f"{printable(word)!r} is a range that never grows")
    found = [first]
    while found[-1] * by <= last:
        found.append(found[-1] * by)
    return found


def _number(word: str) -> int:
    number = parse_count(word)
    if number < 1:
        raise ValueError(f"{printable(word)!r} is less than 1")
    return number
