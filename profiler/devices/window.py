"""The window of the host's clocks, which the window of every device contains."""

from __future__ import annotations

import time

from profiler.devices.base import Lap
from profiler.devices.pressure import run_delay_s


class HostWindow:
    """Wall time, CPU time and waiting of this process from its making to ``close``."""

    def __init__(self) -> None:
        self._waited, self._cpu_s = run_delay_s(), time.process_time()
        self._start = time.perf_counter()

    def close(self) -> Lap:
        seconds = time.perf_counter() - self._start
        cpu_s, waited = time.process_time() - self._cpu_s, run_delay_s()
        wait_s = None
        if waited is not None and self._waited is not None:
            wait_s = max(0.0, waited - self._waited)  # a thread that ended takes its count along
        return Lap(seconds, cpu_s, wait_s)
