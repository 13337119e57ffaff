"""Turns the metadata of a GGUF file into the raw config that the families read.

Key names come from llama.cpp, ``gguf-py/gguf/constants.py``. Their meaning in transformers comes from its
``modeling_gguf_pytorch_utils.py`` and ``integrations/gguf/gguf_config_mapping.py`` (5.23), and the defaults of
optional keys from ``llama_model::load_hparams`` in llama.cpp. Where these leave a question open, the file's tensors
decide; otherwise the file is refused.

Every number is checked against its bounds before it determines the size of anything, and errors name the key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from profiler.errors import ProfileError
from profiler.models import families
from profiler.models.config import RANGES, shown
from profiler.models.gguf import GgufHeader
from profiler.units import bytes_text, printable

Raw = dict[str, Any]

NO_MODEL = {  # general.type → what such a file holds
    "adapter": "an adapter, which modifies a model but is not one",
    "imatrix": "an importance matrix, which is used for quantizing",
    "mmproj": "a projector for images or sound, which is only part of a model",
    "vocab": "only a vocabulary",
}
SCALED = ("linear", "yarn")  # types whose factor extends context_length; in the others it includes the scaling
GPT_OSS_PERIOD = 2  # of its full layers, llama.cpp's default
NOT_SCALED = ("", "none", "longrope")


class _Keys:
    """The metadata of one architecture, without its prefix. ``names`` maps a config field to the key it came from."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.architecture = str(header.metadata.get("general.architecture"))
        self.names: dict[str, str] = {}

    def get(self, name: str, default: Any = None) -> Any:
        return self.header.metadata.get(self.key(name), default)

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def number(self, name: str, field: str, default: int | None = None) -> int:
        """The integer under a key, within the bounds of the config's ``field``. The entries of a list must be
        equal.
        """
        self.names[field] = self.key(name)
        value = self.get(name, default)
        if isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]
        if isinstance(value, list | range) and field != "num_hidden_layers":
            raise self.error(f"{self.key(name)} differs between layers, which is not supported")
        return self.checked(name, field, value)

    def checked(self, name: str, field: str, value: Any) -> int:
        low, high = RANGES[field]
        if value is None:
            raise self.error(f"{self.key(name)} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(f"{self.key(name)} is {shown(value)}, must be a whole number from {low} to {high}")
        return value

    def has(self, tensor: str) -> bool:
        return tensor in self.header.tensors

    def error(self, text: str) -> ProfileError:
        return ProfileError(f"GGUF ({printable(self.architecture, 60)}): {text}")


def config(header: GgufHeader) -> Raw:
    """The raw config of the model in a GGUF file; ProfileError if the architecture or the file is not supported."""
    return named_config(header)[0]


def named_config(header: GgufHeader) -> tuple[Raw, Mapping[str, str]]:
    """The config of a GGUF file, and the key that each of its fields came from, for error messages."""
    keys = _Keys(header)
    if header.is_split and not header.parts:
        raise keys.error(f"this is one of {printable(header.metadata['split.count'])} parts of a split file")
    kind = header.metadata.get("general.type")
    if isinstance(kind, str) and kind in NO_MODEL:
        raise keys.error(f"the file holds {NO_MODEL[kind]} (general.type {kind})")
    if keys.architecture not in ARCHITECTURES:
        raise families.unserved(f"GGUF architecture {printable(keys.architecture, 60)}", _sizes(keys))
    return ARCHITECTURES[keys.architecture](keys), keys.names


def _sizes(keys: _Keys) -> list[str]:
    """The sizes of a model whose architecture is not supported, for the error message."""
    tensors = keys.header.tensors.values()
    layers, known = keys.get("block_count"), [tensor.nbytes for tensor in tensors]
    sizes = [families.counted(layers, "layer")] if type(layers) is int and layers > 0 else []
    sizes.append(f"{sum(tensor.parameters for tensor in tensors):,} parameters")
    stored = sum(size for size in known if size is not None)
    more = " or more" if None in known else ""
    return [*sizes, f"{stored:,} bytes ({bytes_text(stored)}){more} in {families.counted(len(known), 'tensor')}"]


def _common(keys: _Keys, model_type: str) -> Raw:
    """The fields that all architectures share. Vocabulary and hidden size are those of the stored embedding."""
    embedding = keys.header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise keys.error("it has no token_embd.weight, so these are not the weights of a language model")
    vocab, hidden = embedding.shape
    if keys.get("embedding_length") != hidden:
        stated = shown(keys.get("embedding_length"))
        raise keys.error(f"{keys.key('embedding_length')} is {stated}, but token_embd.weight is {hidden} wide")
    keys.names |= {"hidden_size": keys.key("embedding_length"), "vocab_size": "the rows of token_embd.weight"}
    _check_vocabulary(keys, vocab)
    if keys.get("attention.causal") is False:
        raise keys.error(f"{keys.key('attention.causal')} is false: only causal decoders are supported")
    biased = keys.has("blk.0.attn_q.bias")
    if biased != keys.has("blk.0.attn_output.bias") and not (biased and model_type == "qwen2"):
        raise keys.error("attention with a bias on only some of its four projections is not supported")
    heads = keys.number("attention.head_count", "num_attention_heads")
    raw = {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": keys.number("block_count", "num_hidden_layers"),
        "num_attention_heads": heads,
        "max_position_embeddings": keys.number("context_length", "max_position_embeddings"),
        "tie_word_embeddings": not keys.has("output.weight"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
    }
    return raw | _scaling(keys)


def _check_vocabulary(keys: _Keys, rows: int) -> None:
    """llama.cpp refuses an embedding whose number of rows is not the size of the vocabulary."""
    words = keys.header.metadata.get("tokenizer.ggml.tokens")
    said = {
        keys.key("vocab_size"): keys.get("vocab_size"),
        "tokenizer.ggml.tokens": len(words) if isinstance(words, list | range) else None,
    }
    for name, count in said.items():
        if type(count) is int and count != rows:
            raise keys.error(f"{name} says {count:,} words, but token_embd.weight has {rows:,} rows")


def _heads(keys: _Keys, raw: Raw) -> Raw:
    """Number and size of K/V heads, if they are the same in all layers."""
    heads, size = raw["num_attention_heads"], raw["hidden_size"] // raw["num_attention_heads"]
    if keys.architecture == "llama" and keys.get("rope.dimension_count") is not None:
        size = keys.number("rope.dimension_count", "head_dim")
    key_length = keys.number("attention.key_length", "head_dim", size)
    value_length = keys.get("attention.value_length")
    if value_length is not None and value_length != key_length:
        name, other = keys.key("attention.value_length"), keys.key("attention.key_length")
        raise keys.error(
            f"{name} is {shown(value_length)}, but {other} is {key_length}: they must be equal to be supported"
        )
    return {
        "num_key_value_heads": keys.number("attention.head_count_kv", "num_key_value_heads", heads),
        "head_dim": key_length,
    }


def _width(keys: _Keys) -> Raw:
    return {"intermediate_size": keys.number("feed_forward_length", "intermediate_size")}


def _scaling(keys: _Keys) -> Raw:
    """RoPE scaling that extends the context. Gemma's context_length already includes it."""
    if keys.architecture.startswith("gemma"):
        return {}
    kind, factor = keys.get("rope.scaling.type"), keys.get("rope.scaling.factor")
    if kind is None and keys.get("rope.scale_linear") is not None:  # its older name
        kind, factor = "linear", keys.get("rope.scale_linear")
    if kind is None or kind in NOT_SCALED:
        return {}
    name = keys.key("rope.scaling.type")
    if kind not in SCALED:
        known = ", ".join((*SCALED, *filter(None, NOT_SCALED)))
        raise keys.error(f"{name} is {shown(kind)}, which is not supported; known: {known}")
    if factor is None or factor == 0:
        return {}
    if isinstance(factor, float) and not isfinite(factor):
        raise keys.error(f"{keys.key('rope.scaling.factor')} is {factor}, must be a number of at least 1")
    parameters = {"rope_type": kind, "factor": factor}
    if kind == "yarn" and keys.get("rope.scaling.original_context_length") is not None:
        parameters["original_max_position_embeddings"] = keys.get("rope.scaling.original_context_length")
    keys.names |= {
        "rope_parameters.rope_type": name,
        "rope_parameters.factor": keys.key("rope.scaling.factor"),
        "rope_parameters.original_max_position_embeddings": keys.key("rope.scaling.original_context_length"),
    }
    return {"rope_parameters": parameters}


def _refuse_window(keys: _Keys) -> None:
    window = keys.get("attention.sliding_window")
    if window:
        name = keys.key("attention.sliding_window")
        raise keys.error(f"{name} is {shown(window)}: {keys.architecture} with sliding windows is not supported")


def _llama(keys: _Keys) -> Raw:
    """Llama and Mistral; with experts, Mixtral."""
    _refuse_window(keys)
    if keys.get("expert_count"):
        raw = _common(keys, "mixtral")
        return raw | _heads(keys, raw) | _width(keys) | _expert_counts(keys, "num_local_experts")
    raw = _common(keys, "llama")
    return raw | _heads(keys, raw) | _width(keys) | {"mlp_bias": keys.has("blk.0.ffn_gate.bias")}


def _mistral3(keys: _Keys) -> Raw:
    _refuse_window(keys)
    raw = _common(keys, "mistral")
    return raw | _heads(keys, raw) | _width(keys) | {"sliding_window": None}


def _qwen2(keys: _Keys) -> Raw:
    _refuse_window(keys)
    raw = _common(keys, "qwen2")
    return raw | _heads(keys, raw) | _width(keys)


def _phi3(keys: _Keys) -> Raw:
    """llama.cpp ignores the window, which transformers uses. The default padding token of transformers is that of a
    vocabulary of 32,064 tokens."""
    raw = _common(keys, "phi3")
    window = keys.get("attention.sliding_window")
    return raw | _heads(keys, raw) | _width(keys) | {"sliding_window": window or None, "pad_token_id": None}


def _qwen3moe(keys: _Keys) -> Raw:
    _refuse_window(keys)
    raw = _common(keys, "qwen3_moe")
    return (
        raw | _heads(keys, raw) | _expert_counts(keys, "num_experts") | _expert_width(keys, "moe_intermediate_size")
    )


def _gpt_oss(keys: _Keys) -> Raw:
    raw = _common(keys, "gpt_oss")
    pattern, count = keys.get("attention.sliding_window_pattern", GPT_OSS_PERIOD), raw["num_hidden_layers"]
    if type(pattern) is int and pattern > 0:
        pattern = [(index + 1) % pattern != 0 for index in range(count)]
    if not isinstance(pattern, list):
        name = keys.key("attention.sliding_window_pattern")
        raise keys.error(f"{name} is {shown(pattern)}, must be a number of layers or a list")
    keys.names["layer_types"] = keys.key("attention.sliding_window_pattern")
    return (
        raw
        | _heads(keys, raw)
        | _expert_counts(keys, "num_local_experts")
        | _expert_width(keys, "intermediate_size")
        | {
            "layer_types": _types(pattern),
            "sliding_window": keys.number("attention.sliding_window", "sliding_window"),
        }
    )


def _expert_counts(keys: _Keys, count: str) -> Raw:
    """The numbers of experts; ``count`` is the config's field for all of them."""
    return {
        count: keys.number("expert_count", count),
        "num_experts_per_tok": keys.number("expert_used_count", "num_experts_per_tok"),
    }


def _expert_width(keys: _Keys, field: str) -> Raw:
    return {field: keys.number("expert_feed_forward_length", field)}


def _qwen3(keys: _Keys) -> Raw:
    _refuse_window(keys)
    raw = _common(keys, "qwen3")
    return raw | _heads(keys, raw) | _width(keys)


def _gemma3(keys: _Keys) -> Raw:
    raw = _common(keys, "gemma3_text")
    pattern = keys.get("attention.sliding_window_pattern", 6)  # the default of llama.cpp and transformers
    keys.names["layer_types"] = keys.names["sliding_window_pattern"] = keys.key("attention.sliding_window_pattern")
    layers: Raw = (
        {"layer_types": _types(pattern)} if isinstance(pattern, list) else {"sliding_window_pattern": pattern}
    )
    window = {"sliding_window": keys.number("attention.sliding_window", "sliding_window")}
    return raw | _heads(keys, raw) | _width(keys) | layers | window


def _gemma4(keys: _Keys) -> Raw:
    raw = _common(keys, "gemma4_text")
    pattern, name = keys.get("attention.sliding_window_pattern"), keys.key("attention.sliding_window_pattern")
    count = raw["num_hidden_layers"]
    if not isinstance(pattern, list) or not pattern or all(pattern):
        raise keys.error(f"{name} does not say which layers use full attention")
    if len(pattern) != count:
        raise keys.error(f"{name} has {len(pattern)} entries, but {keys.key('block_count')} is {count}")
    keys.names["layer_types"] = name
    types, shared = _types(pattern), keys.number("attention.shared_kv_layers", "num_kv_shared_layers", 0)
    if shared >= count:
        stated = keys.key("attention.shared_kv_layers")
        raise keys.error(f"{stated} is {shared}, must be less than {keys.key('block_count')}, which is {count}")
    first_full = types.index("full_attention")
    kv_heads = _kv_heads(keys, types, raw["num_attention_heads"])
    raw |= {
        "layer_types": types,
        "sliding_window": keys.number("attention.sliding_window", "sliding_window"),
        "head_dim": keys.number("attention.key_length_swa", "head_dim"),
        "global_head_dim": keys.number("attention.key_length", "global_head_dim"),
        "num_key_value_heads": kv_heads.get("sliding_attention", kv_heads["full_attention"]),
        "num_global_key_value_heads": kv_heads["full_attention"],
        # full layers that share the projection of K and V store it once, as K
        "attention_k_eq_v": not keys.has(f"blk.{first_full}.attn_v.weight"),
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": keys.number(
            "embedding_length_per_layer_input", "hidden_size_per_layer_input", 0
        ),
    }
    if not raw["attention_k_eq_v"] and len(set(kv_heads.values())) > 1:
        raise keys.error("full and sliding layers differ in K/V heads although full layers store a value projection")
    if raw["hidden_size_per_layer_input"]:
        if not keys.has("per_layer_token_embd.weight"):
            raise keys.error("per_layer_token_embd.weight is missing")
        raw["vocab_size_per_layer_input"] = keys.header.tensors["per_layer_token_embd.weight"].shape[0]
    return raw | _gemma4_widths(keys, count, shared) | _gemma4_experts(keys)


def _gemma4_widths(keys: _Keys, count: int, shared: int) -> Raw:
    """One width for all layers, or a list in which the layers with shared K/V may be twice as wide as the others."""
    widths = keys.get("feed_forward_length")
    if not isinstance(widths, list) or not widths:
        return _width(keys)
    width, first = keys.checked("feed_forward_length", "intermediate_size", widths[0]), count - shared
    for wide in (False, True):
        if widths == [width] * first + [width * (2 if wide else 1)] * shared:
            return {"intermediate_size": width, "use_double_wide_mlp": wide}
    raise keys.error(f"these values of {keys.key('feed_forward_length')} are not supported")


def _gemma4_experts(keys: _Keys) -> Raw:
    if not keys.get("expert_count"):
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": keys.number("expert_count", "num_experts"),
        "top_k_experts": keys.number("expert_used_count", "top_k_experts"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length", "moe_intermediate_size"),
    }


def _qwen35_common(keys: _Keys, model_type: str) -> Raw:
    raw = _common(keys, model_type)
    raw |= _heads(keys, raw)
    extra = keys.number("nextn_predict_layers", "mtp_num_hidden_layers", 0)
    values = keys.number("ssm.time_step_rank", "linear_num_value_heads")
    inner = keys.get("ssm.inner_size")
    if type(inner) is not int or inner < 1 or inner % values:
        stated = f"{keys.key('ssm.inner_size')} is {shown(inner)}"
        raise keys.error(f"{stated}, must be a multiple of {keys.key('ssm.time_step_rank')}, which is {values}")
    if extra >= raw["num_hidden_layers"]:
        raise keys.error(f"{keys.key('nextn_predict_layers')} is {extra}, which leaves no layer for the decoder")
    return raw | {
        # block_count includes the multi-token-prediction layer
        "num_hidden_layers": raw["num_hidden_layers"] - extra,
        "mtp_num_hidden_layers": extra,
        "full_attention_interval": keys.number("full_attention_interval", "full_attention_interval", 4),
        "linear_conv_kernel_dim": keys.number("ssm.conv_kernel", "linear_conv_kernel_dim"),
        "linear_key_head_dim": keys.number("ssm.state_size", "linear_key_head_dim"),
        "linear_num_key_heads": keys.number("ssm.group_count", "linear_num_key_heads"),
        "linear_num_value_heads": values,
        "linear_value_head_dim": keys.checked("ssm.inner_size", "linear_value_head_dim", inner // values),
    }


def _qwen35(keys: _Keys) -> Raw:
    return _qwen35_common(keys, "qwen3_5_text") | _width(keys)


def _qwen35moe(keys: _Keys) -> Raw:
    return _qwen35_common(keys, "qwen3_5_moe_text") | {
        "num_experts": keys.number("expert_count", "num_experts"),
        "num_experts_per_tok": keys.number("expert_used_count", "num_experts_per_tok"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length", "moe_intermediate_size"),
        "shared_expert_intermediate_size": keys.number(
            "expert_shared_feed_forward_length", "shared_expert_intermediate_size"
        ),
    }


def _llama4(keys: _Keys) -> Raw:
    raise keys.error("not supported yet: the file does not say which layers use chunked attention, or the chunk size")


ARCHITECTURES: dict[str, Callable[[_Keys], Raw]] = {
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "gpt-oss": _gpt_oss,
    "llama": _llama,
    "llama4": _llama4,
    "mistral3": _mistral3,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "qwen35": _qwen35,
    "qwen35moe": _qwen35moe,
}


def _types(pattern: list[Any]) -> list[str]:
    return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]


def _kv_heads(keys: _Keys, types: list[str], heads: int) -> dict[str, int]:
    """K/V heads by layer type. The file states them once or per layer; without them they equal the query heads."""
    name = "attention.head_count_kv"
    value = keys.get(name, heads)
    values = value if isinstance(value, list) else [value] * len(types)
    if len(values) != len(types):
        raise keys.error(f"{keys.key(name)} has {len(values)} entries, but {keys.key('block_count')} is {len(types)}")
    found = dict(zip(types, values, strict=True))
    if any(found[kind] != count for kind, count in zip(types, values, strict=True)):
        raise keys.error(f"{keys.key(name)} differs between layers of one type")
    keys.names["num_key_value_heads"] = keys.key(name)
    return {kind: keys.checked(name, "num_key_value_heads", count) for kind, count in found.items()}
