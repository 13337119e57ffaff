"""From the metadata of a GGUF file to the raw config that the families read.

Key names: ``gguf-py/gguf/constants.py`` of llama.cpp. What the keys mean for transformers: its own
``modeling_gguf_pytorch_utils.py`` and ``integrations/gguf/gguf_config_mapping.py`` (5.23). Where they leave something
open, the tensors of the file decide; where those do too, the file is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profiler.errors import ProfileError
from profiler.models.gguf_file import GgufHeader
from profiler.registry import unknown
from profiler.units import printable

Raw = dict[str, Any]


class _Keys:
    """The metadata under the prefix of one architecture."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.architecture = str(header.metadata.get("general.architecture"))

    def get(self, name: str, default: Any = None) -> Any:
        return self.header.metadata.get(f"{self.architecture}.{name}", default)

    def has(self, tensor: str) -> bool:
        return tensor in self.header.tensors

    def error(self, text: str) -> ProfileError:
        return ProfileError(f"GGUF ({printable(self.architecture)}): {text}")


def config(header: GgufHeader) -> Raw:
    """The raw config of the model in a GGUF file; ProfileError for an architecture or a file without a rule."""
    keys = _Keys(header)
    parts = header.metadata.get("split.count", 1)
    if parts not in (0, 1):
        merge = "llama-gguf-split --merge FIRST.gguf MERGED.gguf"
        raise keys.error(f"one of {printable(parts)} parts of a split file: merge them first: {merge}")
    if keys.architecture not in ARCHITECTURES:
        raise unknown("GGUF architecture", keys.architecture, ARCHITECTURES)
    return ARCHITECTURES[keys.architecture](keys)


def _common(keys: _Keys, model_type: str) -> Raw:
    """What every architecture states alike. Vocabulary and hidden size are those of the stored embedding."""
    embedding = keys.header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise keys.error("no token_embd.weight: not the weights of a language model")
    vocab, hidden = embedding.shape
    if keys.get("embedding_length") != hidden:
        raise keys.error(f"embedding_length is not the width of token_embd.weight, {hidden}")
    return {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": keys.get("block_count"),
        "intermediate_size": keys.get("feed_forward_length"),
        "num_attention_heads": keys.get("attention.head_count"),
        "num_key_value_heads": keys.get("attention.head_count_kv"),
        "head_dim": keys.get("attention.key_length"),
        "max_position_embeddings": keys.get("context_length"),
        "tie_word_embeddings": not keys.has("output.weight"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
    }


def _llama(keys: _Keys) -> Raw:
    if keys.get("expert_count"):
        raise keys.error("no rule for Llama with experts (Mixtral)")
    raw = _common(keys, "llama")
    raw["head_dim"] = raw["head_dim"] or keys.get("rope.dimension_count")
    return raw | {"mlp_bias": keys.has("blk.0.ffn_gate.bias")}


def _qwen3(keys: _Keys) -> Raw:
    return _common(keys, "qwen3")


def _gemma3(keys: _Keys) -> Raw:
    raw = _common(keys, "gemma3_text")
    pattern = keys.get("attention.sliding_window_pattern", 6)  # llama.cpp and transformers both take 6 if absent
    if isinstance(pattern, list):
        raw["layer_types"] = _types(pattern)
    else:
        raw["sliding_window_pattern"] = pattern
    return raw | {"sliding_window": keys.get("attention.sliding_window")}


def _gemma4(keys: _Keys) -> Raw:
    raw = _common(keys, "gemma4_text")
    pattern = keys.get("attention.sliding_window_pattern")
    if not isinstance(pattern, list) or not pattern or all(pattern):
        raise keys.error("attention.sliding_window_pattern does not say which layers attend in full")
    types, shared = _types(pattern), keys.get("attention.shared_kv_layers", 0)
    first_full = types.index("full_attention")
    kv_heads = _per_type(keys, "attention.head_count_kv", types)
    raw |= {
        "layer_types": types,
        "sliding_window": keys.get("attention.sliding_window"),
        "head_dim": keys.get("attention.key_length_swa"),
        "global_head_dim": keys.get("attention.key_length"),
        "num_key_value_heads": kv_heads.get("sliding_attention", kv_heads["full_attention"]),
        "num_global_key_value_heads": kv_heads["full_attention"],
        # the projection that full layers share between K and V is stored once
        "attention_k_eq_v": not keys.has(f"blk.{first_full}.attn_v.weight"),
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": keys.get("embedding_length_per_layer_input", 0),
    }
    if not raw["attention_k_eq_v"] and len(set(kv_heads.values())) > 1:
        raise keys.error("full and sliding layers differ in K/V heads, but full layers store a value projection")
    if raw["hidden_size_per_layer_input"]:
        if not keys.has("per_layer_token_embd.weight"):
            raise keys.error("per_layer_token_embd.weight is missing")
        raw["vocab_size_per_layer_input"] = keys.header.tensors["per_layer_token_embd.weight"].shape[0]
    return raw | _gemma4_widths(keys, len(types), shared) | _gemma4_experts(keys)


def _gemma4_widths(keys: _Keys, count: int, shared: Any) -> Raw:
    """One width, or one a layer: then the shared-KV layers must be twice as wide and the others equal."""
    widths = keys.get("feed_forward_length")
    if not isinstance(widths, list) or not widths:
        return {"intermediate_size": widths}
    first = count - (shared if isinstance(shared, int) else 0)
    for wide in (False, True):
        if widths == [widths[0]] * first + [widths[0] * (2 if wide else 1)] * (count - first):
            return {"intermediate_size": widths[0], "use_double_wide_mlp": wide}
    raise keys.error("no rule for these feed_forward_length values")


def _gemma4_experts(keys: _Keys) -> Raw:
    if not keys.get("expert_count"):
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": keys.get("expert_count"),
        "top_k_experts": keys.get("expert_used_count"),
        "moe_intermediate_size": keys.get("expert_feed_forward_length"),
    }


def _qwen35(keys: _Keys) -> Raw:
    raw = _common(keys, "qwen3_5_text")
    extra = keys.get("nextn_predict_layers", 0)
    values, inner, count = keys.get("ssm.time_step_rank"), keys.get("ssm.inner_size"), raw["num_hidden_layers"]
    if not all(isinstance(n, int) and n > 0 for n in (values, inner, count)) or not isinstance(extra, int):
        raise keys.error("ssm.time_step_rank, ssm.inner_size and block_count must be whole numbers")
    return raw | {
        # the file counts the multi-token-prediction layer, the decoder does not
        "num_hidden_layers": count - extra,
        "mtp_num_hidden_layers": extra,
        "full_attention_interval": keys.get("full_attention_interval"),
        "linear_conv_kernel_dim": keys.get("ssm.conv_kernel"),
        "linear_key_head_dim": keys.get("ssm.state_size"),
        "linear_num_key_heads": keys.get("ssm.group_count"),
        "linear_num_value_heads": values,
        "linear_value_head_dim": inner // values,
    }


def _qwen35moe(keys: _Keys) -> Raw:
    return _qwen35(keys) | {
        "model_type": "qwen3_5_moe_text",
        "num_experts": keys.get("expert_count"),
        "num_experts_per_tok": keys.get("expert_used_count"),
        "moe_intermediate_size": keys.get("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.get("expert_shared_feed_forward_length"),
    }


def _llama4(keys: _Keys) -> Raw:
    raise keys.error("no rule yet: the file does not say which layers attend in chunks of which size")


ARCHITECTURES: dict[str, Callable[[_Keys], Raw]] = {
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "llama": _llama,
    "llama4": _llama4,
    "qwen3": _qwen3,
    "qwen35": _qwen35,
    "qwen35moe": _qwen35moe,
}


def _types(pattern: list[Any]) -> list[str]:
    return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]


def _per_type(keys: _Keys, name: str, types: list[str]) -> dict[str, Any]:
    """A value that may be given once or for every layer, by layer type."""
    value = keys.get(name)
    values = value if isinstance(value, list) else [value] * len(types)
    found = dict(zip(types, values, strict=False))
    if len(values) != len(types) or any(found[kind] != v for kind, v in zip(types, values, strict=True)):
        raise keys.error(f"{name} differs between layers of one kind")
    return found
