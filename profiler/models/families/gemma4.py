"""Gemma 4: five sliding layers to one full layer with another head size; shared K/V, experts, per-layer embeddings.

Shapes and defaults from transformers 5.23, ``models/gemma4`` and ``models/gemma4_unified``.

- Full layers have heads of size ``global_head_dim``. With ``attention_k_eq_v`` they also have their own number of K/V
  heads and no value projection. The cache still holds K and V, because they are normalized and rotated separately.
- The last ``num_kv_shared_layers`` read the cache of the last earlier layer of their kind: no K/V weights, no cache.
- ``hidden_size_per_layer_input``: a second embedding with a slice per layer, of which a token reads one row.
- ``enable_moe_block``: experts in parallel with the dense feed-forward layer, which acts as the shared expert.
"""

from __future__ import annotations

from typing import Any, Literal

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.families.gemma3 import GemmaFields
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Experts, Layer, Weight, gated_mlp, linear, norm
from profiler.models.rope import check_by_type


class _Gemma4Fields(GemmaFields):
    """The fields that transformers' two text classes share."""

    vocab_size: int = 262_144
    num_hidden_layers: int = 30
    attention_k_eq_v: bool = False
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False


class Gemma4TextConfig(_Gemma4Fields):
    """The fields of transformers' class of that name."""

    max_position_embeddings: int = 131_072
    sliding_window: int = 512
    use_bidirectional_attention: Literal["all", "vision"] | None = None
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = 256
    enable_moe_block: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None


class Gemma4UnifiedTextConfig(_Gemma4Fields):
    """The fields of transformers' class of that name. It has neither experts nor per-layer embeddings."""

    max_position_embeddings: int = 262_144
    sliding_window: int = 1024
    use_bidirectional_attention: Literal["all", "vision"] | None = "vision"


class Gemma4Config:
    """The fields of transformers' classes ``Gemma4Config`` and ``Gemma4UnifiedConfig``."""

    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    audio_config: dict[str, Any] | None = None
    boi_token_id: int | None = 255_999
    eoi_token_id: int | None = 258_882
    image_token_id: int | None = 258_880
    video_token_id: int | None = 258_884
    boa_token_id: int | None = 256_000
    eoa_token_index: int | None = 258_883
    audio_token_id: int | None = 258_881
    initializer_range: float | None = 0.02
    tie_word_embeddings: bool = True


UNIFIED = "gemma4_unified_text"
TEXT = {"gemma4_text": Gemma4TextConfig, UNIFIED: Gemma4UnifiedTextConfig}
WRAPPED = {"gemma4": ("gemma4_text", Gemma4Config), "gemma4_unified": (UNIFIED, Gemma4Config)}
MODEL_TYPES = (*WRAPPED, *TEXT)
PER_LAYER = "per_layer_config"
SAVED_FIELDS = {"head_dim", "num_key_value_heads"}
GLOBAL_HEAD_DIM = 512


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_activation", allow=(PER_LAYER,))
    base.refuse_bidirectional(config)
    _refuse_rewritten(config)
    unified = config.model_type == UNIFIED
    hidden = config.number("hidden_size")
    per_layer = 0 if unified else config.number("hidden_size_per_layer_input")
    experts = None if unified else _experts(config)
    types = _layer_types(config)
    first_shared = _first_shared(config, types)
    if first_shared < len(types) and not (unified or per_layer):
        raise config.error("num_kv_shared_layers without hidden_size_per_layer_input: transformers cannot run this")
    kinds = [f"{kind} shared" if i >= first_shared else kind for i, kind in enumerate(types)]

    def layer(kind: str) -> Layer:
        attention = _attention(config, kind)
        wide = config.flag("use_double_wide_mlp") and not attention.owns_cache
        width = config.number("intermediate_size") * (2 if wide else 1)
        return Layer(
            attention,
            experts or Dense(width),
            (
                *_attention_weights(config, attention, hidden),
                *gated_mlp("mlp", hidden, width),
                *_norms(hidden),
                *(_per_layer_input_weights(hidden, per_layer) if per_layer else ()),
                *(_expert_weights(experts, hidden) if experts else ()),
            ),
        )

    vocab, tied = config.number("vocab_size"), config.flag("tie_word_embeddings")
    layers = base.layers(kinds, layer)
    return Geometry(
        model_type=config.model_type,
        layers=layers,
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=_largest_context(config, types, layers),
        outside=(
            *base.tables(vocab, hidden, tied),
            *(_per_layer_tables(config, len(types), hidden, per_layer) if per_layer else ()),
        ),
        cautions=config.cautions,
    )


def _refuse_rewritten(config: Config) -> None:
    """ProfileError for fields of other families that would overwrite Gemma 4's own in transformers."""
    if "rope_scaling" in config.raw:
        raise config.error("rope_scaling is given, but Gemma 4 uses rope_parameters instead")
    if "attention_chunk_size" in config:
        raise config.error(
            "attention_chunk_size is given in addition to sliding_window, and transformers refuses both together"
        )


def _largest_context(config: Config, types: list[str], layers: tuple[Layer, ...]) -> int:
    """The largest context. If the config has RoPE parameters, it must have them for every layer type."""
    given = config.part("rope_parameters")
    if given is None:
        return config.number("max_position_embeddings")
    for kind in sorted(set(types)):
        if not given.get(kind):
            raise config.error(f"rope_parameters has no entry for {kind} layers")
    mixers = [layer.mixer for layer in layers]
    head_dims = {kind: m.head_dim for kind, m in zip(types, mixers, strict=True) if isinstance(m, Attention)}
    return check_by_type(config, types, {}, head_dims, complete=True)


def _attention(config: Config, kind: str) -> Attention:
    heads, kv_heads = config.number("num_attention_heads"), config.number("num_key_value_heads")
    owns, stated = not kind.endswith("shared"), "num_key_value_heads"
    if kind.startswith("sliding"):
        window, head_dim = config.number("sliding_window"), config.number("head_dim")
        attention = Attention("sliding", heads, kv_heads, head_dim, window, owns)
        base.check_rotary(config, "head_dim", head_dim)
    else:
        head_dim, full_kv_heads = _full_heads(config, kv_heads)
        attention = Attention("full", heads, full_kv_heads, head_dim, None, owns)
        base.check_rotary(config, "global_head_dim", head_dim)
        stated = stated if full_kv_heads == kv_heads else "num_global_key_value_heads"
    config.divides(stated, attention.kv_heads, "num_attention_heads", heads)
    return attention


def _full_heads(config: Config, kv_heads: int) -> tuple[int, int]:
    """Size and number of the K/V heads of full layers.

    Since 5.15, transformers saves both as ``per_layer_config``, with an entry for each full layer.
    """
    if PER_LAYER not in config.raw:
        own = config.optional("num_global_key_value_heads") if config.flag("attention_k_eq_v") else None
        return config.number("global_head_dim", GLOBAL_HEAD_DIM), own or kv_heads
    saved = config.part(PER_LAYER)
    head_dim = config.number("head_dim")
    if not saved:
        return head_dim, kv_heads
    full = [index for index, kind in enumerate(_layer_types(config)) if kind == "full_attention"]
    entries = [entry for entry in saved.values() if isinstance(entry, dict) and entry.keys() <= SAVED_FIELDS]
    indexes = sorted(int(key) for key in saved if key.isdecimal() and len(key) < 5)
    if indexes != full or len(entries) != len(full) or any(entry != entries[0] for entry in entries):
        raise config.error(f"{PER_LAYER} must give every full_attention layer the same head_dim and K/V heads")
    entry = Config(entries[0], f"{config.where}: {PER_LAYER}")
    return entry.number("head_dim", head_dim), entry.number("num_key_value_heads", kv_heads)


def _attention_weights(config: Config, attention: Attention, hidden: int) -> tuple[Weight, ...]:
    bias = config.flag("attention_bias")
    drop = {"self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm"} if not attention.owns_cache else set()
    if config.flag("attention_k_eq_v") and attention.kind == "full":
        drop.add("self_attn.v_proj")
    weights = base.attention_weights(attention, hidden, bias=bias, qk_norm=True)
    return tuple(weight for weight in weights if weight.name.rpartition(".")[0] not in drop)


def _norms(hidden: int) -> tuple[Weight, ...]:
    return (
        *base.pre_norms(hidden),
        norm("pre_feedforward_layernorm", hidden),
        norm("post_feedforward_layernorm", hidden),
        Weight("vector", (1,), "layer_scalar"),  # a buffer, but stored in the checkpoint
    )


def _per_layer_input_weights(hidden: int, size: int) -> tuple[Weight, ...]:
    return (
        *linear("per_layer_input_gate", size, hidden),
        *linear("per_layer_projection", hidden, size),
        norm("post_per_layer_input_norm", hidden),
    )


def _per_layer_tables(config: Config, count: int, hidden: int, size: int) -> tuple[Weight, ...]:
    rows = config.number("vocab_size_per_layer_input")
    base.check_padding(config, "vocab_size_per_layer_input")
    return (
        Weight("embedding", (rows, count * size), "model.embed_tokens_per_layer.weight"),
        *linear("model.per_layer_model_projection", count * size, hidden),
        norm("model.per_layer_projection_norm", size),
    )


def _experts(config: Config) -> Experts | None:
    if not config.flag("enable_moe_block"):
        return None
    return base.experts(
        config,
        count="num_experts",
        top_k="top_k_experts",
        width=config.number("moe_intermediate_size"),
        shared_width=config.number("intermediate_size"),
    )


def _expert_weights(experts: Experts, hidden: int) -> tuple[Weight, ...]:
    count, width = experts.count, experts.width
    return (
        Weight("vector", (hidden,), "router.scale"),
        Weight("vector", (count,), "router.per_expert_scale"),
        *linear("router.proj", count, hidden),  # a plain nn.Linear, unlike other families' routers
        Weight("experts", (count, 2 * width, hidden), "experts.gate_up_proj"),
        Weight("experts", (count, hidden, width), "experts.down_proj"),
        norm("pre_feedforward_layernorm_2", hidden),
        norm("post_feedforward_layernorm_1", hidden),
        norm("post_feedforward_layernorm_2", hidden),
    )


def _layer_types(config: Config) -> list[str]:
    count = config.number("num_hidden_layers")
    given = config.names_of("layer_types", count, ("sliding_attention", "full_attention"))
    types = given or base.every_nth_full(count, 6, "sliding_attention")
    return [*types[:-1], "full_attention"]  # transformers always makes the last layer full


def _first_shared(config: Config, types: list[str]) -> int:
    shared = config.number("num_kv_shared_layers")
    first = len(types) - shared
    if first < 1:
        raise config.error(f"num_kv_shared_layers ({shared}) leaves no layer with a cache of its own")
    missing = sorted(set(types[first:]) - set(types[:first]))
    if missing:
        raise config.error(f"shared layers of type {missing[0]} have no earlier layer to read from")
    return first
