"""The shape of a model: every weight, and what each layer keeps per sequence.

A family file (``families/NAME.py``) turns a raw ``config.json`` into a ``Geometry``. Everything that follows from
shapes alone is derived here; nothing here knows a quantization's bytes or a device's speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

Role = Literal["embedding", "head", "linear", "experts", "router", "conv", "vector"]


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored tensor. ``role`` decides how a quantization stores it and how a token reads it.

    embedding: a table of which a token reads one row · head: the output projection (absent when tied) · linear: a
    module of type ``nn.Linear`` · experts: a fused ``[experts, out, in]`` tensor of which a token reads top-k slices ·
    router: expert choice · conv: depthwise kernel · vector: norms, biases, per-head scalars.
    """

    role: Role
    shape: tuple[int, ...]
    name: str = ""  # last parts of the parameter's name, for messages

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)
