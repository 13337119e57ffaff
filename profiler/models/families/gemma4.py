"""Gemma 4: five sliding layers to one full layer of another head size; shared K/V, experts, per-layer embeddings.

Shapes and defaults from transformers 5.23, ``models/gemma4`` and ``models/gemma4_unified``.

- Full layers have heads of ``global_head_dim``. With ``attention_k_eq_v`` they also have their own number of K/V
  heads and no value projection; the cache still keeps K and V, because they are normalised and rotated apart.
- The last ``num_kv_shared_layers`` read the cache of the last earlier layer of their kind: no K/V weights, no cache.
- ``hidden_size_per_layer_input``: a second table with a slice for each layer, of which a token reads one row.
- ``enable_moe_block``: experts in parallel with the dense feed-forward layer, which is so the shared expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Experts, Layer
from profiler.models.weight import Weight, gated_mlp, linear, norm

MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")

SAVED_FIELDS = {"head_dim", "num_key_value_heads"}


def geometry(raw: Mapping[str, Any]) -> Geometry:
    """Geometry of a raw ``config.json``; ProfileError names the field that is missing or wrong."""
    config, cautions = base.text_part(raw)
    base.refuse_bidirectional(config)
    unified = str(raw["model_type"]).startswith("gemma4_unified")  # has neither experts nor per-layer embeddings
    hidden = config.number("hidden_size")
    per_layer = 0 if unified else config.number("hidden_size_per_layer_input", 256)
    experts = None if unified else _experts(config)
    types = _layer_types(config)
    first_shared = _first_shared(config, types)
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

    vocab, tied = config.number("vocab_size", 262144), config.flag("tie_word_embeddings", True)
    return Geometry(
        model_type="gemma4_unified_text" if unified else "gemma4_text",
        layers=base.layers(kinds, layer),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=config.number("max_position_embeddings", 262144 if unified else 131072),
        outside=(
            *base.tables(vocab, hidden, tied),
            *(_per_layer_tables(config, len(types), hidden, per_layer) if per_layer else ()),
        ),
        cautions=cautions,
    )


def _attention(config: Config, kind: str) -> Attention:
    heads = config.number("num_attention_heads")
    kv_heads = config.number("num_key_value_heads")
    owns = not kind.endswith("shared")
    if kind.startswith("sliding"):
        window, head_dim = config.number("sliding_window"), config.number("head_dim", 256)
        attention = Attention("sliding", heads, kv_heads, head_dim, window, owns)
    else:
        head_dim, kv_heads = _full_heads(config, kv_heads)
        attention = Attention("full", heads, kv_heads, head_dim, None, owns)
    config.divides("the layer's K/V heads", kv_heads, "num_attention_heads", heads)
    return attention


def _full_heads(config: Config, kv_heads: int) -> tuple[int, int]:
    """Size and number of the K/V heads of full layers.

    transformers writes both as ``per_layer_config`` since 5.15 when it saves a config, one entry for each full layer.
    """
    saved = config.part("per_layer_config")
    if saved is None:
        own = config.optional("num_global_key_value_heads") if config.flag("attention_k_eq_v") else None
        return config.number("global_head_dim", 512), own or kv_heads
    full = [index for index, kind in enumerate(_layer_types(config)) if kind == "full_attention"]
    entries = [entry for entry in saved.values() if isinstance(entry, dict) and entry.keys() <= SAVED_FIELDS]
    indexes = sorted(int(key) for key in saved if key.isdecimal() and len(key) < 5)
    if indexes != full or len(entries) != len(full) or any(entry != entries[0] for entry in entries):
        raise config.error("per_layer_config must give every full_attention layer the same head_dim and K/V heads")
    entry = Config(entries[0], f"{config.where}: per_layer_config")
    head_dim = entry.number("head_dim", config.number("head_dim", 256))
    return head_dim, entry.number("num_key_value_heads", kv_heads)


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
    rows = config.number("vocab_size_per_layer_input", 262144)
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
    given = config.names("layer_types", count, ("sliding_attention", "full_attention"))
    types = given or base.every_nth_full(count, 6, "sliding_attention")
    return [*types[:-1], "full_attention"]  # transformers makes the last layer full whatever the config says


def _first_shared(config: Config, types: list[str]) -> int:
    shared = config.number("num_kv_shared_layers", 0)
    first = len(types) - shared
    if first < 1:
        raise config.error(f"num_kv_shared_layers ({shared}) leaves no layer with a cache of its own")
    missing = sorted(set(types[first:]) - set(types[:first]))
    if missing:
        raise config.error(f"shared layers of type {missing[0]} have no earlier layer to read from")
    return first
