"""Named grids: ``scenarios/NAME.toml``, or a file of the same form that somebody wrote.

description = "..."          # one line, for `profile scenarios`
contexts = "512,4k"          # as on the command line; a list of numbers will do as well
batches = [1]
steps = 32
quants = ["bf16", "nf4"]     # left out: the device's default dtype
models = ["gemma-4-e2b"]     # left out: what -m says
fill = "synthetic"           # left out: prefill
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from profiler import registry
from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, read_bytes, toml_value
from profiler.plan.grid import counts, model_names, words
from profiler.units import printable

NOT_GRIDS = {"devices", "efficiency", "quality"}  # data that lies in the same folder
FILLS = ("prefill", "synthetic")
REQUIRED = {"description", "contexts", "batches", "steps"}
KNOWN = REQUIRED | {"quants", "models", "fill"}
MAX_BYTES = 64 * 1024
BUDGET = Budget(nbytes=MAX_BYTES, values=2**14, depth=8)  # a scenario is a few lines


@dataclass(frozen=True, slots=True)
class Scenario:
    """A grid by name. Empty ``quants`` and ``models`` leave the choice to the command line."""

    name: str
    description: str
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    quants: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    fill: str | None = None


def names() -> list[str]:
    """The shipped scenarios, sorted."""
    files = (entry.name for entry in resources.files("profiler.scenarios").iterdir())
    return sorted(name[:-5] for name in files if name.endswith(".toml") and name[:-5] not in NOT_GRIDS)


def load(name: str) -> Scenario:
    """The shipped scenario ``name``, or the file of that path. Raises NotFound, ProfileError."""
    file = _file(name)
    return _parse(file.stem if isinstance(file, Path) else name, file)


def source(name: str) -> str:
    """The text of its file, to copy and change; for a terminal. Raises as ``load``."""
    lines = _text(f"scenario {printable(name)}", _file(name)).splitlines()
    return "".join(f"{printable(line.expandtabs(4), MAX_BYTES)}\n" for line in lines)


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
    if not isinstance(content["description"], str):
        raise ProfileError(f"{where}: description is {_quoted(content['description'])}, which is not text")
    return Scenario(
        name=printable(name),
        description=printable(content["description"]),
        contexts=counts(f"{where}: contexts", _texts(content["contexts"])),
        batches=counts(f"{where}: batches", _texts(content["batches"])),
        steps=counts(f"{where}: steps", _texts(content["steps"])),
        quants=words(_names(where, content, "quants")),
        models=model_names(_names(where, content, "models")),
        fill=fill,
    )


def _names(where: str, content: dict[str, Any], key: str) -> list[str]:
    """A text or a list of texts; a number or a table names nothing. Raises ProfileError."""
    value = content.get(key, [])
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str):
            raise ProfileError(f"{where}: {key} holds {_quoted(item)}, which is not text", f'Write {key} = ["NAME"].')
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
        return (read_bytes(file, MAX_BYTES, where) if isinstance(file, Path) else file.read_bytes()).decode(
            "utf-8-sig"
        )
    except ProfileError as error:
        raise type(error)(error.message, f"Shipped: {', '.join(names())}.") from None
    except ValueError as error:
        raise ProfileError(f"{where} is not valid TOML, which is UTF-8: {printable(error)}") from None


def _texts(value: Any) -> list[str]:
    """A number, a text or a list of them, as the command line would give it."""
    return [str(item) for item in (value if isinstance(value, list) else [value])]
