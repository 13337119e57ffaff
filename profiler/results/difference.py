"""How two environments differ, in words: what ``environment_key`` looks at, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from profiler.units import UNKNOWN, printable

VALUE_LENGTH = 60  # characters of one value
NAMES = {  # what a person calls it, where its path is no name
    "cpu.title": "CPU",
    "cpu.cores": "cores",
    "limits.cores": "cores' worth of CPU time allowed",
    "device.title": "device",
    "device.kind": "kind of device",
    "device.features": "device features",
    "device.uuid_hash": "card",
    "device.driver": "driver",
    "device.power_limit_w": "power limit in W",
    "system": "system",
    "python": "Python",
}
GROUPS = ("libraries", "settings")  # each name in them stands for itself


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """``torch 2.12.0 → 2.13.0`` for everything between ``a`` and ``b`` that may change speed; empty for equals."""
    left, right = dict(_flat(a)), dict(_flat(b))
    return [
        f"{name} {_text(left.get(name))} → {_text(right.get(name))}"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _flat(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for path, name in NAMES.items():
        value: Any = environment
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        yield name, value
    for group in GROUPS:
        content = environment.get(group)
        for name, value in content.items() if isinstance(content, Mapping) else ():
            yield printable(name, VALUE_LENGTH), value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return UNKNOWN if value is None else printable(value, VALUE_LENGTH)
