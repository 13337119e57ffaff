"""One folder a backend: what it takes, and a session that prefills and decodes."""

from __future__ import annotations

import importlib
from functools import lru_cache

from profiler import registry
from profiler.backends.base import Backend, Opener

FOLDER = "backends"
DEFAULT = "hf"


def find(name: str) -> Backend:
    """What the backend ``name`` is and takes; no framework is imported. NotFound for an unknown one."""
    known = _by_name(tuple(__path__))
    if name not in known:
        raise registry.unknown("backend", name, known)
    return known[name]


def opener(name: str) -> Opener:
    """``open`` of the backend ``name``. Imports the framework that it runs."""
    module = registry.load(FOLDER, name, "backend")
    found: Opener = importlib.import_module(f"{module.__name__}.session").open
    return found


def of_row(name: str) -> Backend | None:
    """As ``find``, for a row that somebody stored: ``None`` for a backend that is not here."""
    return _by_name(tuple(__path__)).get(name)


def made_up(name: str) -> str | None:
    """What the device of a row's backend is, where there is no such device."""
    backend = of_row(name)
    return None if backend is None else backend.made_up


@lru_cache(maxsize=8)
def _by_name(folders: tuple[str, ...]) -> dict[str, Backend]:
    """Rows ask again and again, so a set of ``folders`` is listed once."""
    return {name: registry.load(FOLDER, name, "backend").BACKEND for name in registry.names(FOLDER)}
