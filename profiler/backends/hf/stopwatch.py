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
MOST_WAIT = 20  # times as long as was asked for, where a quota leaves little CPU time


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

        Below 1 a CPU is timed while it runs: by the CPU time of this thread, which spins when it waits for its
        helpers, or by that of all threads on average where it does not (OMP_WAIT_POLICY=passive). A run that the end
        of a quota falls into would otherwise take as long as the rest of the period besides.
        """
        self.device = device
        self.end = time.perf_counter() + CALM_S[device.type] / running
        self._throttled = running < 1 and device.type == "cpu"

    def time(self, run: Callable[[], object], seconds: float) -> Times:
        """Runs for ``seconds``, after one to warm up. On a busy machine late figures get one run.

        A GPU is given several runs at a time, as a program gives it its operators: it is waited for once.
        """
        run()
        self.wait()
        together = self._together(run) if self.device.type == "cuda" else 1
        found: list[float] = []
        clocks, start = self._clocks(), time.perf_counter()
        left = seconds if start < self.end else 0.0
        while not found or (left > 0 and time.perf_counter() < start + MOST_WAIT * seconds):
            for _ in range(together):
                run()
            self.wait()
            before, clocks = clocks, self._clocks()
            taken = max(after - at for after, at in zip(clocks, before, strict=True))
            found.append(taken / together)
            left -= taken
        return Times(min(found), statistics.median(found))

    def _clocks(self) -> tuple[float, ...]:
        """Clocks of which the one that went furthest counts."""
        if self._throttled:
            return time.thread_time(), time.process_time() / torch.get_num_threads()
        return (time.perf_counter(),)

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
