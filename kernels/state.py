"""The state of a decode step: cache layers of fixed shape and other tensors, whose addresses never change.

Positions are tensors because a captured graph replays addresses, not Python: an ``int`` would keep its value from the
capture. Rotary positions are applied before keys are cached, so the order of slots does not matter, and a ring needs
only a mask of its filled slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from profiler.errors import ProfileError

SMALLEST_BUCKET = 256  # tokens; buckets double from here, so attention reads at most twice the filled slots
WINDOWED = ("sliding_attention", "chunked_attention")  # transformers' names of layer types
SavedState = dict[str, Any]


class StaticLayer(CacheLayerMixin):
    """Keys and values ``[batch, kv_heads, slots, head_dim]``, and the slot ``[1]`` of the next token."""

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slot: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.slot = keys, values, slot
        self.is_initialized = True

    @property
    def slots(self) -> int:
        """Tokens the layer can hold. Not converted by ``int(…)``, because it is symbolic during compilation."""
        return self.keys.shape[2]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("a static layer is created with its tensors")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token to the slot; returns the keys and values that attention reads."""
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """Refused: the model would compute positions or masks on the host, which are right only for this one step."""
        raise RuntimeError("the decode step passes positions and masks; a model must not ask a ring for its length")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Refused, like ``get_seq_length``."""
        raise RuntimeError("the decode step passes positions and masks; a model must not ask for mask sizes")

    def get_max_length(self) -> int:
        return self.slots


class RingLayer(StaticLayer):
    """Sliding attention: slot = position mod window. Holds the current token and the ``window - 1`` before it."""

    is_sliding = True


class BucketLayer(StaticLayer):
    """Full attention: slot = position. Attention reads the first ``bucket`` slots, a host number that is fixed per
    graph, or all of them if it is ``None``.
    """

    bucket: int | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states)
        if self.bucket is None:
            return keys, values
        return keys[:, :, : self.bucket], values[:, :, : self.bucket]

    def get_seq_length(self) -> Any:
        """Tokens before this step, as a tensor: Llama 4 scales its queries by it, and a number would not change."""
        return self.slot[0]


def layer_kinds(cache: Cache) -> list[int | None]:
    """The window of each layer of a dynamic cache that holds keys, ``None`` for a growing one; other layers are
    skipped.

    Raises ProfileError for an unknown layer class, which we might decode wrongly without noticing.
    """
    kinds: list[int | None] = []
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            kinds.append(layer.sliding_window)
        elif type(layer) is DynamicLayer:
            kinds.append(None)
        elif type(layer) not in (LinearAttentionLayer, DummyLayer):
            raise ProfileError(
                f"cache layer {index} is a {type(layer).__name__}, which the static decode step does not support",
                "use --path eager",
            )
    return kinds


def make_static(cache: Cache, capacity: int, slot_of: dict[int | None, torch.Tensor]) -> Cache:
    """A cache of static layers with the contents of ``cache``, which is emptied layer by layer to save memory.

    ``slot_of`` maps a window (``None``: full attention) to its static slot tensor ``[1]``. Recurrent layers are
    already static (transformers updates them in place) and are moved unchanged.
    """
    layer_kinds(cache)  # raises before anything is taken apart
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
    """Every tensor of a layer's per-sequence state: keys and values, or convolution and recurrent states."""
    if isinstance(layer, LinearAttentionLayer):
        for states in (layer.conv_states, layer.recurrent_states):
            yield from (tensor for tensor in states.values() if tensor is not None)
    elif layer.keys is not None:
        yield layer.keys
        yield layer.values


def _placed(layer: Any, slots: int, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a dynamic layer in ``slots`` zeroed slots, with its tokens at ``where``.

    The slots are zeroed because attention multiplies masked slots by zero, and zero times NaN is NaN.
    """
    placed = []
    for name in ("keys", "values"):
        tensor = getattr(layer, name)
        batch, heads, _, width = tensor.shape
        new = tensor.new_zeros((batch, heads, slots, width))
        placed.append(new.index_copy_(2, where, tensor))
        setattr(layer, name, None)  # free one before the next is allocated
    return placed[0], placed[1]


def bucket_for(length: int, smallest: int = SMALLEST_BUCKET) -> int:
    """The smallest bucket that holds ``length`` tokens: 256, 512, 1024, …"""
    return max(smallest, 1 << (length - 1).bit_length())


class DecodeState:
    """Static buffers of one batch of equally long sequences.

    ``token [batch, 1]`` is fed next, at ``position [1]``. The token that the step chooses goes to column ``write
    [1]`` of ``out [batch, max_new + 1]``, whose column 0 holds the token that prefill chose. ``slot_of`` maps each
    window (``None``: full attention) to the cache slot ``[1]`` of the next token. The host numbers ``length`` and
    ``bucket`` follow from the number of enqueued steps; a step reads only ``bucket``, which is fixed per graph.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: Cache,
        token: torch.Tensor,
        max_new: int,
    ) -> None:
        """Take over ``cache``, a prefilled DynamicCache, and the ``token [batch, 1]`` that was chosen after it.

        Raises ProfileError for a cache layer without a static form, and for attention whose masks differ.
        """
        if not getattr(model, "_supports_sdpa", True):
            what = "attention that is not PyTorch's, such as attention sinks"
            raise ProfileError(f"{model.config.model_type}: the static decode step does not support {what}",
                               "use --path eager")  # fmt: skip
        device, batch = token.device, token.shape[0]
        kinds = dict.fromkeys(layer_kinds(cache))
        windows = [window for window in kinds if window is not None]
        self.layer_types = _layer_types(model, windows)
        self.window = windows[0] if windows else None
        self.context = int(cache.get_seq_length())
        self.max_new = max_new
        self.capacity = self.context + max_new
        self.length = self.context
        self.position = torch.tensor([self.context], device=device)
        self.write = torch.zeros(1, dtype=torch.int64, device=device)
        self.slot_of = {window: self.position.clone() for window in kinds}
        self.token = token.clone()
        self.out = torch.zeros((batch, max_new + 1), dtype=torch.int64, device=device)
        self.out[:, :1] = self.token
        self.write += 1
        self.smallest_bucket = SMALLEST_BUCKET
        self.exact = False  # True: attention skips empty slots itself, so it gets all of them and needs no buckets
        self.cache = make_static(cache, max(self.capacity, 1), self.slot_of)
        self._place()

    @property
    def bucket(self) -> int:
        """Slots that full attention reads in the next step."""
        return self.bucket_at(self.length + 1)

    def bucket_at(self, length: int) -> int:
        """Slots that full attention reads when ``length`` tokens are cached."""
        return self.capacity if self.exact else min(bucket_for(length, self.smallest_bucket), self.capacity)

    def set_bucket(self, bucket: int) -> None:
        """Make every full-attention layer read ``bucket`` slots."""
        for layer in self.cache.layers:
            if isinstance(layer, BucketLayer):
                layer.bucket = None if bucket >= layer.slots else bucket

    def claim(self, steps: int) -> None:
        """Reserve ``steps`` before they are enqueued. Raises ProfileError if they do not fit: on CUDA, a write out of
        bounds would destroy the context.
        """
        if self.length + steps > self.capacity:
            raise ProfileError(
                f"{steps} more decode steps do not fit: {self.length} of {self.capacity} cache positions are filled",
                "prepare the runner for more new tokens",
            )
        self.length += steps

    def masks(self) -> Any:
        """The slots that attention may read, ``[1, 1, 1, slots]``, as transformers expects them: one mask per layer
        type, or a single mask for models without layer types.

        The token at ``position`` is written before attention reads, so the slots up to it are filled, and once a ring
        has wrapped all of them are. A chunk of chunked attention starts at slot 0, so the slots after the current one
        belong to the previous chunk. Recurrent layers have no padding and get no mask.
        """
        if self.layer_types is None:
            return self._filled(next(iter(self.slot_of)), self.position)
        masks: dict[str, torch.Tensor | None] = dict.fromkeys(self.layer_types)
        for name in masks:
            if name == "full_attention":
                masks[name] = self._filled(None, self.position)
            elif name in WINDOWED and self.window is not None:
                masks[name] = self._filled(self.window, self._last(name))
        return masks

    def advance(self, token: torch.Tensor) -> None:
        """Feed back ``token [batch, 1]`` and advance every position by one, in place."""
        self.out.index_copy_(1, self.write, token)
        self.token.copy_(token)
        self.position.add_(1)
        self.write.add_(1)
        self._place()

    @torch.inference_mode()
    def skip(self, steps: int) -> None:
        """Advance every position by ``steps`` without computing a token: the skipped slots keep what they hold.

        Raises ProfileError if they do not fit, as ``claim``.
        """
        self.claim(steps)
        self.position.add_(steps)
        self.write.add_(steps)
        self._place()

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor that a step writes."""
        own = [self.token, self.position, self.write, self.out, *self.slot_of.values()]
        return own + [tensor for layer in self.cache.layers for tensor in state_tensors(layer)]

    @torch.inference_mode()
    def save(self) -> SavedState:
        """A copy of what changes, for ``restore``. Full attention needs none, because later tokens use later
        slots.
        """
        kept = [layer for layer in self.cache.layers if not isinstance(layer, BucketLayer)]
        own = [self.token, self.position, self.write, *self.slot_of.values()]
        tensors = own + [tensor for layer in kept for tensor in state_tensors(layer)]
        flags = [(layer, dict(layer.has_previous_state)) for layer in kept if isinstance(layer, LinearAttentionLayer)]
        return {"tensors": [(tensor, tensor.clone()) for tensor in tensors], "flags": flags, "length": self.length}

    @torch.inference_mode()
    def restore(self, saved: SavedState) -> None:
        """Reset tensors and Python flags to their values at ``save``, in place."""
        for tensor, value in saved["tensors"]:
            tensor.copy_(value)
        for layer, flags in saved["flags"]:
            layer.has_previous_state = dict(flags)
        self.length = saved["length"]

    def storage_bytes(self) -> int:
        """Bytes of the cache's storages, each counted once."""
        tensors = [tensor for layer in self.cache.layers for tensor in state_tensors(layer)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def read_bytes(self) -> tuple[int, int]:
        """Key and value bytes that the next step needs, and those that it reads, which include padding of buckets."""
        needed = read = 0
        for layer in self.cache.layers:
            if isinstance(layer, (RingLayer, BucketLayer)):
                token = (layer.keys[:, :, 0].numel() + layer.values[:, :, 0].numel()) * layer.keys.element_size()
                reads = self.bucket if isinstance(layer, BucketLayer) else layer.slots
                needed += token * min(self.length + 1, layer.slots)
                read += token * (min(self.length + 1, layer.slots) if self.exact else reads)
        return needed, read

    def _place(self) -> None:
        """Update the slots of the next token."""
        for slot in self.slot_of.values():
            slot.copy_(self.position % self._layer(slot).slots)

    def _layer(self, slot: torch.Tensor) -> StaticLayer:
        """The first layer that uses ``slot``; all such layers hold equally many tokens."""
        return next(layer for layer in self.cache.layers if isinstance(layer, StaticLayer) and layer.slot is slot)

    def _last(self, name: str) -> torch.Tensor:
        """The last slot ``[1]`` that a windowed layer may read; slots are filled in order."""
        return self.slot_of[self.window] if name == "chunked_attention" else self.position

    def _filled(self, window: int | None, last: torch.Tensor) -> torch.Tensor:
        layer = self._layer(self.slot_of[window])
        slots = (layer.bucket if isinstance(layer, BucketLayer) else None) or layer.slots
        return (torch.arange(slots, device=last.device) <= last).view(1, 1, 1, slots)


def _layer_types(model: PreTrainedModel, windows: list[int]) -> set[str] | None:
    """Layer types of a model that takes one mask per type; ``None`` for a model that takes a single mask.

    Raises ProfileError for a layer type whose mask does not follow from the filled slots.
    """
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    unknown = set(types or ()) - {"full_attention", "linear_attention", *WINDOWED}
    if unknown or len(windows) > 1:
        what = f"attention of type {', '.join(sorted(unknown))}" if unknown else f"several windows {windows}"
        raise ProfileError(f"{config.model_type}: the static decode step does not support {what}", "use --path eager")
    return set(types) if types else None
