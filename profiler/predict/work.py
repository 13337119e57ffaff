"""What a pass of a model has to do on a device: bytes to read and FLOPs to compute, part by part.

Work depends on model, storage, context and batch, not on the device: it is worked out once and timed for many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profiler.models.geometry import Geometry
from profiler.models.layers import IDEAL, Attention, Execution, GatedDelta
from profiler.predict.storage import Part, Storage

Kind = Literal["weights", "cache", "state"]
STATE_TOUCHES = 2  # a recurrent state is read and written back
RECURRENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One term of the sum. ``flops`` are those of matrix products; ``scheme`` is the format of what is read."""

    part: str  # a Part of the storage, or the kind of layer whose cache it is
    kind: Kind
    scheme: str
    nbytes: float
    flops: float


@dataclass(frozen=True, slots=True)
class Work:
    """``passes`` passes over the model, all items together. ``tokens`` go through it in each, of all sequences."""

    items: tuple[Item, ...]
    passes: int
    tokens: float  # per pass
    layers: int
    expert_layers: int
    delta_layers: int

    @property
    def nbytes(self) -> float:
        """Bytes read."""
        return sum(item.nbytes for item in self.items)

    @property
    def flops(self) -> float:
        """FLOPs of matrix products."""
        return sum(item.flops for item in self.items)


@dataclass(frozen=True, slots=True)
class Manner:
    """What of a runtime changes the amount of work."""

    ubatch: int  # tokens of a sequence in one prefill pass
    cache_bytes: float  # per element of K and V
    cache_touches: float = 1.0  # how often a decode step goes over the cache: 3 where appending copies it
    how: Execution = IDEAL


def decode(geometry: Geometry, storage: Storage, depth: int, batch: int, manner: Manner) -> Work:
    """One decode step of ``batch`` sequences; ``depth`` counts the token of this step."""
    items = [
        Item(line.part, "weights", line.scheme, line.nbytes * line.share(batch), 2 * line.used * batch)
        for line in storage.read
    ]
    for layer, count in geometry.groups:
        mixer = layer.mixer
        if isinstance(mixer, GatedDelta):
            state = STATE_TOUCHES * RECURRENT_BYTES * mixer.recurrent_elements
            items.append(
                Item(layer.kind, "state", "fp32", count * batch * state, count * batch * mixer.decode_flops(depth))
            )
        else:
            read = mixer.read_elements(depth) * manner.cache_bytes * manner.cache_touches
            flops = mixer.decode_flops(depth)
            items.append(Item(layer.kind, "cache", "cache", count * batch * read, count * batch * flops))
    return _work(geometry, items, 1, batch)


def prefill(geometry: Geometry, storage: Storage, context: int, batch: int, manner: Manner) -> Work:
    """All passes of a prefill of ``context`` tokens a sequence, with one row of logits a sequence and pass."""
    chunk = max(1, min(manner.ubatch, context))
    whole, rest = divmod(context, chunk)
    sizes = [(chunk, whole), (rest, 1)] if rest else [(chunk, whole)]
    passes = whole + bool(rest)
    items = []
    for line in storage.read:
        through = passes if manner.how.trims_shared and line.shared_kv else context
        rows = passes if line.part == "head" else through
        share = sum(count * line.share(size * batch) for size, count in sizes)
        items.append(Item(line.part, "weights", line.scheme, line.nbytes * share, 2 * line.used * rows * batch))
    spans = ((0, context),) if manner.how.skips_masked else Execution(chunk=chunk).spans(context)
    for layer, count in geometry.groups:
        flops = count * batch * layer.mixer.prefill_flops(spans, manner.how)
        if isinstance(layer.mixer, Attention):
            read = sum(layer.mixer.read_elements(chunk * (n + 1)) for n in _few(passes)) / len(_few(passes))
            nbytes = count * batch * passes * read * manner.cache_bytes
            items.append(Item(layer.kind, "cache", "cache", nbytes, flops))
        else:
            state = STATE_TOUCHES * RECURRENT_BYTES * layer.mixer.recurrent_elements
            items.append(Item(layer.kind, "state", "fp32", count * batch * passes * state, flops))
    return _work(geometry, items, passes, context * batch / passes)


def _few(passes: int) -> tuple[int, ...]:
    """First, middle and last pass: enough to average what grows in a straight line."""
    return (0, (passes - 1) // 2, passes - 1)


def _work(geometry: Geometry, items: list[Item], passes: int, tokens: float) -> Work:
    experts = sum(count for layer, count in geometry.groups if layer.mlp.kind == "experts")
    delta = sum(count for layer, count in geometry.groups if layer.kind == "gated delta")
    return Work(tuple(items), passes, tokens, len(geometry.layers), experts, delta)


__all__ = ["Item", "Kind", "Manner", "Part", "Work", "decode", "prefill"]
