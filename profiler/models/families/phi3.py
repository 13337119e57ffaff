"""Phi-3: Phi 3 and 4 in their dense forms. As Llama, with Q, K and V in one projection, and gate and up in another.

Shapes and defaults from transformers 5.24, ``models/phi3``. RoPE may be scaled by ``longrope`` only, which older
configs call ``su`` or ``yarn``.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Dense, Layer, linear
from profiler.models.rope import largest_context


class Phi3Config:
    """The fields of transformers' class of that name."""

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attention_dropout: float | int = 0.0
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 32000
    pad_token_id: int | None = 32000
    sliding_window: int | None = None


TEXT = {"phi3": Phi3Config}
WRAPPED: dict[str, tuple[str, type]] = {}
MODEL_TYPES = (*WRAPPED, *TEXT)
OLDER = ("su", "yarn")  # names of longrope
ROTATED = 1.0  # share of a head's channels; the default of partial_rotary_factor


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    hidden, width, size = config.number("hidden_size"), config.number("intermediate_size"), base.head_dim(config)
    window = config.optional("sliding_window")
    base.refuse_layer_types(config, window)
    attention = base.grouped(config, window, size)
    layer = Layer(
        attention,
        Dense(width),
        (
            *linear("self_attn.qkv_proj", (attention.heads + 2 * attention.kv_heads) * size, hidden),
            *linear("self_attn.o_proj", hidden, attention.heads * size),
            *linear("mlp.gate_up_proj", 2 * width, hidden),
            *linear("mlp.down_proj", hidden, width),
            *base.pre_norms(hidden),
        ),
    )
    longest = largest_context(_with_rope(config), size, config.raw.get("layer_types") or (), ROTATED)
    return base.decoder(config, "phi3", (layer,) * config.number("num_hidden_layers"), longest)


def _with_rope(config: Config) -> Config:
    """The config with RoPE parameters as transformers renames them. ProfileError for a type that it refuses."""
    name = "rope_scaling" if config.raw.get("rope_scaling") else "rope_parameters"
    stated = config.part(name)
    if not stated:
        return config
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in ("default", "longrope", *OLDER):
        raise config.error(f"{name}: phi3 supports RoPE of type default and longrope only")
    renamed = {**stated, "rope_type": "longrope" if kind in OLDER else kind}
    raw = {**config.raw, name: renamed}
    return Config(raw, config.where, Phi3Config, model_type=config.model_type, names=config.names)
