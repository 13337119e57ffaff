"""One decoder layer: how it mixes tokens, its feed-forward part, its weights, and what both cost.

FLOPs count multiply and add as two and leave out what is element-wise (norms, activations, RoPE, softmax), as
``torch.utils.flop_counter`` does. Depth is the number of tokens a sequence has in the cache, the newest included.
Cache rules are those of transformers 5.23, ``cache_utils.py``, after at least one decode step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from profiler.models.weight import Weight

DELTA_CHUNK = 64  # tokens per chunk of the gated delta rule; transformers and flash-linear-attention agree
RECURRENT_BYTES = 4  # transformers, llama.cpp and vLLM all keep the recurrent state in fp32 whatever the dtype

Span = tuple[int, int]
"""Tokens before a prefill chunk, and tokens in it."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What a runtime does that changes the amount of work, not its result."""

    chunk: int | None = None  # tokens per sequence and prefill pass; None: the whole context in one
    skips_masked: bool = True  # attention leaves out masked blocks (flash kernels); False: full rectangles
    trims_shared: bool = True  # prefill sends only the last token of a chunk through shared-KV layers
    every_expert: bool = False  # layers that mark themselves ``batched`` multiply each token with every expert

    def spans(self, context: int) -> tuple[Span, ...]:
        """The prefill passes over ``context`` tokens."""
        size = self.chunk or max(context, 1)
        return tuple((start, min(size, context - start)) for start in range(0, context, size))


IDEAL = Execution()


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with grouped K/V heads.

    ``window`` counts the tokens a query sees, itself included (sliding), or the length of the chunk that it cannot
    look out of (chunked, Llama 4). A layer that does not own its cache reads the K/V of an earlier layer.
    """

    kind: Literal["full", "sliding", "chunked"]
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    owns_cache: bool = True

    def held(self, depth: int) -> int:
        """Tokens whose K/V one decode step at ``depth`` reads.

        transformers keeps ``window - 1`` tokens between steps and appends the new one (DynamicSlidingWindowLayer);
        chunked layers use the same class, so they hold tokens of the last chunk that their mask then hides.
        """
        return depth if self.window is None else min(depth, self.window)

    def read_elements(self, depth: int) -> int:
        """K and V elements of one sequence that a decode step reads."""
        return 2 * self.kv_heads * self.head_dim * self.held(depth)

    def cache_elements(self, depth: int) -> int:
        """K and V elements of one sequence that this layer itself keeps."""
        return self.read_elements(depth) if self.owns_cache else 0

    def flops_of(self, pairs: int) -> int:
        """Scores and weighted sum for ``pairs`` of a query and a key: 2 × 2 × heads × head_dim each."""
        return 4 * self.heads * self.head_dim * pairs

    def decode_flops(self, depth: int) -> int:
        """One token of one sequence, against everything that is held."""
        return self.flops_of(self.held(depth))

    def prefill_flops(self, spans: Sequence[Span], how: Execution) -> int:
        """One sequence."""
        return self.flops_of(sum(self._pairs(start, tokens, how) for start, tokens in spans))

    def _pairs(self, start: int, tokens: int, how: Execution) -> int:
        """(query, key) pairs that are multiplied for one chunk of ``tokens`` after ``start`` others."""
        last_only = how.trims_shared and not self.owns_cache
        if not how.skips_masked:
            before = start if self.window is None else min(start, self.window - 1)
            return (1 if last_only else tokens) * (before + tokens)
        end = start + tokens
        return self._seen(end) - self._seen(end - 1 if last_only else start)

    def _seen(self, tokens: int) -> int:
        """Pairs that the mask allows among the first ``tokens`` positions."""
        if self.window is None:
            return _triangle(tokens)
        if self.kind == "chunked":
            whole, rest = divmod(tokens, self.window)
            return whole * _triangle(self.window) + _triangle(rest)
        head = min(tokens, self.window)
        return _triangle(head) + (tokens - head) * self.window


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """Gated DeltaNet (arXiv:2412.06464): a matrix ``key_dim × value_dim`` per value head instead of a growing cache.

    A causal convolution of width ``kernel`` runs over queries, keys and values first, and keeps its last inputs.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    kind: Literal["gated delta"] = "gated delta"

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def conv_elements(self) -> int:
        """Per sequence, in the compute dtype. transformers keeps ``kernel`` columns, llama.cpp ``kernel - 1``."""
        return self.channels * self.kernel

    @property
    def recurrent_elements(self) -> int:
        """Per sequence, always fp32."""
        return self.value_heads * self.key_dim * self.value_dim

    def decode_flops(self, depth: int) -> int:
        """One token, at any depth: decay (1), read by key (2), rank-one update (2), read by query (2) per element.

        ``FlopCounterMode`` sees none of it in transformers' reference, where it is element-wise.
        """
        return 7 * self.recurrent_elements

    def prefill_flops(self, spans: Sequence[Span], how: Execution) -> int:
        """One sequence, by chunks of C = 64 (padded up), with K = key_dim and V = value_dim, per value head:

        C²K each for K·Kᵀ and Q·Kᵀ, C²V for scores × values, CKV each for reading the state by key and by query and
        for updating it (all × 2), and the two triangular solves, C²(K + V), which ``FlopCounterMode`` does not count.
        """
        chunks = sum(-(-tokens // DELTA_CHUNK) for _, tokens in spans)
        return chunks * (self.matmul_flops_per_chunk + self.solve_flops_per_chunk)

    @property
    def matmul_flops_per_chunk(self) -> int:
        """The matrix products of one chunk, all value heads."""
        within = DELTA_CHUNK**2 * (4 * self.key_dim + 2 * self.value_dim)
        return self.value_heads * within + 6 * DELTA_CHUNK * self.recurrent_elements

    @property
    def solve_flops_per_chunk(self) -> int:
        """The two unit-triangular solves of one chunk, all value heads."""
        return self.value_heads * DELTA_CHUNK**2 * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class Dense:
    """A gated feed-forward layer that every token goes through."""

    width: int
    kind: Literal["dense"] = "dense"


@dataclass(frozen=True, slots=True)
class Experts:
    """``count`` experts of which a token takes ``top_k``, beside a part of ``shared_width`` that all tokens take."""

    count: int
    top_k: int
    width: int
    shared_width: int  # 0: no shared expert
    batched: bool = False  # transformers multiplies every token with every expert here (Llama 4: one bmm over all)
    kind: Literal["experts"] = "experts"

    def touched(self, tokens: int) -> float:
        """Experts that ``tokens`` tokens are expected to use, choosing independently: E·(1 − (1 − k/E)^n)."""
        return self.count * (1 - (1 - self.top_k / self.count) ** tokens)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. Equal layers compare equal, so that costs are worked out once per kind."""

    mixer: Attention | GatedDelta
    mlp: Dense | Experts
    weights: tuple[Weight, ...]
    parameters: int = field(init=False, compare=False, repr=False)
    routed: int = field(init=False, compare=False, repr=False)  # elements in expert tensors
    multiplied: int = field(init=False, compare=False, repr=False)  # elements each token is multiplied with

    def __post_init__(self) -> None:
        def total(*roles: str) -> int:
            return sum(weight.parameters for weight in self.weights if weight.role in roles)

        object.__setattr__(self, "parameters", sum(weight.parameters for weight in self.weights))
        object.__setattr__(self, "routed", total("experts"))
        object.__setattr__(self, "multiplied", total("linear", "router", "conv"))

    @property
    def kind(self) -> str:
        """``full``, ``sliding``, ``chunked`` or ``gated delta``; ``shared`` in front when the cache is another's."""
        shared = isinstance(self.mixer, Attention) and not self.mixer.owns_cache
        return f"shared {self.mixer.kind}" if shared else self.mixer.kind

    def decode_flops(self, depth: int, batch: int, how: Execution = IDEAL) -> float:
        """One decode step of ``batch`` sequences at ``depth``."""
        return batch * (self._multiply_flops(how) + self.mixer.decode_flops(depth))

    def prefill_flops(self, spans: Sequence[Span], batch: int, how: Execution = IDEAL) -> float:
        """All passes of a prefill of ``batch`` sequences."""
        tokens = sum(self.tokens_through(tokens, how) for _, tokens in spans)
        return batch * (tokens * self._multiply_flops(how) + self.mixer.prefill_flops(spans, how))

    def tokens_through(self, tokens: int, how: Execution = IDEAL) -> int:
        """Tokens of a prefill chunk that go through this layer's weights.

        Only the last does where K/V are shared: nothing after it reads the others' results (transformers,
        ``Gemma4TextModel._maybe_slice_kv_shared_inputs``, with one logit asked for).
        """
        trimmed = how.trims_shared and isinstance(self.mixer, Attention) and not self.mixer.owns_cache
        return min(tokens, 1) if trimmed else tokens

    def expert_share(self, tokens: int, how: Execution = IDEAL) -> float:
        """Part of the expert tensors that a pass over ``tokens`` tokens is expected to read."""
        if isinstance(self.mlp, Dense):
            return 0.0
        if how.every_expert and self.mlp.batched:
            return 1.0
        return self.mlp.touched(tokens) / self.mlp.count

    def _multiply_flops(self, how: Execution) -> float:
        """One token through the weights: two per element, experts by the part that is used."""
        if isinstance(self.mlp, Dense):
            return 2 * self.multiplied
        whole = how.every_expert and self.mlp.batched
        return 2 * (self.multiplied + self.routed * (1 if whole else self.mlp.top_k / self.mlp.count))
