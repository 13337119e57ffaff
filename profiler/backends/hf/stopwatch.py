"""Times runs on a device: the fastest, and the usual."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

CALM_S = 40.0  # after so long, figures are taken from a single run


class Times(NamedTuple):
    """Seconds of one run."""

    best: float
    median: float


class Stopwatch:
    """Of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.end = time.perf_counter() + CALM_S

    def time(self, run: Callable[[], object], seconds: float) -> Times:
        """Runs for ``seconds``, after one to warm up. On a busy machine late figures get one run."""
        run()
        self.wait()
        found: list[float] = []
        start = time.perf_counter()
        end = start + (seconds if start < self.end else 0.0)
        while not found or start < end:
            run()
            self.wait()
            now = time.perf_counter()
            found.append(now - start)
            start = now
        return Times(min(found), statistics.median(found))

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
