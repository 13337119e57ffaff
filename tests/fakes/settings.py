"""Settings of every family at sizes of a few thousand parameters, and their weights by transformers and by us."""

from __future__ import annotations

from typing import Any

import torch

from profiler.models.geometry import Geometry, Weight

WINDOW = 8

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
GEMMA4 = COMMON | {
    "model_type": "gemma4_text",
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
}
QWEN3_5 = COMMON | {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
TINY: dict[str, dict[str, Any]] = {
    "gemma3": COMMON
    | {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": WINDOW, "sliding_window_pattern": 3},
    "gemma4 shared kv": GEMMA4
    | {
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 80,
    },
    "gemma4 k_eq_v": GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "gemma4 experts": GEMMA4
    | {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 24},
    "gemma4 unified": GEMMA4 | {"model_type": "gemma4_unified_text", "attention_bias": True},
    "qwen3": COMMON | {"model_type": "qwen3", "num_hidden_layers": 3, "attention_bias": True},
    "qwen3 window": COMMON
    | {
        "model_type": "qwen3",
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,
    },
    "qwen2": COMMON | {"model_type": "qwen2", "num_hidden_layers": 3, "tie_word_embeddings": True},
    "qwen2 window": COMMON
    | {
        "model_type": "qwen2",
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,
    },
    "qwen3_moe": COMMON
    | {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 2,
    },
    "mistral": COMMON | {"model_type": "mistral", "num_hidden_layers": 3, "sliding_window": WINDOW},
    "mixtral": COMMON
    | {"model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": COMMON
    | {
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
    },
    "phi3": COMMON | {"model_type": "phi3", "num_hidden_layers": 3, "sliding_window": WINDOW},
    "qwen3_5": QWEN3_5 | {"model_type": "qwen3_5_text", "tie_word_embeddings": True},
    "qwen3_5 experts": QWEN3_5
    | {
        "model_type": "qwen3_5_moe_text",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    },
    "llama": COMMON | {"model_type": "llama", "num_hidden_layers": 3, "mlp_bias": True},
    "llama4": COMMON
    | {
        "model_type": "llama4_text",
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 80,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": WINDOW,
    },
}


def role(module: torch.nn.Module, name: str, shape: tuple[int, ...]) -> str:
    """The role of a parameter by the module that holds it, as a quantizer would see it."""
    if name == "lm_head.weight":
        return "head"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    if len(shape) == 1:
        return "vector"
    if name.endswith("_proj_bias"):  # of all experts
        return "experts"
    if isinstance(module, torch.nn.Conv1d):
        return "conv"
    if type(module) is torch.nn.Linear:
        return "linear"
    return "experts" if len(shape) == 3 else "router"


def stored_weights(model: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → (role, shape) of all that a checkpoint of ``model`` stores: parameters and persistent buffers, once."""
    tied = {} if not model.config.tie_word_embeddings else {"lm_head.weight"}
    found = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            module = model.get_submodule(name.rpartition(".")[0])
            found[name] = (role(module, name, tuple(tensor.shape)), tuple(tensor.shape))
    return found


def described_weights(geometry: Geometry) -> dict[str, tuple[str, tuple[int, ...]]]:
    def named(prefix: str, weights: tuple[Weight, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {prefix + weight.name: (weight.role, weight.shape) for weight in weights}

    found = named("", geometry.outside)
    for index, layer in enumerate(geometry.layers):
        found |= named(f"model.layers.{index}.", layer.weights)
    return found
