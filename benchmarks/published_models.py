"""Geometry of the published models: the catalog's, and those of ``published/models.toml`` by their shape alone."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from profiler.models import families, hub
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Dense, Experts, GatedDelta, Layer, Weight, gated_mlp, linear, norm

FILE = Path(__file__).parent / "published" / "models.toml"
FULL_EVERY = 4  # of the layers of a model with gated-delta layers
DELTA = GatedDelta(key_heads=16, value_heads=32, key_dim=128, value_dim=128, kernel=4)  # Qwen3-Next


@cache
def shapes() -> dict[str, dict[str, Any]]:
    """The shapes by name; ``like`` is resolved."""
    found = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: found[shape.get("like", name)] for name, shape in found.items()}


@cache
def geometry(name: str) -> Geometry | None:
    """The geometry of a published model; ``None`` if its shape is unknown."""
    if name in hub.names():
        return families.geometry(hub.shipped_config(name))
    shape = shapes().get(name)
    return None if shape is None else _of(shape)


def _of(shape: Mapping[str, Any]) -> Geometry:
    hidden, vocab, tied = shape["hidden"], shape["vocab"], shape.get("tied", False)
    layers = [_layer(shape, index) for index in range(shape["layers"])]
    known: dict[Layer, Layer] = {}
    return Geometry(
        model_type=shape.get("type", "llama"),
        layers=tuple(known.setdefault(layer, layer) for layer in layers),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=1 << 20,
        outside=base.tables(vocab, hidden, tied),
    )


def _layer(shape: Mapping[str, Any], index: int) -> Layer:
    hidden = shape["hidden"]
    full = (index + 1) % shape.get("every", FULL_EVERY if shape.get("delta") else 1) == 0
    mixer = _mixer(shape, full)
    mlp, weights = _mlp(shape, index)
    return Layer(mixer, mlp, (*_mixer_weights(mixer, hidden, shape), *weights, *base.pre_norms(hidden)))


def _mixer(shape: Mapping[str, Any], full: bool) -> Attention | GatedDelta:
    if shape.get("delta") and not full:
        return DELTA
    head_dim = shape.get("head_dim", shape["hidden"] // shape["heads"])
    if full:
        return Attention("full", shape["heads"], shape["kv"], head_dim)
    return Attention("sliding", shape["heads"], shape["kv"], head_dim, shape["window"])


def _mixer_weights(mixer: Attention | GatedDelta, hidden: int, shape: Mapping[str, Any]) -> tuple[Weight, ...]:
    if isinstance(mixer, Attention):
        return base.attention_weights(mixer, hidden, bias=False, gated=shape.get("delta", False))
    values = mixer.value_heads * mixer.value_dim
    return (
        *linear("linear_attn.in_proj_qkvz", mixer.channels + values, hidden),
        *linear("linear_attn.in_proj_ba", 2 * mixer.value_heads, hidden),
        *linear("linear_attn.out_proj", hidden, values),
        Weight("conv", (mixer.channels, 1, mixer.kernel), "linear_attn.conv1d.weight"),
        norm("linear_attn.norm", mixer.value_dim),
    )


def _mlp(shape: Mapping[str, Any], index: int) -> tuple[Dense | Experts, tuple[Weight, ...]]:
    hidden = shape["hidden"]
    if "experts" not in shape or index < shape.get("dense_layers", 0):
        return Dense(shape["width"]), gated_mlp("mlp", hidden, shape["width"])
    count, width, both = shape["experts"], shape["expert_width"], shape.get("shared_width", 0)
    weights = (
        Weight("router", (count, hidden), "mlp.gate.weight"),
        Weight("experts", (count, 2 * width, hidden), "mlp.experts.gate_up_proj"),
        Weight("experts", (count, hidden, width), "mlp.experts.down_proj"),
    )
    return Experts(count, shape["top_k"], width, both), weights + (
        gated_mlp("mlp.shared_expert", hidden, both) if both else ()
    )
