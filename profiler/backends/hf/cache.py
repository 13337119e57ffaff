"""Reads, saves, restores and randomizes a transformers cache, layer by layer.

Every step copies a growing layer into a new, longer tensor. A view of its first ``context`` tokens is therefore
enough to restore it, and a long cache is never held twice. A sliding layer drops tokens, and a recurrent state is
overwritten; both are small and are saved as copies.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from profiler.backends.base import CacheState, ShapeMismatch
from profiler.backends.hf import synthetic
from profiler.backends.hf.synthetic import fill_normal
from profiler.errors import ProfileError
from profiler.kernels.state import state_tensors

SavedCache = dict[str, Any]


def state(cache: Cache, length: int | None = None, pool_bytes: int | None = None) -> CacheState:
    """Length and memory of ``cache``. Static layers do not know their length, so for them it must be passed.

    Raises ShapeMismatch if attention layers disagree about the length.
    """
    seen: set[int] = set()
    growing = window = recurrent = own = 0
    for layer in cache.layers:
        held = 0
        for tensor in state_tensors(layer):
            storage = tensor.untyped_storage()
            own += tensor.numel() * tensor.element_size()
            held += 0 if storage.data_ptr() in seen else storage.nbytes()
            seen.add(storage.data_ptr())
        if isinstance(layer, LinearAttentionLayer):
            recurrent += held
        elif getattr(layer, "is_sliding", False):
            window += held
        else:
            growing += held
    total = growing + window + recurrent
    return CacheState(
        length=_length(cache) if length is None else length,
        storage_bytes=total,
        retained_bytes=max(0, total - own),
        growing_bytes=growing,
        window_bytes=window,
        recurrent_bytes=recurrent,
        pool_bytes=pool_bytes,
    )


def save(cache: Cache) -> list[SavedCache]:
    """Save the cache. Sliding layers are compacted first, because their views keep the whole prefill chunk alive."""
    return [_save_layer(layer) for layer in cache.layers]


def restore(cache: Cache, saved: list[SavedCache]) -> None:
    """Restore the cache to its state at ``save``."""
    for layer, values in zip(cache.layers, saved, strict=True):
        _restore_layer(layer, values)


def randomize(cache: DynamicCache, length: int, seed: int) -> None:
    """Replace a short real cache with a random one of ``length`` tokens. In each layer, random values have the root
    mean square of the real ones.
    """
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionLayer):
            for number, tensor in enumerate(state_tensors(layer)):
                fill_normal(tensor, _rms(tensor), seed + 7 * index + number)
        elif isinstance(layer, DynamicLayer) and layer.is_initialized:
            kept = length
            if isinstance(layer, DynamicSlidingWindowLayer):
                kept = min(length, layer.sliding_window - 1)
                layer.cumulative_length = length
            layer.keys = _longer(layer.keys, kept, seed + 7 * index)
            layer.values = _longer(layer.values, kept, seed + 7 * index + 1)
    synthetic.forget()


def _save_layer(layer: Any) -> SavedCache:
    if isinstance(layer, LinearAttentionLayer):
        return {
            "conv_states": _clones(layer.conv_states),
            "recurrent_states": _clones(layer.recurrent_states),
            "has_previous_state": dict(layer.has_previous_state),
        }
    if isinstance(layer, DummyLayer):  # shares the keys and values of another layer
        return {}
    if not isinstance(layer, DynamicLayer):
        raise ProfileError(f"cache layers of type {type(layer).__name__} are not supported")
    if not layer.is_initialized:
        return {}
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        return {"keys": layer.keys, "values": layer.values, "cumulative_length": layer.cumulative_length}
    return {"length": layer.keys.shape[-2]}


def _restore_layer(layer: Any, saved: SavedCache) -> None:
    if "recurrent_states" in saved:
        for name in ("conv_states", "recurrent_states"):
            for number, tensor in saved[name].items():
                if tensor is not None:
                    getattr(layer, name)[number].copy_(tensor)
        layer.has_previous_state = dict(saved["has_previous_state"])
    elif "length" in saved:
        layer.keys = layer.keys[:, :, : saved["length"]]
        layer.values = layer.values[:, :, : saved["length"]]
    else:
        for name, value in saved.items():
            setattr(layer, name, value)


def _length(cache: Cache) -> int:
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
    lengths = {int(layer.get_seq_length()) for layer in layers}
    if len(lengths) > 1:
        raise ShapeMismatch(f"cache layers disagree about their length: {sorted(lengths)}")
    return lengths.pop() if lengths else 0


def _clones(tensors: dict[int, torch.Tensor | None]) -> dict[int, torch.Tensor | None]:
    return {number: None if tensor is None else tensor.clone() for number, tensor in tensors.items()}


def _rms(tensor: torch.Tensor) -> float:
    """Root mean square of a tensor's values; a small number for a state that is still zero."""
    return float(tensor.float().square().mean().sqrt()) or 1e-3


def _longer(tensor: torch.Tensor, length: int, seed: int) -> torch.Tensor:
    """Random values with the root mean square of ``tensor [batch, heads, tokens, head_dim]``, for ``length``
    tokens.
    """
    batch, heads, _, width = tensor.shape
    new = torch.empty((batch, heads, length, width), dtype=tensor.dtype, device=tensor.device)
    fill_normal(new, _rms(tensor), seed)
    return new
