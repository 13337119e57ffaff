"""What operators of ours return, for compilation and for runs on fake tensors, where the CPU's and CUDA's agree."""

from __future__ import annotations

import torch


def decode_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """``[batch, 1, heads, width]``"""
    return query.new_empty((query.shape[0], 1, query.shape[1], values.shape[3]))


def expert_matvec(x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``[tokens, rows]``"""
    return x.new_empty((x.shape[0], weight.shape[1]))


def gated_delta_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """``[batch, 1, heads, dv]``, in the dtype of the values"""
    return torch.empty_like(value)
