"""Lets child processes find this package when it runs from a checkout that was never installed.

``python -m profiler`` finds the package in the current folder. Children are started with ``-P``, so that a stray file
of the current folder cannot stand in for a library, and then have to be told where the package is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environ(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a child that runs this same code needs beside ``inherited``: nothing where the package is installed."""
    if sys.flags.safe_path or not sys.path or Path(sys.path[0]).resolve() != ROOT:
        return {}
    others = inherited.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [others])])}
