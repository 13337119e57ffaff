"""One file a runtime: how it stores a model, what memory it takes beside it, and how it works through a pass.

A file defines one ``ENGINE``. A prediction is for a runtime: the same model takes 12 GiB in one and 45 in another.
"""

from __future__ import annotations

from functools import cache

from profiler import registry
from profiler.cost.engines.base import Engine

FOLDER = "cost.engines"
DEFAULT = "transformers"  # what `profile sweep` measures


@cache
def names() -> tuple[str, ...]:
    """The engines as people write them: ``llama.cpp``, ``transformers``, ``vllm``."""
    return tuple(sorted(registry.load(FOLDER, name, "engine").ENGINE.name for name in registry.names(FOLDER)))


@cache
def find(word: str) -> Engine:
    """The engine that ``word`` names; ``llama.cpp`` and ``llama-cpp`` are the same. NotFound otherwise."""
    known = {name: name.replace(".", "-") for name in names()}
    spelled = word.casefold().replace(".", "-").replace("_", "-")
    if spelled not in known.values():
        raise registry.unknown("engine", word, known)
    found: Engine = registry.load(FOLDER, spelled, "engine").ENGINE
    return found
