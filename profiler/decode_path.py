"""The decode paths (``--path``) and their defaults.

``eager`` is transformers as shipped. ``static`` is our step over a cache of fixed shape (``kernels/``), called from
Python. ``graph`` is that step captured as a CUDA graph, or compiled on a CPU, which takes a minute per model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from profiler import folders
from profiler.case import digest

EAGER, STATIC, GRAPH = PATHS = ("eager", "static", "graph")
SHORT_OF_MEMORY = "short of memory"  # a temporary state of the machine, which is not compared
BUILD_BYTES = 16 * 1024**2  # for the object files and library of our loops, with a margin
COMPILERS = ("c++", "g++", "clang++")  # tried after CXX


def compiler() -> str | None:
    """The C++ compiler for our CPU loops."""
    found = (shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name)
    return next((path for path in found if path), None)


NO_COMPILER = f"no C++ compiler found (CXX, {', '.join(COMPILERS)})"


def machine_state() -> str:
    """Hash of the machine's state that decides whether our step can be built and compiled here.

    A row that fell back because of the machine stores it: while the hash is the same, it would fall back again.
    """
    found = compiler()
    stamp = None
    places = filter(None, (folders.place("native"), Path(tempfile.gettempdir())))
    if found is not None:
        status = os.stat(found)
        stamp = [os.path.realpath(found), status.st_size, status.st_mtime_ns]
    return digest([stamp, *map(fault, places)])


def fault(folder: Path) -> str | None:
    """What prevents a library from being built in ``folder`` and loaded from there; ``None`` if nothing does."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            return "noexec"
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, BUILD_BYTES)
    except OSError as error:
        return os.strerror(error.errno or 0)
    return None
