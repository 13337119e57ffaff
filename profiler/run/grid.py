"""The grid of cases: lists and ranges as users type them, and named scenarios.

-c 4096 · -c 1k,4k · -c 1k -c 4k · -c '1k-128k*2' (doubling) · -b 1-8+1 (steps of one)

A scenario is ``scenarios/NAME.toml``, or a user's file in the same form:

description = "..."          # one line, for `profile scenarios`
contexts = "512,4k"          # as on the command line, or a list of numbers
batches = [1]
steps = 32
quants = ["bf16", "nf4"]     # default: as without -q
models = ["gemma-4-e2b"]     # default: the models of -m
fill = "synthetic"           # default: prefill
prompts = ["mine.md"]        # files for `profiler.run.prompts`, next to this file or shipped; default: none
answer_tokens = 400          # expected length of the answers
stands_for = "..."           # the workload that it represents, in one sentence
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Any

from profiler import backends, registry
from profiler.case import PREFILL_CHUNK_CPU, Case, ModelNote, Source, Task
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, read_bytes, toml_value
from profiler.models.geometry import Geometry
from profiler.models.stored import Stored
from profiler.quants.base import Quant
from profiler.run.quantization import QuantChoice, choices
from profiler.units import parse_count, printable

MAX_COMMAS = 16  # in one path
MAX_CASES = 100_000  # more cases than this are a typing error: at a second each they would take a day
LISTS = "Lists: 512,4k · ranges: '1k-128k*2', 1-8+1."
_RANGE = re.compile(r"^(?P<first>\w+)-(?P<last>\w+)(?:(?P<rule>[*+])(?P<by>\w+))?$")

NOT_GRIDS = {"devices", "efficiency", "quality"}  # data files in the same folder
FILLS = ("prefill", "synthetic")
REQUIRED = {"description", "contexts", "batches", "steps"}
KNOWN = REQUIRED | {"quants", "models", "fill", "prompts", "answer_tokens", "stands_for"}
MAX_FILE_BYTES = 64 * 1024
MAX_ANSWER_TOKENS = 2**20  # far above any model's limit
BUDGET = Budget(nbytes=MAX_FILE_BYTES, values=2**14, depth=8)  # a scenario is a few lines long


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as it will be measured, with the weights that were chosen for it."""

    name: str
    source: Source
    geometry: Geometry
    weights: str  # real | synthetic
    model_id: str  # identifies the config and, for real weights, their files
    notes: tuple[ModelNote, ...] = ()  # what the user should know about it, in every case
    checkpoint_format: Stored | None = None  # how its real weights are stored
    checkpoint: dict[str, Any] = field(default_factory=dict)  # the content of the files that its weights come from

    @property
    def cautions(self) -> tuple[str, ...]:
        """The texts of the notes."""
        return tuple(note.text for note in self.notes)


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of the grid; each keeps the order of the options."""

    subjects: tuple[Subject, ...]
    quants: tuple[Quant, ...]  # empty: as each checkpoint is stored, or the device's default dtype
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    paths: tuple[str, ...] = ("eager",)
    options: tuple[str, ...] = ("",)  # settings that only the backend has, as in ``Case.options``


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """Settings that all cases of a sweep share."""

    backend: str = backends.DEFAULT
    fill: str = "prefill"
    ubatch: int = PREFILL_CHUNK_CPU
    threads: int | None = None
    seed: int = 0

    @property
    def gguf(self) -> bool:
        """Whether the backend runs GGUF files as they are."""
        return backends.find(self.backend).gguf


def runnable(tasks: Iterable[Task]) -> list[Task]:
    """``tasks`` as a list, for a gate, which has no rows for skipped cases. Raises ProfileError if one cannot run."""
    found = list(tasks)
    for task in found:
        if task.reason is not None:
            raise ProfileError(f"{printable(task.case.model, 80)}: {task.reason}")
    return found


def words(values: Iterable[str]) -> tuple[str, ...]:
    """The words of a repeated, comma-separated option in order, without empty ones and duplicates."""
    return tuple(dict.fromkeys(word for value in values for word in map(str.strip, value.split(",")) if word))


def model_names(values: Iterable[str]) -> tuple[str, ...]:
    """The models of a repeated, comma-separated option. An existing file or folder is one model even with commas.

    ``a,b/model,gemma-3-1b`` is two models if there is a folder ``a,b/model``: the longest existing path wins.
    """
    found: dict[str, None] = {}
    for value in values:
        parts = value.split(",")
        while parts:
            most = min(len(parts), MAX_COMMAS + 1)
            taken = next((n for n in range(most, 1, -1) if _exists(",".join(parts[:n]).strip())), 1)
            name = ",".join(parts[:taken]).strip()
            found |= {name: None} if name else {}
            parts = parts[taken:]
    return tuple(found)


def _exists(path: str) -> bool:
    try:
        return Path(os.path.expanduser(path)).exists()  # Path.expanduser would replace a folder called ~ by the home
    except PermissionError:  # resolving it will report the error
        return True
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, no such user
        return False


def counts(option: str, values: Sequence[str], usual: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The positive integers of a list option, at most ``MAX_CASES``; ``usual`` if the option was not given.

    Raises ProfileError naming ``option``.
    """
    if usual and not values:
        return usual
    found: dict[int, None] = {}
    for word in words(values):
        try:
            numbers = _numbers(word)
            # Counted before they are generated: a list may contain many ranges and repeat the same numbers.
            if len(numbers) > MAX_CASES - len(found):
                raise ValueError(f"the list has more than {MAX_CASES:,} numbers")
        except ValueError as error:
            raise ProfileError(f"{option}: {error}", LISTS) from None
        found.update(dict.fromkeys(numbers))
    if not found:
        raise ProfileError(f"{option}: the list is empty", LISTS)
    return tuple(found)


def tasks(axes: Axes, settings: SweepSettings, device: DeviceInfo) -> list[Task]:
    """A task for every case of the grid, ordered by model first. Raises ProfileError if the grid is too large."""
    size = 1
    for axis in (
        axes.subjects,
        axes.quants,
        axes.paths,
        axes.options,
        axes.contexts,
        axes.batches,
        axes.steps,
    ):
        size *= max(1, len(axis))
    if size > MAX_CASES:
        raise ProfileError(f"the grid has {size:,} cases, more than {MAX_CASES:,}", "Give fewer values on an axis.")
    return [
        _task(subject, choice, _case(subject, choice.quant, path, options, context, batch, steps, settings, device))
        for subject in axes.subjects
        for choice, path, options, context, batch, steps in product(
            choices(subject.source, subject.weights, subject.checkpoint_format, axes.quants, device, settings.gguf),
            axes.paths,
            axes.options,
            axes.contexts,
            axes.batches,
            axes.steps,
        )
    ]


def _task(subject: Subject, choice: QuantChoice, case: Case) -> Task:
    return Task(
        case, subject.source, subject.geometry, choice.quant, choice.checkpoint_format, choice.note, choice.reason
    )


def _case(
    subject: Subject,
    quant: Quant,
    path: str,
    options: str,
    context: int,
    batch: int,
    steps: int,
    settings: SweepSettings,
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
        options=options,
    )


def _numbers(word: str) -> Sequence[int]:
    """One number, or the numbers of a range, including its end if a step reaches it. Raises ValueError."""
    match = _RANGE.match(word)
    if match is None:
        return [_number(word)]
    first, last = _number(match["first"]), _number(match["last"])
    if first > last:
        rising = f"{match['last']}-{match['first']}{match['rule'] or '*'}{match['by'] or 2}"
        raise ValueError(f"{printable(word)!r} counts down, but ranges must go up: {printable(rising)}")
    if match["rule"] is None:
        raise ValueError(f"{printable(word)!r} is a range without a step; write {printable(word)}*2 or +1")
    by = _number(match["by"])
    if match["rule"] == "+":
        return range(first, last + 1, by)
    if by == 1:
        raise ValueError(f"{printable(word)!r} is a range whose step never increases it")
    found = [first]
    while found[-1] * by <= last:
        found.append(found[-1] * by)
    return found


def _number(word: str) -> int:
    number = parse_count(word)
    if number < 1:
        raise ValueError(f"{printable(word)!r} is less than 1")
    return number


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named grid. Empty ``quants`` and ``models`` leave the choice to the command line."""

    name: str
    description: str
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    quants: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    fill: str | None = None
    prompts: tuple[str, ...] = ()  # names of files that ``profiler.run.prompts`` reads
    answer_tokens: int | None = None  # expected length of an answer
    stands_for: str | None = None


def names() -> list[str]:
    """The shipped scenarios, sorted."""
    files = (entry.name for entry in resources.files("profiler.scenarios").iterdir())
    return sorted(name[:-5] for name in files if name.endswith(".toml") and name[:-5] not in NOT_GRIDS)


def load(name: str) -> Scenario:
    """The shipped scenario ``name``, or the scenario file at that path. Raises NotFound or ProfileError."""
    file = _file(name)
    return _parse(file.stem if isinstance(file, Path) else name, file)


def source(name: str) -> str:
    """The text of a scenario's file as a template, safe for a terminal. Raises the same errors as ``load``."""
    lines = _text(f"scenario {printable(name)}", _file(name)).splitlines()
    return "".join(f"{printable(line.expandtabs(4), MAX_FILE_BYTES)}\n" for line in lines)


def _file(name: str) -> Traversable:
    if name in names():
        return resources.files("profiler.scenarios") / f"{name}.toml"
    path = Path(name)
    if path.suffix == ".toml" or "/" in name:
        return path
    raise registry.unknown("scenario", name, names())


def _parse(name: str, file: Traversable) -> Scenario:
    where = f"scenario {printable(file)}" if isinstance(file, Path) else f"scenario {name}"
    content = _read(where, file)
    unknown, missing = sorted(content.keys() - KNOWN), sorted(REQUIRED - content.keys())
    if unknown:
        raise registry.unknown(f"key in {where}", unknown[0], sorted(KNOWN))
    if missing:
        raise ProfileError(f"{where} has no {', '.join(missing)}", f"Known keys: {', '.join(sorted(KNOWN))}.")
    fill = content.get("fill")
    if fill is not None and fill not in FILLS:
        raise ProfileError(f"{where}: fill is {_quoted(fill)}", f"Known: {', '.join(FILLS)}.")
    for key in ("description", "stands_for"):
        if not isinstance(content.get(key, ""), str):
            raise ProfileError(f"{where}: {key} is {_quoted(content[key])}, but must be text")
    answer = counts(f"{where}: answer_tokens", _texts(content.get("answer_tokens", 1)))
    if len(answer) > 1 or answer[0] > MAX_ANSWER_TOKENS:
        raise ProfileError(f"{where}: answer_tokens must be one number up to {MAX_ANSWER_TOKENS:,}")
    return Scenario(
        name=printable(name),
        description=printable(content["description"]),
        contexts=counts(f"{where}: contexts", _texts(content["contexts"])),
        batches=counts(f"{where}: batches", _texts(content["batches"])),
        steps=counts(f"{where}: steps", _texts(content["steps"])),
        quants=words(_names(where, content, "quants")),
        models=model_names(_names(where, content, "models")),
        fill=fill,
        prompts=words(_names(where, content, "prompts")),
        answer_tokens=answer[0] if "answer_tokens" in content else None,
        stands_for=printable(content["stands_for"], MAX_FILE_BYTES) if "stands_for" in content else None,
    )


def _names(where: str, content: dict[str, Any], key: str) -> list[str]:
    """A text or a list of texts. Raises ProfileError for numbers and tables."""
    value = content.get(key, [])
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str):
            raise ProfileError(
                f"{where}: {key} contains {_quoted(item)}, but must be text", f'Write {key} = ["NAME"].'
            )
    return _texts(value)


def _quoted(value: Any) -> str:
    return repr(printable(value, 60)) if isinstance(value, str) else printable(value, 60)


def _read(where: str, file: Traversable) -> dict[str, Any]:
    try:
        return toml_value(_text(where, file), BUDGET)
    except BadContent as error:
        raise ProfileError(f"{where} is not valid TOML: {printable(error)}") from None


def _text(where: str, file: Traversable) -> str:
    try:
        return (read_bytes(file, MAX_FILE_BYTES, where) if isinstance(file, Path) else file.read_bytes()).decode(
            "utf-8-sig"
        )
    except ProfileError as error:
        raise type(error)(error.message, f"Shipped: {', '.join(names())}.") from None
    except ValueError as error:
        raise ProfileError(f"{where} is not valid TOML, which must be UTF-8: {printable(error)}") from None


def _texts(value: Any) -> list[str]:
    """A number, a text or a list of them, as the command line would pass it."""
    return [str(item) for item in (value if isinstance(value, list) else [value])]
