"""Gemma 3: five sliding layers to one full layer, four norms a layer, a tied head.

Shapes and defaults from transformers 5.23, ``models/gemma3``; the 4B checkpoint relies on them, because its config
leaves out what equals a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Layer
from profiler.models.weight import gated_mlp, norm

MODEL_TYPES = ("gemma3", "gemma3_text")


def geometry(raw: Mapping[str, Any]) -> Geometry:
    """Geometry of a raw ``config.json``; ProfileError names the field that is missing or wrong."""
    config, cautions = base.text_part(raw)
    base.refuse_bidirectional(config)
    hidden, width = config.number("hidden_size"), config.number("intermediate_size")
    config.divides("num_attention_heads", config.number("num_attention_heads", 8), "hidden_size", hidden)
    bias = config.flag("attention_bias")

    def layer(kind: str) -> Layer:
        attention = _attention(config, kind)
        return Layer(
            attention,
            Dense(width),
            (
                *base.attention_weights(attention, hidden, bias=bias, qk_norm=True),
                *gated_mlp("mlp", hidden, width),
                *base.pre_norms(hidden),
                norm("pre_feedforward_layernorm", hidden),
                norm("post_feedforward_layernorm", hidden),
            ),
        )

    vocab, tied = config.number("vocab_size", 262208), config.flag("tie_word_embeddings", True)
    return Geometry(
        model_type="gemma3_text",
        layers=base.layers(_layer_types(config), layer),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=config.number("max_position_embeddings", 131072),
        outside=base.tables(vocab, hidden, tied),
        cautions=cautions,
    )


def _attention(config: Config, kind: str) -> Attention:
    heads, kv_heads = config.number("num_attention_heads", 8), config.number("num_key_value_heads", 4)
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    head_dim = config.number("head_dim", 256)
    if kind == "full_attention":
        return Attention("full", heads, kv_heads, head_dim)
    return Attention("sliding", heads, kv_heads, head_dim, window=config.number("sliding_window", 4096))


def _layer_types(config: Config) -> list[str]:
    count = config.number("num_hidden_layers")
    given = config.names("layer_types", count, ("sliding_attention", "full_attention"))
    pattern = config.number("sliding_window_pattern", 6)
    return given or base.every_nth_full(count, pattern, "sliding_attention")
