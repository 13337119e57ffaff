"""How two environments differ, in words: what ``environment_key`` looks at, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from profiler.units import UNKNOWN, printable

VALUE_LENGTH = 60  # characters of one value
NAMES = {  # what a person calls it, where "cpu governor" is not good enough
    "cpu title": "CPU",
    "cpu cores": "cores",
    "device title": "device",
    "device uuid_hash": "card",
    "device power_limit_w": "power limit in W",
    "limits cores": "cores' worth of CPU time allowed",
    "limits cpus": "physical cores, caches and speeds of the CPUs allowed",
    "python": "Python",
}
PARTS = ("cpu", "device")
OF_NO_WEIGHT = ("name", "memory_bytes", "free_bytes")  # of a device
ALONE = ("system", "virtual", "python")
NAMED = ("libraries", "settings")  # each name in them stands for itself


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """``torch 2.12.0 → 2.13.0`` for everything between ``a`` and ``b`` that may change speed; empty for equals."""
    left, right = dict(_flat(a)), dict(_flat(b))
    return [
        f"{printable(NAMES.get(name, name), VALUE_LENGTH)} {_text(left.get(name))} → {_text(right.get(name))}"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _flat(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in PARTS:
        yield from ((f"{part} {name}", value) for name, value in _part(environment, part) if name not in OF_NO_WEIGHT)
    limits = dict(_part(environment, "limits"))
    yield from ((f"limits {name}", limits.get(name)) for name in ("cores", "cpus"))
    yield from ((name, environment.get(name)) for name in ALONE)
    for part in NAMED:
        yield from _part(environment, part)


def _part(environment: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    content = environment.get(name)
    return list(content.items()) if isinstance(content, Mapping) else []


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return UNKNOWN if value is None else printable(value, VALUE_LENGTH)
