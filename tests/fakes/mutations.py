"""Configs with a few fields changed as in files from anywhere: absent, null, of another type, contradictory."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

Raw = dict[str, Any]

ODD: list[Any] = [None, 0, -1, 1, 2, 3, 5, 7, 10**9, 10**30, 0.5, 2.0, "3", "", True, False, [], [1], {}, {"a": 1}]
PLAUSIBLE: Mapping[str, list[Any]] = {
    "vocab_size": [95, 128],
    "hidden_size": [32, 60, 66, 128],
    "intermediate_size": [33, 64],
    "num_hidden_layers": [1, 2, 5, 6],
    "num_attention_heads": [1, 2, 6, 8],
    "num_key_value_heads": [1, 4, 3],
    "head_dim": [8, 10, 15, 32, None],
    "max_position_embeddings": [64, 2048, 40960],
    "sliding_window": [4, 8, 64, None],
    "attention_chunk_size": [4, 16, None],
    "max_window_layers": [0, 1, 3, 9],
    "sliding_window_pattern": [1, 2, 4],
    "full_attention_interval": [1, 2, 3],
    "num_kv_shared_layers": [1, 2, 4],
    "global_head_dim": [16, 24, 64],
    "num_global_key_value_heads": [1, 2, 4],
    "pad_token_id": [-1, 5, 95, 96, 4000],
    "no_rope_layers": [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0], [1, 1, 1, 0, 1, 0]],
    "no_rope_layer_interval": [1, 2, 3],
    "moe_layers": [[0], [1, 3], [], [9], [-1]],
    "interleave_moe_layer_step": [1, 3, 9],
    "hidden_act": ["gelu", "relu2", "swiglu"],
    "hidden_activation": ["silu", "gelu_new", "geglu"],
    "torch_dtype": ["bfloat16", "float16", "half-precision"],
    "dtype": ["float32", "torch.bfloat16"],
    "per_layer_config": [{}, {"0": {"head_dim": 8}}, {"2": {"head_dim": 32}, "5": {"head_dim": 32}}],
    "use_bidirectional_attention": [True, "all", "vision"],
    "rope_theta": [500000.0, 10000],
    "partial_rotary_factor": [0.25, 0.5, 1.0],
    "original_max_position_embeddings": [32, 128],
    "linear_num_value_heads": [2, 6, 3],
    "num_experts_per_tok": [1, 4, 9],
    "top_k_experts": [1, 8, 9],
    "num_experts": [2, 4],
    "num_local_experts": [2, 8],
    "tie_word_embeddings": [True, False],
}
EXTRA = ["rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings"]
EXTRA += [
    "sliding_window",
    "sliding_window_pattern",
    "full_attention_interval",
    "global_head_dim",
    "per_layer_config",
]
EXTRA += ["num_global_key_value_heads", "layer_types", "attention_chunk_size", "num_experts", "num_local_experts"]
EXTRA += [
    "mtp_num_hidden_layers",
    "torch_dtype",
    "dtype",
    "text_config",
    "is_encoder_decoder",
    "rope_local_base_freq",
]
TYPES = [
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "linear_attention",
    "attention",
    "mamba",
    "conv",
    3,
]
ROPE: list[Any] = [
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"type": "yarn", "factor": 2},
    {"type": "yarn", "factor": None, "original_max_position_embeddings": 128},
    {"rope_type": "yarn"},
    {"type": "linear", "factor": 8.0},
    {"rope_type": "linear", "factor": 0.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic"},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
        "factor": 8.0,
    },
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": 2.0},
    {"rope_type": "su", "factor": 2.0},
    {"type": "mrope", "mrope_section": [2, 1, 1]},
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    {"rope_type": "yarn", "factor": "4", "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
    {"rope_type": 4},
    {"full_attention": {"rope_type": "linear", "factor": 8.0}},
    {
        "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    {"full_attention": {"rope_type": "default", "rope_theta": 5.0}, "sliding_attention": None},
]


def mutated(bases: Mapping[str, Raw], fields: Mapping[str, list[str]], seed: int) -> tuple[str, Raw]:
    """A base config with one to three changes, and what they are. ``fields``: names declared for a ``model_type``."""
    chance = random.Random(seed)
    name = chance.choice(sorted(bases))
    raw = copy.deepcopy(bases[name])
    declared = fields[raw["model_type"]]
    done = [name, *(_change(raw, declared, chance) for _ in range(chance.choice((1, 1, 2, 3))))]
    if chance.random() < 0.3:
        done.append(_wrap(raw, chance))
    return " · ".join(done), raw


def _change(raw: Raw, declared: list[str], chance: random.Random) -> str:
    field = chance.choice([*declared, *EXTRA])
    kind = chance.random()
    if field in ("rope_scaling", "rope_parameters") and kind < 0.8:
        raw[field] = copy.deepcopy(chance.choice(ROPE))
    elif field == "layer_types" and kind < 0.8:
        count = raw.get("num_hidden_layers", 4)
        length = max(
            0, (count if isinstance(count, int) and 0 <= count < 50 else 4) + chance.choice((0, 0, 0, 0, 1, -1))
        )
        own = chance.choice((TYPES[:2], ["full_attention", "linear_attention", "attention", "mamba"], TYPES))
        raw[field] = [chance.choice(own) for _ in range(length)]
    elif kind < 0.25:
        raw.pop(field, None)
        return f"{field} dropped"
    elif kind < 0.6 and field in PLAUSIBLE:
        raw[field] = copy.deepcopy(chance.choice(PLAUSIBLE[field]))
    else:
        raw[field] = copy.deepcopy(chance.choice(ODD))
    return f"{field} = {raw[field]!r}"


def _wrap(raw: Raw, chance: random.Random) -> str:
    """The config as ``text_config`` of a multimodal one, with the fields that may stand outside."""
    inner = dict(raw)
    outer = str(inner["model_type"]).removesuffix("_text")
    if chance.random() < 0.3:
        del inner["model_type"]
    raw.clear()
    raw |= {"model_type": outer, "text_config": inner}
    if chance.random() < 0.4:
        raw["tie_word_embeddings"] = chance.choice((True, False, None))
    if chance.random() < 0.1:
        raw["text_config"] = chance.choice((None, {}, []))
    if chance.random() < 0.1:
        raw |= {"hidden_size": 32, "num_hidden_layers": 2}
    return f"wrapped {sorted(raw)}"
