"""A machine that may run a model: one or more devices, and host memory for offloaded weights.

Layer split: each device holds some of the layers and the devices work in turn, so the time is that of one device plus
the transfers between neighbours. Tensor split: each device holds a slice of every layer and all work at once, with
two all-reduce sums per layer over the link. (Megatron-LM, arXiv:1909.08053, section 3.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from profiler.cost.rates import PLAIN, shares
from profiler.cost.roofline import Rates
from profiler.cost.work import PhaseWork
from profiler.devices.target import Target, summed_in_fp32
from profiler.errors import ProfileError
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention
from profiler.units import GIB

Split = Literal["layer", "tensor"]
SPLITS: tuple[Split, ...] = ("layer", "tensor")
HOP_S = 10e-6  # latency of a copy between devices
LINK_SHARE = 0.8  # of a link's rate that copies of weights reach
RAM_BYTES_S = 60e9  # two channels of DDR5, an assumption
RAM_SHARE = 0.7  # of the host memory's bandwidth that reading weights there reaches
ACTIVATION_BYTES = 2
APPLE_SMALL, APPLE_SHARE = 36 * GIB, (0.67, 0.75)  # recommendedMaxWorkingSetSize, up to 36 GiB and above
SHARED_SHARE = 0.92  # desktop chips that share their memory with the operating system
PLAIN_FLOPS = ("fp32", "bf16", "fp16")
OWN_FLOPS = {"nvfp4": "fp4", "mxfp4": "fp4"}
CARD_SHARE = 0.98  # the part of a card's memory that the driver leaves free


@dataclass(frozen=True, slots=True)
class Machine:
    """``target`` (one or more devices), and ``ram_bytes`` of host memory for offloading; ``None``: no offloading."""

    target: Target
    split: Split = "layer"
    ram_bytes: int | None = None
    ram_bytes_s: float = RAM_BYTES_S

    @property
    def usable_bytes(self) -> int:
        """Usable bytes of one device; of devices that differ, those of the smallest, which is full first."""
        return min(_usable(each) for each in self.target.members or (self.target,))

    @property
    def smallest_share(self) -> float | None:
        """The share of the layers on the smallest of several devices that differ; ``None`` if all hold as much."""
        members = self.target.members
        if not members or self.split == "tensor":
            return None
        return min(member.memory_bytes for member in members) / sum(member.memory_bytes for member in members)

    @property
    def whole(self) -> float:
        """All weights relative to those on the fullest device."""
        return self.target.count if self.smallest_share is None else 1 / self.smallest_share

    @property
    def at_once(self) -> int:
        """Devices that work at the same time: one in a layer split."""
        return self.target.count if self.split == "tensor" else 1

    @property
    def ceiling_bytes_s(self) -> float:
        """Bytes per second that those devices can read, measured or from the data sheet."""
        measured = self.target.ceilings
        return (measured.read_bytes_s if measured else self.target.bandwidth_bytes_s) * self.at_once


def _usable(target: Target) -> int:
    if target.local:
        return target.memory_bytes
    if target.vendor == "Apple":
        share = APPLE_SHARE[target.memory_bytes > APPLE_SMALL]
    else:
        share = SHARED_SHARE if target.unified else CARD_SHARE
    return int(target.memory_bytes * share)


def work_share(member: Target, machine: Machine) -> float | None:
    """The share of the layers on one of several devices that differ, by its memory; ``None`` if all work at once."""
    if machine.split == "tensor":
        return None
    return member.memory_bytes / sum(each.memory_bytes for each in machine.target.members)


def per_device(nbytes: float, geometry: Geometry, count: int, split: Split) -> float:
    """Bytes on the fullest of ``count`` devices, if ``nbytes`` are spread over the layers."""
    if count == 1 or split == "tensor":
        return nbytes / count
    layers = len(geometry.layers)
    return nbytes * -(-layers // count) / layers


def cache_share(geometry: Geometry, count: int, split: Split) -> float:
    """The part of K and V that the fullest of ``count`` devices holds. A tensor split assigns whole K/V heads.

    If there are more devices than K/V heads, each device holds one head (vLLM 0.11, ``get_num_kv_heads``).
    """
    heads = [layer.mixer.kv_heads for layer, _ in geometry.groups if isinstance(layer.mixer, Attention)]
    if count == 1 or split == "layer" or not heads:
        return per_device(1.0, geometry, count, split)
    return max(-(-each // count) / each for each in heads)


def check(geometry: Geometry, machine: Machine) -> None:
    """Raise ProfileError for a tensor split that no engine supports."""
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


def of_all_devices(rates: Rates, geometry: Geometry, machine: Machine) -> Rates:
    """``rates`` of one device, extended to all devices of the machine."""
    count = machine.target.count
    if count == 1 or machine.split == "layer":
        return rates
    again = count * cache_share(geometry, count, machine.split)  # above 1, several devices read the same heads
    rates = rates.over(count)
    return rates.rereading_cache(again) if again > 1 else rates


def link_s(work: PhaseWork, geometry: Geometry, machine: Machine, content: Mapping[str, Any] | None = None) -> float:
    """Seconds on the links between devices, over all passes; ``content`` replaces the file of efficiencies."""
    target = machine.target
    if target.count == 1:
        return 0.0
    rule: Mapping[str, Any] = (shares() if content is None else content)["links"]
    rate = (target.peer_bytes_s or target.link_bytes_s) * _of(rule["share"], target.kind)
    activations = work.tokens * geometry.hidden * ACTIVATION_BYTES
    if machine.split == "layer":
        return work.passes * (target.count - 1) * (HOP_S + activations / rate)
    around = 2 * (target.count - 1) / target.count  # the factor of a ring all-reduce
    sum_s = _of(rule["sum_s"], "peer" if target.peer_bytes_s else target.vendor) * math.log2(target.count)
    return float(work.passes * 2 * work.layers * (sum_s + activations * around / rate))


def _of(rule: Mapping[str, float], name: str) -> float:
    return rule.get(name, rule["other"])


def overlap(
    work: PhaseWork, machine: Machine, pipelining: str | None, content: Mapping[str, Any] | None = None
) -> float:
    """Factor on the seconds of pass after pass over layers on several devices, for an engine that pipelines them: it
    starts a pass on the first device while the others work on earlier ones. ``pipelining``: the engine's name; None:
    it does not."""
    count, passes = machine.target.count, work.full_passes
    if pipelining is None or machine.split != "layer" or count == 1:
        return 1.0
    pipelined = _of((shares() if content is None else content)["links"]["pipelined"], pipelining)
    return 1 - pipelined * (1 - (passes + count - 1) / (passes * count))


def offload_s(work: PhaseWork, host_bytes: float, streams: bool, machine: Machine) -> tuple[float, float]:
    """Seconds for the weights in host memory, predicted and at best. Each pass reads ``host_bytes``.

    Small batches are computed on the host (llama.cpp). Large batches, and all batches of an engine that ``streams``,
    copy the weights over the link.
    """
    many = work.tokens > 32  # llama.cpp: ggml_backend_cuda_device_offload_op, min_batch_size
    rate, share = (machine.target.link_bytes_s, LINK_SHARE) if streams or many else (machine.ram_bytes_s, RAM_SHARE)
    best = work.passes * host_bytes / rate
    return best / share, best


def as_summed(host: Machine, in_fp32: bool) -> Machine:
    """``host`` for an engine that sums products of fp16 ``in_fp32``: a data sheet has the FLOP/s of fp16 with the
    fastest sums, which are twice those in fp32 on a GeForce card, and for bf16 only those in fp32."""
    return replace(host, target=_as_summed(host.target)) if in_fp32 else host


def _as_summed(target: Target) -> Target:
    slowest = summed_in_fp32(target.vendor, target.kind, target.flops)
    if slowest is not None:
        target = replace(target, flops={**target.flops, "fp16": slowest})
    return replace(target, members=tuple(map(_as_summed, target.members))) if target.members else target


def flops_ceiling(host: Machine, dtype: str, scheme: str, in_int8: bool) -> float:
    """The best FLOP/s of the machine with weights in the quantization ``scheme``.

    Kernels may multiply in ``dtype`` or another plain dtype; packed weights may also be multiplied in their own type,
    and by some engines ``in_int8``. A CPU converts dtypes that it computes slowly, so the fastest dtype counts.
    """
    target, measured = host.target, host.target.ceilings
    flops = measured.flops if measured else target.flops
    names = {dtype, *PLAIN_FLOPS}
    if scheme not in (*PLAIN, "state"):
        names |= {OWN_FLOPS.get(scheme, scheme)} | ({"int8"} if in_int8 else set())
    known = [value for name, value in flops.items() if name in names or target.vendor == "CPU"]
    best = max(known, default=max(flops.values(), default=target.bandwidth_bytes_s * 50)) * host.at_once
    return best if measured else best * max(1.0, target.reached)  # some cards exceed the clock of their data sheet
