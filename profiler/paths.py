"""How decode steps run (``--path``), and which way where nobody says.

``eager`` is transformers as shipped. ``static`` is our step over a cache of fixed shape (``kernels/``), called from
Python. ``graph`` is that step captured as a CUDA graph, or compiled on a CPU, which takes a minute for each model.
"""

from __future__ import annotations

import os
import shutil

EAGER, STATIC, GRAPH = PATHS = ("eager", "static", "graph")
COMPILERS = ("c++", "g++", "clang++")  # after what CXX names


def compiler() -> str | None:
    """The C++ compiler that builds the loops of our step on a CPU."""
    found = (shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name)
    return next((path for path in found if path), None)


def usual(kind: str) -> str:
    """What a sweep takes on a device of this kind, and what is predicted of it.

    On a CPU the static step: the compiled one is faster, by most for the smallest models, but takes a minute to get
    ready for each. Without a compiler there are no loops of ours, and transformers runs as shipped.
    """
    if kind == "cuda":
        return GRAPH
    return STATIC if kind == "cpu" and compiler() else EAGER
