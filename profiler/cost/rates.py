"""How much of a device a runtime gets: from the fitted shares in ``scenarios/efficiency.toml`` to seconds per byte.

    seconds = Σ max(bytes × read_s, FLOPs × flop_s) + bytes × unpack_s  +  passes × layers × layer_s + calls × call_s

A share is a cause, not a row: the part of the data sheet's bandwidth that a maker's memory and kernels reach, the
clock cycles that a layer's launches take, the rate at which packed weights are multiplied one by one. The file says
how each was found, and how far off predictions with it have been on devices that it was not fitted to.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from profiler.cost.interval import Basis
from profiler.cost.work import GROWING_TOUCHES, Item, PhaseWork
from profiler.decode_path import GRAPH
from profiler.devices.calibration import Ceilings, rows_of
from profiler.devices.target import Target
from profiler.models.gguf import TYPES

OWN_ROWS = {"CPU": (8, math.inf), "other": (4, 32 * 1024**2)}  # as ``Rates.rows``: kernels/patches.py, cuda.py
OWN_FORMATS = ("fp32", "bf16", "int8")  # that loops of our own step on a CPU multiply with
FEW_TOKENS = 8  # up to so many, packed weights are multiplied by vector units (mmvq in llama.cpp, gemv in others)
PLAIN = ("fp32", "bf16", "fp16", "f32", "f16")
PACKED = ("nf4", "nf4-dq", "fp4", "int8", "fp8", "nvfp4", "int4")
UNTIMED = 2.0  # how far off the speed of a format may be that was never timed with an engine
AS_THEY_ARE = (*PLAIN, "cache", "state")  # multiplied without unpacking
UNPACKED = ("nf4", "nf4-dq", "fp4")  # a layer at a time, to fp32 on a CPU
SCHEMES = (*AS_THEY_ARE, *PACKED, "copy", *(name for name in TYPES if name not in PLAIN))
Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Rates:
    """What a runtime makes of one device. Seconds per byte, per FLOP, per layer and pass."""

    read_s: Mapping[str, float]  # by format
    flop_s: Mapping[str, float]  # by format, many tokens at once
    few_flop_s: Mapping[str, float]  # by format, up to FEW_TOKENS
    expert_flops: float  # how many times longer a FLOP takes in experts, which get few tokens each
    unpack_s: Mapping[str, float]  # per stored byte and pass, in addition
    layer_s: float
    expert_layers: float  # a layer of experts launches as much as so many more layers
    call_s: float  # an operator started from Python; 0 for engines that run a graph of their own
    # Of a GPU, which works while Python starts what comes next: what an operator takes there whatever its size
    # (``None``: calls and work take turns), and what starting a linear layer takes, by format.
    device_call_s: float | None
    start_s: Mapping[str, float]
    decode: Bounds  # measured over predicted seconds: 90 % lie between
    prefill: Bounds
    basis: Basis
    convolution: Mapping[str, float] | None = None  # seconds of a depthwise one: see ``Ceilings``
    apart: bool = False  # some formats are multiplied at rates of their own here
    measured: Ceilings | None = None  # this very device's own curves for weights, in place of shares
    rows: tuple[int, float] | None = None
    """Up to so many tokens, and bytes of a matrix, products are ours, which were measured apart."""

    @property
    def own(self) -> bool:
        """Whether formats compare differently on this device than on others."""
        return self.measured is not None or self.convolution is not None or self.apart


@dataclass(frozen=True, slots=True)
class Seconds:
    """One phase, and what it is made of."""

    total: float
    reading: float  # parts where memory binds
    computing: float  # parts where arithmetic binds
    launching: float

    @property
    def binds(self) -> str:
        """What takes most of it."""
        parts = {"bandwidth": self.reading, "compute": self.computing, "launches": self.launching}
        return max(parts, key=lambda name: parts[name])


def seconds(work: PhaseWork, rates: Rates) -> float:
    """Seconds of ``work``."""
    busy = _busy_s(work, rates)
    return busy + _launching_s(work, rates, busy)


def split(work: PhaseWork, rates: Rates) -> Seconds:
    """The same, by what binds."""
    reading = computing = 0.0
    for item in work.items:
        read, compute, unpack = costs(item, work, rates)
        reading += read if read > compute else 0.0
        computing += (compute if compute >= read else 0.0) + unpack
    launching = _launching_s(work, rates, reading + computing)
    return Seconds(reading + computing + launching, reading, computing, launching)


def launches_s(work: PhaseWork, rates: Rates) -> float:
    """Seconds that starting things takes, whatever their size, beyond what a device is busy with meanwhile."""
    return _launching_s(work, rates, _busy_s(work, rates))


def _busy_s(work: PhaseWork, rates: Rates) -> float:
    total = 0.0
    for item in work.items:
        reading, computing, unpacking = costs(item, work, rates)
        total += (reading if reading > computing else computing) + unpacking
    return total


def _launching_s(work: PhaseWork, rates: Rates, busy_s: float) -> float:
    layers = work.layers + rates.expert_layers * work.expert_layers
    by_layer = work.passes * layers * rates.layer_s
    if rates.device_call_s is None:
        return work.calls * rates.call_s + by_layer
    products = [item for item in work.items if item.kind == "weights"]
    apart = sum(item.count for item in products) if rates.measured is not None else 0.0  # measured with their own
    small_s = max(0.0, work.calls - apart) * rates.device_call_s
    host_s = work.calls * rates.call_s + sum(item.count * rates.start_s.get(item.scheme, 0.0) for item in products)
    return by_layer + small_s + max(0.0, host_s - busy_s - small_s)


def costs(item: Item, work: PhaseWork, rates: Rates) -> tuple[float, float, float]:
    """Seconds to read, to compute, and to unpack or to map memory for one item of ``work``; the longer of the first
    two counts, and the third in any case.
    """
    read_s = rates.read_s[item.scheme]
    fresh = item.fresh * rates.measured.fresh_byte_s if rates.measured is not None else 0.0
    if rates.measured is not None and item.kind == "weights":
        what = item.nbytes, item.outputs, item.count, item.part == "head"
        scheme = item.scheme
        if rates.rows is not None and rows_of(scheme) in rates.measured.points:
            most, largest = rates.rows
            if item.rows <= most and item.nbytes <= largest * item.count:
                scheme = rows_of(scheme)
        found = rates.measured.product_s(scheme, item.rows, *what)
        if found is not None:
            least = min(found, rates.measured.product_s(scheme, 1.0, *what) or found)
            reads = item.scheme in PLAIN and found <= least  # one token: all is reading
            return least, 0.0 if reads else found, fresh if item.scheme in UNPACKED else 0.0
    if item.kind == "convolution":
        cost = rates.convolution
        if not cost:
            return 0.0, 0.0, 0.0
        more = (item.count - 1) * cost["sequence_s"] + max(0.0, item.rows - item.count) * cost["token_s"]
        return 0.0, item.outputs * (cost["channel_s"] + more), fresh
    many = work.tokens > FEW_TOKENS
    if rates.measured is not None and item.kind == "activations" and not many:
        return 0.0, 0.0, 0.0  # part of what an operator was measured to take
    compute = item.flops * (rates.flop_s if many else rates.few_flop_s)[item.scheme]
    if many and item.part == "experts":
        compute *= rates.expert_flops
    wide = fresh if item.kind == "activations" else 0.0
    return item.nbytes * read_s, compute, item.nbytes * rates.unpack_s.get(item.scheme, 0.0) + wide


@cache
def shares() -> dict[str, Any]:
    """The content of the file."""
    text = (resources.files("profiler.scenarios") / "efficiency.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def rates(target: Target, engine: str, dtype: str, found: Mapping[str, Any] | None = None) -> Rates:
    """Of ``engine`` on ``target``; ``found`` replaces the shares of the file (for fitting them)."""
    content = shares() if found is None else found
    own = content["engine"][engine]
    maker = target.vendor if target.vendor in content["bandwidth"] else "other"
    bandwidth = target.bandwidth_bytes_s * content["bandwidth"][maker] * own["bandwidth"]
    formats = content["format"]
    kind = "repacking" if target.repacks else maker
    of_fp32 = own.get("of_fp32", {}).get(kind, {})
    unpacking = own.get("unpack_bytes", {}).get(kind) or own.get("unpack_bytes", {}).get("other", {})
    read_s = {scheme: 1 / (bandwidth * formats.get(group(scheme), 1.0)) for scheme in SCHEMES}
    peak = _peak(target, "fp32" if maker in own["vector_prefill"] else dtype)
    peak *= own["prefill"].get(maker, own["prefill"]["other"])
    slower = {**content["prefill"]["slower"], **own.get("slower", {})}  # formats that are multiplied below that rate
    per_slot = content["multiply"]["per_slot"]
    slots = multiply_slots(target, content) * per_slot.get(maker, per_slot["other"])
    one_by_one = dict.fromkeys(SCHEMES, 0.5 / slots)
    halves = content["halves"] if maker == "CPU" and target.flops.get(dtype, 0.0) < target.flops["fp32"] else None
    call_s = own.get("call_s", {}).get(maker, own.get("call_s", {}).get("other", 0.0))
    own_running = target.running if maker == "CPU" else 1.0  # a GPU works on while a quota holds its process
    if halves:
        read_s["cache"] *= halves["cache"]
    return Rates(
        read_s=read_s,
        flop_s={scheme: slower.get(scheme, 1.0) / peak for scheme in SCHEMES}
        | {scheme: 1 / (share * _peak(target, "fp32")) for scheme, share in of_fp32.items()},
        few_flop_s=one_by_one | dict.fromkeys(AS_THEY_ARE, 1 / peak),
        expert_flops=content["prefill"]["expert_flops"],
        unpack_s={scheme: factor / target.bandwidth_bytes_s for scheme, factor in unpacking.items()},
        layer_s=_layer_s(target, maker, content) * own["launch"] / own_running,
        expert_layers=own["expert_layers"],
        decode=_wider(own["spread"]["decode"], target.spread),
        prefill=_wider(own["spread"]["prefill"], target.spread),
        convolution={name: s / own_running for name, s in halves["convolution"].items()} if halves else None,
        call_s=call_s / target.running,
        device_call_s=None,
        start_s={},
        basis=own["basis"] if maker in own["fitted_on"] else "prior",
        apart=bool(of_fp32),
    )


def calibrated(
    base: Rates, ceilings: Ceilings, dtype: str, touches: float = 1.0, content: Mapping[str, Any] | None = None
) -> Rates:
    """``base`` with what this device was measured to do in place of shares of a data sheet: PyTorch's own engine.

    ``touches``: how often the engine counts a step's way over its cache, which was measured as a whole.
    """
    found = shares() if content is None else content
    flops = max(ceilings.flops.values(), default=0.0)
    attention = ceilings.attention.get(dtype)
    slow = dict.fromkeys(SCHEMES, 1 / flops) if flops else dict(base.flop_s)
    read_s = dict.fromkeys(SCHEMES, 1 / ceilings.read_bytes_s) | {"copy": ceilings.activation(dtype)}
    many, few = slow | {"state": ceilings.delta_flop_s}, dict(slow)
    if attention:
        read_s["cache"], many["cache"], few["cache"] = (
            attention["step_byte_s"] / touches,
            attention["pass_flop_s"],
            0.0,
        )
    return replace(
        base,
        read_s=read_s,
        flop_s=many,
        few_flop_s=few,
        call_s=ceilings.call(dtype),
        device_call_s=ceilings.graph_call_s,
        start_s=ceilings.host_s,
        unpack_s={},
        decode=tuple(found["calibrated"]["decode"]),
        prefill=tuple(found["calibrated"]["prefill"]),
        basis="calibrated",
        convolution=ceilings.convolutions.get(dtype),
        measured=ceilings,
    )


def own_step(base: Rates, target: Target, dtype: str, path: str) -> Rates:
    """Of a decode step of ours on ``target``, from what transformers' own gets there.

    Captured or compiled it has no calls from Python. On a CPU loops of ours multiply and read the cache; on a GPU the
    cache alone.
    """
    rule, on_cpu = shares()["step"], target.vendor == "CPU"
    read_s, found = dict(base.read_s), base.measured
    if found is not None and (attention := found.attention.get(dtype)):
        divided = GROWING_TOUCHES * base.read_s["cache"] / attention["step_byte_s"]  # 1, but over several devices
        read_s["cache"] = divided * attention.get("own_byte_s", attention["step_byte_s"])
    elif on_cpu:
        read_s |= {scheme: read_s[scheme] * rule["reads"] for scheme in OWN_FORMATS}
        read_s["cache"] = read_s["fp32"]
    device_call_s = base.device_call_s
    if device_call_s is None and not on_cpu:
        device_call_s = rule["device_call_s"]
    return replace(
        base,
        read_s=read_s,
        call_s=0.0 if path == GRAPH else base.call_s,
        device_call_s=device_call_s,
        start_s={}
        if path == GRAPH
        else {name: base.start_s.get(rows_of(name), s) for name, s in base.start_s.items()},
        convolution=None if on_cpu else base.convolution,
        rows=OWN_ROWS["CPU" if on_cpu else "other"],
    )


def untimed(rates: Rates) -> Rates:
    """The same for formats that nobody timed there: they are taken to be read at the full rate, and may not be."""
    return replace(rates, decode=_wider(rates.decode, UNTIMED), prefill=_wider(rates.prefill, UNTIMED), basis="prior")


def _wider(bounds: Sequence[float], spread: float) -> Bounds:
    low, high = bounds
    return low / spread, high * spread


def group(scheme: str) -> str:
    """Formats that are read alike: those with code books by the word ``iq``."""
    return "iq" if scheme.startswith("iq") else scheme


def _peak(target: Target, dtype: str) -> float:
    """FLOP/s of matrix products: in the compute dtype, else in the nearest the device has a figure for."""
    order = (dtype, "bf16", "fp16", "fp32") if dtype != "fp32" else ("fp32", "bf16")
    known = [target.flops[name] for name in order if target.flops.get(name)]
    return known[0] if known else target.bandwidth_bytes_s * 50  # FLOPs a byte: less than any GPU of this list has


def multiply_slots(target: Target, content: Mapping[str, Any]) -> float:
    """Instructions per second of the vector units, from the fp32 figure: integer products issue once per slot.

    Makers count two fp32 operations per lane and clock; where half of the lanes take no integers, or where two
    instructions count as one dual issue, half of that.
    """
    rule = content["multiply"]
    ratio = rule["bf16_per_fp32"].get(target.kind, rule["bf16_per_fp32"]["other"])
    vector: float = target.flops.get("fp32") or _peak(target, "bf16") / ratio
    if target.name in rule["scalar"]:  # no instruction for four products of bytes at once (dp4a)
        return vector / float(rule["dp4a_gain"])
    return vector if target.name in rule["full"] or target.vendor in rule["full_makers"] else vector / 2


def _layer_s(target: Target, maker: str, content: Mapping[str, Any]) -> float:
    rule = content["launch"]
    if maker in rule["cycles_per_layer"]:
        clock = content["clock_ghz"].get(target.name, rule["otherwise_ghz"])
        return float(rule["cycles_per_layer"][maker] / (clock * 1e9))
    return float(rule["seconds_per_layer"].get(maker, rule["seconds_per_layer"]["other"]))
