"""Plug-ins by file name: the module ``profiler.quants.nf4`` is the quantization ``nf4``.

A ``_`` in a file's name stands for ``-`` or ``.`` in the word people type, so ``nf4_dq.py`` serves ``nf4-dq``.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from profiler.errors import NotFound
from profiler.units import printable

NOT_PLUGINS = {"base", "bitsandbytes", "checkpoint"}  # what plug-ins of a folder share


def names(folder: str) -> list[str]:
    """Names of the plug-ins in ``profiler.<folder>``, sorted, as people type them.

    Raises OSError if the folder cannot be read, for want of file descriptors say.
    """
    package = importlib.import_module(f"profiler.{folder}")
    for path in package.__path__:
        os.listdir(path)  # pkgutil takes a folder that cannot be read for an empty one
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name.replace("_", "-") for name in found if name not in NOT_PLUGINS)


def load(folder: str, name: str, what: str) -> ModuleType:
    """The plug-in module ``name`` of ``profiler.<folder>``, in any case; ``what`` names the kind in the error."""
    known = names(folder)
    typed = name.casefold().replace("_", "-")
    if typed not in known:
        raise unknown(what, name, known)
    return importlib.import_module(f"profiler.{folder}.{typed.replace('-', '_')}")


def unknown(what: str, name: str, known: Iterable[str]) -> NotFound:
    """The error for a name that is not in ``known``: nearest first, then all of them."""
    known = list(known)
    near = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.5)
    nearest = f"Did you mean {' or '.join(near)}? " if near else ""
    return NotFound(f"unknown {what}: {printable(name)}", f"{nearest}Known: {', '.join(known)}.")
