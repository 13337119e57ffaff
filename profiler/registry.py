"""Plug-ins by file name: the module ``profiler.quants.nf4`` is the quantization ``nf4``.

A ``_`` in a file name stands for ``-`` in the name that users type, so ``nf4_dq.py`` is ``nf4-dq``; ``DOTTED`` has
the exceptions. A file is a plug-in if it defines the object of its folder (``OBJECTS``); other files are code that
plug-ins share.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType

from profiler.errors import NotFound
from profiler.units import printable

OBJECTS = {  # what a plug-in of a folder defines; in other folders every file counts
    "backends": "BACKEND",
    "cost.engines": "ENGINE",
    "devices": "KIND",
    "models.families": "geometry",
    "quants": "QUANT",
    "show.writers": "render",
}

DOTTED = {"llama_cpp": "llama.cpp"}  # names that are written with a dot


def names(folder: str) -> list[str]:
    """Names of the plug-ins in ``profiler.<folder>``, sorted, as users type them.

    Raises OSError if the folder cannot be read, for example when file descriptors run out.
    """
    paths = tuple(importlib.import_module(f"profiler.{folder}").__path__)
    return list(_names(folder, paths, tuple(os.stat(path).st_mtime_ns for path in paths)))


@lru_cache(maxsize=64)
def _names(folder: str, paths: tuple[str, ...], changed_ns: tuple[int, ...]) -> tuple[str, ...]:
    """``names`` of the files in ``paths``. Cached until one of them changes: reading all takes longer than a
    prediction.
    """
    for path in paths:
        os.listdir(path)  # pkgutil treats an unreadable folder as empty
    name_of_object = OBJECTS.get(folder)
    found = {
        name
        for path in paths
        for _, name, is_folder in pkgutil.iter_modules([path])
        if name_of_object is None
        or _defines(f"{path}/{name}/__init__.py" if is_folder else f"{path}/{name}.py", name_of_object)
    }
    return tuple(sorted(DOTTED.get(name, name.replace("_", "-")) for name in found))


@cache
def _defines(file: str, name: str) -> bool:
    """Whether ``file`` defines ``name``, judged by its text, because importing every plug-in takes too long."""
    text = Path(file).read_text(encoding="utf-8")
    return re.search(rf"^(def )?{name}\b", text, re.MULTILINE) is not None


def load(folder: str, name: str, what: str) -> ModuleType:
    """The plug-in module ``name`` of ``profiler.<folder>``, ignoring case; ``what`` is its kind, for the error."""
    known = canonical(folder, name)
    if known is None:
        raise unknown(what, name, names(folder))
    return importlib.import_module(f"profiler.{folder}.{_spelled(known)}")


def canonical(folder: str, name: str) -> str | None:
    """The plug-in that a user means by ``name``; ``None`` if there is none. Case does not matter; ``-``, ``_`` and
    ``.`` are the same.
    """
    return next((known for known in names(folder) if _spelled(known) == _spelled(name)), None)


def _spelled(name: str) -> str:
    return name.casefold().replace("-", "_").replace(".", "_")


def unknown(what: str, name: str, known: Iterable[str]) -> NotFound:
    """The error for an unknown name: the nearest known names first, then all of them."""
    known = list(known)
    near = nearest(name, known)
    return NotFound(f"unknown {what}: {printable(name)}", f"{did_you_mean(near)}Known: {', '.join(known)}.")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that resemble ``name``, the nearest first."""
    return difflib.get_close_matches(name.casefold(), list(known), n=3, cutoff=0.6)


def did_you_mean(near: Sequence[str]) -> str:
    """A question with a blank at its end, or nothing."""
    return f"Did you mean {listed(near, 'or')}? " if near else ""


def listed(words: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``; empty for no word."""
    *first, end = words or [""]
    return f"{', '.join(first)} {last} {end}" if first else end
