"""One decoder layer: its weights, its token mixer, its feed-forward part, and what each of them costs.

FLOPs count a multiply-add as two and leave out element-wise operations (norms, activations, RoPE, softmax), as
``torch.utils.flop_counter`` does. Depth is the number of tokens that a sequence has in the cache, including the
newest. Cache rules are those of transformers 5.23, ``cache_utils.py``, after at least one decode step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

Role = Literal["embedding", "head", "linear", "experts", "router", "conv", "vector"]

SHARED_CHOICES = 0.75  # exponent: see ``Experts.read_share``
DELTA_CHUNK = 64  # tokens per chunk of the gated delta rule; transformers and flash-linear-attention agree
RECURRENT_BYTES = 4  # transformers, llama.cpp and vLLM all keep the recurrent state in fp32


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored tensor. ``role`` decides how a quantization stores it and how a token reads it.

    embedding: a table of which a token reads one row · head: the output projection (absent when tied) · linear: the
    weight of an ``nn.Linear`` · experts: the fused weights of all experts (first dimension), of which a token reads
    top-k slices · router: the weight that chooses experts, if it is not a plain ``nn.Linear`` · conv: depthwise
    kernel · vector: norms, biases, per-head scalars.
    """

    role: Role
    shape: tuple[int, ...]
    name: str = ""  # the parameter's name in transformers, without ``model.layers.N.``

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def expert_bias(self) -> bool:
        """Whether it holds a bias ``[experts, outputs]``: read like the experts, but added and so never quantized."""
        return self.role == "experts" and len(self.shape) == 2


def linear(name: str, outputs: int, inputs: int, bias: bool = False) -> tuple[Weight, ...]:
    """``nn.Linear``: a weight ``[outputs, inputs]`` and optionally a bias ``[outputs]``."""
    weight = Weight("linear", (outputs, inputs), f"{name}.weight")
    return (weight, Weight("vector", (outputs,), f"{name}.bias")) if bias else (weight,)


def norm(name: str, size: int) -> Weight:
    """The scale of a normalization layer, ``[size]``."""
    return Weight("vector", (size,), f"{name}.weight")


def gated_mlp(name: str, hidden: int, width: int, bias: bool = False) -> tuple[Weight, ...]:
    """Gate, up and down projections of a gated feed-forward layer: ``down(act(gate(x)) * up(x))``."""
    return (
        *linear(f"{name}.gate_proj", width, hidden, bias),
        *linear(f"{name}.up_proj", width, hidden, bias),
        *linear(f"{name}.down_proj", hidden, width, bias),
    )


@dataclass(frozen=True, slots=True)
class Execution:
    """Choices of a runtime that change the amount of work but not the result."""

    skips_masked: bool = True  # attention skips masked blocks (flash kernels); False: it computes full rectangles
    trims_shared: bool = True  # prefill runs only the last token of a pass through shared-KV layers
    every_expert: bool = False  # layers marked ``batched`` multiply each token with every expert

    def tokens_through(self, tokens: int, shares_kv: bool) -> int:
        """Tokens of one sequence's prefill pass that go through the weights of a layer.

        In a layer that shares the K/V of an earlier one, only the last token has to, because nothing reads the
        others' results (transformers, ``Gemma4TextModel._maybe_slice_kv_shared_inputs``, for one row of logits).
        """
        return min(tokens, 1) if self.trims_shared and shares_kv else tokens


IDEAL = Execution()


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with grouped K/V heads.

    In a sliding layer, ``window`` is the number of tokens that a query sees, including itself. In a chunked layer
    (Llama 4) it is the length of a chunk, and a query sees only its own chunk. A layer that does not own its cache
    reads the K/V of an earlier layer.
    """

    kind: Literal["full", "sliding", "chunked"]
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    owns_cache: bool = True

    def held(self, depth: int) -> int:
        """Tokens whose K/V one decode step at ``depth`` reads.

        transformers keeps ``window - 1`` tokens between steps and appends the new one (DynamicSlidingWindowLayer).
        Chunked layers use the same class, so they also hold tokens of the last chunk, which their mask hides.
        """
        return depth if self.window is None else min(depth, self.window)

    def read_elements(self, depth: int) -> int:
        """K and V elements of one sequence that a decode step reads."""
        return 2 * self.kv_heads * self.head_dim * self.held(depth)

    def cache_elements(self, depth: int) -> int:
        """K and V elements of one sequence in this layer's own cache."""
        return self.read_elements(depth) if self.owns_cache else 0

    def flops_of(self, pairs: int) -> int:
        """Scores and weighted sum for a number of (query, key) ``pairs``: 2 × 2 × heads × head_dim each."""
        return 4 * self.heads * self.head_dim * pairs

    def decode_flops(self, depth: int) -> int:
        """One token of one sequence, with all tokens that are held."""
        return self.flops_of(self.held(depth))

    def prefill_flops(self, context: int, chunk: int, how: Execution) -> int:
        """One sequence of ``context`` tokens, in passes of at most ``chunk`` tokens."""
        last_only = how.trims_shared and not self.owns_cache
        if how.skips_masked and not last_only:
            return self.flops_of(self._seen(context))  # the same in any number of passes
        starts = range(0, context, chunk)
        return self.flops_of(sum(self._pairs(start, min(chunk, context - start), last_only, how) for start in starts))

    def prefill_scores(self, context: int, chunk: int, how: Execution) -> int:
        """Scores of all heads that a prefill of one sequence computes: one per query, key and head."""
        return self.prefill_flops(context, chunk, how) // (4 * self.head_dim)

    def _pairs(self, start: int, tokens: int, last_only: bool, how: Execution) -> int:
        """(query, key) pairs that a pass over ``tokens`` tokens computes, after ``start`` earlier ones."""
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

    A causal convolution of width ``kernel`` first runs over queries, keys and values, and keeps its last inputs.
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
        """One token, at any depth. Per element: decay (1), read by key (2), rank-one update (2), read by query (2).

        ``FlopCounterMode`` counts none of it, because transformers' reference code computes it element-wise.
        """
        return 7 * self.recurrent_elements

    def prefill_flops(self, context: int, chunk: int, how: Execution) -> int:
        """One sequence of ``context`` tokens, in passes of at most ``chunk`` tokens.

        A pass is computed in chunks of C = 64 tokens, the last one padded. With K = key_dim and V = value_dim, the
        matrix products of a chunk and value head take C²K each for K·Kᵀ and Q·Kᵀ, C²V for scores × values, and CKV
        each for reading the state by key and by query and for updating it, all × 2. The two triangular solves take
        C²(K + V), which ``FlopCounterMode`` does not count.
        """
        whole, rest = divmod(context, chunk)
        chunks = whole * -(-chunk // DELTA_CHUNK) + -(-rest // DELTA_CHUNK)
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
    """A gated feed-forward layer that every token uses."""

    width: int
    kind: Literal["dense"] = "dense"


@dataclass(frozen=True, slots=True)
class Experts:
    """``count`` experts of which a token uses ``top_k``, and a shared expert of ``shared_width`` for all tokens."""

    count: int
    top_k: int
    width: int
    shared_width: int  # 0: no shared expert
    batched: bool = False  # transformers multiplies every token with every expert (Llama 4: one bmm over all)
    kind: Literal["experts"] = "experts"

    def all_run(self, how: Execution) -> bool:
        """Whether every token is multiplied with every expert."""
        return how.every_expert and self.batched

    def read_share(self, tokens: float, how: Execution = IDEAL) -> float:
        """The expected share of the experts that a pass over ``tokens`` tokens reads, 0..1.

        Tokens that choose independently read 1 − (1 − k/E)^n. Real tokens share their choices, as if there were
        fewer: n^0.75, fitted to the batches of llama-batched-bench in benchmarks/published/more-2026-11.csv.
        """
        if self.all_run(how):
            return 1.0
        unused: float = (1 - self.top_k / self.count) ** (tokens**SHARED_CHOICES if tokens > 1 else tokens)
        return 1 - unused

    def used_share(self, how: Execution = IDEAL) -> float:
        """The share of the experts that one token is multiplied with, 0..1."""
        return 1.0 if self.all_run(how) else self.top_k / self.count


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. Identical layers compare equal, so that costs are computed once per kind."""

    mixer: Attention | GatedDelta
    mlp: Dense | Experts
    weights: tuple[Weight, ...]
    parameters: int = field(init=False, compare=False, repr=False)
    routed: int = field(init=False, compare=False, repr=False)  # elements in expert tensors
    _hash: int = field(init=False, compare=False, repr=False)  # computed once: a layer has a dozen weights

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.mixer, self.mlp, self.weights)))
        routed = sum(weight.parameters for weight in self.weights if weight.role == "experts")
        object.__setattr__(self, "parameters", sum(weight.parameters for weight in self.weights))
        object.__setattr__(self, "routed", routed)

    def __hash__(self) -> int:
        return self._hash

    def without_window(self) -> Layer:
        """The same layer with full attention, if it slides."""
        if not isinstance(self.mixer, Attention) or self.mixer.kind != "sliding":
            return self
        return replace(self, mixer=replace(self.mixer, kind="full", window=None))

    @property
    def kind(self) -> str:
        """``full``, ``sliding``, ``chunked`` or ``gated delta``; ``shared`` comes first if it has no own cache."""
        return f"shared {self.mixer.kind}" if self.shares_kv else self.mixer.kind

    @property
    def shares_kv(self) -> bool:
        """Whether its attention reads the K and V of an earlier layer."""
        return isinstance(self.mixer, Attention) and not self.mixer.owns_cache

    @property
    def active(self) -> float:
        """Parameters that one token uses; of the experts, only the chosen ones."""
        chosen = self.mlp.used_share() if isinstance(self.mlp, Experts) else 1.0
        return self.parameters - self.routed * (1 - chosen)
