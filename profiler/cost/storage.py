"""A model as an engine stores it, grouped into few lines: the bytes, quantization and location of each part."""

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
from profiler.units import bytes_text

Part = Literal["attention", "delta", "mlp", "experts", "head", "tables", "other"]
LARGE_BYTES = 32 * 1024**2  # glibc maps fresh pages for tensors from this size on
UNPACKED_BYTES = 4  # per element, as fp32
# Bounds for bytes estimated from a config's quantization. It does not state all padding, zero points, the width of
# scales (16 or 32 bits), or the modules that are left unquantized.
DERIVED = (0.94, 1.1)
WORTH_SAYING = 0.25  # share of the weights from which a note says what the quantization leaves unquantized
NAMES: dict[Part, str] = {
    "tables": "embeddings",
    "head": "output head",
    "experts": "fused experts",
    "other": "norms, routers and convolutions",
}
PARTS: tuple[Part, ...] = ("attention", "delta", "mlp", "experts", "head", "tables", "other")


@dataclass(frozen=True, slots=True)
class Held:
    """``count`` equal tensors stored as ``scheme``, ``nbytes`` in total."""

    weight: Weight
    layer: Layer | None  # None: outside the layers
    count: int
    scheme: str
    nbytes: int
    on_host: bool = False
    fused: bool = False  # multiplied in packed form, without an unpacked matrix in between


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """The tensors of one part in one quantization."""

    part: Part
    scheme: str
    experts: Experts | None  # the layer's experts, of which a pass reads some
    shared_kv: bool  # in layers that read an earlier layer's cache; a prefill may send only one token through them
    on_host: bool
    elements: int = 0
    nbytes: int = 0
    outputs: int = 0  # output features of its matrices, in total
    count: int = 0  # number of tensors
    large: int = 0  # elements of those that, once unpacked, are too large for the heap to reuse

    def whole(self, how: Execution) -> bool:
        """Whether every token is multiplied by all of it: there are no experts, or the engine runs all of them."""
        return self.experts is None or self.experts.all_run(how)

    def share(self, tokens: float, how: Execution = IDEAL) -> float:
        """The expected part that a pass over ``tokens`` tokens reads: 0..1."""
        return 1.0 if self.experts is None else self.experts.read_share(tokens, how)

    @property
    def packed(self) -> bool:
        """Whether it is stored in a packed quantization and not in a plain dtype."""
        return self.scheme not in DTYPE_BYTES

    def used_share(self, how: Execution = IDEAL) -> float:
        """The part of its elements that one token is multiplied by: 0..1."""
        return 1.0 if self.experts is None else self.experts.used_share(how)

    def used(self, how: Execution = IDEAL) -> float:
        """Elements that one token is multiplied by."""
        return self.elements * self.used_share(how)


@dataclass(frozen=True, slots=True)
class Storage:
    """All groups of a model. ``tables`` are read one row per token; the others are read whole in every pass."""

    lines: tuple[WeightGroup, ...]
    widest: int = 0  # the most input or output features of any linear layer
    expert_rows: tuple[int, int] = (0, 0)  # (top_k, width) of the widest expert layer
    batched_experts: tuple[int, int] = (0, 0)  # (experts, width) if transformers runs all experts for every token
    bounds: tuple[float, float] | None = None  # factors on its bytes; None: the bytes are exact

    @property
    def weights(self) -> Interval:
        """Weights on the device."""
        return self.known(self.device_bytes)

    def known(self, nbytes: float) -> Interval:
        """A part of the bytes, with the bounds of the whole."""
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
        """Weights that stay in host memory."""
        return sum(line.nbytes for line in self.lines if line.on_host)

    def part_bytes(self, part: Part) -> int:
        """Device bytes of one part."""
        return sum(line.nbytes for line in self.lines if line.part == part and not line.on_host)

    @property
    def plain(self) -> bool:
        """Whether nothing is packed."""
        return not any(line.packed for line in self.lines)

    @property
    def read(self) -> tuple[WeightGroup, ...]:
        """The groups on the device that a pass reads."""
        return tuple(line for line in self.lines if line.part != "tables" and not line.on_host)


def storage(held: Iterable[Held], bounds: tuple[float, float] | None = None) -> Storage:
    """Merge tensors that cost the same; within a part, the largest come first."""
    sums: dict[tuple[Part, str, Experts | None, bool, bool], list[int]] = {}
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
    lines = [WeightGroup(*key, *totals) for key, totals in sums.items()]
    order = {part: index for index, part in enumerate(PARTS)}
    lines.sort(key=lambda line: (order[line.part], line.on_host, -line.nbytes))
    return Storage(tuple(lines), widest, expert_rows, batched_experts, bounds)


def as_stored(geometry: Geometry, checkpoint_format: Stored) -> Iterator[Held]:
    """Every weight of a checkpoint as its headers describe it."""
    for item in checkpoint_format.weights:
        layer = None if item.layer is None else geometry.layers[item.layer]
        yield Held(item.weight, layer, 1, item.scheme, item.nbytes)


def bounds_of(checkpoint_format: Stored) -> tuple[float, float] | None:
    """Bounds on the bytes of a checkpoint."""
    return None if checkpoint_format.exact else DERIVED


def _line(item: Held) -> tuple[Part, str, Experts | None, bool, bool]:
    """The first fields of the group that a tensor belongs to: as a tuple, because there are thousands of tensors."""
    part = part_of(item.weight, item.layer)
    experts = item.layer.mlp if item.layer is not None and part == "experts" else None
    return (
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
    """``held``, and for a tied model an output head that every pass reads whole.

    ``copied``: the engine holds the table twice (llama.cpp: on the host for lookups, on the device for the head).
    Otherwise the one table becomes the head, so no byte is counted twice.
    """
    for item in held:
        tied = geometry.tied and item.weight.name == EMBEDDING
        if not tied or copied:
            yield item
        if tied:
            yield Held(Weight("head", item.weight.shape, HEAD), None, item.count, item.scheme, item.nbytes)


def left_plain(storage: Storage, quant: str, dtype: str) -> str | None:
    """What the quantization leaves in ``dtype``, as a note; ``None`` if that is a small part of the weights."""
    lines = [line for line in storage.lines if not line.packed]
    plain = {part: sum(line.nbytes for line in lines if line.part == part) for part in NAMES}
    total = sum(plain.values())
    if storage.plain or total < WORTH_SAYING * storage.device_bytes:
        return None
    largest = sorted((part for part in plain if plain[part] >= total / 10), key=lambda part: -plain[part])
    return f"{quant} leaves {bytes_text(total)} of {' and '.join(NAMES[part] for part in largest)} in {dtype}"
