"""The devices that a prediction can be for: in the catalog, in this machine, described by figures, or several.

--on "rtx 4090"      --on 2x"rtx 3090"      --on "3090, 4060 ti 16gb"      --on "m4 max 64gb"
--on cuda:0          --on vram=24,bandwidth=1008,bf16=165

The catalog is ``scenarios/devices.toml``, which has a source for each figure; unknown figures are ``None`` or absent.
A kind of device without data sheets, such as a CPU, gives its figures itself (``DeviceKind.describe``).
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from statistics import median
from typing import Any

from profiler import devices
from profiler.devices import calibration, naming
from profiler.devices.base import DeviceInfo, DeviceKind, Slice, kind_of, repacks
from profiler.devices.calibration import Ceilings, QuickCeilings
from profiler.errors import ProfileError
from profiler.registry import unknown
from profiler.units import GIB, GIGA, MIB, TERA, printable

MEMORY_TOLERANCE = 0.15  # relative: a driver keeps some of a card's memory, but an 8 GB card is not a 16 GB card

BEFORE_AMPERE = ("Kepler", "Maxwell", "Pascal", "Volta", "Turing")  # NVIDIA's generations without bf16
MAX_DEVICES = 64  # in one machine
LINK_BYTES_S = 16e9  # PCIe 4.0 x8 to x16, if the data sheet has no figure
FIGURES = ("vram", "bandwidth", "bf16", "fp16", "fp32", "int8", "fp8", "fp4", "watts", "link")
UNKNOWN_GPU = (300e9, {"bf16": 20e12, "fp32": 10e12})  # a small card of 2020, for GPUs that are not in the catalog
UNKNOWN_SPREAD = 4.0  # factor either way on the figures of such a GPU
MOST_REACHED = 1.2  # of a data sheet's FLOP/s: a laptop may run far above its clock, depending on its maker
SLICE_SPREAD = 1.25  # a slice has shares of a data sheet's figures, and we have measured none
_COUNT = re.compile(r"^(\d{1,3})\s*[x×*]\s*(.+)$", re.IGNORECASE)  # not 7900 xtx
_COUNT_AFTER = re.compile(r"^(.+?)(?:\s+|(?<=\d))[x×*]\s*([1-9]\d?)$", re.IGNORECASE)  # not rx 580


@dataclass(frozen=True, slots=True)
class CatalogDevice:
    """A device of the catalog. Bytes, bytes per second, FLOP per second (dense), watts."""

    name: str
    vendor: str
    kind: str  # consumer | workstation | datacenter | desktop-soc | edge | igpu
    memory_bytes: int | None
    reported_bytes: int | None  # by its driver, where that is much less
    bandwidth_bytes_s: float
    flops: Mapping[str, float]  # by dtype: fp32, bf16 (fp32 accumulation), fp16, int8, fp8, fp4
    tdp_w: float | None
    link_bytes_s: float | None  # to the host, one direction
    titles: tuple[str, ...]  # its names in NVML
    sources: Mapping[str, str]  # where figures come from, by figure or under ``all``
    standing: str  # which figures were checked, and which are derived
    notes: str | None
    generation: str  # the architecture: Ada, RDNA3, M4
    clock_hz: float | None  # boost clock
    peer_bytes_s: float | None  # to another card of the kind, one direction; None: over the link to the host
    matmul_flops: float | None  # that large products were measured to reach at best, in bf16 or else in fp16

    def matches(self, title: str, memory_bytes: int) -> bool:
        """Whether a card that NVML found is this one. The name must be equal, since a laptop's chip differs."""
        if title not in self.titles or self.memory_bytes is None:
            return False
        return abs(memory_bytes / self.memory_bytes - 1) <= MEMORY_TOLERANCE


@cache
def data_sheets() -> tuple[CatalogDevice, ...]:
    """All devices of the catalog, in the order of the file."""
    return tuple(_device(entry) for entry in _catalog()["device"])


@cache
def memory_sizes() -> dict[str, list[int]]:
    """Sizes of memory in GiB that a chip is sold with, by its name without size and form."""
    return dict(_catalog()["sizes_gib"])


@cache
def _catalog() -> dict[str, Any]:
    return tomllib.loads((resources.files("profiler.scenarios") / "devices.toml").read_text(encoding="utf-8"))


def match(title: str, memory_bytes: int) -> CatalogDevice | None:
    """The catalog's entry for a card that NVML found; None if it has none."""
    return next((device for device in data_sheets() if device.matches(title, memory_bytes)), None)


def _device(entry: Mapping[str, Any]) -> CatalogDevice:
    memory = entry.get("memory_gib")
    return CatalogDevice(
        name=entry["name"],
        vendor=entry["vendor"],
        kind=entry["class"],
        memory_bytes=None if memory is None else round(memory * GIB),
        reported_bytes=entry["reported_mib"] * MIB if "reported_mib" in entry else None,
        bandwidth_bytes_s=entry["bandwidth_gb_s"] * GIGA,
        flops={dtype: value * TERA for dtype, value in entry["tflops"].items()},
        tdp_w=entry.get("tdp_w"),
        link_bytes_s=entry["pcie_gb_s"] * GIGA if "pcie_gb_s" in entry else None,
        titles=tuple(entry.get("titles", ())),
        sources=entry["sources"],
        standing=entry["standing"],
        notes=entry.get("notes"),
        generation=entry["generation"],
        clock_hz=entry["clock_ghz"] * GIGA if "clock_ghz" in entry else None,
        peer_bytes_s=entry["peer_gb_s"] * GIGA if "peer_gb_s" in entry else None,
        matmul_flops=entry["matmul_tflops"] * TERA if "matmul_tflops" in entry else None,
    )


def summed_in_fp32(vendor: str, kind: str, flops: Mapping[str, float]) -> float | None:
    """FLOP/s of products of fp16 that are summed in fp32, which a GeForce card does at half the rate of its data
    sheet; None: as the data sheet says."""
    fp16, bf16 = flops.get("fp16", 0.0), flops.get("bf16")
    if vendor != "NVIDIA" or not _has_matrix_units(flops):
        return None
    if bf16 is not None:
        return bf16 if bf16 < fp16 else None
    return fp16 / 2 if kind == "consumer" else None


def _has_matrix_units(flops: Mapping[str, float]) -> bool:
    """Vector units multiply fp16 at most twice as fast as fp32."""
    return "bf16" in flops or flops.get("fp16", 0.0) > 4 * flops.get("fp32", math.inf)


def _reached(device: CatalogDevice) -> float | None:
    """The share of its data sheet's FLOP/s that large products were measured to reach at best."""
    if device.matmul_flops is None:
        return None
    flops = device.flops
    peak = flops.get("bf16") or summed_in_fp32(device.vendor, device.kind, flops) or flops["fp16"]
    return min(device.matmul_flops / peak, MOST_REACHED)


@cache
def _typically_reached() -> dict[tuple[object, ...], float]:
    """The median of that share among similar devices."""
    shares: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for device in data_sheets():
        share = _reached(device)
        if share is not None:
            for key in _similar(device):
                shares[key].append(share)
    return {key: median(own) for key, own in shares.items()}


def _similar(device: CatalogDevice) -> list[tuple[object, ...]]:
    """Keys of groups of devices like this one, the nearest first. Power limits laptops and chips that share it with a
    CPU in other ways than cards, and matrix units in other ways than vector units."""
    units, form = _has_matrix_units(device.flops), "laptop" if "Laptop" in device.name else device.kind
    found: list[tuple[object, ...]] = [(device.vendor, units, form, device.generation), (device.vendor, units, form)]
    if form not in ("laptop", "igpu", "edge"):
        found += [(device.vendor, units, "card", device.generation), (device.vendor, units, "card")]
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """A device for predictions, or ``count`` equal ones. Bytes, bytes per second, FLOP per second, watts."""

    name: str
    vendor: str  # NVIDIA, AMD, Apple, Intel, CPU, or other
    kind: str
    memory_bytes: int
    bandwidth_bytes_s: float
    flops: Mapping[str, float] = field(hash=False)
    tdp_w: float | None = None
    link_bytes_s: float = LINK_BYTES_S
    generation: str = ""  # its architecture, as in the catalog; empty: unknown
    clock_hz: float | None = None
    peer_bytes_s: float | None = None
    reached: float = 1.0  # share of ``flops`` that large products reach: less where power limits them
    count: int = 1
    members: tuple[Target, ...] = ()  # the devices themselves if they differ; the figures above are then their means
    local: str | None = None  # its name on this machine, if it is here: cpu, cuda:0
    source: str = ""  # where the figures come from, in words
    spread: float = 1.0  # factor by which the figures themselves may be off, either way
    ceilings: Ceilings | None = field(default=None, hash=False)  # as `profile calibrate` measured this very device
    quick: QuickCeilings | None = field(default=None, hash=False)  # of this very device, as a sweep measured them
    default_dtype: str = "bf16"
    unsupported_dtypes: tuple[str, ...] = ()  # as in ``DeviceInfo``
    limits: tuple[str, ...] = ()  # as in ``DeviceInfo``; of the catalog: what its name left open (``naming``)
    # Of a device of this machine, as in ``DeviceInfo``:
    features: tuple[str, ...] = ()
    duty_cycle: float = 1.0  # the figures above take it into account already
    memory_limit: str | None = None
    part: str | None = None  # of a slice of a card: MIG 1g.10gb

    @property
    def title(self) -> str:
        """``2x RTX 3090``, ``H100 SXM MIG 1g.10gb``."""
        name = self.name if self.part is None else f"{self.name} {self.part}"
        return name if self.count == 1 or self.members else f"{self.count}x {name}"

    @property
    def guessed(self) -> bool:
        """Whether its figures are neither measured nor from a data sheet, so that its ceilings are unknown."""
        return self.ceilings is None and self.spread > 1

    @property
    def at_quick(self) -> Target:
        """The same device with the bandwidth and FLOP/s of its ``quick`` ceilings, if they are all that is known."""
        if self.quick is None or self.ceilings is not None:
            return self
        return replace(self, bandwidth_bytes_s=self.quick.read_bytes_s, flops=self.quick.flops, spread=1.0)

    @property
    def device_kind(self) -> DeviceKind:
        """Its kind, by the name of a device of this machine, otherwise by the maker."""
        return kind_of(self.local) if self.local else devices.of_maker(self.vendor)

    @property
    def repacks(self) -> bool:
        """As ``DeviceInfo.repacks``."""
        return repacks(self.features)

    @property
    def computers(self) -> int:
        """How many computers they are in: each device that shares the memory of its host is another."""
        return max(1, sum(each.unified for each in self.members) if self.members else self.count * self.unified)

    @property
    def makers(self) -> tuple[str, ...]:
        """The makers of the devices, by name."""
        return tuple(sorted({each.vendor for each in self.members or (self,)}))

    @property
    def unified(self) -> bool:
        """Whether it shares memory with the processor, so that there is no other memory to offload to."""
        return self.vendor in ("CPU", "Apple") or self.kind in ("desktop-soc", "igpu", "edge")


def find(text: str | None = None) -> Target:
    """The target that ``text`` names; None: the first device of this machine.

    Raises NotFound with the nearest names, and ProfileError for figures that are missing or not numbers.
    """
    if text is None:
        return of(devices.find())
    wanted = text.strip()
    if "," in wanted and "=" not in wanted:
        return _several(text)
    wanted = _COUNT_AFTER.sub(r"\2x\1", wanted)
    match = _COUNT.match(wanted)
    if match and not wanted.casefold().startswith("0"):
        count = int(match[1])
        if count > MAX_DEVICES:
            raise ProfileError(f"--on {printable(text)}: at most {MAX_DEVICES} devices")
        each = find(match[2].strip("\"' "))
        if each.count > 1 or each.vendor == "CPU":
            raise ProfileError(
                f"--on {printable(text)}: a count goes before one GPU", 'For example: --on 2x"rtx 3090"'
            )
        return replace(each, count=count)
    if "=" in wanted:
        return _described(wanted)
    if re.fullmatch(rf"({'|'.join(map(re.escape, devices.names()))})(:\d+)?", wanted):
        try:
            return of(devices.find(wanted))
        except ProfileError as error:  # predictions call the option --on
            hint = error.hint.replace("--device", "--on") if error.hint else None
            raise type(error)(error.message.replace("--device", "--on"), hint) from None
    device, open_questions = naming.choose(wanted, data_sheets(), memory_sizes())
    return replace(of_catalog(device), limits=open_questions)


def _several(text: str) -> Target:
    """Several devices in one machine: ``3090, 4060 ti 16gb``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ProfileError(f"--on {printable(text)}: a device is missing", 'For example: --on "3090, 4090"')
    found = [find(part) for part in parts]
    members = [replace(each, count=1) for each in found for _ in range(each.count)]
    if len(members) > MAX_DEVICES:
        raise ProfileError(f"--on {printable(text)}: at most {MAX_DEVICES} devices")
    if any(each.vendor == "CPU" for each in members):
        raise ProfileError(f"--on {printable(text)}: only GPUs can share a model", 'For example: --on "3090, 4090"')
    if 0 < sum(each.vendor == "Apple" for each in members) < len(members):
        raise ProfileError(f"--on {printable(text)}: no machine has Apple's GPU and another", "Name one of them.")
    if all(each == members[0] for each in members):
        return replace(members[0], count=len(members))
    return replace(several(members), name=" + ".join(each.title for each in found))


def several(members: Sequence[Target]) -> Target:
    """Devices that differ, in one machine. The figures of the result are means."""
    first, watts = members[0], [each.tdp_w for each in members if each.tdp_w is not None]
    best = [max(each.flops.values()) for each in members]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return Target(
        name=" + ".join(each.title for each in members),
        vendor=first.vendor if all(each.vendor == first.vendor for each in members) else "other",
        kind=first.kind,
        memory_bytes=round(mean([each.memory_bytes for each in members])),
        bandwidth_bytes_s=mean([each.bandwidth_bytes_s for each in members]),
        flops={
            dtype: mean([each.flops[dtype] for each in members])
            for dtype in first.flops
            if all(dtype in each.flops for each in members)
        },
        tdp_w=mean(watts) if len(watts) == len(members) else None,
        link_bytes_s=min(each.link_bytes_s for each in members),
        reached=sum(each.reached * weight for each, weight in zip(members, best, strict=True)) / sum(best),
        count=len(members),
        members=tuple(members),
        source="; ".join(dict.fromkeys(each.source for each in members)),
        limits=tuple(dict.fromkeys(limit for each in members for limit in each.limits)),
        spread=max(each.spread for each in members),
        default_dtype=next((each.default_dtype for each in members if each.unsupported_dtypes), first.default_dtype),
        unsupported_dtypes=tuple(dict.fromkeys(dtype for each in members for dtype in each.unsupported_dtypes)),
    )


def of_catalog(device: CatalogDevice) -> Target:
    """The target for a device of the catalog. Raises ProfileError for one that has no memory of its own."""
    if device.memory_bytes is None:
        raise ProfileError(
            f"{device.name} shares the memory of its host, whose size is not known",
            f"Say how much it has, for example: --on vram=32,bandwidth={device.bandwidth_bytes_s / 1e9:g}",
        )
    without_bf16 = device.generation in BEFORE_AMPERE
    reached = _reached(device)
    if reached is None:
        typical = _typically_reached()
        reached = next((typical[key] for key in _similar(device) if key in typical), 1.0)
    return Target(
        name=device.name,
        vendor=device.vendor,
        kind=device.kind,
        memory_bytes=device.reported_bytes or device.memory_bytes,
        bandwidth_bytes_s=device.bandwidth_bytes_s,
        flops=device.flops,
        tdp_w=device.tdp_w,
        link_bytes_s=device.link_bytes_s or LINK_BYTES_S,
        generation=device.generation,
        clock_hz=device.clock_hz,
        peer_bytes_s=device.peer_bytes_s,
        reached=reached,
        source=device.standing,
        default_dtype="fp16" if without_bf16 else "bf16",
        unsupported_dtypes=("bf16",) if without_bf16 else (),
    )


def of(device: DeviceInfo, packages: Sequence[str] | None = None) -> Target:
    """A device of this machine, with its ceilings if `profile calibrate` measured them.

    ``packages``: the versions of ``calibration.PACKAGES`` with which they were measured; None: those installed now.
    """
    found = _local(device)
    measured = calibration.load(device) if packages is None else calibration.load(device, packages)
    on_host = kind_of(device.kind).is_host
    if measured is None:
        quick = calibration.load_quick(device)
        if quick is not None and on_host:
            quick = quick.at_duty_cycle(calibration.whole(device).duty_cycle)
        return replace(found, quick=quick)
    kind = kind_of(device.kind)
    if on_host:
        measured = measured.at_duty_cycle(device.duty_cycle)
    no_data_sheet = kind.describe is not None or found.vendor == "other"
    return replace(
        found,
        bandwidth_bytes_s=measured.read_bytes_s if no_data_sheet else found.bandwidth_bytes_s,
        flops=measured.flops if no_data_sheet else found.flops,
        spread=1.0,
        ceilings=measured,
        source=f"measured {measured.measured_at[:10]}",
    )


def _local(device: DeviceInfo) -> Target:
    """The figures of a device of this machine without calibration: its own, or those of the catalog."""
    describe = kind_of(device.kind).describe
    if describe is not None:
        found = describe(device)
    else:
        found = replace(_local_gpu(device), local=device.name, duty_cycle=device.duty_cycle, limits=device.limits)
    return replace(found, default_dtype=device.default_dtype, unsupported_dtypes=device.unsupported_dtypes)


def _local_gpu(device: DeviceInfo) -> Target:
    if device.slice is not None:
        return _slice(device, device.slice)
    known = match(device.title, device.memory_bytes)
    if known is None:
        bandwidth, flops = UNKNOWN_GPU
        return Target(
            device.title,
            "other",
            "gpu",
            device.memory_bytes,
            bandwidth,
            flops,
            source="a guess",
            spread=UNKNOWN_SPREAD,
        )
    return replace(of_catalog(known), memory_bytes=device.memory_bytes)  # less than the data sheet says


def _slice(device: DeviceInfo, part: Slice) -> Target:
    """The figures of a slice, by its shares of the whole card. Its share of the card's power is unknown."""
    whole = _local_gpu(replace(device, title=part.of_title, memory_bytes=part.of_bytes, slice=None))
    compute = part.compute_share or part.memory_share
    return replace(
        whole,
        memory_bytes=device.memory_bytes,
        bandwidth_bytes_s=whole.bandwidth_bytes_s * part.memory_share,
        flops={dtype: rate * compute for dtype, rate in whole.flops.items()},
        tdp_w=None,
        source=f"a slice: {part.memory_share:.0%} of the bandwidth, {compute:.0%} of the multiprocessors",
        spread=max(whole.spread, SLICE_SPREAD),
        part=f"MIG {part.profile}",
    )


def _described(text: str) -> Target:
    """The target that ``vram=24,bandwidth=1008,bf16=165`` describes, in GiB, GB/s, TFLOP/s and watts."""
    figures: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        name = key.strip().casefold()
        if name not in FIGURES:
            raise unknown("figure of a device", name, FIGURES)
        if name in figures:
            raise ProfileError(f"--on {printable(text)}: {name} is given twice", "Give each figure once.")
        try:
            figures[name] = float(value)
        except ValueError:
            raise ProfileError(
                f"--on {printable(name)}={printable(value)} is not a number",
                "In GiB, GB/s and TFLOP/s, without the unit: --on vram=24,bandwidth=1008,bf16=165",
            ) from None
        if not 0 < figures[name] < 1e7:
            raise ProfileError(f"--on {name}={printable(value)} is out of range")
    missing = [name for name in ("vram", "bandwidth") if name not in figures]
    if missing:
        raise ProfileError(
            f"--on {printable(text)}: {missing[0]} is missing", "For example: --on vram=24,bandwidth=1008,bf16=165"
        )
    return Target(
        name=printable(text),
        vendor="other",
        kind="described",
        memory_bytes=round(figures["vram"] * GIB),
        bandwidth_bytes_s=figures["bandwidth"] * 1e9,
        flops={name: figures[name] * 1e12 for name in FIGURES[2:8] if name in figures},
        tdp_w=figures.get("watts"),
        link_bytes_s=figures["link"] * 1e9 if "link" in figures else LINK_BYTES_S,
        source="as described",
    )
