"""The shape of a model: every weight, what it keeps per sequence, and the work of a pass.

A family file (``families/NAME.py``) turns a raw ``config.json`` into a ``Geometry``. Everything that follows from
shapes alone is derived here; nothing here knows a quantization's bytes or a device's speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from profiler.models.layers import IDEAL, RECURRENT_BYTES, Attention, Execution, Layer
from profiler.models.weight import Role, Weight

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

__all__ = ["EMBEDDING", "HEAD", "CacheBytes", "Geometry", "Read", "Role", "Weight"]


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """What the sequences of a batch keep between steps."""

    growing: int  # full attention: in proportion to depth
    window: int  # sliding and chunked attention: constant beyond the window
    state: int  # gated delta: constant

    @property
    def total(self) -> int:
        """All of it."""
        return self.growing + self.window + self.state


@dataclass(frozen=True, slots=True)
class Read:
    """``count`` equal weights, of each of which a pass reads the part ``share``."""

    weight: Weight
    count: int
    share: float  # 0..1; an expectation for experts

    @property
    def elements(self) -> float:
        """Elements read from all of them together."""
        return self.weight.parameters * self.count * self.share


@dataclass(frozen=True, slots=True)
class Geometry:
    """A causal decoder. ``outside`` are the weights that belong to no layer; a tied head is not among them."""

    model_type: str
    layers: tuple[Layer, ...]
    vocab: int
    hidden: int
    tied: bool
    max_position: int  # tokens; max_position_embeddings
    outside: tuple[Weight, ...]
    cautions: tuple[str, ...] = ()  # what of the checkpoint is left out, in words
    groups: tuple[tuple[Layer, int], ...] = field(init=False, compare=False, repr=False)
    parameters: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        groups = tuple(Counter(self.layers).items())
        inside = sum(layer.parameters * count for layer, count in groups)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "parameters", inside + sum(weight.parameters for weight in self.outside))

    @property
    def active_parameters(self) -> int:
        """Parameters one token is multiplied with or scaled by: no lookup tables, top-k of the experts.

        A tied embedding counts, because it is the head.
        """
        tables = self.vocab * self.hidden if self.tied else 0
        inside = sum(
            count * (layer.parameters - layer.routed + layer.routed * layer.expert_share(1))
            for layer, count in self.groups
        )
        return round(inside + tables + sum(w.parameters for w in self.outside if w.role != "embedding"))

    def layer_kinds(self) -> dict[str, int]:
        """Number of layers of each kind, in order of first appearance."""
        return dict(Counter(layer.kind for layer in self.layers))

    def weights(self) -> Iterator[Weight]:
        """Each stored tensor once, in the order of the model's depth; a tied head is not stored."""
        yield from self.outside
        for layer in self.layers:
            yield from layer.weights

    def counted_weights(self) -> Iterator[tuple[Weight, int]]:
        """The same as ``weights``, equal ones together: (weight, how many). For sums over many models."""
        yield from ((weight, 1) for weight in self.outside)
        for layer, count in self.groups:
            yield from ((weight, count) for weight in layer.weights)

    def cache_bytes(self, depth: int, batch: int, element_bytes: float) -> CacheBytes:
        """Storages of transformers' ``DynamicCache`` at ``depth`` after at least one decode step.

        ``element_bytes`` is that of K, V and the convolution's state; the recurrent state is fp32 in any dtype.
        Right after a prefill transformers holds more: see the ``transformers`` engine.
        """
        growing = window = recurrent = conv = 0
        for layer, count in self.groups:
            mixer = layer.mixer
            if not isinstance(mixer, Attention):
                recurrent += count * mixer.recurrent_elements
                conv += count * mixer.conv_elements
            elif mixer.window is None:
                growing += count * mixer.cache_elements(depth)
            else:
                window += count * mixer.cache_elements(depth)
        state = recurrent * RECURRENT_BYTES + conv * element_bytes
        return CacheBytes(
            growing=round(batch * growing * element_bytes),
            window=round(batch * window * element_bytes),
            state=round(batch * state),
        )

    def decode_cache_elements(self, depth: int, batch: int) -> int:
        """K and V elements that one decode step reads, those of shared layers included; without state."""
        return batch * sum(
            count * layer.mixer.read_elements(depth)
            for layer, count in self.groups
            if isinstance(layer.mixer, Attention)
        )

    def decode_flops(self, depth: int, batch: int, how: Execution = IDEAL) -> float:
        """One decode step of ``batch`` sequences; ``depth`` includes the token of this step."""
        layers = sum(count * layer.decode_flops(depth, batch, how) for layer, count in self.groups)
        return layers + batch * (self._outside_flops + self._head_flops)

    def prefill_flops(self, context: int, batch: int, how: Execution = IDEAL) -> float:
        """A prefill of ``context`` tokens a sequence, one row of logits per sequence and pass."""
        spans = how.spans(context)
        layers = sum(count * layer.prefill_flops(spans, batch, how) for layer, count in self.groups)
        return layers + batch * (context * self._outside_flops + len(spans) * self._head_flops)

    def reads(self, tokens: int, sequences: int | None = None, how: Execution = IDEAL) -> Iterator[Read]:
        """What a pass reads of each weight: a decode step of ``tokens`` sequences, or a prefill pass.

        ``tokens`` counts all sequences; ``sequences`` is given for a prefill pass, where only so many tokens go
        through the shared-KV layers. Rows of a table are taken to be all different.
        """
        for weight in self.outside:
            table = weight.role == "embedding" and not (self.tied and weight.name == EMBEDDING)
            yield Read(weight, 1, min(1.0, tokens / weight.shape[0]) if table else 1.0)
        for layer, count in self.groups:
            per_sequence = layer.tokens_through(tokens // sequences, how) if sequences else tokens
            share = layer.expert_share(per_sequence * (sequences or 1), how)
            for weight in layer.weights:
                yield Read(weight, count, share if weight.role == "experts" else 1.0)

    def decode_weight_elements(self, batch: int, how: Execution = IDEAL) -> float:
        """Weight elements that one decode step of ``batch`` sequences reads."""
        return sum(read.elements for read in self.reads(batch, how=how))

    def prefill_weight_elements(self, context: int, batch: int, how: Execution = IDEAL) -> float:
        """Weight elements that all passes of a prefill read together."""
        passes = Counter(tokens for _, tokens in how.spans(context))
        return sum(
            count * read.elements
            for tokens, count in passes.items()
            for read in self.reads(tokens * batch, batch, how)
        )

    @property
    def _head_flops(self) -> int:
        return 2 * self.vocab * self.hidden

    @property
    def _outside_flops(self) -> int:
        """One token through the linear layers that belong to no decoder layer."""
        return sum(2 * weight.parameters for weight in self.outside if weight.role == "linear")
