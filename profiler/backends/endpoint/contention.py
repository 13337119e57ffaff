"""CPU time that the processes of a server on this machine got while a case ran, and what other work took of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from profiler.devices import base
from profiler.devices.base import FULL_SHARE, TICKS, Disturbance, Pressure, disturbance, grown

PROC = Path("/proc")
USER, SYSTEM = 11, 12  # fields of /proc/PID/task/TID/stat after the name
LEAST_CORES = 0.05  # used on average: less is a server that waits, such as one that asks another machine
COMPUTES = 0.5  # of the CPU time of the busiest thread: threads with less wait for requests


@dataclass(frozen=True, slots=True)
class ServerCpu:
    """The counters of the machine, and of each thread of the server, in seconds."""

    pressure: Pressure
    threads: Mapping[tuple[int, int], float] = field(default_factory=dict)  # CPU time by process and thread
    waited: Mapping[tuple[int, int], float] = field(default_factory=dict)  # for a core; empty: it is not counted


def read(pids: Collection[int]) -> ServerCpu:
    """The counters now. Processes and threads that have ended are left out."""
    threads, waited = {}, {}
    for pid in pids:
        for task in (PROC / str(pid) / "task").glob("*"):
            key = pid, int(task.name)
            with suppress(OSError, IndexError, ValueError):
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                threads[key] = (int(fields[USER]) + int(fields[SYSTEM])) / TICKS
                waited[key] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return ServerCpu(base.read(), threads, waited)


def found_between(before: ServerCpu, after: ServerCpu, cores: int, on_host: bool) -> Disturbance | None:
    """What disturbed the server on a machine with so many ``cores``. ``on_host``: whether it computes on the CPU."""
    if any(pid == os.getpid() for pid, _ in after.threads):
        return None  # its work cannot be told from the client's
    used = _grown(before.threads, after.threads)
    cpu_s, start, end = sum(used), before.pressure, after.pressure
    if after.waited:
        waited_s = sum(_grown(before.waited, after.waited))
    else:
        waited_s = _missing_s(used, start, end, cores) if on_host else 0.0
    if end.own_s is not None:  # the server's work is not other work
        end = replace(end, own_s=end.own_s + cpu_s)
    return disturbance(start, end, waited_s, cpu_s, cores, needs="the server needed")


def _missing_s(used: Collection[float], before: Pressure, after: Pressure, cores: int) -> float:
    """Where the kernel does not count how long threads wait for a core: the CPU time that those which compute did
    not use, since they spin while they wait for each other. 0 if a core was free, or the server hardly computes.
    """
    busy_s, wall = grown(before.busy_s, after.busy_s), after.at_s - before.at_s
    if busy_s is None or busy_s < FULL_SHARE * cores * wall or sum(used) < LEAST_CORES * wall:
        return 0.0
    computing = [seconds for seconds in used if seconds > 0 and seconds >= COMPUTES * max(used)]
    return max(0.0, len(computing) * wall - sum(computing))


def _grown(before: Mapping[tuple[int, int], float], after: Mapping[tuple[int, int], float]) -> list[float]:
    return [max(0.0, seconds - before.get(key, 0.0)) for key, seconds in after.items()]
