"""Rates of a device from its data sheet, scaled by each engine's efficiencies in ``scenarios/efficiency.toml``.

The efficiencies of quantizations that transformers loads are in their own files, ``profiler/quants/NAME.py``.

Each efficiency has a physical cause: the part of the data sheet's bandwidth that a vendor's memory and kernels reach,
the clock cycles of a layer's launches, the rate at which vector units multiply packed weights. The file says how each
was fitted, and how far off predictions were on devices that were not used for the fit.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Self

from profiler import quants
from profiler.cost.roofline import Ahead, Convolution, Cost, InTurn, Rates, Roofline, divided, wider
from profiler.cost.work import Item, PhaseWork
from profiler.decode_path import GRAPH
from profiler.devices.target import Target
from profiler.models.gguf import TYPES

OWN_ROWS = {
    "CPU": (8, math.inf),
    "other": (4, 32 * 1024**2),
}  # the limits of ``calibrated.OwnKernels``: kernels/patches.py, cuda.py
PLAIN = ("fp32", "bf16", "fp16", "f32", "f16")
OF_CHECKPOINTS = ("int8", "fp8", "nvfp4", "int4")  # types that checkpoint weights are read like: ``Scheme.rate``
AS_THEY_ARE = (*PLAIN, "cache", "state")  # types that are multiplied without unpacking
OTHERS = (*AS_THEY_ARE, *OF_CHECKPOINTS, "copy", *(name for name in TYPES if name not in PLAIN))


def schemes() -> tuple[str, ...]:
    """All storage types that a prediction may read."""
    return tuple(dict.fromkeys((*OTHERS, *(quant.name for quant in quants.every()))))


def own_quants(kind: str) -> tuple[str, ...]:
    """The quantizations that our own decode step multiplies without unpacking, on one kind of device."""
    return tuple(quant.name for quant in quants.every() if kind in quant.kernels.own)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSheetRates(Rates):
    """Rates of an engine on a device that was not calibrated: its data sheet and the fitted efficiencies."""

    unpack_s: Mapping[str, float]  # per stored byte and pass, by quantization

    def cost(self, item: Item, work: PhaseWork) -> Cost:
        """Bytes at the reachable bandwidth, FLOPs at the reachable peak, plus unpacking."""
        if item.kind == "convolution":
            return Cost(computing=self.convolution.seconds(item)) if self.convolution else Cost()
        unpacking = item.nbytes * self.unpack_s.get(item.scheme, 0.0)
        return Cost(self.roofline.reading(item), self.roofline.computing(item, work.tokens), unpacking)

    def over(self, count: int) -> Self:
        return replace(self, roofline=self.roofline.over(count), unpack_s=divided(self.unpack_s, count))

    def own_step(self, target: Target, dtype: str, path: str) -> Self:
        rule = shares()["step"]
        call_s = 0.0 if path == GRAPH else self.launches.call_s
        if target.vendor != "CPU":
            return replace(self, launches=Ahead(call_s, rule["device_call_s"], {}, layers_timed=False))
        own = {scheme: self.roofline.read_s[scheme] * rule["reads"] for scheme in own_quants("cpu")}
        roofline = self.roofline.reads(**own, cache=own["fp32"])
        return replace(self, roofline=roofline, launches=InTurn(call_s), convolution=None)


@cache
def shares() -> dict[str, Any]:
    """The content of ``scenarios/efficiency.toml``."""
    text = (resources.files("profiler.scenarios") / "efficiency.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def rates(target: Target, engine: str, dtype: str, found: Mapping[str, Any] | None = None) -> DataSheetRates:
    """The rates of ``engine`` on ``target``; ``found`` replaces the file's content when efficiencies are fitted."""
    content = shares() if found is None else found
    own = content["engine"].get(engine, content["engine"]["other"])
    maker = target.vendor if target.vendor in content["bandwidth"] else "other"
    bandwidth = target.bandwidth_bytes_s * content["bandwidth"][maker] * own["bandwidth"]
    known = schemes()
    priors = {quant.name: quant.kernels.prior for quant in quants.every() if quant.kernels.prior is not None}
    formats = {**content["format"], **{name: prior.read for name, prior in priors.items()}}
    loaded = priors if own["loads_quants"] else {}
    kind = "repacking" if target.repacks else "cpu" if maker == "CPU" else "other"
    of_fp32 = {name: prior.of_fp32[kind] for name, prior in loaded.items() if kind in prior.of_fp32}
    unpacking = {
        name: prior.unpack_bytes.get(kind, prior.unpack_bytes.get("other", 0.0)) for name, prior in loaded.items()
    }
    read_s = {scheme: 1 / (bandwidth * formats.get(group(scheme), 1.0)) for scheme in known}
    peak = _peak(target, "fp32" if maker in own["vector_prefill"] else dtype)
    peak *= own["prefill"].get(maker, own["prefill"]["other"])
    slower = {**content["prefill"]["slower"], **own.get("slower", {})}  # quantizations that are slower than that rate
    per_slot = content["multiply"]["per_slot"]
    slots = multiply_slots(target, content) * per_slot.get(maker, per_slot["other"])
    one_by_one = dict.fromkeys(known, 0.5 / slots)
    halves = content["halves"] if maker == "CPU" and target.flops.get(dtype, 0.0) < target.flops["fp32"] else None
    call_s = own.get("call_s", {}).get(maker, own.get("call_s", {}).get("other", 0.0))
    own_running = target.running if maker == "CPU" else 1.0  # a GPU keeps working while a CPU quota stops its process
    if halves:
        read_s["cache"] *= halves["cache"]
    return DataSheetRates(
        roofline=Roofline(
            read_s=read_s,
            many_flop_s={scheme: slower.get(scheme, 1.0) / peak for scheme in known}
            | {scheme: 1 / (share * _peak(target, "fp32")) for scheme, share in of_fp32.items()},
            few_flop_s=one_by_one | dict.fromkeys(AS_THEY_ARE, 1 / peak),
            expert_flops=content["prefill"]["expert_flops"],
        ),
        unpack_s={scheme: factor / target.bandwidth_bytes_s for scheme, factor in unpacking.items()},
        layer_s=_layer_s(target, maker, content) * own["launch"] / own_running,
        expert_layers=own["expert_layers"],
        decode=wider(own["spread"]["decode"], target.spread),
        prefill=wider(own["spread"]["prefill"], target.spread),
        convolution=Convolution(**divided(halves["convolution"], own_running)) if halves else None,
        launches=InTurn(call_s / target.running),
        basis=own["basis"] if maker in own["fitted_on"] else "prior",
    )


def group(scheme: str) -> str:
    """The group of types that are read alike; those with codebooks are in the group ``iq``."""
    return "iq" if scheme.startswith("iq") else scheme


def _peak(target: Target, dtype: str) -> float:
    """FLOP/s of matrix multiplication in the compute dtype, or in the nearest dtype that the data sheet lists."""
    order = (dtype, "bf16", "fp16", "fp32") if dtype != "fp32" else ("fp32", "bf16")
    known = [target.flops[name] for name in order if target.flops.get(name)]
    return known[0] if known else target.bandwidth_bytes_s * 50  # FLOPs per byte: fewer than any GPU in the catalog


def multiply_slots(target: Target, content: Mapping[str, Any]) -> float:
    """Instructions per second of the vector units, from the fp32 figure. Integer products issue once per slot.

    Vendors count two fp32 operations per lane and clock. The rate is half of that where half of the lanes cannot
    process integers, or where the figure counts dual issue.
    """
    rule = content["multiply"]
    ratio = rule["bf16_per_fp32"].get(target.kind, rule["bf16_per_fp32"]["other"])
    vector: float = target.flops.get("fp32") or _peak(target, "bf16") / ratio
    if target.name in rule["scalar"]:  # no instruction for four byte products at once (dp4a)
        return vector / float(rule["dp4a_gain"])
    return vector if target.name in rule["full"] or target.vendor in rule["full_makers"] else vector / 2


def _layer_s(target: Target, maker: str, content: Mapping[str, Any]) -> float:
    rule = content["launch"]
    if maker in rule["cycles_per_layer"]:
        clock = content["clock_ghz"].get(target.name, rule["otherwise_ghz"])
        return float(rule["cycles_per_layer"][maker] / (clock * 1e9))
    return float(rule["seconds_per_layer"].get(maker, rule["seconds_per_layer"]["other"]))
