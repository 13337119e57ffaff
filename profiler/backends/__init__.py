"""One folder or file per backend: the cases it supports, and a session that loads a model and runs them."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import TYPE_CHECKING

from profiler import registry
from profiler.errors import NotFound

if TYPE_CHECKING:  # predictions do without backends, unless rows were measured by them
    from profiler.backends.base import Backend, Opener

FOLDER = "backends"
DEFAULT = "hf"
SERVED = frozenset({"vllm", "sglang", "ollama", "lmstudio", "lm-studio", "tensorrt-llm", "mlx", "llama-server"})


def find(name: str) -> Backend:
    """The traits of the backend ``name``, without importing its framework. Raises NotFound for an unknown one."""
    known = _by_name(tuple(__path__))
    found = name if name in known else registry.canonical(FOLDER, name)
    if found is None and name.casefold() in SERVED:
        told = "profile endpoint URL measures it as a running server"
        raise NotFound(f"a sweep cannot run {name.casefold()}", f"{told}. Backends: {', '.join(known)}.")
    if found is None:
        raise registry.unknown("backend", name, known)
    return known[found]


def opener(name: str) -> Opener:
    """``open_session`` of the backend ``name``. This imports its framework."""
    module = registry.load(FOLDER, name, "backend")
    if not hasattr(module, "open_session"):
        module = importlib.import_module(f"{module.__name__}.session")
    found: Opener = module.open_session
    return found


def of_row(name: str) -> Backend | None:
    """The traits of a stored row's backend; ``None`` if that backend is not installed here."""
    return _of_row(name, tuple(__path__))


def simulated(name: str) -> str | None:
    """What the device of a row's backend is, in words, if it is simulated; ``None`` for a real device."""
    backend = of_row(name)
    return None if backend is None else backend.simulated


@lru_cache(maxsize=64)
def _of_row(name: str, folders: tuple[str, ...]) -> Backend | None:
    """Imports one backend, because a store seldom has rows of all, and caches it, because every row looks it up."""
    return registry.load(FOLDER, name, "backend").BACKEND if name in registry.names(FOLDER) else None


@lru_cache(maxsize=8)
def _by_name(folders: tuple[str, ...]) -> dict[str, Backend]:
    """Cached for each set of ``folders``, because every case of a grid looks its backend up."""
    return {name: registry.load(FOLDER, name, "backend").BACKEND for name in registry.names(FOLDER)}
