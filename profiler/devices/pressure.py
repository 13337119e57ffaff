"""What comes between a program and its machine, as the kernel counts it: waiting for a core, stolen time, swap."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from profiler.devices import cgroup
from profiler.devices.base import Pressure

TASKS = Path("/proc/self/task")
STALLS = Path("/proc/pressure/cpu")
STAT = Path("/proc/stat")
VMSTAT = Path("/proc/vmstat")
STATUS = Path("/proc/self/status")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STEAL = 8  # the column of /proc/stat, after the name


def read() -> Pressure:
    """The counters now; what the kernel does not count is None."""
    stalled, swapped = _number(STALLS, r"^some .*total=(\d+)"), _number(STATUS, r"^VmSwap:\s+(\d+) kB")
    stolen, paged = _number(STAT, rf"^cpu +(?:\d+ ){{{STEAL - 1}}}(\d+)"), _number(VMSTAT, r"^pswpin (\d+)")
    quota = cgroup.quota()
    periods, throttled, throttled_s = (quota and quota.throttled()) or (None, None, cgroup.held_s())
    return Pressure(
        at_s=time.monotonic(),
        stalled_s=None if stalled is None else stalled / 1e6,
        stolen_s=None if stolen is None else stolen / TICKS,
        swapped_in_bytes=None if paged is None else paged * PAGE,
        swapped_bytes=None if swapped is None else swapped * 1024,
        busy_s=_busy_s(),
        own_s=time.process_time(),
        period_s=None if quota is None else quota.period_s,
        periods=periods,
        throttled=throttled,
        throttled_s=throttled_s,
    )


def _busy_s() -> float | None:
    """Seconds that all cores together did not idle: user, nice, system, irq and softirq of /proc/stat."""
    try:
        user, nice, system, _, _, irq, softirq = map(int, STAT.read_text().split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / TICKS


def run_delay_s() -> float | None:
    """Seconds that all living threads of this process have waited for a core; None where the kernel does not count.

    The second figure of ``/proc/PID/task/TID/schedstat``, in nanoseconds (Documentation/scheduler/sched-stats).
    """
    waited = None
    for stat in TASKS.glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread may end meanwhile
            waited = (waited or 0) + int(stat.read_text().split()[1])
    return None if waited is None else waited / 1e9


def _number(path: Path, pattern: str) -> int | None:
    """The number in the first line of a file that matches; None where the file or the line is not there."""
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
