"""Qwen 3 (dense): grouped-query attention with normalised queries and keys, a gated feed-forward.

Shapes from transformers 5.23, ``models/qwen3``. Released checkpoints attend in full on every layer; the config can
also put a sliding window on the layers from ``max_window_layers`` on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Layer
from profiler.models.weight import gated_mlp

MODEL_TYPES = ("qwen3",)


def geometry(raw: Mapping[str, Any]) -> Geometry:
    """Geometry of a raw ``config.json``; ProfileError names the field that is missing or wrong."""
    config, cautions = base.text_part(raw)
    hidden, width = config.number("hidden_size"), config.number("intermediate_size")
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
            ),
        )

    vocab, tied = config.number("vocab_size"), config.flag("tie_word_embeddings")
    return Geometry(
        model_type="qwen3",
        layers=base.layers(_layer_types(config), layer),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=config.number("max_position_embeddings", 32768),
        outside=base.tables(vocab, hidden, tied),
        cautions=cautions,
    )


def _attention(config: Config, kind: str) -> Attention:
    heads = config.number("num_attention_heads")
    kv_heads = config.number("num_key_value_heads", heads)
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    head_dim = config.number("head_dim", 128)
    if kind == "full_attention":
        return Attention("full", heads, kv_heads, head_dim)
    return Attention("sliding", heads, kv_heads, head_dim, window=config.number("sliding_window"))


def _layer_types(config: Config) -> list[str]:
    count = config.number("num_hidden_layers")
    given = config.names("layer_types", count, ("full_attention", "sliding_attention"))
    if given is not None:
        return given
    windowed = config.flag("use_sliding_window") and config.optional("sliding_window") is not None
    first = config.number("max_window_layers", 28) if windowed else count
    return ["sliding_attention" if index >= first else "full_attention" for index in range(count)]
