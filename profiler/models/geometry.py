"""The shape of a model: all its weights, and the state it keeps per sequence.

A family file (``families/NAME.py``) turns a raw ``config.json`` into a ``Geometry``. A geometry does not depend on a
quantization or a device; ``cost/work.py`` counts the work of a pass with the formulas in ``layers.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from profiler.models.layers import RECURRENT_BYTES, Attention, Layer, Role, Weight

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
DRAFT_LEFT_OUT = "the multi-token-prediction layer of this checkpoint is left out"  # a caution

__all__ = ["DRAFT_LEFT_OUT", "EMBEDDING", "HEAD", "CacheBytes", "Geometry", "Role", "Weight"]


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """The memory of a batch between steps: KV cache and recurrent state."""

    growing: int  # full attention: proportional to depth
    window: int  # sliding and chunked attention: constant once the window is full
    state: int  # gated delta layers: constant

    @property
    def total(self) -> int:
        """Their sum."""
        return self.growing + self.window + self.state


@dataclass(frozen=True, slots=True)
class Geometry:
    """A causal decoder. ``outside`` are the weights that belong to no layer, without a tied head."""

    model_type: str
    layers: tuple[Layer, ...]
    vocab: int
    hidden: int
    tied: bool
    max_position: int  # tokens; max_position_embeddings
    outside: tuple[Weight, ...]
    draft: Geometry | None = None  # multi-token-prediction layers, without the head, which they share
    cautions: tuple[str, ...] = ()  # parts of the checkpoint that are left out, for the user
    groups: tuple[tuple[Layer, int], ...] = field(init=False, compare=False, repr=False)
    parameters: int = field(init=False, compare=False, repr=False)
    _hash: int = field(init=False, compare=False, repr=False)  # computed once: caches of predictions look it up often

    def __post_init__(self) -> None:
        weights = self.layers, self.outside, self.draft
        others = self.model_type, self.vocab, self.hidden, self.tied, self.max_position, self.cautions
        object.__setattr__(self, "_hash", hash((weights, others)))
        groups = tuple(Counter(self.layers).items())
        inside = sum(layer.parameters * count for layer, count in groups)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "parameters", inside + sum(weight.parameters for weight in self.outside))

    def __hash__(self) -> int:
        return self._hash

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses: no lookup tables, and only top-k of the experts.

        A tied embedding counts, because it is the head.
        """
        tables = self.vocab * self.hidden if self.tied else 0
        inside = sum(count * layer.active for layer, count in self.groups)
        return round(inside + tables + sum(w.parameters for w in self.outside if w.role != "embedding"))

    def without_windows(self) -> Geometry:
        """The same model with full attention in its sliding layers; itself if it has none."""
        if not any(layer.kind == "sliding" for layer, _ in self.groups):
            return self
        full = {layer: layer.without_window() for layer, _ in self.groups}
        return replace(self, layers=tuple(full[layer] for layer in self.layers))

    def layer_kinds(self) -> dict[str, int]:
        """Number of layers of each kind, in order of first appearance."""
        return dict(Counter(layer.kind for layer in self.layers))

    def weights(self) -> Iterator[Weight]:
        """Each stored tensor once, in the order of the layers."""
        yield from self.outside
        for layer in self.layers:
            yield from layer.weights

    def cache_bytes(self, depth: int, batch: int, element_bytes: float) -> CacheBytes:
        """Storage of transformers' ``DynamicCache`` at ``depth``, after at least one decode step.

        ``element_bytes`` is the size of an element of K, V and the convolution state; the recurrent state is always
        fp32. Right after a prefill, transformers holds more: see ``cost/engines/transformers.py``.
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
