"""One file per quantization: its bytes, how it is loaded and detected, how fast it is, and where it cannot run."""

from __future__ import annotations

from functools import lru_cache

from profiler import registry
from profiler.quants.base import PackedModules, Quant

FOLDER = "quants"


def find(name: str) -> Quant | None:
    """The quantization ``name``; ``None`` if it has no file here, like the formats that only checkpoints come in."""
    return _by_name(tuple(__path__)).get(name)


def every() -> tuple[Quant, ...]:
    """All quantizations, sorted by name."""
    return tuple(_by_name(tuple(__path__)).values())


def packed_modules() -> dict[str, PackedModules]:
    """The modules that hold packed weights, of all quantizations, by the name of their class."""
    return _packed(tuple(__path__))


@lru_cache(maxsize=8)
def _packed(folders: tuple[str, ...]) -> dict[str, PackedModules]:
    found = ((quant.modules.names, quant.modules) for quant in every() if quant.modules is not None)
    return {name: modules for names, modules in found for name in names}


@lru_cache(maxsize=8)
def _by_name(folders: tuple[str, ...]) -> dict[str, Quant]:
    """Cached for each set of ``folders``, because listing one takes longer than a prediction."""
    return {name: registry.load(FOLDER, name, "quantization").QUANT for name in registry.names(FOLDER)}
