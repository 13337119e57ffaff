"""The decode step: the only forward of a single token there is, whoever runs it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from .state import DecodeState


def decode_step(model: PreTrainedModel, state: DecodeState) -> torch.Tensor:
    """Feed ``state.token`` and move the state on to the likeliest next token; returns logits ``[batch, vocabulary]``.

    The model is transformers' own, unmodified. It is given the position and the masks as tensors, since what it would
    derive from the cache are Python numbers, which a captured graph repeats for ever.
    """
    logits: torch.Tensor = model(
        input_ids=state.token,
        position_ids=state.position[None].expand(state.token.shape[0], 1),
        attention_mask=state.masks(),
        past_key_values=state.cache,
        use_cache=True,
    ).logits[:, -1]
    state.advance(logits.argmax(dim=-1, keepdim=True))
    return logits
