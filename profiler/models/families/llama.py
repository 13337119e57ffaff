"""Llama 1 to 3, and what is built like it: grouped-query attention on every layer, a gated feed-forward.

Shapes from transformers 5.23, ``models/llama``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Layer
from profiler.models.weight import gated_mlp

MODEL_TYPES = ("llama",)


def geometry(raw: Mapping[str, Any]) -> Geometry:
    """Geometry of a raw ``config.json``; ProfileError names the field that is missing or wrong."""
    config, cautions = base.text_part(raw)
    hidden, width = config.number("hidden_size"), config.number("intermediate_size")
    heads = config.number("num_attention_heads")
    config.divides("num_attention_heads", heads, "hidden_size", hidden)
    attention = Attention(
        "full",
        heads=heads,
        kv_heads=config.number("num_key_value_heads", heads),
        head_dim=config.number("head_dim", hidden // heads),
    )
    config.divides("num_key_value_heads", attention.kv_heads, "num_attention_heads", heads)
    layer = Layer(
        attention,
        Dense(width),
        (
            *base.attention_weights(attention, hidden, bias=config.flag("attention_bias")),
            *gated_mlp("mlp", hidden, width, config.flag("mlp_bias")),
            *base.pre_norms(hidden),
        ),
    )
    vocab, tied = config.number("vocab_size"), config.flag("tie_word_embeddings")
    return Geometry(
        model_type="llama",
        layers=(layer,) * config.number("num_hidden_layers"),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=config.number("max_position_embeddings", 2048),
        outside=base.tables(vocab, hidden, tied),
        cautions=cautions,
    )
