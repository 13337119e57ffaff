"""What a worker has started ends with the profiler, however that ends. Real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.lab import group_members, vanishes

TESTS = str(Path(__file__).parents[2])
DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from fakes.lab import Lab, child_pids, fault, source
lab = Lab()
lab.during = lambda text: print(*child_pids(), text, flush=True)
lab.cases(source(fault("child", 1000), fault(sys.argv[2], 9, when="decode")), 64, hang_s=60)
"""


@pytest.mark.parametrize("kind", ["hang-deaf", "spin"])
def test_processes_that_a_worker_started_end_when_the_profiler_is_killed(kind: str) -> None:
    command = [sys.executable, "-c", DRIVER, TESTS, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        group = next(int(line.split()[0]) for line in driver.stdout if "decode" in line)
        time.sleep(0.3)  # now the worker is stuck
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in group_members(group)}
        driver.kill()
    assert "sleep" in names
    assert vanishes(group)


GUARDED = """
import os, sys, time
from profiler.run.worker import guard_group
if os.fork():  # the profiler
    time.sleep(1000)
os.setsid()
guard_group(os.getppid())
print(os.getpid(), flush=True)
os.close(1)
time.sleep(1000)
"""


def test_a_guard_holds_no_pipe_and_ignores_sigterm() -> None:
    """It would hide that a worker has closed its pipe, and it must still be there after TERM."""
    driver = subprocess.Popen([sys.executable, "-c", GUARDED], stdout=subprocess.PIPE, text=True)
    with driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
        (guard,) = set(group_members(worker)) - {worker}
        deadline = time.monotonic() + 3
        while len(list(Path(f"/proc/{guard}/fd").iterdir())) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(list(Path(f"/proc/{guard}/fd").iterdir())) == 1
        subprocess.run(["kill", "-TERM", "--", f"-{worker}"], check=True)  # the worker dies, the guard does not
        deadline = time.monotonic() + 3
        while group_members(worker) != [guard] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert group_members(worker) == [guard]
        driver.send_signal(signal.SIGKILL)
    assert vanishes(worker)
