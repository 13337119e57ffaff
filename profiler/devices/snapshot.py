"""What a device says of itself at one moment, and what can be asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# Bits of NVML's clocks event reasons (nvml.h, nvmlClocksEventReasons).
SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x04, 0x08, 0x20, 0x40, 0x80
SLOWED = {  # a repetition under one of these is no figure of the device
    HW_SLOWDOWN: "hardware slowdown",
    SW_THERMAL: "thermal slowdown by the driver",
    HW_THERMAL: "thermal slowdown by the hardware",
    POWER_BRAKE: "power brake",
}


class Unknown(Exception):
    """A figure cannot be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A device at one moment; ``None`` where it does not tell."""

    at_s: float  # on the clock of the measurement
    energy_j: float | None = None  # a counter: only differences mean something
    power_w: float | None = None  # at this moment, no average
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    reasons: int | None = None  # why clocks are below their maximum: bits as above
    limited_s: tuple[tuple[int, float], ...] = ()  # (bit, seconds it has held since the driver's load)


class Source(Protocol):
    """Where snapshots come from. All calls are made by one thread; each may take its time, or never return."""

    name: str  # nvml, rapl: what a row says the energy is from
    scope: str  # gpu-board, cpu-package: what the energy is of
    coarse: bool  # its energy counter moves less often than it is read
    guards: bool  # it tells of slowdowns, so it is worth watching when nobody asks for energy
    unknown: dict[str, str]  # quantity → why it is not told

    def open(self) -> None:
        """Get ready. Raises Unknown when nothing can be told at all."""

    def begin(self) -> None:
        """Ask again for what was not told."""

    def read(self, at_s: float) -> Snapshot:
        """The device now. Raises Unknown when it is lost."""

    def others(self) -> int | None:
        """Other processes that compute there now, None where it does not tell. Dearer than ``read``."""

    def close(self) -> None:
        """Give back what ``open`` took."""
