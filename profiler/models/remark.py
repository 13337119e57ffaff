"""What a person should know of a model before a figure of it: a sentence with a code that scripts can rely on."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "model"  # anything else that is true of the model whatever is measured
UNUSED = "unused-weights"  # tensors of the file that the model does not take
BESIDE = "files-beside"  # files beside the weights that are not loaded
SYNTHETIC = "synthetic-weights"  # random values, because there are no real weights here
EAGER = "eager-path"  # decode runs as transformers ships it, because our own step cannot be built here
THREADS = "too-many-threads"  # more than there are cores
CODES = frozenset({MODEL, UNUSED, BESIDE, SYNTHETIC, EAGER, THREADS})


@dataclass(frozen=True, slots=True)
class Remark:
    """``code`` is one of ``CODES``; ``text`` is for people."""

    text: str
    code: str = MODEL
