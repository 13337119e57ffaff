"""Llama 1 to 3 and models of the same architecture: grouped-query attention on every layer, a gated feed-forward.

Shapes from transformers 5.23, ``models/llama``.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config, shown
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Layer, gated_mlp
from profiler.models.rope import largest_context


class LlamaConfig:
    """The fields of transformers' class of that name."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pretraining_tp: int | None = 1
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0
    mlp_bias: bool = False
    head_dim: int | None = None


TEXT = {"llama": LlamaConfig}
WRAPPED: dict[str, tuple[str, type]] = {}
MODEL_TYPES = (*WRAPPED, *TEXT)
WINDOWS = ("sliding_window", "attention_chunk_size")


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    refuse_windows(config)
    if not 0 <= config.value("initializer_range") <= 1:
        raise config.refused("initializer_range", "a number from 0.0 to 1.0")
    hidden, width = config.number("hidden_size"), config.number("intermediate_size")
    heads = config.number("num_attention_heads")
    config.divides("num_attention_heads", heads, "hidden_size", hidden)
    attention = Attention(
        "full",
        heads=heads,
        kv_heads=config.optional("num_key_value_heads") or heads,
        head_dim=config.optional("head_dim") or hidden // heads,
    )
    config.divides("num_key_value_heads", attention.kv_heads, "num_attention_heads", heads)
    base.check_rotary(config, "head_dim", attention.head_dim)
    layer = Layer(
        attention,
        Dense(width),
        (
            *base.attention_weights(attention, hidden, bias=config.flag("attention_bias")),
            *gated_mlp("mlp", hidden, width, config.flag("mlp_bias")),
            *base.pre_norms(hidden),
        ),
    )
    longest = largest_context(config, attention.head_dim, config.raw.get("layer_types") or ())
    return base.decoder(config, "llama", (layer,) * config.number("num_hidden_layers"), longest)


def refuse_windows(config: Config) -> None:
    """ProfileError for windows: transformers' cache would drop the tokens outside, but Llama attends to them."""
    for name in WINDOWS:
        if name in config:
            what = f"{name} is {shown(config.raw[name])}: Llama with windows is not supported, set it to null"
            raise config.error(what)
    config.names_of("layer_types", config.number("num_hidden_layers"), ("full_attention",), base.OLDER_TYPES)
