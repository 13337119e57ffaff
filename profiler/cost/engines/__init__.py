"""One file per engine: how it stores a model, how much memory it needs besides, and how it runs a pass.

Each file defines one ``ENGINE``, and may list engines ``RELATED`` to it. Predictions depend on the engine: a model
may take 12 GiB in one and 45 GiB in another.
"""

from __future__ import annotations

from functools import lru_cache

from profiler import registry
from profiler.cost.engines.base import Engine
from profiler.errors import NotFound

FOLDER = "cost.engines"
OF_GGUF = "llama.cpp"  # runs a GGUF file if no engine is named
DEFAULT = "transformers"  # what `profile sweep` measures
PROGRAMS = {  # what people call an engine, and the engine that it runs
    **dict.fromkeys(("ollama", "lmstudio", "lm-studio", "koboldcpp", "jan", "llama-server", "llama-bench"), OF_GGUF),
    **dict.fromkeys(("hf", "pytorch", "torch", "bitsandbytes"), DEFAULT),
}


def names() -> tuple[str, ...]:
    """The engines as people write them: ``llama.cpp``, ``mlx``, ``vllm``."""
    return tuple(_by_name(tuple(__path__)))


def find(word: str) -> Engine:
    """The engine called ``word``; ``llama.cpp`` and ``llama-cpp`` are the same. Raises NotFound."""
    known = _by_name(tuple(__path__))
    spelled = _spelled(word)
    for name, engine in known.items():
        if _spelled(name) == spelled:
            return engine
    if spelled in PROGRAMS:
        raise NotFound(
            f"unknown engine: {spelled}", f"It runs {PROGRAMS[spelled]}: use --engine {PROGRAMS[spelled]}."
        )
    raise registry.unknown("engine", word, known)


def _spelled(word: str) -> str:
    return word.casefold().replace(".", "-").replace("_", "-")


@lru_cache(maxsize=8)
def _by_name(folders: tuple[str, ...]) -> dict[str, Engine]:
    """All engines, sorted by name. Cached per set of ``folders``."""
    files = [registry.load(FOLDER, name, "engine") for name in registry.names(FOLDER)]
    engines: list[Engine] = [engine for file in files for engine in (file.ENGINE, *getattr(file, "RELATED", ()))]
    return {engine.name: engine for engine in sorted(engines, key=lambda engine: engine.name)}
