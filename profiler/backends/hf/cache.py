"""The cache of transformers, layer by layer: its bytes, its length, a copy to restore it from, random contents.

Every step copies a growing layer into a new, longer tensor, so a view of the first ``context`` tokens is enough to
restore it: a long cache is never held twice. A sliding layer drops tokens and a recurrent state is overwritten, so
both are saved as copies, which are small.
"""

from __future__ import annotations

from collections.abc import Iterator
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

SavedCache = dict[str, Any]


def state(cache: Cache, length: int | None = None, pool_bytes: int | None = None) -> CacheState:
    """The bytes and the length of the cache. Static layers do not know their ``length``, so it is given.

    Raises ShapeMismatch if attention layers disagree about the length.
    """
    seen: set[int] = set()
    growing = window = recurrent = own = 0
    for layer in cache.layers:
        held = 0
        for tensor in _tensors(layer):
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
    """Replace a short real cache by a random one of ``length`` tokens, with the same spread in each layer."""
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionLayer):
            for number, tensor in enumerate(_tensors(layer)):
                fill_normal(tensor, _spread(tensor), seed + 7 * index + number)
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
    if isinstance(layer, DummyLayer):  # a layer that shares another one's keys and values
        return {}
    if not isinstance(layer, DynamicLayer):
        raise ProfileError(f"no rule for a cache layer of type {type(layer).__name__}")
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


def _tensors(layer: Any) -> Iterator[torch.Tensor]:
    """Every tensor a layer keeps per sequence."""
    for name in ("keys", "values"):
        tensor = getattr(layer, name, None)
        if tensor is not None:
            yield tensor
    for name in ("conv_states", "recurrent_states"):
        for tensor in getattr(layer, name, {}).values():
            if tensor is not None:
                yield tensor


def _length(cache: Cache) -> int:
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
    lengths = {int(layer.get_seq_length()) for layer in layers}
    if len(lengths) > 1:
        raise ShapeMismatch(f"cache layers disagree about their length: {sorted(lengths)}")
    return lengths.pop() if lengths else 0


def _clones(tensors: dict[int, torch.Tensor | None]) -> dict[int, torch.Tensor | None]:
    return {number: None if tensor is None else tensor.clone() for number, tensor in tensors.items()}


def _spread(tensor: torch.Tensor) -> float:
    """Root mean square of a tensor's values; a state that is still zero gets a small one."""
    return float(tensor.float().square().mean().sqrt()) or 1e-3


def _longer(tensor: torch.Tensor, length: int, seed: int) -> torch.Tensor:
    """A random tensor like ``[batch, heads, tokens, head_dim]`` with ``length`` tokens."""
    batch, heads, _, width = tensor.shape
    new = torch.empty((batch, heads, length, width), dtype=tensor.dtype, device=tensor.device)
    fill_normal(new, _spread(tensor), seed)
    return new
