"""A model as a runtime stores it, in few lines: what each part of it weighs, in which format, and where it lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from profiler.models.geometry import EMBEDDING, HEAD, Geometry
from profiler.models.layers import Attention, Experts, Layer
from profiler.models.weight import Weight

Part = Literal["attention", "delta", "mlp", "experts", "head", "tables", "other"]
PARTS: tuple[Part, ...] = ("attention", "delta", "mlp", "experts", "head", "tables", "other")
Key = tuple[Part, str, Experts | None, bool]


@dataclass(frozen=True, slots=True)
class Held:
    """``count`` equal tensors in the format ``scheme``, ``nbytes`` all together."""

    weight: Weight
    layer: Layer | None  # None: outside the layers
    count: int
    scheme: str
    nbytes: int
    on_host: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """The tensors of one part in one format."""

    part: Part
    scheme: str
    elements: int
    nbytes: int
    experts: Experts | None  # of which a pass reads a part
    on_host: bool

    def share(self, tokens: int) -> float:
        """The part that a pass over ``tokens`` tokens is expected to read."""
        return 1.0 if self.experts is None else self.experts.touched(tokens) / self.experts.count

    def multiplied(self, tokens: int) -> float:
        """Elements that ``tokens`` tokens are multiplied with, all together."""
        used = 1.0 if self.experts is None else self.experts.top_k / self.experts.count
        return self.elements * used * tokens


@dataclass(frozen=True, slots=True)
class Storage:
    """All lines of a model. ``tables`` are looked up, a row a token; the others are read whole in every pass."""

    lines: tuple[Line, ...]

    @property
    def device_bytes(self) -> int:
        """Weights on the device."""
        return sum(line.nbytes for line in self.lines if not line.on_host)

    @property
    def host_bytes(self) -> int:
        """Weights in the host's memory."""
        return sum(line.nbytes for line in self.lines if line.on_host)

    def part_bytes(self, part: Part) -> int:
        """Device bytes of one part."""
        return sum(line.nbytes for line in self.lines if line.part == part and not line.on_host)


def storage(held: Iterable[Held]) -> Storage:
    """Tensors that cost alike, together."""
    sums: dict[Key, list[int]] = {}
    for item in held:
        part = part_of(item.weight, item.layer)
        experts = item.layer.mlp if part == "experts" and item.layer is not None else None
        key = part, item.scheme, experts if isinstance(experts, Experts) else None, item.on_host
        entry = sums.setdefault(key, [0, 0])
        entry[0] += item.weight.parameters * item.count
        entry[1] += item.nbytes
    order = {part: index for index, part in enumerate(PARTS)}
    lines = [Line(key[0], key[1], *sums[key], *key[2:]) for key in sums]
    return Storage(tuple(sorted(lines, key=lambda line: (order[line.part], line.on_host, -line.nbytes))))


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


def with_head(geometry: Geometry, held: Iterable[Held], copied: bool) -> Iterable[Held]:
    """``held``, and for a tied model a line for its head: the embedding read once more, or a ``copied`` one.

    Where it is not copied the embedding itself becomes the head, so that no byte counts twice.
    """
    for item in held:
        tied = geometry.tied and item.weight.name == EMBEDDING
        if not tied or copied:
            yield item
        if tied:
            head = Weight("head", item.weight.shape, HEAD)
            yield Held(head, None, item.count, item.scheme, item.nbytes)
