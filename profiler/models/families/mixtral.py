"""Mixtral: Mistral's layers with a mixture of experts on each.

Shapes and defaults from transformers 5.24, ``models/mixtral``. Published checkpoints store the experts one by one
under older names, which ``account`` and ``stored`` know.
"""

from __future__ import annotations

from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.families.mistral import MistralConfig
from profiler.models.geometry import Geometry
from profiler.models.layers import Layer
from profiler.models.rope import largest_context


class MixtralConfig(MistralConfig):
    """The fields of transformers' class of that name: Mistral's with two other defaults, and those of the experts."""

    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0


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
