"""Compiles the fake library; a symbol that is to be missing is hidden by the linker, as an old driver lacks it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
NAME = "libnvidia-ml.so.1"  # what pynvml asks the loader for
FLAGS = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")


class NoCompiler(Exception):
    """There is no C compiler here."""


def build(folder: Path, without: Iterable[str] = ()) -> Path:
    """The library in ``folder``, lacking the symbols ``without``; made once for each set of them.

    It has no soname, so that a process which loads it by its path can still fail to find the real one.
    Raises NoCompiler.
    """
    hidden = sorted(without)
    place = folder / ("all" if not hidden else f"without-{'-'.join(hidden)}")
    if (place / NAME).exists():
        return place / NAME
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("no C compiler (cc, gcc, clang): the fake NVML library cannot be built")
    place.mkdir(parents=True, exist_ok=True)
    exports = place / "exports"
    exports.write_text(f"{{ global: *; local: {'; '.join(hidden)}; }};" if hidden else "{ global: *; };")
    script = f"-Wl,--version-script={exports}"
    subprocess.run([compiler, *FLAGS, script, "-o", str(place / NAME), str(SOURCE)], check=True, capture_output=True)
    return place / NAME
