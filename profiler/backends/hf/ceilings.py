"""The stopwatch of the microbenchmarks, and the ceilings of a device: its highest rates of reading and computing.

    python -m profiler.backends.hf.ceilings DEVICE THREADS DUTY_CYCLE

measures within seconds what MBU and MFU need, because it imports nothing but PyTorch, and prints one JSON object.
`profile calibrate` measures the same for longer. THREADS is the number of CPU threads, 0 for PyTorch's default;
DUTY_CYCLE is ``DeviceInfo.duty_cycle``.

**A busy machine.** A figure during which our threads lacked a core is timed again, up to ``TRIES`` times. With
several threads this is essential: they wait for each other after every operator, so one that has no core stops them
all, and figures become up to a thousand times too low. If no try was undisturbed, ``Busy`` is raised.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from profiler import devices
from profiler.devices.base import MAX_WAIT, HostWindow, Lap, disturbance, kind_of, read, run_delay_s

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUEUED_S = 2e-3  # seconds of runs between two synchronizations of a GPU, each of which takes about ten microseconds
MAX_QUEUED_RUNS = 1000  # of 2 µs each: no launch is much shorter
MAX_STRETCH = 20  # wall time ÷ requested seconds at which timing ends, in case a quota leaves little CPU time
TRIES, QUICK_TRIES = 8, 3  # of a timing that other processes disturb; the pauses between them add up to 2.8 and 0.3 s
SHORT_WAIT = 0.02  # share of the wall time: a shorter wait is not blamed for a slow figure
PAUSE_S = 0.1  # before each further try, and once more for every earlier one: a short burst of work then passes
MAX_READ_BYTES = 4 * 1024**3  # that the reading kernels read
CACHES_IN_FREE = 24  # caches count as at most free memory ÷ 24, because several pools exist at once
PAST_CACHES = 1.5  # size of a pool ÷ size of the caches, within given limits
LOOP_S = 0.15  # a ceiling is the fastest run within this many seconds
QUICK_S = 0.04  # the same for ceilings that a sweep measures before its first case


class Busy(Exception):
    """Other processes took CPU time during every try of a timing. The message says how much."""


class Times(NamedTuple):
    """Seconds of one run."""

    best: float
    median: float


class Stopwatch:
    """Times runs on one device."""

    def __init__(self, device: torch.device, duty_cycle: float = 1.0) -> None:
        """``duty_cycle`` is the share of the time for which a CPU quota lets this process run.

        Below 1, a CPU is timed by CPU time instead of wall time, which would also count the time for which the quota
        stops the process. It is that of this thread, which spins while it waits for other threads, or the average of
        all threads if it does not spin (OMP_WAIT_POLICY=passive).
        """
        self.device, self.kind = device, kind_of(device.type)
        self.end = time.perf_counter() + self.kind.sizes.calm_s / duty_cycle
        self._throttled = duty_cycle < 1 and self.kind.is_host
        self._has_quota, self.tries = duty_cycle < 1, TRIES
        self._doing = ""

    def time(self, run: Callable[[], object], seconds: float) -> Times:
        """Repeat ``run`` for ``seconds`` after one warm-up. Once ``BenchmarkSizes.calm_s`` have passed, it runs only
        once more, so that a slow machine finishes too.

        A GPU gets several runs before each synchronization, just as a program queues its operators. Raises Busy.
        """
        run()
        self.wait()
        runs = 1 if self.kind.is_host else self._runs_per_wait(run)
        least = 1.0
        for tried in range(self.tries):
            time.sleep(tried * PAUSE_S)
            window = HostWindow()
            times = self._times(run, seconds, runs)
            lacked = 0.0 if self._has_quota else _lacked(window.close())
            if lacked <= MAX_WAIT:
                return times
            least = min(least, lacked)
            if tried + 1 < self.tries:
                self.tell(f"{self._doing} again, because other processes took {lacked:.0%} of the CPU time")
        raise Busy(f"other processes took {least:.0%} or more of the CPU time that we needed")

    def doing(self, what: str) -> None:
        """Print what is timed from now on."""
        self._doing = what
        self.tell(what)

    @staticmethod
    def tell(what: str) -> None:
        """Print a line about what is done, for whoever started this process."""
        print(json.dumps({"doing": what}), flush=True)

    def _times(self, run: Callable[[], object], seconds: float, runs: int) -> Times:
        found: list[float] = []
        clocks, start = self._clocks(), time.perf_counter()
        left = seconds if start < self.end else 0.0
        while not found or (left > 0 and time.perf_counter() < start + MAX_STRETCH * seconds):
            for _ in range(runs):
                run()
            self.wait()
            before, clocks = clocks, self._clocks()
            taken = max(after - at for after, at in zip(clocks, before, strict=True))
            found.append(taken / runs)
            left -= taken
        return Times(min(found), statistics.median(found))

    def _clocks(self) -> tuple[float, ...]:
        """Several clocks; the one that advanced most counts."""
        if self._throttled:
            return time.thread_time(), time.process_time() / torch.get_num_threads()
        return (time.perf_counter(),)

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """``run`` as a CUDA graph, which takes the device's time without that of launching kernels.

        The returned function keeps ``run``, and so the tensors that the graph reads, alive.
        """
        run()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return partial(_replay, graph, run)

    def _runs_per_wait(self, run: Callable[[], object]) -> int:
        """The runs between two synchronizations of a GPU, which take about ``QUEUED_S``."""
        start = time.perf_counter()
        run()
        self.wait()
        return max(1, min(round(QUEUED_S / (time.perf_counter() - start)), MAX_QUEUED_RUNS))

    def wait(self) -> None:
        """Wait until the device has finished everything queued."""
        self.kind.wait(self.device)


def _lacked(lap: Lap) -> float:
    """The share of the CPU time they needed for which our threads had no core; 0 if the kernel does not count it.

    While they sleep, as when a GPU works, even a short wait is a large share of the CPU time. It is ignored if it is
    short in wall time.
    """
    waited_s = lap.wait_s or 0.0
    return waited_s / ((lap.cpu_s or 0.0) + waited_s) if waited_s > SHORT_WAIT * lap.seconds else 0.0


def _replay(graph: torch.cuda.CUDAGraph, run: object) -> None:
    graph.replay()


class FastestRates(NamedTuple):
    """The highest rates that were measured: bytes per second, and FLOP per second by dtype."""

    read_bytes_s: float
    reader: str  # kernel and threads
    copy_bytes_s: float
    flops: dict[str, float]


class CeilingBenchmark:
    """Measures the ceilings of one device."""

    def __init__(self, device: str, threads: int | None = None, duty_cycle: float = 1.0) -> None:
        """``threads`` as in a worker, ``duty_cycle`` as in ``Stopwatch``. The parent determines both, because OpenMP
        may already have pinned this thread.
        """
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        kind = kind_of(device)
        self.sizes, self.on_host = kind.sizes, kind.is_host
        kind.select(device)
        self.threads = min(torch.get_num_threads(), threads or torch.get_num_threads())
        torch.set_num_threads(self.threads)
        self.watch = Stopwatch(self.device, duty_cycle)
        self.here = here = devices.find(device)
        self.cache_bytes: int = min(kind.cache_bytes(self.device), here.free_bytes // CACHES_IN_FREE)
        self.read_bytes = past_caches(self.cache_bytes, self.sizes.read_bytes, MAX_READ_BYTES)

    def ceilings(self, dtypes: Iterable[str] = DTYPES, seconds: float = LOOP_S) -> FastestRates:
        """The highest rates of reading, copying and computing, each the best within ``seconds``."""
        self.watch.doing("reading memory")
        rate, reader = self.read(seconds)
        self.watch.doing("matrix products")
        flops = {name: self.flops(DTYPES[name], seconds) for name in dtypes}
        return FastestRates(rate, reader, self.copy(seconds), flops)

    def read(self, seconds: float = LOOP_S) -> tuple[float, str]:
        """The highest rate of reading in bytes per second, and the kernel and number of threads that reached it."""
        size = self.read_bytes
        data = torch.ones(size // 4, dtype=torch.float32, device=self.device)
        matrix, vector = data.view(-1, 8192), torch.ones(8192, device=self.device)
        half = data[: data.numel() // 2]
        kernels: dict[str, Callable[[], object]] = {
            "sum": data.sum,
            "max": data.max,
            "matrix times vector": lambda: matrix @ vector,
            "dot": lambda: torch.dot(half, data[data.numel() // 2 :]),
            "sum of int64": data.view(torch.int64).sum,
        }
        best, rate = "", 0.0
        for threads in self._thread_counts():
            torch.set_num_threads(threads)
            for name, kernel in kernels.items():
                found = size / self.watch.time(kernel, seconds).best
                if found > rate:
                    best, rate = f"{name}, {threads} threads" if self.on_host else name, found
        torch.set_num_threads(self.threads)
        return rate, best

    def _thread_counts(self) -> list[int]:
        return sorted({1, max(1, self.threads // 2), self.threads}) if self.on_host else [self.threads]

    def copy(self, seconds: float = LOOP_S) -> float:
        """Bytes per second of a copy, which counts both the bytes read and the bytes written."""
        source = torch.ones(self.read_bytes // 8, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() * 4 / self.watch.time(lambda: target.copy_(source), seconds).best

    def flops(self, dtype: torch.dtype, seconds: float = LOOP_S) -> float:
        """FLOP per second of a large matrix product."""
        tokens, rows, columns = self.sizes.peak
        left = torch.randn(tokens, columns, device=self.device).to(dtype)
        right = torch.randn(rows, columns, device=self.device).to(dtype)
        taken = self.watch.time(lambda: functional.linear(left, right), seconds).best
        return 2 * tokens * rows * columns / taken


def past_caches(cache_bytes: int, least: int, most: int) -> int:
    """Size of a pool whose beginning is no longer in the caches when a loop over it starts again, limited to
    ``least`` and ``most``. Bytes.
    """
    return max(least, min(round(PAST_CACHES * cache_bytes), most))


def quick(device: str, threads: int | None, duty_cycle: float) -> dict[str, Any]:
    """The two ceilings of a device within seconds, with the keys of ``calibration.QuickCeilings``."""
    benchmark = CeilingBenchmark(device, threads, duty_cycle)
    benchmark.watch.tries = QUICK_TRIES
    with torch.inference_mode():
        rates = benchmark.ceilings(dict.fromkeys(("fp32", benchmark.here.default_dtype)), QUICK_S)
    return {"read_bytes_s": max(rates.read_bytes_s, rates.copy_bytes_s), "flops": rates.flops}


def report(measure: Callable[[str, int | None, float], dict[str, Any]]) -> None:
    """Measure the device that the command line names; print the figures as JSON, or why the machine is too busy."""
    start, before = time.perf_counter(), read()
    try:
        found = measure(sys.argv[1], int(sys.argv[2]) or None, float(sys.argv[3]))
        # What the kernel counts for each of our threads has been judged; a hypervisor's share is in no such count.
        waited_s, unknown = run_delay_s(), 0.0
        disturbed = disturbance(before, read(), unknown, unknown, os.cpu_count() or 1, stalls=waited_s is None)
        found |= {"busy": disturbed.text} if disturbed else {}
    except Busy as busy:
        found = {"busy": str(busy)}
    print(json.dumps(found | {"seconds": time.perf_counter() - start}), flush=True)
    os._exit(0)  # taking PyTorch apart would take longer than what a sweep waits for


if __name__ == "__main__":
    report(quick)
