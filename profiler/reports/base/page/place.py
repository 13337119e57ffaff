"""The device that stored rows were measured on, as something to predict for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from profiler import devices
from profiler.case import digest
from profiler.devices import ceilings, target
from profiler.devices.base import DeviceInfo, Slice
from profiler.devices.target import Target


def found(environment: Mapping[str, Any]) -> Target | None:
    """The device of an environment; None where its kind, name or memory was not recorded.

    With the ceilings that were in force when the rows were measured: those of the driver and packages that they name,
    not of what is installed now. Without them a CPU is taken by its cores, a GPU by its maker's figures.
    """
    info = _info(environment)
    if info is None:
        return None
    libraries: dict[str, Any] = environment.get("libraries") or {}
    torch, *others = (str(libraries.get(name) or "") for name in ceilings.PACKAGES)
    choices = [target.of(info, [version, *others]) for version in (torch.partition("+")[0], torch)]
    return next((choice for choice in choices if choice.ceilings), choices[0])


def _info(environment: Mapping[str, Any]) -> DeviceInfo | None:
    device: dict[str, Any] = environment.get("device") or {}
    kind, title, memory = device.get("kind"), device.get("title"), device.get("memory_bytes")
    if not (isinstance(kind, str) and isinstance(title, str) and isinstance(memory, int) and memory > 0):
        return None
    cores = (environment.get("cpu") or {}).get("cores")
    limits: dict[str, Any] = environment.get("limits") or {}
    quota, confined = limits.get("cores"), limits.get("cpus")
    return DeviceInfo(
        name=str(device.get("name") or kind),
        kind=kind,
        title=title,
        memory_bytes=memory,
        free_bytes=memory,
        default_dtype="fp32",  # rows name their own
        cores=cores if kind == "cpu" and isinstance(cores, int) else None,
        features=tuple(str(feature) for feature in device.get("features") or ()),
        uuid=_uuid(device.get("uuid_hash")),
        driver=device.get("driver"),
        threads=_count(limits.get("threads")) if kind == "cpu" else None,
        physical=_count(limits.get("physical")),
        quota=float(quota) if isinstance(quota, int | float) and 0 < quota < (_count(cores) or 1) else None,
        confined=tuple(confined) if isinstance(confined, list) else None,
        slice=_slice(device.get("slice")),
    )


def _slice(content: object) -> Slice | None:
    """The part of a card as it was recorded; None for a whole one, and for content that cannot be."""
    with suppress(TypeError):
        part = Slice(**content) if isinstance(content, dict) else None
        if part is not None and isinstance(part.memory_share, float) and isinstance(part.of_bytes, int):
            return part
    return None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _uuid(hashed: object) -> str | None:
    """The UUID behind a stored hash, if the card is in this machine."""
    if hashed is None:
        return None
    here, _ = devices.listed()
    return next((device.uuid for device in here if device.uuid and digest(device.uuid) == hashed), None)
