"""Random checkpoints small enough for a test, one for each kind of layer that a family has.

Each keeps what is particular to its family (sliding windows, shared K/V, per-layer embeddings, gated delta layers,
fused experts) at sizes where a prefill takes milliseconds. Linear sizes are multiples of 64, the bitsandbytes block.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

SEED = 20260101
VOCAB = 512
WORDS = (
    "the",
    "river",
    "market",
    "stone",
    "winter",
    "letter",
    "garden",
    "engine",
    "window",
    "harbor",
    "paper",
    "bridge",
)
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GATED_DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "num_hidden_layers": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
SLIDING_THEN_FULL = ["sliding_attention", "sliding_attention", "full_attention"]

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": COMMON
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "layer_types": SLIDING_THEN_FULL * 2,
        "sliding_window": 32,
        "query_pre_attn_scalar": 32,
    },
    "gemma4": COMMON
    | {
        "model_type": "gemma4_text",
        "num_hidden_layers": 6,
        "layer_types": SLIDING_THEN_FULL * 2,
        "sliding_window": 32,
        "global_head_dim": 64,
        "num_kv_shared_layers": 3,
        "hidden_size_per_layer_input": 64,
        "vocab_size_per_layer_input": VOCAB,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 30.0,
    },
    "gemma4-moe": COMMON
    | {
        "model_type": "gemma4_text",
        "num_hidden_layers": 3,
        "layer_types": SLIDING_THEN_FULL,
        "sliding_window": 32,
        "global_head_dim": 64,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
    },
    "llama": COMMON | {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": True},
    "llama4": COMMON
    | {
        "model_type": "llama4_text",
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 128,
        "interleave_moe_layer_step": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 32,
    },
    "qwen3": COMMON | {"model_type": "qwen3", "num_hidden_layers": 2, "tie_word_embeddings": True},
    "qwen2": COMMON | {"model_type": "qwen2", "num_hidden_layers": 2, "head_dim": 16},
    "qwen3-moe": COMMON
    | {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    },
    "mistral": COMMON | {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": None},
    "mixtral": COMMON
    | {"model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt-oss": COMMON
    | {
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 32,
    },
    "phi3": COMMON
    | {"model_type": "phi3", "num_hidden_layers": 2, "head_dim": 16, "sliding_window": None, "pad_token_id": 0},
    "qwen3.5": COMMON | GATED_DELTA | {"model_type": "qwen3_5_text", "tie_word_embeddings": True},
    "qwen3.5-moe": COMMON
    | GATED_DELTA
    | {
        "model_type": "qwen3_5_moe_text",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    },
}


def write(name: str, folder: Path) -> Path:
    """The checkpoint ``name`` of ``CONFIGS`` as ``config.json`` and fp32 safetensors in ``folder``; ever the same."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(CONFIGS[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def with_tokenizer(folder: Path, target: Path) -> Path:
    """A copy of a tiny checkpoint with a tokenizer of words and bytes that begins with a special token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    shutil.copytree(folder, target)
    vocabulary = {"<bos>": 2, "<unk>": 3} | {word: 10 + place for place, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<bos>"])
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made.save(str(target / "tokenizer.json"))
    return target
