"""Qwen 3 MoE: Qwen 3 with a mixture of experts, such as 30B-A3B and 235B-A22B, without a shared expert.

Shapes and defaults from transformers 5.24, ``models/qwen3_moe``. Every ``decoder_sparse_step``-th layer has experts,
except those in ``mlp_only_layers``.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Dense, Layer, gated_mlp
from profiler.models.rope import largest_context


class Qwen3MoeConfig:
    """The fields of transformers' class of that name."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int = 4
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    attention_dropout: float | int = 0.0
    decoder_sparse_step: int = 1
    moe_intermediate_size: int = 768
    num_experts_per_tok: int = 8
    num_experts: int = 128
    norm_topk_prob: bool = False
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    mlp_only_layers: list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


TEXT = {"qwen3_moe": Qwen3MoeConfig}
WRAPPED: dict[str, tuple[str, type]] = {}
MODEL_TYPES = (*WRAPPED, *TEXT)
SPARSE, DENSE = "experts", "dense"


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    hidden, size, bias = config.number("hidden_size"), base.head_dim(config), config.flag("attention_bias")
    window = config.optional("sliding_window") if config.flag("use_sliding_window") else None
    base.refuse_layer_types(config, window)
    attention = base.grouped(config, window, size)

    def layer(kind: str) -> Layer:
        weights = base.attention_weights(attention, hidden, bias=bias, qk_norm=True)
        if kind == DENSE:
            width = config.number("intermediate_size")
            return Layer(
                attention, Dense(width), (*weights, *gated_mlp("mlp", hidden, width), *base.pre_norms(hidden))
            )
        mlp = base.experts(
            config,
            count=base.experts_field(config, "num_experts"),
            top_k="num_experts_per_tok",
            width=config.number("moe_intermediate_size"),
            shared_width=0,
        )
        return Layer(attention, mlp, (*weights, *base.fused_experts("mlp", mlp, hidden), *base.pre_norms(hidden)))

    longest = largest_context(config, size, config.raw.get("layer_types") or ())
    return base.decoder(config, "qwen3_moe", base.layers(_kinds(config), layer), longest)


def _kinds(config: Config) -> list[str]:
    count, step = config.number("num_hidden_layers"), config.number("decoder_sparse_step")
    dense = set(config.numbers("mlp_only_layers") or ())
    return [SPARSE if index not in dense and (index + 1) % step == 0 else DENSE for index in range(count)]
