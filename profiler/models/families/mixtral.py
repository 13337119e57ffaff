"""Mixtral: Mistral's layers with a mixture of experts on each.

Shapes and defaults from transformers 5.24, ``models/mixtral``. Published checkpoints store the experts one by one
under older names, which ``account`` and ``stored`` know.
"""

from __future__ import annotations

from typing import Any

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.models.layers import Layer
from profiler.models.rope import largest_context


class MixtralConfig:
    """The fields of transformers' class of that name."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096 * 32
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    attention_dropout: float | int = 0.0
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    rope_parameters: dict[str, Any] | None = None


TEXT = {"mixtral": MixtralConfig}
WRAPPED: dict[str, tuple[str, type]] = {}
MODEL_TYPES = (*WRAPPED, *TEXT)


def geometry(config: Config) -> Geometry:
    """Geometry of a decoder's config; ProfileError names the field that is missing or wrong."""
    base.check_common(config, "hidden_act")
    hidden, size, window = config.number("hidden_size"), base.head_dim(config), config.optional("sliding_window")
    base.refuse_layer_types(config, window)
    attention = base.grouped(config, window, size)
    width = config.number("intermediate_size")
    count = base.experts_field(config, "num_local_experts")
    mlp = base.experts(config, count=count, top_k="num_experts_per_tok", width=width, shared_width=0)
    layer = Layer(
        attention,
        mlp,
        (
            *base.attention_weights(attention, hidden),
            *base.fused_experts("mlp", mlp, hidden),
            *base.pre_norms(hidden),
        ),
    )
    longest = largest_context(config, size, config.raw.get("layer_types") or ())
    return base.decoder(config, "mixtral", (layer,) * config.number("num_hidden_layers"), longest)
