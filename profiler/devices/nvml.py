"""NVIDIA GPUs as the driver's management library (NVML) sees them: without torch, in a few milliseconds.

``Missing`` says in words why NVML is unavailable, which is normal: most machines have no NVIDIA driver.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from profiler.devices.base import Slice
from profiler.errors import ProfileError
from profiler.units import printable

BY_BUS = "PCI_BUS_ID"  # the order in which NVML numbers cards
DRIVER = "libnvidia-ml.so.1"  # its library on Linux, by the name that pynvml asks the loader for
PATIENCE_S = 2.0  # a call usually takes a millisecond
HIDING = ("none", "void")  # values of NVIDIA_VISIBLE_DEVICES with which a container gets no GPU
# fp32 lanes of a multiprocessor by compute capability (CUDA programming guide). Of the cards that have slices, A100
# and A30 have 64. NVML reports the lanes of a card, but the multiprocessors of a slice.
LANES, LANES_OTHERWISE = {(8, 0): 64}, 128
EIGHTHS = 8  # a slice gets a whole number of eighths of a card's memory (MIG user guide)
SHOWN_SLICES = 8  # in an error
COMPUTE, GRAPHICS = (f"nvmlDeviceGet{kind}RunningProcesses" for kind in ("Compute", "Graphics"))  # Vulkan is graphics
_PROFILE = re.compile(r"\bMIG (\S+)$")  # NVIDIA H100 80GB HBM3 MIG 1g.10gb
_NUMBER = re.compile(r"[+-]?\d+")
T = TypeVar("T")


class Missing(Exception):
    """NVML is unavailable, or reports an error. The message says why."""


class TimedOut(Missing):
    """NVML did not answer in time. Another call would wait just as long."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG slice of one. Bytes; unknown is ``None``."""

    uuid: str
    title: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int] | None  # CUDA compute capability
    driver: str
    slice: Slice | None = None


def opened() -> Any:
    """The initialized module ``pynvml``, for which its user calls ``nvmlShutdown``. Raises Missing."""
    if "pynvml" not in sys.modules and not _has_driver():
        raise Missing("no NVIDIA driver answers (NVML Shared Library Not Found)")
    try:
        import pynvml
    except ImportError:
        raise Missing("the Python package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Missing(f"no NVIDIA driver answers ({error})") from None
    return pynvml


def _has_driver() -> bool:
    """Whether the driver's library may be here. Importing pynvml, only to hear that it is not, takes longer than a
    prediction."""
    try:
        return sys.platform != "linux" or ctypes.CDLL(DRIVER) is not None
    except OSError:
        return False


@contextmanager
def library() -> Iterator[Any]:
    """``opened`` for the length of a block. Raises Missing, also for errors that NVML reports inside the block."""
    nvml = opened()
    try:
        yield nvml
    except _errors(nvml) as error:
        raise Missing(f"the NVIDIA driver reports: {error}") from None
    finally:
        nvml.nvmlShutdown()


def _errors(nvml: Any) -> tuple[type[Exception], ...]:
    """What ``pynvml`` raises: errors of NVML, and the error for a function that an older NVML library lacks."""
    return nvml.NVMLError, getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError)


def gpus() -> list[Gpu]:
    """The GPUs that CUDA would number 0, 1, … in this process under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    Raises Missing, and ProfileError if it is unclear which card a number means, or which slice of a card CUDA would
    use.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with library() as nvml:
        every = _cards(nvml)
        if len(every) > 1:
            _check_order(visible)
        chosen = list(every.values()) if visible is None else _visible(nvml, every, visible)
        return _each(nvml, partial(_gpu, nvml), chosen)


def hidden() -> str:
    """Why this process sees no GPU, in words. Raises Missing."""
    with library() as nvml:
        count = nvml.nvmlDeviceGetCount()
    visible, passed = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("NVIDIA_VISIBLE_DEVICES")
    if not count:
        why = f"; NVIDIA_VISIBLE_DEVICES={passed} gave this container none" if passed in HIDING else ""
        return f"NVML finds no GPU{why}"
    if visible is None:
        return "NVML finds no GPU that CUDA could use"
    if not visible.strip():
        return "CUDA_VISIBLE_DEVICES is empty, which hides every GPU"
    words = _words(visible)
    twice = ": it names one twice, which CUDA takes for an empty list" if len(set(words)) < len(words) else ""
    return f"CUDA_VISIBLE_DEVICES={printable(visible, 80)} shows none of {count} GPU{'s' * (count != 1)}{twice}"


def _cards(nvml: Any) -> dict[int, Any]:
    """Handles by NVML's number. A card that was lost leaves a gap, so that the others keep their numbers."""
    found, error = {}, None
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            found[index] = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as refused:
            error = refused
    if error is not None and not found:
        raise error
    return found


def _each(nvml: Any, question: Callable[[Any], T], cards: Iterable[Any]) -> list[T]:
    """The answers of all cards but lost ones. If no card answers, the error of the last one is raised."""
    answers, error = [], None
    for card in cards:
        try:
            answers.append(question(card))
        except _errors(nvml) as refused:
            error = refused
    if error is not None and not answers:
        raise error
    return answers


def _check_order(visible: str | None) -> None:
    """Raise ProfileError if cards are named by numbers, in an order that only CUDA knows."""
    order = os.environ.get("CUDA_DEVICE_ORDER", BY_BUS)
    by_uuid = visible is not None and all(word.startswith(("GPU-", "MIG-")) for word in _words(visible))
    if order != BY_BUS and not by_uuid:
        raise ProfileError(
            f"CUDA_DEVICE_ORDER is {printable(order)}, so the numbers of the GPUs are unknown without CUDA",
            f"Unset it, set it to {BY_BUS}, or name cards by UUID in CUDA_VISIBLE_DEVICES.",
        )


def within(seconds: float, question: Callable[..., T], *about: Any) -> T:
    """The result of ``question(*about)`` within ``seconds``, since a driver may hang, but a measurement must not.

    Raises TimedOut, Missing, and whatever the question raises.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question(*about))
        except Exception as error:  # raised in the waiting thread
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
        raise TimedOut(f"the NVIDIA driver did not answer for {seconds:g} s")
    return answers[0]


def used_bytes(uuid: str) -> int:
    """Memory of a GPU that is in use by all programs together. Raises Missing."""
    with library() as nvml:
        return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used)


def process_bytes(uuid: str, pid: int) -> int | None:
    """Memory that one process uses on a GPU, including its CUDA context. Raises Missing.

    None if the driver does not report it, as in WSL, and in containers whose process ids are not the host's.
    """
    with library() as nvml:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        taken = [p.usedGpuMemory for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == pid]
    return int(taken[0]) if taken and taken[0] is not None else None


def processes_bytes(nvml: Any, pids: Collection[int]) -> dict[str, int | None]:
    """What these processes take together on each card of the machine that lists one of them, by the card's UUID.

    ``nvml`` is an open ``library``. A size is None where the driver does not report it. Raises what NVML reports.
    """

    def ask(card: Any) -> tuple[str, list[int | None]]:
        taken: dict[int, int | None] = {}
        for name in (COMPUTE, GRAPHICS):
            try:
                taken |= {process.pid: process.usedGpuMemory for process in getattr(nvml, name)(card)}
            except _errors(nvml):
                if name == COMPUTE:
                    raise
        return nvml.nvmlDeviceGetUUID(card), [size for pid, size in taken.items() if pid in pids]

    found = dict(_each(nvml, ask, _cards(nvml).values()))
    return {uuid: None if None in sizes else sum(filter(None, sizes)) for uuid, sizes in found.items() if sizes}


def power_limit_w(uuid: str) -> float | None:
    """The enforced power limit of a GPU; None if NVML or the board does not report it."""
    try:
        with library() as nvml:
            return float(nvml.nvmlDeviceGetEnforcedPowerLimit(nvml.nvmlDeviceGetHandleByUUID(uuid))) / 1000
    except Missing:
        return None


def _visible(nvml: Any, every: Mapping[int, Any], visible: str) -> list[Any]:
    """The handles of the cards in ``CUDA_VISIBLE_DEVICES``, as CUDA reads it.

    The first word decides whether all of them are numbers, UUIDs of GPUs or UUIDs of slices. A number may be followed
    by text, and the beginning of a UUID is enough. A device that does not exist ends the list, and one that is named
    twice empties it (PyTorch does the same: ``torch.cuda._parse_visible_devices``). A process gets only the first
    slice (MIG user guide).
    """
    words = _words(visible)
    if words and words[0].startswith("MIG-"):
        handle = _slice_handle(nvml, every, words[0])
        return [] if handle is None or words.count(words[0]) > 1 else [handle]
    is_uuid = bool(words) and words[0].startswith("GPU-")
    chosen: list[int] = []
    for word in words:
        index = _by_uuid(nvml, every, word) if is_uuid else _by_number(every, word)
        if index is None:
            break
        if index in chosen:
            return []
        chosen.append(index)
    return [every[index] for index in chosen]


def _by_number(every: Mapping[int, Any], word: str) -> int | None:
    found = _NUMBER.match(word)
    number = int(found[0]) if found is not None and len(found[0]) < 10 else -1
    return number if number in every else None


def _by_uuid(nvml: Any, every: Mapping[int, Any], word: str) -> int | None:
    """The number of the card whose UUID begins with ``word``; None unless there is exactly one."""
    if not word.startswith("GPU-"):
        return None
    matching = [index for index, handle in every.items() if nvml.nvmlDeviceGetUUID(handle).startswith(word)]
    return matching[0] if len(matching) == 1 else None


def _slice_handle(nvml: Any, every: Mapping[int, Any], word: str) -> Any:
    """The slice whose UUID is or begins with ``word``; None unless there is exactly one."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(word)
    except nvml.NVMLError:
        slices = [handle for card in every.values() for handle in _slices(nvml, card)]
    matching = [handle for handle in slices if nvml.nvmlDeviceGetUUID(handle).startswith(word)]
    return matching[0] if len(matching) == 1 else None


def _slices(nvml: Any, card: Any) -> Iterator[Any]:
    """The MIG slices of a card."""
    try:
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(card)
    except nvml.NVMLError:  # a card that cannot be split, or an old driver
        return
    for index in range(most):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
        except nvml.NVMLError:  # there is no slice with this number
            continue


def _words(visible: str) -> list[str]:
    """The words between commas, up to an empty one, which names no device and so ends the list."""
    words = [word.strip() for word in visible.split(",")]
    return words[: words.index("")] if "" in words else words


def visible_slice(index: int) -> str | None:
    """UUID of the MIG slice that is ``cuda:index`` in this process; None for a whole card."""
    words = _words(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if index or not words or not words[0].startswith("MIG-"):
        return None
    try:
        with library() as nvml:
            handle = _slice_handle(nvml, _cards(nvml), words[0])
            return words[0] if handle is None else str(nvml.nvmlDeviceGetUUID(handle))
    except Missing:
        return words[0]


def _gpu(nvml: Any, handle: Any) -> Gpu:
    title = nvml.nvmlDeviceGetName(handle)
    if _is_split(nvml, handle):
        uuids = [nvml.nvmlDeviceGetUUID(each) for each in _slices(nvml, handle)]
        ways = " or ".join(f"CUDA_VISIBLE_DEVICES={uuid}" for uuid in uuids[:SHOWN_SLICES])
        raise ProfileError(
            f"{printable(title)} is split into MIG slices, and CUDA would use any of them",
            f"Name a slice: {ways or 'CUDA_VISIBLE_DEVICES=MIG-… as nvidia-smi -L lists it'}; or use --device cpu.",
        )
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    card = _whole(nvml, handle)
    capability = _capability(nvml, card)
    return Gpu(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        title=title,
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        capability=capability,
        driver=nvml.nvmlSystemGetDriverVersion(),
        slice=None if card is handle else _slice(nvml, handle, card, capability),
    )


def _whole(nvml: Any, handle: Any) -> Any:
    """The card that a slice is part of; a whole card is returned unchanged."""
    try:
        if nvml.nvmlDeviceIsMigDeviceHandle(handle):
            return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    except nvml.NVMLError:  # an older driver, which does not know about slices
        pass
    return handle


def _slice(nvml: Any, handle: Any, card: Any, capability: tuple[int, int] | None) -> Slice:
    """Describes which part of ``card`` a slice is."""
    title, whole = nvml.nvmlDeviceGetName(handle), int(nvml.nvmlDeviceGetMemoryInfo(card).total)
    profile = _PROFILE.search(title)
    eighths = max(1, min(EIGHTHS, round(EIGHTHS * int(nvml.nvmlDeviceGetMemoryInfo(handle).total) / whole)))
    return Slice(
        profile=profile[1] if profile else "slice",
        of_title=nvml.nvmlDeviceGetName(card),
        of_bytes=whole,
        memory_share=eighths / EIGHTHS,
        compute_share=_compute_share(nvml, handle, card, capability),
    )


def _compute_share(nvml: Any, handle: Any, card: Any, capability: tuple[int, int] | None) -> float | None:
    """Multiprocessors of a slice ÷ those of the card; None unless NVML reports both."""
    if capability is None:
        return None
    try:
        own = int(nvml.nvmlDeviceGetAttributes_v2(handle).multiprocessorCount)
        all_lanes = int(nvml.nvmlDeviceGetNumGpuCores(card))
    except nvml.NVMLError:
        return None
    share = own * LANES.get(capability, LANES_OTHERWISE) / all_lanes if all_lanes else 0.0
    return share if 0 < share <= 1 else None


def _capability(nvml: Any, handle: Any) -> tuple[int, int] | None:
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:
        return None
    return int(major), int(minor)


def _is_split(nvml: Any, handle: Any) -> bool:
    """Whether this is a whole card in MIG mode, whose memory no process can use as a whole."""
    try:
        return not nvml.nvmlDeviceIsMigDeviceHandle(handle) and nvml.nvmlDeviceGetMigMode(handle)[0] == 1
    except nvml.NVMLError:  # a card that cannot be split
        return False
