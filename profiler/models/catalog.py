"""The models that ship with the profiler: raw configs in ``scenarios/models/NAME.json``."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from profiler.models import config

# What the files cannot say of themselves; sources are in scenarios/models/SOURCES.md.
NOTES = {"qwen3.8-27b": "its config is inferred: the authors state the architecture and shape of Qwen 3.6 27B"}


@cache
def names() -> tuple[str, ...]:
    """All catalog names, sorted."""
    folder = files("profiler.scenarios") / "models"
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))


def find(name: str) -> str | None:
    """The catalog's spelling of ``name``, whatever the case; ``None`` if it is not in the catalog."""
    return next((known for known in names() if known == name.casefold()), None)


def raw_config(name: str) -> dict[str, Any]:
    """The raw config of a catalog name."""
    file = files("profiler.scenarios") / "models" / f"{name}.json"
    return config.parse(file.read_bytes(), f"{name}.json")
