"""NVIDIA GPUs as the driver's management library sees them: no torch, and a few milliseconds.

A library or a driver that is not there is a reason in words (``Missing``), not an error: most machines have neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Missing(Exception):
    """NVML cannot be asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice of one. Bytes; unknown is ``None``."""

    uuid: str
    title: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int] | None  # CUDA compute capability
    driver: str


@contextmanager
def library() -> Iterator[Any]:
    """The initialised ``pynvml``. Raises Missing, also for what NVML itself reports inside the block."""
    try:
        import pynvml
    except ImportError:
        raise Missing("the Python package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Missing(f"no NVIDIA driver answers ({error})") from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise Missing(f"the NVIDIA driver reports: {error}") from None
    finally:
        pynvml.nvmlShutdown()


def gpus() -> list[Gpu]:
    """The GPUs that CUDA would number 0, 1, … in this process under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    ``CUDA_VISIBLE_DEVICES`` may list indices or (the start of) UUIDs; as in CUDA, the first that is not there ends
    the list. Raises Missing.
    """
    with library() as nvml:
        every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen = every if visible is None else list(_visible(nvml, every, visible))
        return [_gpu(nvml, handle) for handle in chosen]


def used_bytes(uuid: str) -> int:
    """Memory in use on a GPU by everybody. Raises Missing."""
    with library() as nvml:
        return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used)


def process_bytes(uuid: str, pid: int) -> int | None:
    """What one process takes on a GPU, its CUDA context included. Raises Missing.

    None where the driver does not tell: under WSL, and in a container whose process numbers are not the host's.
    """
    with library() as nvml:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        taken = [p.usedGpuMemory for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == pid]
    return int(taken[0]) if taken and taken[0] is not None else None


def _visible(nvml: Any, every: list[Any], visible: str) -> Iterator[Any]:
    for word in filter(None, (part.strip() for part in visible.split(","))):
        if word.startswith("MIG-"):
            yield nvml.nvmlDeviceGetHandleByUUID(word)
        elif word.isdigit() and int(word) < len(every):
            yield every[int(word)]
        elif word.startswith("GPU-"):
            matching = [handle for handle in every if nvml.nvmlDeviceGetUUID(handle).startswith(word)]
            if len(matching) != 1:
                return
            yield matching[0]
        else:
            return


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:  # a MIG slice does not tell
        capability = None
    else:
        capability = (int(major), int(minor))
    return Gpu(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        title=nvml.nvmlDeviceGetName(handle),
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        capability=capability,
        driver=nvml.nvmlSystemGetDriverVersion(),
    )
