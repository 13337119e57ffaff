"""How fast gated-delta layers forget, as their authors start training them: γ = exp(−A · Δ) a token.

A is uniform between 0 and 16, Δ log-uniform between 0.001 and 0.1 (Mamba-2, Gated DeltaNet; ``gated_deltanet.py`` of
flash-linear-attention). transformers' own initialisation sets every Δ near 1.3, for checkpoints to overwrite: states
then shrink by e^−10 a token, products over a chunk run into denormal numbers, and a chunk takes an Intel CPU twice
as long as with these, or six times with Δ near 0.2. Timing depends on the values here.
"""

from __future__ import annotations

import math

import torch

A_MOST = 16.0
DELTA = (0.001, 0.1)


def deltas(count: int, random: torch.Generator | None = None) -> torch.Tensor:
    """Δ of ``count`` heads, in fp32 on the CPU."""
    low, high = (math.log(end) for end in DELTA)
    return (low + (high - low) * torch.rand(count, generator=random)).exp()


def biases(count: int, random: torch.Generator) -> torch.Tensor:
    """What softplus makes into Δ: the ``dt_bias`` of ``count`` heads."""
    return deltas(count, random).expm1().log()


def log_decays(count: int) -> torch.Tensor:
    """log γ of ``count`` heads."""
    return -A_MOST * torch.rand(count) * deltas(count)
