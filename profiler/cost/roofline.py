"""How seconds follow from bytes, FLOPs and launches.

    seconds = Σ over items: max(reading, computing) + extra
            + passes × (layers × layer_s + pass_s + sequences × sequence_s) + launches

Reading costs the bytes of an item once, computing its FLOPs for every token, so the same sum holds for one token, a
batch and a prompt. Products of few tokens on vector units and of many on matrix units are two straight lines in the
number of tokens, and the cheaper one counts: no number of tokens takes longer than a larger one.

``Rates`` implements this sum. A device is described either by its data sheet (``rates.DataSheetRates``) or by what
`profile calibrate` measured on it (``calibrated.CalibratedRates``); the two differ only in the cost of a single item.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from profiler.cost.interval import Basis
from profiler.cost.work import CACHES, Item, PhaseWork
from profiler.devices.target import Target

HOSTS = (
    1.6  # how much faster or slower hosts launch than the fit says: our H200's and workstations (benchmarks/gpu.md)
)
UNTIMED = 2.0  # uncertainty of the speed of a quantization that was never timed with an engine
Bounds = tuple[float, float]  # measured ÷ predicted seconds; 90% of the ratios lie between them


class Cost(NamedTuple):
    """Seconds for one item. Reading and computing overlap, so only the longer one counts."""

    reading: float = 0.0
    computing: float = 0.0
    extra: float = 0.0  # unpacking weights or mapping memory, which overlaps with neither

    @property
    def total(self) -> float:
        """Total seconds."""
        return (self.reading if self.reading > self.computing else self.computing) + self.extra


@dataclass(frozen=True, slots=True)
class Seconds:
    """One phase, split by what limits it."""

    total: float
    reading: float  # items limited by memory bandwidth
    computing: float  # items limited by arithmetic, and unpacking
    launching: float

    @property
    def binds(self) -> str:
        """What takes most of the time."""
        parts = {"bandwidth": self.reading, "compute": self.computing, "launches": self.launching}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, slots=True)
class Roofline:
    """Seconds per byte and per FLOP, by storage type."""

    read_s: Mapping[str, float]
    flop_s: Mapping[str, float]  # on matrix units, or on whatever multiplies many tokens at once
    vector_s: Mapping[str, float] = field(default_factory=dict)  # on vector units; only types with kernels for that
    idle_rows: float = 0.0  # rows of tokens that fill half of the matrix units' tiles; few rows take twice their time
    expert_flops: float = 1.0  # the same in experts: few rows take this many times more in addition
    state_token_s: float = 0.0  # latency of one token in a recurrent state, for a kernel without chunks
    expert_s: Mapping[str, float] = field(default_factory=dict)  # of experts' products relative to others, by type

    def reading(self, item: Item) -> float:
        """Seconds to read the bytes of ``item``."""
        return item.nbytes * self.read_s[item.scheme]

    def computing(self, item: Item) -> float:
        """Seconds for the FLOPs of ``item``. K, V and states of a single token per sequence only have to be read."""
        if item.kind != "weights":
            seconds = item.flops * self.flop_s[item.scheme] if item.rows > 1 else 0.0
            return max(seconds, item.count * item.rows * self.state_token_s) if item.kind == "state" else seconds
        return min(self.on_matrix_units(item), self.on_vector_units(item))

    def on_matrix_units(self, item: Item) -> float:
        """Seconds for products with weights if matrix units, or whatever multiplies many tokens, compute them."""
        seconds = item.flops * self.flop_s[item.scheme]
        if item.part == "experts":
            seconds *= self.expert_s.get(item.scheme, 1.0)
        if not self.idle_rows:
            return seconds
        more = self.expert_flops if item.part == "experts" else 1.0
        return seconds * (1 + more * self.idle_rows / (max(item.rows, 1.0) + self.idle_rows))

    def on_vector_units(self, item: Item) -> float:
        """The same if vector units compute them; infinite for types without kernels for that."""
        return item.flops * self.vector_s.get(item.scheme, math.inf) if item.flops else 0.0

    def reads(self, **seconds: float) -> Roofline:
        """The same roofline with other seconds per byte for some types."""
        return replace(self, read_s={**self.read_s, **seconds})

    def over(self, count: int) -> Roofline:
        """The roofline of ``count`` devices that split every item evenly."""
        return replace(
            self,
            read_s=divided(self.read_s, count),
            flop_s=divided(self.flop_s, count),
            vector_s=divided(self.vector_s, count),
        )


@dataclass(frozen=True, slots=True)
class InTurn:
    """Launches where Python and the device take turns, as on a CPU."""

    call_s: float  # one operator launched from Python; 0 for engines that run their own graph

    def seconds(self, work: PhaseWork, busy_s: float) -> float:
        """Seconds that launches add to the ``busy_s`` that the items of ``work`` take."""
        return work.calls * self.call_s


@dataclass(frozen=True, slots=True)
class Ahead:
    """Launches that Python queues ahead while the GPU works, so only the slower of the two counts."""

    call_s: float  # one operator launched from Python
    device_call_s: float  # the minimum time of any operator on the device
    start_s: Mapping[str, float]  # launching a linear layer from Python, by storage type
    layers_timed: bool  # whether the cost of a linear layer already includes its launch on the device

    def seconds(self, work: PhaseWork, busy_s: float) -> float:
        """Seconds that launches add to the ``busy_s`` that the items of ``work`` take."""
        products = [item for item in work.items if item.kind == "weights"]
        timed = sum(item.count for item in products) if self.layers_timed else 0.0
        small_s = max(0.0, work.calls - timed) * self.device_call_s
        host_s = work.calls * self.call_s + sum(item.count * self.start_s.get(item.scheme, 0.0) for item in products)
        return small_s + max(0.0, host_s - busy_s - small_s)

    def faster(self, by: float) -> Self:
        """The launches of a host that is ``by`` times as fast."""
        return replace(self, call_s=self.call_s / by, start_s=divided(self.start_s, by))


@dataclass(frozen=True, slots=True)
class Convolution:
    """Seconds of a depthwise convolution."""

    channel_s: float
    sequence_s: float  # extra per channel for each further sequence
    token_s: float  # extra per channel for each token of a pass

    def seconds(self, item: Item) -> float:
        """``item.count`` sequences of ``item.rows`` tokens altogether, ``item.outputs`` channels wide."""
        more = (item.count - 1) * self.sequence_s + max(0.0, item.rows - item.count) * self.token_s
        return item.outputs * (self.channel_s + more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates(ABC):
    """Rates of an engine on one device, or on several that work together."""

    roofline: Roofline
    convolution: Convolution | None  # None: no slower than the rest of the pass
    launches: InTurn | Ahead
    layer_s: float  # launches per layer and pass that are not counted as calls
    expert_layers: float  # launches of an expert layer, in units of ``layer_s``
    many_layers: float = 1.0  # the same of any layer if a pass has more than one token
    decode: Bounds
    prefill: Bounds
    basis: Basis
    batch: Bounds | None = None  # of a decode step of several sequences; None: as ``decode``
    pass_s: float = 0.0  # scheduling and sampling of one pass
    sequence_s: float = 0.0  # the same for each of its sequences

    @abstractmethod
    def cost(self, item: Item, work: PhaseWork) -> Cost:
        """Seconds for one item of ``work``."""

    @abstractmethod
    def over(self, count: int) -> Self:
        """Rates of ``count`` devices that split every item evenly."""

    @abstractmethod
    def own_step(self, target: Target, dtype: str, path: str) -> Self:
        """Rates of our own decode step on ``target``, derived from the engine's rates. On a CPU our kernels multiply
        and read the cache; on a GPU they only read the cache. The ``path`` GRAPH launches nothing from Python."""

    def split(self, work: PhaseWork) -> Seconds:
        """Seconds for all of ``work``, split by what limits them."""
        reading = computing = 0.0
        for item in work.items:
            read, compute, extra = self.cost(item, work)
            reading += read if read > compute else 0.0
            computing += (compute if compute >= read else 0.0) + extra
        layers = work.layers + self.expert_layers * work.expert_layers
        layers *= self.many_layers if work.tokens > 1 else 1.0
        each_s = layers * self.layer_s + self.pass_s + work.sequences * self.sequence_s
        launching = work.passes * each_s + self.launches.seconds(work, reading + computing)
        return Seconds(reading + computing + launching, reading, computing, launching)

    def on_any_host(self, work: PhaseWork, bounds: Bounds) -> Bounds:
        """``bounds`` of the seconds of ``work`` if the host may launch faster or more slowly than usual. Calibrated
        rates are those of a known host."""
        return bounds

    def rereading_cache(self, times: float) -> Self:
        """Rates for devices that together read K and V ``times`` times."""
        again = {scheme: times * self.roofline.read_s[scheme] for scheme in CACHES}
        return replace(self, roofline=self.roofline.reads(**again))

    def wider(self, spread: float) -> Self:
        """Rates with bounds wider by the factor ``spread`` on both sides."""
        batch = wider(self.batch, spread) if self.batch else None
        return replace(self, decode=wider(self.decode, spread), batch=batch, prefill=wider(self.prefill, spread))

    def step_bounds(self, sequences: int) -> Bounds:
        """The bounds of a decode step."""
        return self.batch if self.batch and sequences > 1 else self.decode

    def untimed(self) -> Self:
        """Rates for a quantization that was never timed: assumed to be read at the full rate, with wider bounds."""
        return replace(self.wider(UNTIMED), basis="prior")


def wider(bounds: Bounds, spread: float) -> Bounds:
    """``bounds`` wider by the factor ``spread`` on both sides."""
    return bounds[0] / spread, bounds[1] * spread


def of_both(bounds: Bounds, more: Bounds) -> Bounds:
    """Bounds of a product of two factors that are independent of each other, each with its own bounds."""
    low, high = (math.hypot(math.log(one), math.log(other)) for one, other in zip(bounds, more, strict=True))
    return math.exp(-low), math.exp(high)


def divided(seconds: Mapping[str, float], by: float) -> dict[str, float]:
    """Divide each value of ``seconds`` by ``by``."""
    return {scheme: value / by for scheme, value in seconds.items()}
