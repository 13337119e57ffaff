"""The cores behind CPU numbers and the memory nodes, as Linux shows them under ``/sys/devices/system``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
NODES = Path("/sys/devices/system/node")
SIBLINGS = ("topology/core_cpus_list", "topology/thread_siblings_list")  # the second is the older name
SPEEDS = ("cpu_capacity", "cpufreq/cpuinfo_max_freq")  # what tells a fast core from an efficient one: Arm, x86


def physical_cores(cpus: Iterable[int]) -> int:
    """Cores that ``cpus`` lie on: two hardware threads of a core count once. Where nothing says, each is a core."""
    return len({_read(CPUS, cpu, SIBLINGS) or str(cpu) for cpu in cpus})


def speeds(cpus: Iterable[int]) -> tuple[int, ...]:
    """How fast ``cpus`` can be, sorted, each value once: kHz, or Arm's capacity. Empty where nothing says."""
    found = (_read(CPUS, cpu, SPEEDS) for cpu in cpus)
    return tuple(sorted({int(text) for text in found if text is not None and text.isdigit()}))


def last_cache_bytes(cpus: Iterable[int] | None = None) -> int:
    """Of the last caches that ``cpus`` have, each once; None: of those this process may use. 0 if nothing says."""
    return _last_cache_bytes(CPUS, frozenset(os.sched_getaffinity(0) if cpus is None else cpus))


@cache
def _last_cache_bytes(root: Path, cpus: frozenset[int]) -> int:
    found: dict[tuple[int, str], int] = {}
    for cpu in cpus:
        for folder in (root / f"cpu{cpu}" / "cache").glob("index*"):
            with suppress(OSError, ValueError):
                level, size, shared = (
                    (folder / name).read_text().strip() for name in ("level", "size", "shared_cpu_list")
                )
                found[int(level), shared] = int(size.removesuffix("K")) * 1024
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last)


def nodes() -> frozenset[int]:
    """Memory nodes of the machine, also those without memory."""
    return _nodes(NODES)


@cache
def _nodes(root: Path) -> frozenset[int]:
    return frozenset(int(name) for path in root.glob("node[0-9]*") if (name := path.name[len("node") :]).isdigit())


def node_bytes() -> dict[int, tuple[int, int]]:
    """Memory of each node in bytes: all of it, and what is free or cached files. Empty where nothing says."""
    found = {}
    for node in nodes():
        with suppress(OSError, ValueError, KeyError, IndexError):
            text = (NODES / f"node{node}" / "meminfo").read_text()
            lines = (line.split() for line in text.splitlines())  # Node 0 MemTotal: 1 kB
            known = {line[2].rstrip(":"): int(line[3]) * 1024 for line in lines}
            free = known["MemFree"] + known.get("Active(file)", 0) + known.get("Inactive(file)", 0)
            found[node] = known["MemTotal"], free
    return {node: size for node, size in found.items() if size[0]}


@cache
def _read(root: Path, cpu: int, names: tuple[str, ...]) -> str | None:
    """The first of these files of a CPU that there is. They do not change, and a large machine has many."""
    for name in names:
        with suppress(OSError):
            return (root / f"cpu{cpu}" / name).read_text().strip()
    return None
