"""gpt-oss: layers with a window of 128 tokens and full layers in turn, attention sinks, experts with biases.

Shapes and defaults from transformers 5.24, ``models/gpt_oss``. Expert tensors are ``[experts, in, out]``. A sink is
a learned logit per head that takes part in the softmax, so it costs next to nothing. Published checkpoints store
the experts in MXFP4.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Experts, Layer, Weight
from profiler.models.rope import largest_context


class GptOssConfig:
    """The fields of transformers' class of that name."""

    num_hidden_layers: int = 36
    num_local_experts: int = 128
    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    head_dim: int = 64
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    sliding_window: int | None = 128
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] | None = None
    attention_dropout: float | int = 0.0
    num_experts_per_tok: int = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    router_aux_loss_coef: float = 0.001
    output_router_logits: bool = False
    use_cache: bool = True
    layer_types: list[str] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    attention_bias: bool = True


TEXT = {"gpt_oss": GptOssConfig}
WRAPPED: dict[str, tuple[str, type]] = {}
MODEL_TYPES = (*WRAPPED, *TEXT)
ROPE = {  # transformers' default for a config without RoPE parameters
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
}


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    hidden, size, bias = config.number("hidden_size"), base.head_dim(config), config.flag("attention_bias")
    width = config.number("intermediate_size")
    count = base.experts_field(config, "num_local_experts")
    mlp = base.experts(config, count=count, top_k="num_experts_per_tok", width=width, shared_width=0)

    def layer(kind: str) -> Layer:
        window = config.number("sliding_window") if kind == "sliding_attention" else None
        attention = base.grouped(config, window, size)
        return Layer(
            attention,
            mlp,
            (
                *base.attention_weights(attention, hidden, bias=bias),
                Weight("vector", (attention.heads,), "self_attn.sinks"),
                *_expert_weights(mlp, hidden),
                *base.pre_norms(hidden),
            ),
        )

    types = _layer_types(config)
    longest = largest_context(_with_rope(config), size, types)
    return base.decoder(config, "gpt_oss", base.layers(types, layer), longest)


def _expert_weights(mlp: Experts, hidden: int) -> tuple[Weight, ...]:
    count, width = mlp.count, mlp.width
    return (
        Weight("router", (count, hidden), "mlp.router.weight"),
        Weight("vector", (count,), "mlp.router.bias"),
        Weight("experts", (count, hidden, 2 * width), "mlp.experts.gate_up_proj"),
        Weight("experts", (count, 2 * width), "mlp.experts.gate_up_proj_bias"),
        Weight("experts", (count, width, hidden), "mlp.experts.down_proj"),
        Weight("experts", (count, hidden), "mlp.experts.down_proj_bias"),
    )


def _layer_types(config: Config) -> list[str]:
    count = config.number("num_hidden_layers")
    given = config.names_of("layer_types", count, base.LAYER_TYPES, base.OLDER_TYPES)
    return given or base.every_nth_full(count, 2, "sliding_attention")


def _with_rope(config: Config) -> Config:
    """The config with transformers' default RoPE parameters if it states none."""
    if config.raw.get("rope_parameters") is not None or config.raw.get("rope_scaling"):
        return config
    raw = {**config.raw, "rope_parameters": ROPE}
    return Config(raw, config.where, GptOssConfig, model_type=config.model_type, names=config.names)
