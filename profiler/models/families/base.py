"""What the families share: attention projections, tables outside the layers, and which part of a config counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from profiler.models.config import Config
from profiler.models.geometry import EMBEDDING, HEAD
from profiler.models.layers import Attention, Experts, Layer
from profiler.models.weight import Weight, linear, norm

TIED = "tie_word_embeddings"
TOWERS = {"vision_config": "vision", "audio_config": "audio"}


def text_part(raw: Mapping[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """The config of the text decoder, and cautions on what else the checkpoint holds.

    Whether the head is tied may be said outside ``text_config`` only; transformers' text classes would not see it.
    """
    outer = Config(raw)
    inner = outer.part("text_config")
    if inner is None:
        return outer, ()
    towers = " and ".join(word for key, word in TOWERS.items() if outer.part(key))
    left_out = f"text tower only: the {towers} tower is left out" if towers else "text tower only"
    return Config({TIED: raw.get(TIED)} | dict(inner), "text_config"), (left_out,)


def attention_weights(
    attention: Attention, hidden: int, *, bias: bool = False, gated: bool = False, qk_norm: bool = False
) -> tuple[Weight, ...]:
    """Query, key, value and output projections; a ``gated`` one makes its output gate in the query projection."""
    queries = attention.heads * attention.head_dim
    keys = attention.kv_heads * attention.head_dim
    norms = (norm("self_attn.q_norm", attention.head_dim), norm("self_attn.k_norm", attention.head_dim))
    return (
        *linear("self_attn.q_proj", queries * (2 if gated else 1), hidden, bias),
        *linear("self_attn.k_proj", keys, hidden, bias),
        *linear("self_attn.v_proj", keys, hidden, bias),
        *linear("self_attn.o_proj", hidden, queries, bias),
        *(norms if qk_norm else ()),
    )


def tables(vocab: int, hidden: int, tied: bool) -> tuple[Weight, ...]:
    """Embedding, final norm and, unless it is the embedding itself, the output projection."""
    head = () if tied else (Weight("head", (vocab, hidden), HEAD),)
    return (Weight("embedding", (vocab, hidden), EMBEDDING), norm("model.norm", hidden), *head)


def pre_norms(hidden: int) -> tuple[Weight, ...]:
    """The two norms of a pre-norm layer."""
    return norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden)


def layers(kinds: Sequence[str], build: Callable[[str], Layer]) -> tuple[Layer, ...]:
    """A layer for each entry of ``kinds``, each kind built once."""
    built = {kind: build(kind) for kind in dict.fromkeys(kinds)}
    return tuple(built[kind] for kind in kinds)


def every_nth_full(count: int, interval: int, other: str) -> list[str]:
    """``layer_types`` where each ``interval``-th layer attends in full and the rest are of kind ``other``."""
    return [other if (index + 1) % interval else "full_attention" for index in range(count)]


def refuse_bidirectional(config: Config) -> None:
    """ProfileError for encoders built from a decoder's layers: no cache, no decode."""
    if config.raw.get("use_bidirectional_attention") in (True, "all"):
        raise config.error("use_bidirectional_attention: no rule for an encoder, only for causal decoders")


def experts(
    config: Config, *, count: str, top_k: str, width: int, shared_width: int, batched: bool = False
) -> Experts:
    """A mixture of experts; ``count`` and ``top_k`` are the config's names for them."""
    number, chosen = config.number(count), config.number(top_k)
    if chosen > number:
        raise config.error(f"{top_k} ({chosen}) is more than {count} ({number})")
    return Experts(number, chosen, width, shared_width, batched)
