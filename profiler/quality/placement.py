"""Where the reference of a model runs: on its device, on the CPU, or on the CPU with its weights left on disk.

A safetensors file whose dtype is the one that is computed in is not read into memory but mapped. If it is larger than
the memory, the kernel drops pages of layers that have run and reads them again in the next pass, so the model runs by
layers from disk, at the rate of the disk. The weights are then read once for ``DISK_CHUNK`` tokens of each window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from profiler import devices
from profiler.devices.base import kind_of
from profiler.errors import ProfileError
from profiler.quants.base import DTYPE_BYTES
from profiler.quants.checkpoint import stated_dtype
from profiler.units import bytes_text

DTYPES = ("fp32", "bf16")  # of a reference, the best first
ROOM_BYTES = 7 << 28  # beyond the weights: the logits of the head twice (soft capping copies), cache and framework
MARGIN = 1.1  # on the bytes of the weights, for what the allocator wastes
DISK_ROOM_BYTES = 15 << 28  # the same with weights on disk: longer chunks, and the largest layer in use
DISK_CHUNK = 4096  # tokens of a pass over weights on disk
DISK_BYTES_S = 1e9  # an NVMe drive through a mapping; a SATA drive gives half
MAPPED_KINDS = ("folder", "hub")  # of sources; a GGUF file is unpacked in memory first


@dataclass(frozen=True, slots=True)
class ReferencePlace:
    """The dtype and the device of a reference."""

    dtype: str
    device: str
    weights_bytes: int
    from_disk: bool = False

    def disk_s(self, tokens: float, windows: float, window: int) -> float:
        """Seconds that reading the weights takes for ``windows`` of at most ``window`` tokens; 0 if they fit."""
        passes = windows + tokens / min(window, DISK_CHUNK)
        return passes * self.weights_bytes / DISK_BYTES_S if self.from_disk else 0.0


def place(parameters: int, kind: str, config: Mapping[str, Any], device: str) -> ReferencePlace:
    """The best placement that the memory allows now. ``kind`` and ``config`` are those of the model's source.

    Raises ProfileError if there is none.
    """
    places = [device] if kind_of(device).is_host else [device, "cpu"]
    for name in places:
        free = devices.find(name).free_bytes
        for dtype in DTYPES:
            if parameters * DTYPE_BYTES[dtype] * MARGIN + ROOM_BYTES <= free:
                return ReferencePlace(dtype, name, parameters * DTYPE_BYTES[dtype])
    stored = stated_dtype(config)
    if stored in DTYPES and kind in MAPPED_KINDS and devices.find("cpu").free_bytes >= DISK_ROOM_BYTES:
        return ReferencePlace(stored, "cpu", parameters * DTYPE_BYTES[stored], from_disk=True)
    need = bytes_text(int(parameters * DTYPE_BYTES[DTYPES[-1]] * MARGIN + ROOM_BYTES))
    raise ProfileError(f"the reference needs {need} of memory in {DTYPES[-1]}, which is not free")
