"""Random values at the speed of a copy.

``torch.Tensor.normal_`` makes some 100 million values a second on one core: minutes for a large model. Timing does
not depend on the values, only on their being neither constant nor extreme, so a block of noise is drawn once and
laid over a tensor piece by piece, each piece from another offset.
"""

from __future__ import annotations

from functools import lru_cache

import torch

BLOCK = 4_194_301  # elements; prime, so that rows of no width line up with it


@lru_cache(maxsize=4)
def _block(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Standard normal values, twice in a row so that a piece can start anywhere."""
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(device=device, dtype=dtype)
    return torch.cat([noise, noise])


def forget() -> None:
    """Give the blocks' memory back: it must not be in the peak of what is measured next."""
    _block.cache_clear()


def fill_normal(tensor: torch.Tensor, std: float, seed: int) -> None:
    """Fill a contiguous floating tensor in place with values of mean 0 and standard deviation ``std``."""
    flat = tensor.view(-1)
    noise = _block(tensor.dtype, tensor.device)
    offset = seed * 1_000_003 % BLOCK
    for start in range(0, flat.numel(), BLOCK):
        piece = flat[start : start + BLOCK]
        torch.mul(noise[offset : offset + piece.numel()], std, out=piece)
        offset = (offset + 611_953) % BLOCK


def tile(target: torch.Tensor, pattern: torch.Tensor) -> None:
    """Repeat ``pattern`` over a flat tensor of the same dtype, in place."""
    length = pattern.numel()
    for start in range(0, target.numel(), length):
        piece = target[start : start + length]
        piece.copy_(pattern[: piece.numel()])
