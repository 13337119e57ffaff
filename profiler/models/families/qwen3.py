"""Qwen 3 (dense): grouped-query attention with normalized queries and keys, a gated feed-forward.

Shapes from transformers 5.23, ``models/qwen3``. Released checkpoints use full attention on every layer; a config can
also set a sliding window for the layers from ``max_window_layers`` on.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Layer, gated_mlp
from profiler.models.rope import largest_context


class QwenFields:
    """The fields that transformers' text classes of Qwen 3 and Qwen 3.5 share, with the same defaults."""

    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    layer_types: list[str] | None = None
    attention_dropout: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


class Qwen3Config(QwenFields):
    """The fields of transformers' class of that name."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    head_dim: int = 128
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28


TEXT = {"qwen3": Qwen3Config}
WRAPPED: dict[str, tuple[str, type]] = {}
MODEL_TYPES = (*WRAPPED, *TEXT)


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
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

    types = layer_types(config)
    longest = largest_context(config, config.number("head_dim"), types)
    return base.decoder(config, "qwen3", base.layers(types, layer), longest)


def _attention(config: Config, kind: str) -> Attention:
    heads = config.number("num_attention_heads")
    kv_heads = config.optional("num_key_value_heads") or heads
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    head_dim = config.number("head_dim")
    base.check_rotary(config, "head_dim", head_dim)
    if kind == "full_attention":
        return Attention("full", heads, kv_heads, head_dim)
    return Attention("sliding", heads, kv_heads, head_dim, window=config.number("sliding_window"))


def layer_types(config: Config) -> list[str]:
    """The type of each layer of Qwen 2 and 3. ``use_sliding_window`` switches windows on, also in ``layer_types``."""
    count = config.number("num_hidden_layers")
    given = config.names_of("layer_types", count, ("full_attention", "sliding_attention"), base.OLDER_TYPES)
    windowed = config.flag("use_sliding_window") and config.value("sliding_window") is not None
    if given is None:
        first = config.number("max_window_layers") if windowed else count
        return ["sliding_attention" if index >= first else "full_attention" for index in range(count)]
    if "sliding_attention" in given and not windowed:
        switch = "sliding_window is null" if config.flag("use_sliding_window") else "use_sliding_window is not true"
        raise config.error(
            f"layer_types has sliding_attention layers, but {switch}; transformers requires both to agree"
        )
    return given
