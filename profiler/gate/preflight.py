"""Checks before measuring that the machine is quiet: CPU load, battery, other processes on the GPU."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from profiler.devices import nvml
from profiler.devices.base import DeviceInfo

PRESSURE = Path("/proc/pressure/cpu")
SUPPLIES = Path("/sys/class/power_supply")
MAX_PRESSURE = 10.0  # percent of the last ten seconds in which some process waited for a core
WAIT_S = 60.0  # a build or a cron job may end within this time; a longer load is the normal state of the machine
LOOK_S = 5.0


def obstacles(device: DeviceInfo, clock: str) -> list[str]:
    """Reasons not to measure now. CPU time does not include waiting for a core, so load matters to wall time only."""
    found = [_pressure() if clock == "wall" else None, _battery(), _foreign(device)]
    return [text for text in found if text is not None]


def wait(
    device: DeviceInfo,
    clock: str,
    say: Callable[[str], None],
    seconds: float = WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """The obstacles that remain after waiting up to ``seconds``; returns as soon as there are none."""
    left, announced = seconds, False
    while (found := obstacles(device, clock)) and left > 0:
        if not announced:
            say(f"waiting up to {seconds:.0f} s: {'; '.join(found)}")
            announced = True
        sleep(LOOK_S)
        left -= LOOK_S
    return found


def _pressure() -> str | None:
    try:
        found = re.search(r"^some avg10=([\d.]+)", PRESSURE.read_text(), re.MULTILINE)
    except OSError:
        return None  # the kernel has no pressure stall information
    share = float(found[1]) if found else 0.0
    return f"processes waited for a core {share:.0f}% of the time" if share > MAX_PRESSURE else None


def _battery() -> str | None:
    """A notebook on battery runs at other clocks. Machines that report no mains supply pass."""
    try:
        mains = [path.parent for path in SUPPLIES.glob("*/type") if path.read_text().strip() == "Mains"]
        online = [(path / "online").read_text().strip() == "1" for path in mains]
    except OSError:
        return None
    return "the machine runs on battery" if online and not any(online) else None


def _foreign(device: DeviceInfo) -> str | None:
    """Other processes that compute on the GPU. Our own have not started yet."""
    if device.uuid is None:
        return None
    try:
        with nvml.library() as library:
            handle = library.nvmlDeviceGetHandleByUUID(device.uuid)
            count = len(library.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.Missing:
        return None
    if not count:
        return None
    return f"{count} other process{'es use' if count > 1 else ' uses'} {device.title}"
