"""Llama 4: three chunked layers to one full layer without RoPE; experts on all (Scout) or every other (Maverick).

Shapes and defaults from transformers 5.23, ``models/llama4``. Expert tensors are stored ``[experts, in, out]``, and
transformers multiplies every token with every expert, so the model runs far more FLOPs there than its top-1 needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Experts, Layer
from profiler.models.weight import Weight, gated_mlp

MODEL_TYPES = ("llama4", "llama4_text")


def geometry(raw: Mapping[str, Any]) -> Geometry:
    """Geometry of a raw ``config.json``; ProfileError names the field that is missing or wrong."""
    config, cautions = base.text_part(raw)
    hidden = config.number("hidden_size")
    types = _layer_types(config)
    sparse = _expert_layers(config, len(types))
    kinds = [f"{kind} sparse" if index in sparse else kind for index, kind in enumerate(types)]
    bias = config.flag("attention_bias")

    def layer(kind: str) -> Layer:
        attention = _attention(config, kind)
        mlp = _experts(config) if kind.endswith("sparse") else Dense(config.number("intermediate_size_mlp", 16384))
        return Layer(
            attention,
            mlp,
            (
                *base.attention_weights(attention, hidden, bias=bias),
                *_mlp_weights(mlp, hidden),
                *base.pre_norms(hidden),
            ),
        )

    vocab, tied = config.number("vocab_size", 202048), config.flag("tie_word_embeddings")
    return Geometry(
        model_type="llama4_text",
        layers=base.layers(kinds, layer),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=config.number("max_position_embeddings", 131072),
        outside=base.tables(vocab, hidden, tied),
        cautions=cautions,
    )


def _attention(config: Config, kind: str) -> Attention:
    heads = config.number("num_attention_heads")
    kv_heads = config.number("num_key_value_heads", heads)
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    head_dim = config.number("head_dim", 128)
    if kind.startswith("full"):
        return Attention("full", heads, kv_heads, head_dim)
    return Attention("chunked", heads, kv_heads, head_dim, window=config.number("attention_chunk_size", 8192))


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
    count = config.number("num_hidden_layers")
    given = config.names("layer_types", count, ("chunked_attention", "full_attention"))
    if given is not None:
        return given
    interval = config.number("no_rope_layer_interval", 4)
    rope = config.numbers("no_rope_layers", 0, 1) or [int((index + 1) % interval != 0) for index in range(count)]
    if len(rope) < count:
        raise config.error(f"no_rope_layers has {len(rope)} entries, num_hidden_layers is {count}")
    return ["chunked_attention" if turned else "full_attention" for turned in rope[:count]]


def _expert_layers(config: Config, count: int) -> set[int]:
    given = config.numbers("moe_layers", 0, 999)
    if given is not None:
        return set(given)
    step = config.number("interleave_moe_layer_step", 1)
    return set(range(step - 1, count, step))
