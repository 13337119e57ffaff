"""A libllama in C with a model whose logits are a formula, for a fake build of llama.cpp (``fakes.llama_cpp``)."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("llama.c")
FLAGS = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
VOCABULARY, BOS = 50, 1
NOISE = {"f32": 0.0, "q8_0": 0.05, "q4_0": 0.3}  # by what the file's name has


def install(folder: Path, *variants: str) -> Path:
    """Compile the library into ``folder`` and return the folder; ``variants`` are OLDER or STRANGE."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang): the fake libllama cannot be built")
    defined = [f"-D{variant}" for variant in variants]
    command = [compiler, *FLAGS, *defined, "-o", str(folder / "libllama.so"), str(SOURCE), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def tokens(text: str) -> list[int]:
    """The tokens of a text, without BOS."""
    return [2 + byte % (VOCABULARY - 2) for byte in text.encode()]


def logits(quant: str, read: Sequence[int]) -> list[list[float]]:
    """The logits after each token of ``read``."""
    state, rows = 0.0, []
    for each in read:
        state = 0.5 * state + each
        rows.append(
            [
                3 * math.sin(1.3 * state + token) + NOISE[quant] * math.cos(2.1 * state + token * token)
                for token in range(VOCABULARY)
            ]
        )
    return rows
