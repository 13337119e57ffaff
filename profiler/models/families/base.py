"""Code that the families share: attention projections, weights outside the layers, and checks of fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from profiler.models.config import Config, shown
from profiler.models.geometry import EMBEDDING, HEAD, Geometry
from profiler.models.layers import Attention, Experts, Layer, Weight, linear, norm

ACTIVATIONS = [
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "prelu",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "sqrtsoftplus",
    "swish",
    "tanh",
    "xielu",
]
"""Names in transformers' ``ACT2FN``."""
OLDER_TYPES = {"attention": "full_attention", "mamba": "linear_attention"}
"""Older names of layer types, which transformers still accepts."""
LAYER_TYPES = ("full_attention", "sliding_attention")
DTYPES = [
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "half",
    "float",
    "double",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
]
"""Number types of torch; transformers fails to read a config with any other."""


MAX_LABELS = 2**17  # of a classifier; transformers creates a name for each


def check_common(config: Config, activation: str, *, allow: Collection[str] = ()) -> None:
    """ProfileError for settings that no family supports, or that transformers cannot build.

    ``activation`` is the family's name of that field; ``allow`` names settings that this family does support.
    """
    name = config.value(activation)
    if name not in ACTIVATIONS:
        raise config.refused(activation, f"one of {', '.join(ACTIVATIONS)}")
    check_padding(config, "vocab_size")
    if config.raw.get("is_encoder_decoder"):
        raise config.error("is_encoder_decoder is true: only causal decoders are supported")
    if "per_layer_config" not in allow and config.part("per_layer_config"):
        raise config.error(f"per_layer_config: layers of different shapes are not supported for {config.model_type}")


def check_any(config: Config) -> None:
    """ProfileError for fields that transformers' config classes use before checking them."""
    name = "dtype" if "dtype" in config else "torch_dtype"
    if name in config and config.raw[name] not in DTYPES:
        raise config.refused(name, f"one of {', '.join(DTYPES)}")
    labels, count = config.part("id2label"), config.raw.get("num_labels")
    if labels is not None and not all(re.fullmatch(r"\s*-?\d{1,9}\s*", str(key)) for key in labels):
        raise config.error("id2label must be an object with whole numbers as keys")
    if count is not None and (type(count) is not int or not 0 <= count <= MAX_LABELS):
        raise config.refused("num_labels", f"a whole number from 0 to {MAX_LABELS}")


def check_rotary(config: Config, name: str, head_dim: int) -> None:
    """ProfileError for a head with an odd number of channels, since RoPE rotates pairs."""
    if head_dim % 2:
        raise config.error(f"{config.named(name)} is {head_dim}, must be even for RoPE")


def attention_weights(
    attention: Attention,
    hidden: int,
    *,
    bias: bool = False,
    output_bias: bool | None = None,
    gated: bool = False,
    qk_norm: bool = False,
) -> tuple[Weight, ...]:
    """Query, key, value and output projections; if ``gated``, the query projection also computes the output gate.

    ``output_bias``: whether the output projection has a bias, if it differs from the others.
    """
    queries = attention.heads * attention.head_dim
    keys = attention.kv_heads * attention.head_dim
    norms = (norm("self_attn.q_norm", attention.head_dim), norm("self_attn.k_norm", attention.head_dim))
    return (
        *linear("self_attn.q_proj", queries * (2 if gated else 1), hidden, bias),
        *linear("self_attn.k_proj", keys, hidden, bias),
        *linear("self_attn.v_proj", keys, hidden, bias),
        *linear("self_attn.o_proj", hidden, queries, bias if output_bias is None else output_bias),
        *(norms if qk_norm else ()),
    )


def check_padding(config: Config, size: str) -> None:
    """ProfileError unless the padding token is a row of the table whose number of rows is in the field ``size``."""
    rows, padding = config.number(size), config.value("pad_token_id")
    if padding is not None and not -rows <= padding < rows:
        raise config.error(f"pad_token_id is {shown(padding)}, which is not in the vocabulary of {rows} ({size})")


def tables(vocab: int, hidden: int, tied: bool) -> tuple[Weight, ...]:
    """Embedding, final norm and, unless tied, the output projection."""
    head = () if tied else (Weight("head", (vocab, hidden), HEAD),)
    return (Weight("embedding", (vocab, hidden), EMBEDDING), norm("model.norm", hidden), *head)


def pre_norms(hidden: int) -> tuple[Weight, ...]:
    """The two norms of a pre-norm layer."""
    return norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden)


def layers(kinds: Sequence[str], build: Callable[[str], Layer]) -> tuple[Layer, ...]:
    """One layer per entry of ``kinds``; each kind is built once."""
    built = {kind: build(kind) for kind in dict.fromkeys(kinds)}
    return tuple(built[kind] for kind in kinds)


def every_nth_full(count: int, interval: int, other: str) -> list[str]:
    """``layer_types`` in which each ``interval``-th layer uses full attention and the others are ``other``."""
    return [other if (index + 1) % interval else "full_attention" for index in range(count)]


def refuse_bidirectional(config: Config) -> None:
    """ProfileError for encoders built from a decoder's layers, which have no cache and no decode."""
    if config.raw.get("use_bidirectional_attention") in (True, "all"):
        raise config.error("use_bidirectional_attention: only causal decoders are supported")


def head_dim(config: Config) -> int:
    """The size of a head: the field ``head_dim``, or else the hidden size divided among the heads."""
    size = config.optional("head_dim") or config.number("hidden_size") // config.number("num_attention_heads")
    check_rotary(config, "head_dim", size)
    return size


def grouped(config: Config, window: int | None, size: int) -> Attention:
    """Attention with K/V heads that divide the query heads; it slides if it has a ``window``."""
    heads = config.number("num_attention_heads")
    kv_heads = config.optional("num_key_value_heads") or heads
    config.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    return Attention("full" if window is None else "sliding", heads, kv_heads, size, window)


def refuse_layer_types(config: Config, window: int | None) -> None:
    """ProfileError for layers of several types in a family whose layers are all alike.

    transformers would build its cache by these fields, although the model's attention ignores them.
    """
    own = "full_attention" if window is None else "sliding_attention"
    given = config.names_of("layer_types", config.number("num_hidden_layers"), LAYER_TYPES, OLDER_TYPES)
    if "attention_chunk_size" in config or (given is not None and set(given) != {own}):
        what = "attention_chunk_size" if "attention_chunk_size" in config else "layer_types"
        raise config.error(f"{what}: all layers of {config.model_type} have {own.replace('_', ' ')}; set it to null")


def experts_field(config: Config, declared: str) -> str:
    """The field with the number of experts: transformers takes ``num_experts`` and ``num_local_experts`` for the
    same, and the one that its config class does not declare overrides the other.
    """
    (other,) = {"num_experts", "num_local_experts"} - {declared}
    return other if other in config.raw else declared


def fused_experts(name: str, mlp: Experts, hidden: int) -> tuple[Weight, ...]:
    """A router without a bias, and the weights of all experts."""
    return (
        Weight("router", (mlp.count, hidden), f"{name}.gate.weight"),
        Weight("experts", (mlp.count, 2 * mlp.width, hidden), f"{name}.experts.gate_up_proj"),
        Weight("experts", (mlp.count, hidden, mlp.width), f"{name}.experts.down_proj"),
    )


def experts(
    config: Config, *, count: str, top_k: str, width: int, shared_width: int, batched: bool = False
) -> Experts:
    """A mixture of experts; ``count`` and ``top_k`` are the names of the config's fields."""
    number, chosen = config.number(count), config.number(top_k)
    if chosen > number:
        raise config.error(f"{top_k} ({chosen}) is more than {count} ({number})")
    return Experts(number, chosen, width, shared_width, batched)


def decoder(config: Config, model_type: str, layers: Sequence[Layer], max_position: int) -> Geometry:
    """The geometry of a decoder with these layers, and an embedding and a head that may be one table."""
    vocab, hidden, tied = (
        config.number("vocab_size"),
        config.number("hidden_size"),
        config.flag("tie_word_embeddings"),
    )
    return Geometry(
        model_type=model_type,
        layers=tuple(layers),
        vocab=vocab,
        hidden=hidden,
        tied=tied,
        max_position=max_position,
        outside=tables(vocab, hidden, tied),
        cautions=config.cautions,
    )
