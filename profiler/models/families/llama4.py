"""Llama 4: three chunked layers to one full layer without RoPE; experts on all (Scout) or every other (Maverick).

Shapes and defaults from transformers 5.23, ``models/llama4``. Expert tensors are stored ``[experts, in, out]``, and
transformers multiplies every token with every expert, so it runs far more FLOPs than the model's top-1 routing needs.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Experts, Layer, Weight, gated_mlp
from profiler.models.rope import largest_context


class Llama4TextConfig:
    """The fields of transformers' class of that name."""

    vocab_size: int = 202048
    hidden_size: int = 5120
    intermediate_size: int = 8192
    intermediate_size_mlp: int = 16384
    num_hidden_layers: int = 48
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    attention_dropout: float | int = 0.0
    num_experts_per_tok: int = 1
    num_local_experts: int = 16
    moe_layers: list[int] | None = None
    interleave_moe_layer_step: int = 1
    use_qk_norm: bool = True
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    rope_parameters: dict[str, Any] | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    attention_chunk_size: int | None = 8192
    layer_types: list[str] | None = None
    attn_temperature_tuning: bool = True
    floor_scale: int = 8192
    attn_scale: float = 0.1
    attention_bias: bool = False


class Llama4Config:
    """The fields of transformers' class of that name."""

    vision_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None
    boi_token_index: int = 200080
    eoi_token_index: int = 200081
    image_token_index: int = 200092
    tie_word_embeddings: bool = False


TEXT = {"llama4_text": Llama4TextConfig}
WRAPPED = {"llama4": ("llama4_text", Llama4Config)}
MODEL_TYPES = (*WRAPPED, *TEXT)


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    hidden = config.number("hidden_size")
    types = _layer_types(config)
    sparse = _expert_layers(config, len(types))
    kinds = [f"{kind} sparse" if index in sparse else kind for index, kind in enumerate(types)]
    bias = config.flag("attention_bias")

    def layer(kind: str) -> Layer:
        attention = _attention(config, kind)
        mlp = _experts(config) if kind.endswith("sparse") else Dense(config.number("intermediate_size_mlp"))
        return Layer(
            attention,
            mlp,
            (
                *base.attention_weights(attention, hidden, bias=bias),
                *_mlp_weights(mlp, hidden),
                *base.pre_norms(hidden),
            ),
        )

    longest = largest_context(config, config.number("head_dim"), types)
    return base.decoder(config, "llama4_text", base.layers(kinds, layer), longest)


def _attention(config: Config, kind: str) -> Attention:
    heads = config.number("num_attention_heads")
    kv_heads = config.number("num_key_value_heads")
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    head_dim = config.number("head_dim")
    base.check_rotary(config, "head_dim", head_dim)
    if kind.startswith("full"):
        return Attention("full", heads, kv_heads, head_dim)
    return Attention("chunked", heads, kv_heads, head_dim, window=config.number("attention_chunk_size"))


def _experts(config: Config) -> Experts:
    width = config.number("intermediate_size")
    return base.experts(
        config, count="num_local_experts", top_k="num_experts_per_tok", width=width, shared_width=width, batched=True
    )


def _mlp_weights(mlp: Dense | Experts, hidden: int) -> tuple[Weight, ...]:
    if isinstance(mlp, Dense):
        return gated_mlp("feed_forward", hidden, mlp.width)
    return (
        Weight("experts", (mlp.count, hidden, 2 * mlp.width), "feed_forward.experts.gate_up_proj"),
        Weight("experts", (mlp.count, mlp.width, hidden), "feed_forward.experts.down_proj"),
        Weight("router", (mlp.count, hidden), "feed_forward.router.weight"),
        *gated_mlp("feed_forward.shared_expert", hidden, mlp.shared_width),
    )


def _layer_types(config: Config) -> list[str]:
    count, interval = config.number("num_hidden_layers"), config.number("no_rope_layer_interval")
    given = config.names_of("layer_types", count, ("chunked_attention", "full_attention"), base.OLDER_TYPES)
    rope = config.numbers("no_rope_layers") or [int((index + 1) % interval != 0) for index in range(count)]
    if len(rope) < count or (given is None and len(rope) > count):
        raise config.error(f"no_rope_layers has {len(rope)} entries, but num_hidden_layers is {count}")
    return given or ["chunked_attention" if turned else "full_attention" for turned in rope]


def _expert_layers(config: Config, count: int) -> set[int]:
    given = config.numbers("moe_layers")
    if given is not None:
        return set(given)
    step = config.number("interleave_moe_layer_step")
    return set(range(step - 1, count, step))
