"""``--max-memory`` by RLIMIT_DATA, with real allocations in processes of their own."""

from __future__ import annotations

import subprocess
import sys

PRELUDE = """
import mmap, resource
from profiler.devices.cpu import process_bytes
from profiler.run.worker import lift_limit, limit_memory
MIB = 2**20
def take(mib):
    try:
        return bytearray(b"1") * (mib * MIB)
    except MemoryError:
        return None
"""


def outcome(script: str) -> list[str]:
    ended = subprocess.run([sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, check=True)
    return ended.stdout.split()


def test_memory_up_to_the_limit_is_granted_and_beyond_it_refused() -> None:
    script = """
limit_memory(200 * MIB)
held = [piece for piece in (take(8) for _ in range(50)) if piece]
print(len(held) * 8, process_bytes("VmHWM") // MIB)
"""
    granted, peak = map(int, outcome(script))
    assert 150 <= granted < 200
    assert 170 <= peak <= 200


def test_what_is_reserved_but_untouched_is_not_memory() -> None:
    """A CUDA build and every thread reserve far more than they use."""
    script = """
area = mmap.mmap(-1, 2048 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
limit_memory(200 * MIB)
print(take(100) is not None, take(400) is None)
"""
    assert outcome(script) == ["True", "True"]


def test_resident_files_count() -> None:
    """200 MiB of shared pages leave no room under a limit of 256 MiB for 100 MiB more."""
    script = """
area = mmap.mmap(-1, 200 * MIB)
for start in range(0, len(area), mmap.PAGESIZE): area[start] = 1
limit_memory(256 * MIB)
print(take(100) is None, take(20) is not None)
"""
    assert outcome(script) == ["True", "True"]


def test_a_limit_below_what_is_held_refuses_everything_and_can_be_lifted() -> None:
    script = """
held = take(64)
limit_memory(32 * MIB)
refused = take(16) is None
lift_limit()
print(refused, take(16) is not None)
"""
    assert outcome(script) == ["True", "True"]


def test_a_hard_limit_of_the_user_is_kept() -> None:
    script = """
resource.setrlimit(resource.RLIMIT_DATA, (512 * MIB, 512 * MIB))
limit_memory(4096 * MIB)
print(*(value // MIB for value in resource.getrlimit(resource.RLIMIT_DATA)))
"""
    assert outcome(script) == ["512", "512"]
