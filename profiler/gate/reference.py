"""A fixed piece of work that depends on this machine and on nothing that is gated: is it as fast as it was?

Rescaling a model's time by such work would put one wrong number in place of another, since no small program slows
down as a model does. It is only asked whether the machine itself is slower than when the baseline was stored.
"""

from __future__ import annotations

import hashlib
import time

SLOWER = 0.15  # what two runs of the work on one idle machine never differ by, as the best of several
SIZE = 4 * 1024**2  # bytes: beyond the caches that one core has to itself
TIMES = 5


def seconds() -> float:
    """CPU seconds of hashing and copying a few megabytes, the best of several."""
    block = bytes(range(256)) * (SIZE // 256)
    found = []
    for _ in range(TIMES):
        start = time.process_time()
        hashlib.sha256(block).digest()
        for _ in range(4):
            bytearray(block)
        found.append(time.process_time() - start)
    return min(found)


def slower(before: float | None, now: float | None) -> float | None:
    """By how much the machine is slower than it was, if that explains anything; None if not, or not known."""
    if not before or not now or now / before - 1 <= SLOWER:
        return None
    return now / before - 1
