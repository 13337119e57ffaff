"""A model as a runtime stores it, in few lines: what each part of it weighs, in which format, and where it lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from profiler.cost.interval import Interval, exact
from profiler.models.geometry import EMBEDDING, HEAD, Geometry
from profiler.models.layers import IDEAL, Attention, Execution, Experts, Layer, Weight
from profiler.models.stored import Stored
from profiler.quants.base import DTYPE_BYTES

Part = Literal["attention", "delta", "mlp", "experts", "head", "tables", "other"]
LARGE_BYTES = 32 * 1024**2  # from where glibc maps fresh pages for every tensor
UNPACKED_BYTES = 4  # of an element: fp32
# Bytes that follow from what a config says of its quantization: it does not state all of padding, zero points, scales
# of 16 or 32 bits, and modules that were left alone.
DERIVED = (0.94, 1.1)
PARTS: tuple[Part, ...] = ("attention", "delta", "mlp", "experts", "head", "tables", "other")


@dataclass(frozen=True, slots=True)
class Held:
    """``count`` equal tensors in the format ``scheme``, ``nbytes`` all together."""

    weight: Weight
    layer: Layer | None  # None: outside the layers
    count: int
    scheme: str
    nbytes: int
    on_host: bool = False
    fused: bool = False  # multiplied as it is packed, without a matrix of its values in between


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """The tensors of one part in one format."""

    part: Part
    scheme: str
    experts: Experts | None  # of which a pass reads a part
    shared_kv: bool  # in layers that read an earlier layer's cache: a prefill may send one token through them
    on_host: bool
    elements: int = 0
    nbytes: int = 0
    outputs: int = 0  # features that its matrices give, all together
    count: int = 0  # of its tensors
    large: int = 0  # elements of those that no heap keeps room for, unpacked

    def whole(self, how: Execution) -> bool:
        """Whether every token is multiplied with all of it: no experts, or a runtime that runs all of them."""
        return self.experts is None or self.experts.all_run(how)

    def share(self, tokens: float, how: Execution = IDEAL) -> float:
        """The part that a pass over ``tokens`` tokens is expected to read."""
        return 1.0 if self.experts is None else self.experts.read_share(tokens, how)

    @property
    def packed(self) -> bool:
        """Whether its format is more than a dtype."""
        return self.scheme not in DTYPE_BYTES

    def used_share(self, how: Execution = IDEAL) -> float:
        """The part of its elements that one token is multiplied with: 0..1."""
        return 1.0 if self.experts is None else self.experts.used_share(how)

    def used(self, how: Execution = IDEAL) -> float:
        """Elements that one token is multiplied with."""
        return self.elements * self.used_share(how)


@dataclass(frozen=True, slots=True)
class Storage:
    """All lines of a model. ``tables`` are looked up, a row a token; the others are read whole in every pass."""

    lines: tuple[WeightGroup, ...]
    widest: int = 0  # most features that a linear layer takes or gives, one token
    expert_rows: tuple[int, int] = (0, 0)  # (top_k, width) of the widest expert layer
    batched_experts: tuple[int, int] = (0, 0)  # (experts, width), where transformers runs all of them for every token
    bounds: tuple[float, float] | None = None  # of its bytes, as factors; None: they are known to the byte

    @property
    def weights(self) -> Interval:
        """Weights on the device."""
        return self.known(self.device_bytes)

    def known(self, nbytes: float) -> Interval:
        """A part of the bytes, as well as they are known."""
        if self.bounds is None:
            return exact(nbytes)
        low, high = self.bounds
        return Interval(nbytes, nbytes * low, nbytes * high, "prior")

    @property
    def device_bytes(self) -> int:
        """Weights on the device."""
        return sum(line.nbytes for line in self.lines if not line.on_host)

    @property
    def host_bytes(self) -> int:
        """Weights that stay in the host's memory."""
        return sum(line.nbytes for line in self.lines if line.on_host)

    def part_bytes(self, part: Part) -> int:
        """Device bytes of one part."""
        return sum(line.nbytes for line in self.lines if line.part == part and not line.on_host)

    @property
    def plain(self) -> bool:
        """Whether nothing in it is packed."""
        return not any(line.packed for line in self.lines)

    @property
    def read(self) -> tuple[WeightGroup, ...]:
        """The lines on the device that a pass reads."""
        return tuple(line for line in self.lines if line.part != "tables" and not line.on_host)


def storage(held: Iterable[Held], bounds: tuple[float, float] | None = None) -> Storage:
    """Tensors that cost alike, together; the largest first within a part."""
    sums: dict[WeightGroup, list[int]] = {}
    widest, expert_rows, batched_experts = 0, (0, 0), (0, 0)
    for item in held:
        if item.weight.role == "linear":
            widest = max(widest, *item.weight.shape)
        if item.weight.role == "experts" and item.layer is not None and isinstance(item.layer.mlp, Experts):
            experts = item.layer.mlp
            expert_rows = max(expert_rows, (experts.top_k, experts.width))
            if experts.batched:
                batched_experts = max(batched_experts, (experts.count, experts.width))
        entry = sums.setdefault(_line(item), [0, 0, 0, 0, 0])
        entry[0] += item.weight.parameters * item.count
        entry[1] += item.nbytes
        entry[2] += math.prod(item.weight.shape[:-1]) * item.count
        entry[3] += item.count
        if item.weight.parameters * UNPACKED_BYTES > LARGE_BYTES and not item.fused:
            entry[4] += item.weight.parameters * item.count
    lines = [
        WeightGroup(key.part, key.scheme, key.experts, key.shared_kv, key.on_host, *totals)
        for key, totals in sums.items()
    ]
    order = {part: index for index, part in enumerate(PARTS)}
    lines.sort(key=lambda line: (order[line.part], line.on_host, -line.nbytes))
    return Storage(tuple(lines), widest, expert_rows, batched_experts, bounds)


def as_stored(geometry: Geometry, stored: Stored) -> Iterator[Held]:
    """Every weight of a checkpoint as its headers have it."""
    for item in stored.weights:
        layer = None if item.layer is None else geometry.layers[item.layer]
        yield Held(item.weight, layer, 1, item.scheme, item.nbytes)


def bounds_of(stored: Stored) -> tuple[float, float] | None:
    """How far the bytes of a checkpoint may be off."""
    return None if stored.exact else DERIVED


def _line(item: Held) -> WeightGroup:
    part = part_of(item.weight, item.layer)
    experts = item.layer.mlp if item.layer is not None and part == "experts" else None
    return WeightGroup(
        part,
        item.scheme,
        experts if isinstance(experts, Experts) else None,
        item.layer is not None and item.layer.shares_kv,
        item.on_host,
    )


def part_of(weight: Weight, layer: Layer | None) -> Part:
    """The part of a model that a tensor belongs to."""
    if weight.role == "embedding":
        return "tables"
    if weight.role == "head":
        return "head"
    if weight.role == "experts":
        return "experts"
    if weight.role != "linear" or layer is None:
        return "other"
    if weight.name.startswith(("self_attn", "linear_attn")):
        return "attention" if isinstance(layer.mixer, Attention) else "delta"
    return "mlp"


def with_head(geometry: Geometry, held: Iterable[Held], copied: bool) -> Iterator[Held]:
    """``held``, and for a tied model a tensor for its head, which every pass reads whole.

    ``copied``: the runtime holds the table twice (llama.cpp: once on the host to look rows up, once on the device).
    Otherwise the one table becomes the head, so that no byte counts twice.
    """
    for item in held:
        tied = geometry.tied and item.weight.name == EMBEDDING
        if not tied or copied:
            yield item
        if tied:
            yield Held(Weight("head", item.weight.shape, HEAD), None, item.count, item.scheme, item.nbytes)
