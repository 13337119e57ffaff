"""NVIDIA GPUs as the driver's management library sees them: no torch, and a few milliseconds.

A library or a driver that is not there is a reason in words (``Missing``), not an error: most machines have neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from profiler.errors import ProfileError
from profiler.units import printable

BY_BUS = "PCI_BUS_ID"  # the order in which NVML numbers cards
PATIENCE_S = 2.0  # an answer takes a millisecond
T = TypeVar("T")


class Missing(Exception):
    """NVML cannot be asked; the message says why."""


class Silent(Missing):
    """NVML did not answer in time, and whoever asks again would wait again."""


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
    the list. Raises Missing; ProfileError where a number or a whole card does not say what CUDA would use.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with library() as nvml:
        every = _answered(nvml, nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        if len(every) > 1:
            _check_order(visible)
        chosen = every if visible is None else list(_visible(nvml, every, visible))
        return _answered(nvml, partial(_gpu, nvml), chosen)


def _answered(nvml: Any, question: Callable[[Any], T], cards: Iterable[Any]) -> list[T]:
    """What each card answers. One that is lost hides no other; if none answers, that is the error."""
    answers, error = [], None
    for card in cards:
        try:
            answers.append(question(card))
        except nvml.NVMLError as refused:
            error = refused
    if error is not None and not answers:
        raise error
    return answers


def _check_order(visible: str | None) -> None:
    """ProfileError where cards go by numbers in an order that only CUDA knows."""
    order = os.environ.get("CUDA_DEVICE_ORDER", BY_BUS)
    by_uuid = visible is not None and all(word.startswith(("GPU-", "MIG-")) for word in _words(visible))
    if order != BY_BUS and not by_uuid:
        raise ProfileError(
            f"CUDA_DEVICE_ORDER is {printable(order)}: which GPU has which number is not known without CUDA",
            f"Unset it, set it to {BY_BUS}, or name cards by UUID in CUDA_VISIBLE_DEVICES.",
        )


def within(seconds: float, question: Callable[..., T], *about: Any) -> T:
    """What NVML answers, if it does in time: a driver may hang, and a measurement must not.

    Raises Silent if it does not, Missing, and whatever the question raises.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question(*about))
        except Exception as error:  # for the thread that waits
            errors.append(error)

    thread = Thread(target=ask, name="nvml", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # --max-memory leaves no room for a stack
        raise Missing(str(error)) from None
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise Silent(f"the NVIDIA driver did not answer for {seconds:g} s")
    return answers[0]


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
    for word in _words(visible):
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


def _words(visible: str) -> list[str]:
    return [word for part in visible.split(",") if (word := part.strip())]


def visible_slice(index: int) -> str | None:
    """UUID of the MIG slice that is ``cuda:index`` in this process; None for a whole card."""
    words = _words(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return words[index] if index < len(words) and words[index].startswith("MIG-") else None


def _gpu(nvml: Any, handle: Any) -> Gpu:
    if _is_split(nvml, handle):
        raise ProfileError(
            f"{printable(nvml.nvmlDeviceGetName(handle))} is split into MIG slices, of which CUDA would take any one",
            "Name a slice as nvidia-smi -L lists it: CUDA_VISIBLE_DEVICES=MIG-…; or use --device cpu.",
        )
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


def _is_split(nvml: Any, handle: Any) -> bool:
    """Whether this is a whole card in MIG mode: its memory is then nobody's to take as a whole."""
    try:
        return not nvml.nvmlDeviceIsMigDeviceHandle(handle) and nvml.nvmlDeviceGetMigMode(handle)[0] == 1
    except nvml.NVMLError:  # a card that cannot be split
        return False
