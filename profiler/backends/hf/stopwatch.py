"""Times runs on a device: the fastest, and the usual."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

CALM_S = {"cpu": 40.0, "cuda": 100.0}  # after so long, figures are taken from a single run
QUEUED_S = 2e-3  # of runs between two waits for a GPU, each of which takes some ten microseconds
MOST_QUEUED = 1000


def _replay(graph: torch.cuda.CUDAGraph, run: object) -> None:
    graph.replay()


class Times(NamedTuple):
    """Seconds of one run."""

    best: float
    median: float


class Stopwatch:
    """Of one device."""

    def __init__(self, device: torch.device, running: float = 1.0) -> None:
        """``running``: the share of the time for which a CPU quota lets this process run.

        Below 1 a CPU is timed while it runs: by the time of this thread, which spins when it waits for its helpers.
        A run that the end of a quota falls into would otherwise take as long as the rest of the period besides.
        """
        self.device = device
        self.end = time.perf_counter() + CALM_S[device.type] / running
        self._clock = time.thread_time if running < 1 and device.type == "cpu" else time.perf_counter

    def time(self, run: Callable[[], object], seconds: float) -> Times:
        """Runs for ``seconds``, after one to warm up. On a busy machine late figures get one run.

        A GPU is given several runs at a time, as a program gives it its operators: it is waited for once.
        """
        run()
        self.wait()
        together = self._together(run) if self.device.type == "cuda" else 1
        found: list[float] = []
        start = self._clock()
        end = start + (seconds if time.perf_counter() < self.end else 0.0)
        while not found or start < end:
            for _ in range(together):
                run()
            self.wait()
            now = self._clock()
            found.append((now - start) / together)
            start = now
        return Times(min(found), statistics.median(found))

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """``run`` as a CUDA graph, which takes what the device takes, whatever starting its kernels does.

        What is returned keeps ``run`` alive, and so the tensors that the graph reads.
        """
        run()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return partial(_replay, graph, run)

    def _together(self, run: Callable[[], object]) -> int:
        start = time.perf_counter()
        run()
        self.wait()
        return max(1, min(round(QUEUED_S / (time.perf_counter() - start)), MOST_QUEUED))

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
