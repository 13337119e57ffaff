"""Gemma 3: five sliding layers to one full layer, four norms per layer, a tied head.

Shapes and defaults from transformers 5.23, ``models/gemma3``. The 4B checkpoint relies on the defaults, because its
config omits fields that equal them.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Layer, gated_mlp, norm
from profiler.models.rope import check_by_type


class GemmaFields:
    """The fields that transformers' text classes of Gemma 3 and Gemma 4 share, with the same defaults."""

    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = None


class Gemma3TextConfig(GemmaFields):
    """The fields of transformers' class of that name."""

    vocab_size: int = 262_208
    num_hidden_layers: int = 26
    max_position_embeddings: int = 131_072
    query_pre_attn_scalar: int = 256
    sliding_window: int | None = 4096
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = False


class Gemma3Config:
    """The fields of transformers' class of that name."""

    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    mm_tokens_per_image: int | None = 256
    boi_token_index: int | None = 255_999
    eoi_token_index: int | None = 256_000
    image_token_index: int | None = 262_144
    initializer_range: float | None = 0.02
    tie_word_embeddings: bool | None = True


TEXT = {"gemma3_text": Gemma3TextConfig}
WRAPPED = {"gemma3": ("gemma3_text", Gemma3Config)}
MODEL_TYPES = (*WRAPPED, *TEXT)
THETA = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_activation")
    base.refuse_bidirectional(config)
    if config.value("query_pre_attn_scalar") <= 0:
        raise config.refused("query_pre_attn_scalar", "a whole number above 0")
    hidden, width = config.number("hidden_size"), config.number("intermediate_size")
    config.divides("num_attention_heads", config.number("num_attention_heads"), "hidden_size", hidden)
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

    vocab, tied = config.number("vocab_size"), config.flag("tie_word_embeddings")
    types, head_dim = _layer_types(config), config.number("head_dim")
    base.check_rotary(config, "head_dim", head_dim)
    check_by_type(config, types, THETA, dict.fromkeys(types, head_dim))
    return Geometry(
        model_type="gemma3_text",
        layers=base.layers(types, layer),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=config.number("max_position_embeddings"),  # without scaling: see rope.py
        outside=base.tables(vocab, hidden, tied),
        cautions=config.cautions,
    )


def _attention(config: Config, kind: str) -> Attention:
    heads, kv_heads = config.number("num_attention_heads"), config.number("num_key_value_heads")
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    head_dim = config.number("head_dim")
    if kind == "full_attention":
        return Attention("full", heads, kv_heads, head_dim)
    return Attention("sliding", heads, kv_heads, head_dim, window=config.number("sliding_window"))


def _layer_types(config: Config) -> list[str]:
    count = config.number("num_hidden_layers")
    given = config.names_of("layer_types", count, ("sliding_attention", "full_attention"), base.OLDER_TYPES)
    return given or base.every_nth_full(count, config.number("sliding_window_pattern", 6), "sliding_attention")
