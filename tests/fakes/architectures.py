"""Every family the decode step must serve, scaled down: random weights, small windows, every kind of cache layer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WINDOW = 16
VOCABULARY = 199

_common: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # so that logits differ clearly and a wrong token cannot hide
    "tie_word_embeddings": False,  # a tied head makes small random models repeat one token
}
_gemma = _common | {
    "num_hidden_layers": 4,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
_gemma4 = _gemma | {
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
}
_experts = {"num_experts": 8, "moe_intermediate_size": 32}
_qwen3_5 = _common | {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _common | {"num_hidden_layers": 3}),
    "qwen2": ("qwen2", _common | {"num_hidden_layers": 3}),
    "qwen3": ("qwen3", _common | {"num_hidden_layers": 3}),
    "qwen3_moe": ("qwen3_moe", _common | _experts | {"num_hidden_layers": 3, "num_experts_per_tok": 2}),
    "phi3": ("phi3", _common | {"num_hidden_layers": 3, "eos_token_id": 1}),
    "mistral": ("mistral", _common | {"num_hidden_layers": 3, "sliding_window": WINDOW}),
    "mixtral": (
        "mixtral",
        _common | {"num_hidden_layers": 3, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "gemma3": ("gemma3_text", _gemma),
    # E2B and E4B: per-layer embeddings; the last layers share keys and values of earlier ones
    "gemma4_e2b": (
        "gemma4_text",
        _gemma4
        | {
            "num_hidden_layers": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"] * 2,
            "num_kv_shared_layers": 4,
            "hidden_size_per_layer_input": 8,
            "num_key_value_heads": 1,
        },
    ),
    "gemma4_e4b": ("gemma4_text", _gemma4 | {"hidden_size_per_layer_input": 8}),
    "gemma4_12b": ("gemma4_text", _gemma4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1}),
    "gemma4_31b": ("gemma4_text", _gemma4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 2}),
    "gemma4_26b_a4b": (
        "gemma4_text",
        _gemma4
        | _experts
        | {"enable_moe_block": True, "top_k_experts": 2, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    ),
    "qwen3_5": ("qwen3_5_text", _qwen3_5),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        _qwen3_5 | _experts | {"num_experts_per_tok": 2, "shared_expert_intermediate_size": 32},
    ),
    "llama4": (
        "llama4_text",
        _common
        | {
            "num_hidden_layers": 4,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "layer_types": ["chunked_attention", "chunked_attention", "chunked_attention", "full_attention"],
            "no_rope_layers": [1, 1, 1, 0],
            "floor_scale": 64,
        },
    ),
}


def build(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """The model ``name`` of CONFIGS, seeded, in evaluation mode; ``changes`` go over its config."""
    kind, values = CONFIGS[name]
    torch.manual_seed(0)
    # A copy: some configs correct their list of layer types in place, and the lists here are shared.
    config = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(values | changes))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.to(dtype).eval().requires_grad_(False)


def prompt(batch: int, tokens: int, seed: int = 1) -> torch.Tensor:
    """Random token ids ``[batch, tokens]``."""
    return torch.randint(1, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))
