"""Qwen 3.5, 3.6 and 3.8, dense and mixture of experts: three Gated DeltaNet layers to one gated full-attention layer.

Shapes and defaults from transformers 5.23, ``models/qwen3_5`` and ``models/qwen3_5_moe``. The query projection of a
full layer is twice as wide, because it also computes the output gate. transformers ignores ``attn_output_gate``.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.families.qwen3 import QwenFields
from profiler.models.geometry import DRAFT_LEFT_OUT, Geometry
from profiler.models.layers import Attention, Dense, Experts, GatedDelta, Layer, Weight, gated_mlp, linear, norm
from profiler.models.rope import largest_context


class _Qwen3_5Fields(QwenFields):
    """The fields that transformers' dense and mixture-of-experts text classes share."""

    vocab_size: int = 248320
    num_attention_heads: int = 16
    head_dim: int = 256
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32


class Qwen3_5TextConfig(_Qwen3_5Fields):
    """The fields of transformers' class of that name."""

    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_key_value_heads: int = 4


class Qwen3_5MoeTextConfig(_Qwen3_5Fields):
    """The fields of transformers' class of that name."""

    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_key_value_heads: int = 2
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts_per_tok: int = 8
    num_experts: int = 256
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001


class Qwen3_5Config:
    """The fields of transformers' classes ``Qwen3_5Config`` and ``Qwen3_5MoeConfig``."""

    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    image_token_id: int = 248056
    video_token_id: int = 248057
    vision_start_token_id: int = 248053
    vision_end_token_id: int = 248054
    tie_word_embeddings: bool = False


MOE = "qwen3_5_moe_text"
TEXT = {"qwen3_5_text": Qwen3_5TextConfig, MOE: Qwen3_5MoeTextConfig}
WRAPPED = {"qwen3_5": ("qwen3_5_text", Qwen3_5Config), "qwen3_5_moe": (MOE, Qwen3_5Config)}
MODEL_TYPES = (*WRAPPED, *TEXT)
DRAFT_LAYERS = "mtp_num_hidden_layers"
MAX_DRAFT_LAYERS = 16  # published checkpoints have one
ROTATED = 0.25  # share of a head's channels; the default of partial_rotary_factor


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    cautions = config.cautions
    if config.raw.get(DRAFT_LAYERS):
        cautions += (DRAFT_LEFT_OUT,)
    sparse = config.model_type == MOE
    hidden = config.number("hidden_size")
    mlp: Dense | Experts = _experts(config) if sparse else Dense(config.number("intermediate_size"))

    def layer(kind: str) -> Layer:
        mixer = _attention(config) if kind == "full_attention" else _delta(config)
        weights = (*_mixer_weights(config, mixer), *_mlp_weights(mlp, hidden), *base.pre_norms(hidden))
        return Layer(mixer, mlp, weights)

    types = _layer_types(config)
    vocab, tied = config.number("vocab_size"), config.flag("tie_word_embeddings")
    return Geometry(
        model_type=config.model_type,
        layers=base.layers(types, layer),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=largest_context(config, config.number("head_dim"), types, ROTATED),
        outside=base.tables(vocab, hidden, tied),
        draft=_draft(config, layer("full_attention")),
        cautions=cautions,
    )


def _draft(config: Config, layer: Layer) -> Geometry | None:
    """The multi-token-prediction layers: a projection of the last hidden state and the next embedding, then full
    attention layers. Embedding and head are the model's own. (vLLM 0.26, ``models/qwen3_5_mtp.py``; transformers does
    not build them, so it ignores an invalid number of them.)
    """
    count, hidden = config.raw.get(DRAFT_LAYERS), config.number("hidden_size")
    if type(count) is not int or not 0 < count <= MAX_DRAFT_LAYERS:
        return None
    return Geometry(
        model_type=config.model_type,
        layers=(layer,) * count,
        vocab=config.number("vocab_size"),
        hidden=hidden,
        tied=False,
        max_position=config.number("max_position_embeddings"),
        outside=(
            *linear("mtp.fc", hidden, 2 * hidden),
            norm("mtp.pre_fc_norm_embedding", hidden),
            norm("mtp.pre_fc_norm_hidden", hidden),
            norm("mtp.norm", hidden),
        ),
    )


def _attention(config: Config) -> Attention:
    heads, kv_heads = config.number("num_attention_heads"), config.number("num_key_value_heads")
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    return Attention("full", heads, kv_heads, config.number("head_dim"))


def _delta(config: Config) -> GatedDelta:
    delta = GatedDelta(
        key_heads=config.number("linear_num_key_heads"),
        value_heads=config.number("linear_num_value_heads"),
        key_dim=config.number("linear_key_head_dim"),
        value_dim=config.number("linear_value_head_dim"),
        kernel=config.number("linear_conv_kernel_dim"),
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
        shared_width=config.number("shared_expert_intermediate_size"),
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
    given = config.names_of("layer_types", count, ("linear_attention", "full_attention"), base.OLDER_TYPES)
    types = given or base.every_nth_full(count, config.number("full_attention_interval", 4), "linear_attention")
    if "full_attention" not in types:
        raise config.error("no layer has type full_attention, which transformers needs to count tokens")
    return types
