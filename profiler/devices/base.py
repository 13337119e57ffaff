"""What a device gives: ``devices/KIND.py`` has ``find() -> list[DeviceInfo]`` (no torch) and ``meter(name)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device as found without torch. Bytes, bytes per second, FLOP per second; unknown is ``None``."""

    name: str  # cpu | cuda:0
    kind: str  # cpu | cuda
    title: str  # AMD EPYC 7763, NVIDIA GeForce RTX 4090
    memory_bytes: int  # all of it
    free_bytes: int  # available now
    default_dtype: str  # fp32 on a CPU without bf16 units
    cores: int | None = None  # usable by this process
    features: tuple[str, ...] = ()  # avx2, avx512_bf16, amx_bf16; sm_89
    uuid: str | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class Peak:
    """Highest memory since the last reset, in bytes; ``None`` where the device has no such counter."""

    allocated_bytes: int | None  # live tensors (CUDA); None on a CPU
    reserved_bytes: int | None  # the allocator's segments (CUDA); None on a CPU
    process_bytes: int | None  # all this process takes on the device: what decides whether it fits


class Meter(Protocol):
    """Clock and peak memory of one device. The clock synchronises, so that no caller can forget to."""

    def now(self) -> float:
        """Seconds of a monotonic clock, read after the device has finished everything queued."""

    def cpu_s(self) -> float:
        """CPU seconds this process has used, all threads."""

    def waited_s(self) -> float | None:
        """Seconds this process has been ready to run without getting a core, all threads; None if not counted."""

    def mark(self) -> object:
        """A point in the device's own order of work; cheap, does not wait."""

    def elapsed(self, marks: Sequence[object]) -> list[float]:
        """Seconds between each mark and the next. Waits for the device."""

    def reset_peak(self) -> None:
        """Start a new window for ``peak``."""

    def peak(self) -> Peak:
        """The highest values since ``reset_peak``."""
