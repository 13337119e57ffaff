"""How long this process was ready to run and got no core: the kernel's own count, thread by thread."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

TASKS = Path("/proc/self/task")


def run_delay_s() -> float | None:
    """Seconds that all living threads of this process have waited for a core; None where the kernel does not count.

    The second figure of ``/proc/PID/task/TID/schedstat``, in nanoseconds (Documentation/scheduler/sched-stats).
    """
    waited = None
    for stat in TASKS.glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread may end meanwhile
            waited = (waited or 0) + int(stat.read_text().split()[1])
    return None if waited is None else waited / 1e9
