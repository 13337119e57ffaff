"""What a device gives. ``devices/cpu.py`` and ``devices/cuda.py`` each define ``find()`` and a ``Meter``."""

from __future__ import annotations

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


class Meter(Protocol):
    """Synchronisation and peak memory of one device, used inside a worker by the measuring loop."""

    def synchronize(self) -> None:
        """Wait until the device has finished everything queued. No-op on a CPU."""

    def reset_peak(self) -> None:
        """Start a new window for ``peak_bytes``."""

    def peak_bytes(self) -> int | None:
        """Peak since the last reset: process memory (CPU), allocated by torch (CUDA)."""

    def process_bytes(self) -> int | None:
        """Memory of this process on the device now: what decides whether it fits."""

    def reserved_bytes(self) -> int | None:
        """Allocator segments (CUDA); ``None`` on a CPU."""
