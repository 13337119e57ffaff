"""Measures the ceilings of a device in a process of its own: all figures of `profile calibrate`, or only two.

A sweep on a device that was never calibrated measures the two ceilings that MBU and MFU need before its first case.
Nothing that was measured on a busy machine is kept.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from profiler import backends, folders
from profiler.devices import calibration
from profiler.devices.base import DeviceInfo
from profiler.devices.calibration import Ceilings, QuickCeilings
from profiler.errors import ProfileError
from profiler.run.process import worker_environment
from profiler.units import printable, seconds_text

LIMIT_S = 240.0  # of a calibration, which takes less than a minute, and longer if it waits for a busy machine
QUICK_LIMIT_S = 12.0  # of the two ceilings, which take three to five seconds
END_S = 10.0  # between the last line and the end of the process
TICK_S = 0.5  # between two calls of ``on_tick``
OnTick = Callable[[str], None]  # gets what is being timed


class BusyMachine(ProfileError):
    """Other processes disturbed the microbenchmarks, so there is nothing to keep."""

    exit_code = 3  # inconclusive


def unheard(text: str) -> None:
    """Ignores what is being timed: an ``OnTick`` for callers that show nothing."""


def measure(device: DeviceInfo, on_tick: OnTick = unheard) -> Ceilings:
    """Run the microbenchmarks of the default backend.

    Raises BusyMachine, and ProfileError if they die, take too long or print something else.
    """
    content = _run(device, "microbenchmark", LIMIT_S, on_tick)
    found = calibration.parse({"schema": calibration.SCHEMA} | _identity(device) | content)
    if found is None:
        raise ProfileError(f"measuring {device.name} gave impossible figures")
    return found


def measure_quick(device: DeviceInfo) -> QuickCeilings:
    """Measure the two ceilings of a device within seconds. Raises as ``measure``."""
    device = calibration.whole(device)
    found = calibration.parse_quick(_identity(device) | _run(device, "ceilings", QUICK_LIMIT_S, unheard))
    if found is None:
        raise ProfileError(f"measuring {device.name} gave impossible figures")
    return found


def ensure(device: DeviceInfo, say: Callable[[str], None]) -> None:
    """Make sure that MBU and MFU of cases on ``device`` can be given: measure its ceilings unless they are known."""
    if calibration.load_quick(device) is not None:
        return
    say(f"measuring the bandwidth and FLOP/s of {device.name} once, in about 4 s, for MBU and MFU; "
        "profile calibrate is more exact")  # fmt: skip
    try:
        calibration.save_quick(measure_quick(device))
    except ProfileError as error:  # the figures of the sweep do not depend on them
        say(f"MBU and MFU are unknown: {error.message}")


def _identity(device: DeviceInfo) -> dict[str, Any]:
    return {
        "title": device.title,
        "fingerprint": calibration.fingerprint(device),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _run(device: DeviceInfo, trait: str, limit_s: float, on_tick: OnTick) -> dict[str, Any]:
    """The last line that a module of the default backend prints, named by its ``trait``."""
    command = [*_program(trait), device.name, str(device.threads or 0), str(device.duty_cycle)]
    environ = worker_environment(os.environ)
    environ |= folders.child_environ(environ)
    limit_s, found = limit_s / device.duty_cycle, dict[str, Any]()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        try:
            on_tick("starting PyTorch")
            for line in _lines(process, limit_s, on_tick):
                found = _object(line) or found
                on_tick(str(found.get("doing", "")))
            process.wait(END_S)
        except (TimeoutError, subprocess.TimeoutExpired):
            text = f"measuring {device.name} took more than {seconds_text(limit_s)}"
            raise ProfileError(text, "Is the machine busy?") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted while measuring {device.name}; nothing of it was stored") from None
        finally:
            process.kill()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if "busy" in found:
        text = f"the machine is too busy to measure {device.name}: {printable(found['busy'])}"
        raise BusyMachine(text, "Nothing was stored. Try again when the machine is idle.")
    if process.returncode or not found:
        last = (said or [f"exit code {process.returncode}"])[-1]
        raise ProfileError(f"measuring {device.name} failed: {printable(last)}")
    return found


def _program(trait: str) -> tuple[str, ...]:
    return sys.executable, "-P", "-m", getattr(backends.find(backends.DEFAULT), trait)


def _lines(process: subprocess.Popen[bytes], limit_s: float, on_tick: OnTick) -> Iterator[bytes]:
    """Lines as they are printed; ``on_tick`` is called in between. Raises TimeoutError."""
    assert process.stdout is not None
    end, rest = time.monotonic() + limit_s, b""
    while True:
        if select.select([process.stdout], [], [], TICK_S)[0]:
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        else:
            on_tick("")
        if time.monotonic() > end:
            raise TimeoutError
    if rest:
        yield rest


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
