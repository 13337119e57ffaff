"""One stored tensor of a model, and the part it plays."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Role = Literal["embedding", "head", "linear", "experts", "router", "conv", "vector"]


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored tensor. ``role`` decides how a quantization stores it and how a token reads it.

    embedding: a table of which a token reads one row · head: the output projection (absent when tied) · linear: a
    module of type ``nn.Linear`` · experts: a fused tensor with experts first, of which a token reads top-k slices ·
    router: expert choice held as a bare parameter or a subclass of ``nn.Linear`` · conv: depthwise kernel · vector:
    norms, biases, per-head scalars.
    """

    role: Role
    shape: tuple[int, ...]
    name: str = ""  # the parameter's name in transformers, after ``model.layers.N.`` inside a layer

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def linear(name: str, outputs: int, inputs: int, bias: bool = False) -> tuple[Weight, ...]:
    """``nn.Linear``: a weight ``[outputs, inputs]`` and, if asked for, a bias ``[outputs]``."""
    weight = Weight("linear", (outputs, inputs), f"{name}.weight")
    return (weight, Weight("vector", (outputs,), f"{name}.bias")) if bias else (weight,)


def norm(name: str, size: int) -> Weight:
    """The scale of a normalisation layer, ``[size]``."""
    return Weight("vector", (size,), f"{name}.weight")


def gated_mlp(name: str, hidden: int, width: int, bias: bool = False) -> tuple[Weight, ...]:
    """Gate, up and down projections of a gated feed-forward layer: ``down(act(gate(x)) * up(x))``."""
    return (
        *linear(f"{name}.gate_proj", width, hidden, bias),
        *linear(f"{name}.up_proj", width, hidden, bias),
        *linear(f"{name}.down_proj", hidden, width, bias),
    )
