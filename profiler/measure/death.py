"""Why a worker died, when we did not kill it.

The kernel's OOM kill, then an out-of-memory message of its own, then the signal, then the exit code. A SIGKILL is an
OOM kill only if a kernel counter says so: anyone may send one.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

from profiler.devices import cgroup
from profiler.results.measurement import Outcome
from profiler.units import printable

LAST_WORDS = 5  # lines in which a message is the cause of death; before them it may be a warning survived
_OUT_OF_MEMORY = re.compile(r"out of memory|bad_alloc|MemoryError|cannot allocate memory|can't allocate memory", re.I)
_CRY = re.compile(r"what\(\):|error|assert|fatal|abort", re.I)  # of a library in C++ that ends the process
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.M)


def oom_kills() -> int | None:
    """How often the kernel has killed for want of memory: in this control group, else on the machine.

    The kernel counts every OOM kill, of whatever cause, in the victim's group too, so the group's counter is enough
    and tells our worker's death from a stranger's. ``None``: no counter can be read.
    """
    for path in (*_group_counters(), Path("/proc/vmstat")):
        try:
            found = _OOM_KILLS.search(path.read_text())
        except OSError:
            continue
        if found:
            return int(found[1])
    return None


def _group_counters() -> list[Path]:
    """Where the counter of this process's memory group may be, version 2 and 1, innermost first."""
    return [folder / name for folder in cgroup.folders("memory") for name in ("memory.events", "memory.oom_control")]


def cause(returncode: int, oom_killed: bool, output: list[str], phase: str) -> tuple[Outcome, str]:
    """Outcome and reason of a worker that died by itself.

    ``returncode`` is negative for a signal; ``output`` are the last lines it printed; ``phase`` what it was doing.
    """
    if returncode == -signal.SIGKILL and oom_killed:
        return "oom", f"the kernel's OOM killer ended the worker in {phase}: the machine's or group's memory was full"
    if returncode == -signal.SIGKILL:
        return "failed", f"the worker was killed by SIGKILL in {phase}; not by this program, nor by the OOM killer"
    said = [line for line in output[-LAST_WORDS:] if _OUT_OF_MEMORY.search(line)]
    if said and returncode != 0:
        return "oom", f"out of memory in {phase}: {printable(said[-1])}"
    if returncode < 0:
        cried = [line for line in output[-LAST_WORDS:] if _CRY.search(line)]
        last = f": {printable(cried[-1])}" if cried else ""
        return "failed", f"the worker was killed by {_signal_name(-returncode)} in {phase}{last}"
    last = f": {printable(output[-1])}" if output else ""
    return "failed", f"the worker ended in {phase} with exit code {returncode} and no result{last}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time signals have no name
