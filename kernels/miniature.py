"""A model's architecture with small numbers: every kind of layer once or twice, so that it can be audited in seconds.

What decides whether a step can be captured is which operators run and what they depend on, not how wide they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WINDOW = 16
CAPS = {
    "vocab_size": 256,
    "vocab_size_per_layer_input": 256,
    "hidden_size": 128,
    "intermediate_size": 128,
    "intermediate_size_mlp": 128,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "hidden_size_per_layer_input": 64,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
}
HEADS = ("num_attention_heads", "num_key_value_heads")
LINEAR_HEADS = ("linear_num_value_heads", "linear_num_key_heads")
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def miniature(config: Mapping[str, Any]) -> dict[str, Any]:
    """The raw ``config.json`` of a text tower made small. Head sizes, rotary settings and switches are kept."""
    small = {name: value for name, value in config.items() if name not in TOKENS}
    for name, cap in CAPS.items():
        if small.get(name):
            small[name] = min(small[name], cap)
    for many, few in (HEADS, LINEAR_HEADS):
        if small.get(many):
            shared = max(1, small[many] // (small.get(few) or small[many]))
            small[few] = 1 if small.get(few) == 1 else 2
            small[many] = small[few] * min(shared, 4)
    if small.get("num_global_key_value_heads"):
        small["num_global_key_value_heads"] = 1
    return small | _layers(small)


def _layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The first layers that show every type; twice as many where later layers share the keys of earlier ones."""
    total = config["num_hidden_layers"]
    types = list(config.get("layer_types") or [])
    period = max((types.index(kind) for kind in set(types)), default=1) + 1
    shared = bool(config.get("num_kv_shared_layers"))
    count = min(total, 2 * period if shared else max(2, period))
    cut: dict[str, Any] = {"num_hidden_layers": count}
    if shared:
        cut["num_kv_shared_layers"] = count - period
    for name in PER_LAYER:
        if isinstance(config.get(name), list):
            values = config[name][:period]
            cut[name] = (values * 2)[:count] if shared else config[name][:count]
    exceptions = config.get("per_layer_config")
    if exceptions and types:  # layer → its differences; they follow the layer's type
        of_type = {types[int(layer)]: values for layer, values in exceptions.items()}
        kept = enumerate(cut["layer_types"])
        cut["per_layer_config"] = {str(layer): of_type[kind] for layer, kind in kept if kind in of_type}
    return cut
