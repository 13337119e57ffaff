"""One file per kind of device: its traits, whether it is present, its clock and its peak memory."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from profiler import registry
from profiler.devices.base import ACCELERATOR, DeviceInfo, DeviceKind, Meter, Watcher
from profiler.errors import NotFound, ProfileError
from profiler.units import printable


def kinds() -> list[ModuleType]:
    """The modules of this folder that are device kinds, accelerators first."""
    return sorted(_kinds(tuple(__path__)), key=lambda module: module.KIND.is_host)


@lru_cache(maxsize=8)
def _kinds(folders: tuple[str, ...]) -> tuple[ModuleType, ...]:
    """Cached for each set of ``folders``, because listing one takes longer than a prediction."""
    return tuple(registry.load("devices", name, "device kind") for name in registry.names("devices"))


def names() -> list[str]:
    """The names of the kinds as users type them, accelerators first."""
    return [module.__name__.rpartition(".")[2].replace("_", "-") for module in kinds()]


def of_maker(vendor: str) -> DeviceKind:
    """The kind that a vendor's data sheets describe; ``ACCELERATOR`` if none of the files here covers it."""
    return next((module.KIND for module in kinds() if module.KIND.maker == vendor), ACCELERATOR)


def local() -> list[DeviceInfo]:
    """Every device of this machine that can run a model, accelerators first. Imports no torch."""
    return [device for kind in kinds() for device in kind.find()]


def find(name: str | None = None) -> DeviceInfo:
    """The device ``cpu``, ``cuda`` (the first) or ``cuda:1``; None: the first accelerator, else the CPU.

    Raises NotFound for an unknown kind, and ProfileError with the reason for one that is not present.
    """
    if name is None:
        return local()[0]
    name = name.casefold()
    kind, _, number = name.partition(":")
    known = dict(zip(names(), kinds(), strict=True))
    if kind not in known:
        raise registry.unknown("device", name, known)
    found: list[DeviceInfo] = known[kind].find()
    for device in found:
        if device.name == name or (not number and ":" not in name):
            return device
    if found:
        raise NotFound(f"there is no device {printable(name)}", f"Known: {', '.join(d.name for d in found)}.")
    raise ProfileError(f"there is no {kind} device here: {known[kind].unavailable()}", "Try --device cpu.")


def meter(name: str) -> Meter:
    """The clock and memory of the device ``name``, such as ``cuda:0``. Raises NotFound for an unknown kind."""
    found: Meter = _module(name).meter(name)
    return found


def watcher(name: str) -> Watcher:
    """What observes the device ``name`` during repetitions. Raises NotFound for an unknown kind."""
    found: Watcher = _module(name).watcher(name)
    return found


def _module(name: str) -> ModuleType:
    return registry.load("devices", name.partition(":")[0], "device")


def listed() -> tuple[list[DeviceInfo], dict[str, str]]:
    """The devices of this machine, and for each kind without a usable one the reason."""
    found: list[DeviceInfo] = []
    absent: dict[str, str] = {}
    for kind, module in zip(names(), kinds(), strict=True):
        try:
            here = module.find()
        except ProfileError as error:  # it is present, but it is unclear which part of it would be used
            absent[kind] = " ".join(filter(None, (f"{error.message}.", error.hint)))
            continue
        found += here
        if not here:
            absent[kind] = module.unavailable()
    return found, absent


def unavailable() -> dict[str, str]:
    """Why a kind has no device here, by kind."""
    return listed()[1]
