"""Qwen 2: Qwen 2 and 2.5 and their distillations. As Qwen 3, with biases on Q, K and V instead of norms.

Shapes and defaults from transformers 5.24, ``models/qwen2``.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.families.qwen3 import layer_types
from profiler.models.geometry import Geometry
from profiler.models.layers import Dense, Layer, gated_mlp
from profiler.models.rope import largest_context


class Qwen2Config:
    """The fields of transformers' class of that name."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    attention_dropout: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


TEXT = {"qwen2": Qwen2Config}
WRAPPED: dict[str, tuple[str, type]] = {}
MODEL_TYPES = (*WRAPPED, *TEXT)


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    hidden, width, size = config.number("hidden_size"), config.number("intermediate_size"), base.head_dim(config)

    def layer(kind: str) -> Layer:
        window = config.number("sliding_window") if kind == "sliding_attention" else None
        attention = base.grouped(config, window, size)
        return Layer(
            attention,
            Dense(width),
            (
                *base.attention_weights(attention, hidden, bias=True, output_bias=False),
                *gated_mlp("mlp", hidden, width),
                *base.pre_norms(hidden),
            ),
        )

    types = layer_types(config)
    longest = largest_context(config, size, types)
    return base.decoder(config, "qwen2", base.layers(types, layer), longest)
