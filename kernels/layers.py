"""Cache layers of fixed shape for one-token steps: every write goes to a position that lives on the device.

Positions are tensors because a captured graph replays addresses, not Python: an ``int`` would be frozen at its value
during capture. Rotary positions are applied before keys are cached, so the order of slots never matters and a ring
needs no rolling, only a mask of the slots that are filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from profiler.errors import ProfileError


class StaticLayer(CacheLayerMixin):
    """Keys and values ``[batch, kv_heads, slots, head_dim]`` and the slot ``[1]`` that the next token takes."""

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slot: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.slot = keys, values, slot
        self.is_initialized = True

    @property
    def slots(self) -> int:
        """Tokens the layer can hold. No ``int(…)``: while a step is compiled it stands for any number."""
        return self.keys.shape[2]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("a static layer is made with its tensors")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token at the slot; returns what attention reads."""
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """Refused: a model that asks would compute positions or masks on the host, right only for this one step."""
        raise RuntimeError("the decode step passes positions and masks; no model may ask a ring for its length")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Refused, like ``get_seq_length``."""
        raise RuntimeError("the decode step passes positions and masks; no model may ask a static layer for its mask")

    def get_max_length(self) -> int:
        return self.slots


class RingLayer(StaticLayer):
    """Sliding attention: slot = position mod window. The current token and the ``window - 1`` before it are kept."""

    is_sliding = True


class BucketLayer(StaticLayer):
    """Full attention: slot = position. Attention reads the first ``bucket`` slots, a host number fixed per graph, or
    all of them where it is ``None``."""

    bucket: int | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states)
        if self.bucket is None:
            return keys, values
        return keys[:, :, : self.bucket], values[:, :, : self.bucket]

    def get_seq_length(self) -> Any:
        """Tokens before this step, on the device: Llama 4 scales its queries by it, and a number would freeze."""
        return self.slot[0]


def layer_kinds(cache: Cache) -> list[int | None]:
    """For each layer of a dynamic cache that holds keys its window, ``None`` for a growing one; others are left out.

    Raises ProfileError for a layer class without a rule: decoding it wrongly in silence would be worse.
    """
    kinds: list[int | None] = []
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            kinds.append(layer.sliding_window)
        elif type(layer) is DynamicLayer:
            kinds.append(None)
        elif type(layer) not in (LinearAttentionLayer, DummyLayer):
            raise ProfileError(
                f"cache layer {index} is a {type(layer).__name__}, for which the static decode step has no rule",
                "use --path eager",
            )
    return kinds


def make_static(cache: Cache, capacity: int, slot_of: dict[int | None, torch.Tensor]) -> Cache:
    """A cache of static layers with the contents of ``cache``, which is emptied layer by layer to save memory.

    ``slot_of`` maps a window (``None``: full attention) to its static slot tensor ``[1]``. Recurrent layers are
    static already (transformers copies into them in place) and move over as they are.
    """
    layer_kinds(cache)  # refuse before anything is taken apart
    layers: list[Any] = []
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            window, length = layer.sliding_window, layer.cumulative_length
            tokens = torch.arange(length - layer.keys.shape[2], length, device=layer.keys.device)
            slots = min(window, capacity)
            layers.append(RingLayer(*_placed(layer, slots, tokens % slots), slot_of[window]))
        elif type(layer) is DynamicLayer:
            tokens = torch.arange(layer.keys.shape[2], device=layer.keys.device)
            layers.append(BucketLayer(*_placed(layer, capacity, tokens), slot_of[None]))
        else:
            layers.append(layer)
        cache.layers[index] = DummyLayer()
    return Cache(layers=layers)


def state_tensors(layer: Any) -> Iterator[torch.Tensor]:
    """Every tensor that a layer keeps per sequence."""
    if isinstance(layer, LinearAttentionLayer):
        for states in (layer.conv_states, layer.recurrent_states):
            yield from (tensor for tensor in states.values() if tensor is not None)
    elif layer.keys is not None:
        yield layer.keys
        yield layer.values


def _placed(layer: Any, slots: int, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a dynamic layer in ``slots`` zeroed slots, its tokens at ``where``.

    Zeros, not whatever memory held: attention multiplies masked slots by zero, and zero times NaN is NaN.
    """
    placed = []
    for name in ("keys", "values"):
        tensor = getattr(layer, name)
        batch, heads, _, width = tensor.shape
        new = tensor.new_zeros((batch, heads, slots, width))
        placed.append(new.index_copy_(2, where, tensor))
        setattr(layer, name, None)  # free one before the next is made
    return placed[0], placed[1]
