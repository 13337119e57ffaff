"""Qwen 3.5, 3.6 and 3.8, dense and mixture of experts: three Gated DeltaNet layers to one gated full-attention layer.

Shapes and defaults from transformers 5.23, ``models/qwen3_5`` and ``models/qwen3_5_moe``. The query projection of a
full layer is twice as wide, for its output gate. ``attn_output_gate`` in the config is not read by transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Experts, GatedDelta, Layer
from profiler.models.weight import Weight, gated_mlp, linear, norm

MODEL_TYPES = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")


def geometry(raw: Mapping[str, Any]) -> Geometry:
    """Geometry of a raw ``config.json``; ProfileError names the field that is missing or wrong."""
    config, cautions = base.text_part(raw)
    if config.number("mtp_num_hidden_layers", 0):
        cautions += ("the multi-token-prediction layer of this checkpoint is left out",)
    sparse = "moe" in str(raw["model_type"])
    hidden = config.number("hidden_size")
    mlp: Dense | Experts = _experts(config) if sparse else Dense(config.number("intermediate_size"))

    def layer(kind: str) -> Layer:
        mixer = _attention(config) if kind == "full_attention" else _delta(config)
        weights = (*_mixer_weights(config, mixer), *_mlp_weights(mlp, hidden), *base.pre_norms(hidden))
        return Layer(mixer, mlp, weights)

    vocab, tied = config.number("vocab_size", 248320), config.flag("tie_word_embeddings")
    return Geometry(
        model_type="qwen3_5_moe_text" if sparse else "qwen3_5_text",
        layers=base.layers(_layer_types(config), layer),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=config.number("max_position_embeddings", 32768),
        outside=base.tables(vocab, hidden, tied),
        cautions=cautions,
    )


def _attention(config: Config) -> Attention:
    heads, kv_heads = config.number("num_attention_heads"), config.number("num_key_value_heads")
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    return Attention("full", heads, kv_heads, config.number("head_dim", 256))


def _delta(config: Config) -> GatedDelta:
    delta = GatedDelta(
        key_heads=config.number("linear_num_key_heads", 16),
        value_heads=config.number("linear_num_value_heads", 32),
        key_dim=config.number("linear_key_head_dim", 128),
        value_dim=config.number("linear_value_head_dim", 128),
        kernel=config.number("linear_conv_kernel_dim", 4),
    )
    config.divides("linear_num_key_heads", delta.key_heads, "linear_num_value_heads", delta.value_heads)
    return delta


def _mixer_weights(config: Config, mixer: Attention | GatedDelta) -> tuple[Weight, ...]:
    hidden = config.number("hidden_size")
    if isinstance(mixer, Attention):
        return base.attention_weights(mixer, hidden, bias=config.flag("attention_bias"), gated=True, qk_norm=True)
    values = mixer.value_heads * mixer.value_dim
    return (
        *linear("linear_attn.in_proj_qkv", mixer.channels, hidden),
        *linear("linear_attn.in_proj_z", values, hidden),
        *linear("linear_attn.in_proj_b", mixer.value_heads, hidden),
        *linear("linear_attn.in_proj_a", mixer.value_heads, hidden),
        *linear("linear_attn.out_proj", hidden, values),
        Weight("conv", (mixer.channels, 1, mixer.kernel), "linear_attn.conv1d.weight"),
        Weight("vector", (mixer.value_heads,), "linear_attn.dt_bias"),
        Weight("vector", (mixer.value_heads,), "linear_attn.A_log"),
        norm("linear_attn.norm", mixer.value_dim),
    )


def _experts(config: Config) -> Experts:
    return base.experts(
        config,
        count="num_experts",
        top_k="num_experts_per_tok",
        width=config.number("moe_intermediate_size"),
        shared_width=config.number("shared_expert_intermediate_size", 512),
    )


def _mlp_weights(mlp: Dense | Experts, hidden: int) -> tuple[Weight, ...]:
    if isinstance(mlp, Dense):
        return gated_mlp("mlp", hidden, mlp.width)
    return (
        Weight("router", (mlp.count, hidden), "mlp.gate.weight"),
        Weight("experts", (mlp.count, 2 * mlp.width, hidden), "mlp.experts.gate_up_proj"),
        Weight("experts", (mlp.count, hidden, mlp.width), "mlp.experts.down_proj"),
        *gated_mlp("mlp.shared_expert", hidden, mlp.shared_width),
        *linear("mlp.shared_expert_gate", 1, hidden),
    )


def _layer_types(config: Config) -> list[str]:
    count = config.number("num_hidden_layers")
    given = config.names("layer_types", count, ("linear_attention", "full_attention"))
    return given or base.every_nth_full(count, config.number("full_attention_interval", 4), "linear_attention")
