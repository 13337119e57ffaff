"""A machine that may run a model: one device or several, and the host's memory to put weights in.

Layer split: each device holds some layers and works on its turn, so time is that of one device and a hop between
neighbours. Tensor split: each device holds a slice of every layer and all work at once, with two sums over the link
in every layer. (Megatron-LM, arXiv:1909.08053, section 3.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profiler.cost.roofline import Rates
from profiler.cost.work import PhaseWork
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention
from profiler.units import GIB

Split = Literal["layer", "tensor"]
SPLITS: tuple[Split, ...] = ("layer", "tensor")
HOP_S = 10e-6  # start of a copy between devices
SUM_S = 15e-6  # start of a sum over devices
LINK_SHARE = 0.8
SEVERAL_SPREAD = 1.2  # nine published rows of two and four cards, none of them fitted to, lie within it
RAM_BYTES_S = 60e9  # two channels of DDR5; a prior
RAM_SHARE = 0.7
ACTIVATION_BYTES = 2
APPLE_SMALL, APPLE_SHARE = 36 * GIB, (0.67, 0.75)  # recommendedMaxWorkingSetSize, up to 36 GiB and above
SHARED_SHARE = 0.92  # desktop chips whose memory the system uses too
CARD_SHARE = 0.98  # what a driver leaves of what is sold


@dataclass(frozen=True, slots=True)
class Machine:
    """``target`` (perhaps several), and ``ram_bytes`` of host memory to offload to; ``None``: do not offload."""

    target: Target
    split: Split = "layer"
    ram_bytes: int | None = None
    ram_bytes_s: float = RAM_BYTES_S

    @property
    def usable_bytes(self) -> int:
        """Of one device."""
        target = self.target
        if target.local:
            return target.memory_bytes
        if target.vendor == "Apple":
            share = APPLE_SHARE[target.memory_bytes > APPLE_SMALL]
        else:
            share = SHARED_SHARE if target.unified else CARD_SHARE
        return int(target.memory_bytes * share)

    @property
    def at_once(self) -> int:
        """Devices that work at the same time: in a layer split one after the other."""
        return self.target.count if self.split == "tensor" else 1

    @property
    def ceiling_bytes_s(self) -> float:
        """Bytes per second that those could read: as measured, else by the data sheet."""
        measured = self.target.ceilings
        return (measured.read_bytes_s if measured else self.target.bandwidth_bytes_s) * self.at_once


def per_device(nbytes: float, geometry: Geometry, count: int, split: Split) -> float:
    """What the fullest of ``count`` devices holds of ``nbytes`` that lie in layers."""
    if count == 1 or split == "tensor":
        return nbytes / count
    layers = len(geometry.layers)
    return nbytes * -(-layers // count) / layers


def cache_share(geometry: Geometry, count: int, split: Split) -> float:
    """The part of K and V that the fullest of ``count`` devices holds: a tensor split divides heads, and no head.

    Where there are more devices than heads for K and V, each holds one (vLLM 0.11, ``get_num_kv_heads``).
    """
    heads = [layer.mixer.kv_heads for layer, _ in geometry.groups if isinstance(layer.mixer, Attention)]
    if count == 1 or split == "layer" or not heads:
        return per_device(1.0, geometry, count, split)
    return max(-(-each // count) / each for each in heads)


def check(geometry: Geometry, machine: Machine) -> None:
    """ProfileError for a tensor split that no engine makes."""
    count = machine.target.count
    if machine.split == "layer" or count == 1:
        return
    uneven = next(
        (m.heads for layer, _ in geometry.groups if isinstance(m := layer.mixer, Attention) and m.heads % count), None
    )
    if uneven is not None:
        raise ProfileError(
            f"--split tensor over {count} devices: {uneven} attention heads cannot be shared out evenly",
            "Take a number of devices that divides them, or --split layer.",
        )


def together(rates: Rates, geometry: Geometry, machine: Machine) -> Rates:
    """``rates`` of one device for all devices of the machine."""
    count = machine.target.count
    if count == 1:
        return rates
    rates = rates.wider(SEVERAL_SPREAD)
    if machine.split == "layer":
        return rates
    again = count * cache_share(geometry, count, machine.split)  # above 1, some devices read the same heads
    rates = rates.over(count)
    return rates.rereading_cache(again) if again > 1 else rates


def link_s(work: PhaseWork, geometry: Geometry, machine: Machine) -> float:
    """Seconds on the links between devices, all passes."""
    target = machine.target
    if target.count == 1:
        return 0.0
    rate = target.link_bytes_s * LINK_SHARE
    activations = work.tokens * geometry.hidden * ACTIVATION_BYTES
    if machine.split == "layer":
        return work.passes * (target.count - 1) * (HOP_S + activations / rate)
    around = 2 * (target.count - 1) / target.count  # of a ring
    return work.passes * 2 * work.layers * (SUM_S + activations * around / rate)


def offload_s(work: PhaseWork, host_bytes: float, streams: bool, machine: Machine) -> tuple[float, float]:
    """Seconds for the weights that lie in host memory, predicted and at best: ``host_bytes`` are read in each pass.

    Few tokens are computed where the weights lie (llama.cpp); many, or an engine that ``streams``, bring the weights
    over the link.
    """
    many = work.tokens > 32  # llama.cpp: ggml_backend_cuda_device_offload_op, min_batch_size
    rate, share = (machine.target.link_bytes_s, LINK_SHARE) if streams or many else (machine.ram_bytes_s, RAM_SHARE)
    best = work.passes * host_bytes / rate
    return best / share, best
