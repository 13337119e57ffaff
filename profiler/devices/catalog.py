"""The catalog of devices by their makers' figures (``scenarios/devices.toml``): what is known of a card nobody
measured here. Each figure carries its source; a figure that is not known is ``None`` or absent.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from profiler.units import GIB

GIGA = 1e9
TERA = 1e12
MEMORY_TOLERANCE = 0.15  # a driver keeps some of the memory that is sold; an 8 GB card is no 16 GB card


@dataclass(frozen=True, slots=True)
class CatalogDevice:
    """One device. Bytes, bytes per second, FLOP per second (dense), watts."""

    name: str
    vendor: str
    kind: str  # consumer | workstation | datacenter | desktop-soc | edge | igpu
    memory_bytes: int | None
    bandwidth_bytes_s: float
    flops: Mapping[str, float]  # by dtype: fp32, bf16 (fp32 accumulation), fp16, int8, fp8, fp4
    tdp_w: float | None
    titles: tuple[str, ...]  # NVML's names of it
    sources: Mapping[str, str]  # figure, or ``all``, → where it comes from
    standing: str  # which figures were checked, and which are derived
    notes: str | None

    def matches(self, title: str, memory_bytes: int) -> bool:
        """Whether a card found here is this one: by NVML's exact name, since a laptop's chip is another one."""
        if title not in self.titles or self.memory_bytes is None:
            return False
        return abs(memory_bytes / self.memory_bytes - 1) <= MEMORY_TOLERANCE


@cache
def devices() -> tuple[CatalogDevice, ...]:
    """All of them, in the order of the file."""
    text = (resources.files("profiler.scenarios") / "devices.toml").read_text(encoding="utf-8")
    return tuple(_device(entry) for entry in tomllib.loads(text)["device"])


def match(title: str, memory_bytes: int) -> CatalogDevice | None:
    """The catalog's entry of a card that NVML found, or None."""
    return next((device for device in devices() if device.matches(title, memory_bytes)), None)


def _device(entry: Mapping[str, Any]) -> CatalogDevice:
    memory = entry.get("memory_gib")
    return CatalogDevice(
        name=entry["name"],
        vendor=entry["vendor"],
        kind=entry["class"],
        memory_bytes=None if memory is None else round(memory * GIB),
        bandwidth_bytes_s=entry["bandwidth_gb_s"] * GIGA,
        flops={dtype: value * TERA for dtype, value in entry["tflops"].items()},
        tdp_w=entry.get("tdp_w"),
        titles=tuple(entry.get("titles", ())),
        sources=entry["sources"],
        standing=entry["standing"],
        notes=entry.get("notes"),
    )
