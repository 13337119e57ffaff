"""Rates of a device from its data sheet, scaled by each engine's efficiencies in ``scenarios/efficiency.toml``.

The efficiencies of quantizations that transformers loads are in their own files, ``profiler/quants/NAME.py``.

Each efficiency has a physical cause: the part of the data sheet's bandwidth that a vendor's memory and kernels reach,
the clock cycles of a layer's launches, the rate at which vector units multiply packed weights. The file says how each
was fitted, and how far off predictions were on devices that were not used for the fit.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any, Self

from profiler import quants
from profiler.cost.interval import ORDER, Basis
from profiler.cost.roofline import (
    HOSTS,
    Ahead,
    Bounds,
    Convolution,
    Cost,
    InTurn,
    Rates,
    Roofline,
    divided,
    of_both,
    wider,
)
from profiler.cost.work import CACHES, MOVED, UNFUSED, WIDE, Item, PhaseWork
from profiler.decode_path import GRAPH
from profiler.devices.target import Target
from profiler.models.gguf import BLOCKS, TYPES
from profiler.quants.base import Prior

OWN_ROWS = {
    "CPU": (8, math.inf),
    "other": (4, 32 * 1024**2),
}  # the limits of ``calibrated.OwnKernels``: kernels/patches.py, cuda.py
PLAIN = ("fp32", "bf16", "fp16", "f32", "f16")
OF_CHECKPOINTS = ("int8", "fp8", "nvfp4", "int4")  # types that checkpoint weights are read like: ``Scheme.rate``
CALIBRATED_CPU = "calibrated CPU"  # a key of tables by vendor
WIDE_VECTORS = "avx512f"  # the feature of CPUs whose fp32 figure is for vectors of 512 bits
MAX_BANDWIDTH_SHARE = 0.95  # of a data sheet's: refresh and turning the bus around take the rest
MANY_LAYERS = 2.0  # the most that launches of several tokens take relative to one: two steps take as many
EXTRAS = {  # of ``Roofline``, their names in the file, and their values without an entry
    "idle_rows": ("idle_rows", 0.0),
    "expert_flops": ("experts", 1.0),
    "state_token_s": ("state_token_s", 0.0),
}
AS_THEY_ARE = (*PLAIN, *CACHES, "state")  # types that are multiplied without unpacking
OTHERS = (*AS_THEY_ARE, *OF_CHECKPOINTS, "copy", MOVED, *(name for name in TYPES if name not in PLAIN))


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
    few_packed: frozenset[str] = frozenset()  # types of which few tokens are multiplied without unpacking
    unpack_one_s: Mapping[str, float] = field(default_factory=dict)  # for a single token, where that is less
    overlap: float = math.inf  # exponent of the norm that adds reading and computing; infinite: the longer one counts

    def cost(self, item: Item, work: PhaseWork) -> Cost:
        """Bytes at the reachable bandwidth, FLOPs at the reachable peak, plus unpacking."""
        if item.kind == "convolution":
            return Cost(computing=self.convolution.seconds(item)) if self.convolution else Cost()
        reading, computing = self.roofline.reading(item), self.roofline.computing(item)
        unpack_s = self.unpack_s.get(item.scheme, 0.0)
        extra = item.nbytes * (unpack_s if item.rows > 1 else self.unpack_one_s.get(item.scheme, unpack_s))
        if item.scheme in self.few_packed and item.kind == "weights":
            packed, unpacked = self.roofline.on_vector_units(item), self.roofline.on_matrix_units(item)
            if item.rows > 1 and self.unpack_one_s.get(item.scheme) == 0.0:
                # One token takes as long as reading the weights, so a few take no longer than one after the other.
                packed = min(packed, unpacked + (item.rows - 1) * reading)
            computing, extra = (packed, 0.0) if packed <= unpacked + extra else (unpacked, extra)
        if not reading or not computing or math.isinf(self.overlap):
            return Cost(reading, computing, extra)
        shorter, longer = sorted((reading, computing))
        both = longer * (1 + (shorter / longer) ** self.overlap) ** (1 / self.overlap)
        return Cost(both, computing, extra) if reading >= computing else Cost(reading, both, extra)

    def on_any_host(self, work: PhaseWork, bounds: Bounds) -> Bounds:
        if not isinstance(self.launches, Ahead) or not self.launches.call_s:
            return bounds
        usual = self.split(work).total
        fast, slow = (replace(self, launches=self.launches.faster(by)).split(work).total for by in (HOSTS, 1 / HOSTS))
        return of_both(bounds, (fast / usual, slow / usual))

    def over(self, count: int) -> Self:
        unpack_s, unpack_one_s = divided(self.unpack_s, count), divided(self.unpack_one_s, count)
        return replace(self, roofline=self.roofline.over(count), unpack_s=unpack_s, unpack_one_s=unpack_one_s)

    def own_step(self, target: Target, dtype: str, path: str) -> Self:
        rule = shares()["step"]
        call_s = 0.0 if path == GRAPH else self.launches.call_s
        if target.vendor != "CPU":  # the cache is read in place by our kernel, not copied
            roofline = self.roofline.reads(cache=self.roofline.read_s["bf16"])
            launches = Ahead(call_s, rule["device_call_s"], {}, layers_timed=False)
            return replace(self, roofline=roofline, launches=launches)
        own = {scheme: self.roofline.read_s[scheme] * rule["reads"] for scheme in own_quants("cpu")}
        roofline = self.roofline.reads(**own, cache=own["fp32"])
        return replace(self, roofline=roofline, launches=InTurn(call_s), convolution=None)


def joined(found: Sequence[DataSheetRates], shares: Sequence[float | None]) -> DataSheetRates:
    """Rates of devices that differ: they work in turn on their ``shares`` of the layers, which add up to 1, or all at
    once on equal slices, where the slowest sets the pace."""
    slowest = max(found, key=lambda rates: rates.roofline.read_s["bf16"])
    parts = [share for share in shares if share is not None]
    if not parts:
        return slowest

    def mean(values: Sequence[float]) -> float:
        return sum(value * share for value, share in zip(values, parts, strict=True))

    def by_scheme(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {key: mean([each[key] for each in tables]) for key in tables[0] if all(key in each for each in tables)}

    rooflines = [rates.roofline for rates in found]
    return replace(
        slowest,
        roofline=Roofline(
            by_scheme([each.read_s for each in rooflines]),
            by_scheme([each.flop_s for each in rooflines]),
            by_scheme([each.vector_s for each in rooflines]),
            mean([each.idle_rows for each in rooflines]),
            mean([each.expert_flops for each in rooflines]),
            mean([each.state_token_s for each in rooflines]),
            by_scheme([each.expert_s for each in rooflines]),
        ),
        layer_s=mean([rates.layer_s for rates in found]),
        unpack_s=by_scheme([rates.unpack_s for rates in found]),
        unpack_one_s=by_scheme([rates.unpack_one_s for rates in found]),
        decode=_widest([rates.decode for rates in found]),
        batch=_widest([rates.step_bounds(2) for rates in found]),
        prefill=_widest([rates.prefill for rates in found]),
        basis=max((rates.basis for rates in found), key=ORDER.index),
    )


def _widest(bounds: Sequence[Bounds]) -> Bounds:
    return min(low for low, _ in bounds), max(high for _, high in bounds)


@cache
def shares() -> dict[str, Any]:
    """The content of ``scenarios/efficiency.toml``."""
    text = (resources.files("profiler.scenarios") / "efficiency.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def rates(
    target: Target, engine: str, dtype: str, found: Mapping[str, Any] | None = None, experts: bool = False
) -> DataSheetRates:
    """The rates of ``engine`` on ``target``; ``found`` replaces the file's content when efficiencies are fitted.
    ``experts``: with the bounds of mixtures of experts."""
    content = shares() if found is None else found
    own = content["engine"].get(engine, content["engine"]["other"])
    maker = target.vendor if target.vendor in content["bandwidth"] else "other"
    rule = Efficiency(content, own, engine, target, maker)
    known = schemes()
    priors = {quant.name: quant.kernels.prior for quant in quants.every() if quant.kernels.prior is not None}
    formats = {**content["format"], **{name: prior.read for name, prior in priors.items()}}
    loaded = priors if own["loads_quants"] else {}
    kind = "repacking" if target.repacks else "cpu" if maker == "CPU" else "other"
    of_fp32 = {name: prior.of_fp32[kind] for name, prior in loaded.items() if kind in prior.of_fp32}
    unpacking = {
        name: prior.unpack_bytes.get(kind, prior.unpack_bytes.get("other", 0.0)) for name, prior in loaded.items()
    }
    before_many = own.get("unpack", {}) | rule.dequantized()
    unpacking |= before_many
    bandwidth = rule.bandwidth()
    read_s = {scheme: 1 / (bandwidth * formats.get(group(scheme), 1.0)) for scheme in known}
    cache_s = read_s["cache"] * rule.value("cache", 1.0)
    read_s["cache"] = (
        cache_s if maker == "CPU" else max(cache_s, 1 / (MAX_BANDWIDTH_SHARE * target.bandwidth_bytes_s))
    )
    flop_s = {scheme: 1 / rule.flops(scheme, dtype) for scheme in known}
    flop_s |= {scheme: 1 / (share * _peak(target, "fp32")) for scheme, share in of_fp32.items()}
    vector_s = dict.fromkeys(vector_schemes(own), 0.5 / (multiply_slots(target, content) * rule.per_slot()))
    halves = content["halves"] if maker == "CPU" and target.flops.get(dtype, 0.0) < target.flops["fp32"] else None
    # A GPU keeps working while a CPU quota stops its process.
    own_duty_cycle = target.duty_cycle if maker == "CPU" else 1.0
    if halves:
        read_s["cache"] *= halves["cache"]
    read_s |= {WIDE: read_s["cache"], UNFUSED: read_s["cache"] * max(1.0, rule.value("unfused", 1.0))}
    read_s[MOVED] *= rule.value("activations", 0.0)
    basis: Basis = own["basis"] if maker in own["fitted_on"] else "prior"
    return DataSheetRates(
        roofline=Roofline(read_s, flop_s, vector_s, **rule.extras()),
        unpack_s={scheme: factor / target.bandwidth_bytes_s for scheme, factor in unpacking.items()},
        unpack_one_s={
            name: prior.unpack_one / target.bandwidth_bytes_s
            for name, prior in loaded.items()
            if kind == "other" and prior.unpack_one is not None
        }
        | dict.fromkeys(rule.dequantized(), 0.0),  # V100 and M40 decode one token as fast as they read
        few_packed=frozenset(before_many),
        overlap=max(1.0, rule.value("overlap", content["overlap"])),
        layer_s=_layer_s(target, maker, content, own.get("captures", False)) * own["launch"] / own_duty_cycle,
        expert_layers=own["expert_layers"],
        many_layers=max(1.0, min(rule.value("many_layers", 1.0), MANY_LAYERS)),
        pass_s=rule.value("pass_s", 0.0),
        sequence_s=rule.value("sequence_s", 0.0),
        decode=wider(rule.bounds("decode", experts, basis), target.spread),
        batch=wider(rule.bounds("batch", experts, basis), target.spread),
        prefill=wider(rule.bounds("prefill", experts, basis), target.spread),
        convolution=Convolution(**divided(halves["convolution"], own_duty_cycle)) if halves else None,
        launches=_launches(rule.value("call_s", 0.0), target, content, loaded),
        basis=basis,
    )


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What an engine reaches of a device: figures of ``efficiency.toml`` by vendor, generation and device."""

    content: Mapping[str, Any]
    own: Mapping[str, Any]  # the engine's section
    engine: str
    target: Target
    maker: str  # the vendor, or ``other``

    def value(self, name: str, otherwise: float) -> float:
        """A figure of the engine: one number, or one for each vendor."""
        found = self.own.get(name, otherwise)
        return self._of_maker(found, otherwise) if isinstance(found, Mapping) else float(found)

    def _of_maker(self, table: Mapping[str, float], otherwise: float) -> float:
        """The figure of the device's vendor. A CPU whose rates were measured may have one of its own: measured rates
        are two to three times those that are assumed for other CPUs.
        """
        names = (*((CALIBRATED_CPU,) if self.maker == "CPU" and self.target.ceilings else ()), self.maker, "other")
        return float(next((table[name] for name in names if name in table), otherwise))

    def factor(self, what: str) -> float:
        """How much more than its vendor's devices this one reaches: by its generation, and by its own rows."""
        tables = self.content["generation"].get(what, {}), self.content["device"].get(what, {})
        return float(tables[0].get(self.target.generation, 1.0) * tables[1].get(self.target.name, 1.0))

    def extras(self) -> dict[str, Any]:
        """What else a ``Roofline`` needs. A type's own figure for a generation includes experts."""
        found: dict[str, Any] = {key: self.value(*what) for key, what in EXTRAS.items()}
        slower, generation = self.own.get("slower", {}), self.target.generation
        if (experts := slower.get(f"experts {generation}")) is not None:
            found["expert_s"] = {name: experts for name in schemes() if f"{name} {generation}" not in slower}
        return found

    def bandwidth(self) -> float:
        """Bytes per second at which weights are read."""
        share = self.content["bandwidth"][self.maker] * self.value("bandwidth", 1.0) * self.factor("bandwidth")
        most = 1.0 if self.maker == "CPU" else MAX_BANDWIDTH_SHARE
        return float(self.target.bandwidth_bytes_s * min(share, most))

    def flops(self, scheme: str, dtype: str) -> float:
        """FLOP/s of products of many tokens with weights stored as ``scheme``."""
        slower: dict[str, float] = {**self.content["slower"], **self.own.get("slower", {})}
        most = self.target.reached  # no engine multiplies faster than the best product that was measured
        share = self.value("prefill", 0.3) * self.factor(self.engine) * most
        if self.maker in self.own["vector_prefill"]:
            return _peak(self.target, "fp32") * min(share, 1.0)
        if scheme == WIDE:
            return _peak(self.target, "fp32") * min(self.value("wide", 0.22), 1.0)
        if scheme in ("cache", UNFUSED, "state"):
            return _peak(self.target, dtype) * min(share / self.value("attention", 2.0), most)
        if scheme in AS_THEY_ARE:
            names = {"f16": ("fp16",), "fp16": ("fp16",), "bf16": ("bf16",)}.get(scheme, (dtype,))
            return _peak(self.target, *names) * min(share * self.value("plain", 1.0) / slower.get(scheme, 1.0), most)
        if self.own["int8"]:
            return self.flops_in_int8(slower.get(f"{scheme} {self.target.generation}", 1.0))
        if scheme in self.own.get("native", ()) and self.target.flops.get(scheme):
            here = slower.get(f"{scheme} {self.target.generation}", slower.get(scheme, 1.0))
            return self.target.flops[scheme] * min(share / here, most)
        unpacked = slower.get(scheme, 1.0) if scheme not in self.own.get("native", ()) else slower["int4"]
        return _peak(self.target, dtype) * min(share / unpacked, most)

    def flops_in_int8(self, slower: float) -> float:
        """The same for an engine that multiplies packed weights by activations in 8 bits.

        Matrix units add up the products of a block of weights; vector units then scale every sum. A tile takes the
        time of both (llama.cpp, ggml-cuda/mmq.cuh). A GPU of NVIDIA without products of bytes multiplies weights that
        it has unpacked like plain ones.
        """
        most = self.target.reached
        share, factor = self.value("prefill", 0.3) * most, self.factor(self.engine)
        peak = _peak(self.target, "int8", "fp16")
        if self.dequantizes:
            return peak * min(share * factor * self.value("plain", 1.0), most)
        seconds = 1 / min(share, most) / peak
        if scaled := self.value("scaled", 0.0):
            seconds += 1 / (scaled * multiply_slots(self.target, self.content))
        return min(factor / slower / seconds, peak * most)

    @property
    def dequantizes(self) -> bool:
        """Whether weights are unpacked before they are multiplied by many tokens (llama.cpp, ggml-cuda/mmq.cu)."""
        return bool(self.own["int8"]) and self.maker == "NVIDIA" and not self.target.flops.get("int8")

    def dequantized(self) -> dict[str, float]:
        """Bytes that this moves relative to the packed ones, by type: it reads these and writes two or four for each
        weight. The products read those while they compute.
        """
        if not self.dequantizes:
            return {}
        wide = 2 if self.target.flops.get("fp16") else 4
        sizes = {name: BLOCKS[TYPES[name]] for name in vector_schemes(self.own) if name in TYPES}
        return {name: 1 + wide * weights / nbytes for name, (weights, nbytes) in sizes.items()}

    def per_slot(self) -> float:
        """Products of packed weights and few tokens per instruction slot of the vector units."""
        found = self._of_maker(self.content["multiply"]["per_slot"], 0.0)
        # llama.cpp multiplies quantized weights in vectors of 256 bits, where the fp32 figure is for 512.
        return found / 2 if self.own["int8"] and WIDE_VECTORS in self.target.features else found

    def bounds(self, phase: str, experts: bool, basis: Basis) -> Bounds:
        """Measured ÷ predicted seconds, for 90% of devices that the fit left out; wider where it had no rows."""
        if self.maker == "CPU" and self.target.ceilings and "spread_calibrated_cpu" in self.own:
            low, high = self.own["spread_calibrated_cpu"][phase]
            return low, high
        known = self.own["spread"]
        plain = known.get(phase, known["decode"])
        low, high = known.get(f"{phase}_experts", plain) if experts else plain
        prior = self.content["prior_spread"] if basis == "prior" and self.own["basis"] != "prior" else 1.0
        return low / prior, high * prior


def vector_schemes(own: Mapping[str, Any]) -> tuple[str, ...]:
    """The packed types whose few tokens an engine multiplies on vector units."""
    return tuple(scheme for scheme in schemes() if scheme not in AS_THEY_ARE) if own["vector"] else ()


def group(scheme: str) -> str:
    """The group of types that are read alike; those with codebooks are in the group ``iq``."""
    return "iq" if scheme.startswith("iq") else scheme


def _peak(target: Target, *names: str) -> float:
    """FLOP/s of matrix multiplication in the first of these dtypes that the data sheet lists, or in the nearest."""
    order = (*names, "bf16", "fp16", "fp32") if names != ("fp32",) else ("fp32", "bf16", "fp16")
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
    named = {target.name, target.generation}
    if named & set(rule["scalar"]):  # no instruction for four byte products at once (dp4a)
        return vector / float(rule["dp4a_gain"])
    return vector if named & set(rule["full"]) or target.vendor in rule["full_makers"] else vector / 2


def _launches(
    call_s: float, target: Target, content: Mapping[str, Any], priors: Mapping[str, Prior]
) -> InTurn | Ahead:
    """A GPU works while Python launches its next operators; a CPU does both itself."""
    if target.vendor == "CPU" or not call_s:
        return InTurn(call_s / target.duty_cycle)
    call_s *= content["launch"]["of_kind"].get(target.kind, 1.0) / target.duty_cycle
    starts = {name: prior.start_calls * call_s for name, prior in priors.items() if prior.start_calls}
    return Ahead(call_s, content["step"]["device_call_s"], starts, layers_timed=False)


def _layer_s(target: Target, maker: str, content: Mapping[str, Any], captures: bool) -> float:
    rule = content["launch"]
    if maker in rule["cycles_per_layer"]:
        cycles = rule["cycles_per_layer"][maker] * (1.0 if captures else rule["of_kind"].get(target.kind, 1.0))
        return float(cycles / (target.clock_hz or rule["otherwise_ghz"] * 1e9))
    return float(rule["seconds_per_layer"].get(maker, rule["seconds_per_layer"]["other"]))
