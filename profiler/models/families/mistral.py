"""Mistral: Mistral 7B, Nemo, Small and models of the same architecture, which is Llama's with a window on all layers.

Shapes and defaults from transformers 5.24, ``models/mistral``. Version 0.1 of the 7B has a window of 4,096 tokens,
which is also what a config without the field means; later ones have null.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Dense, Layer, gated_mlp
from profiler.models.rope import largest_context


class MistralConfig:
    """The fields of transformers' class of that name."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096 * 32
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    sliding_window: int | None = 4096
    attention_dropout: float | int = 0.0


TEXT = {"mistral": MistralConfig}
WRAPPED: dict[str, tuple[str, type]] = {}
MODEL_TYPES = (*WRAPPED, *TEXT)


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    hidden, width, size = config.number("hidden_size"), config.number("intermediate_size"), base.head_dim(config)
    window = config.optional("sliding_window")
    base.refuse_layer_types(config, window)
    attention = base.grouped(config, window, size)
    layer = Layer(
        attention,
        Dense(width),
        (
            *base.attention_weights(attention, hidden),
            *gated_mlp("mlp", hidden, width),
            *base.pre_norms(hidden),
        ),
    )
    longest = largest_context(config, size, config.raw.get("layer_types") or ())
    return base.decoder(config, "mistral", (layer,) * config.number("num_hidden_layers"), longest)
