"""Measures a device's ceilings; run as a process of its own, prints one JSON object.

    python -m profiler.backends.hf.gauge cpu

The clock is read over whole loops and the fastest loop counts: a ceiling is what the device can do, not what it does
on average. Weights rotate through a pool larger than any cache.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import nn
from torch.nn import functional

TOKENS = (1, 4, 16, 64, 256)
WIDTH = 2048
POOL_BYTES = 192 * 1024**2
READ_BYTES = {"cpu": 384 * 1024**2, "cuda": 2 * 1024**3}
LOOP_S = 0.25  # each figure is the best loop of so many seconds
CALM_S = 30.0  # after so long, figures are taken from a single run
CALLS = 2000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAPH_KERNELS = 200

Layer = Callable[[torch.Tensor], torch.Tensor]


class Gauge:
    """Figures of one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.threads = torch.get_num_threads()
        self.how: dict[str, str] = {}
        self.end = time.perf_counter() + CALM_S

    def all(self) -> dict[str, Any]:
        """Everything."""
        with torch.inference_mode():
            return {
                "read_bytes_s": self.read(),
                "copy_bytes_s": self.copy(),
                "call_s": self.call(),
                "graph_call_s": self.graph_call() if self.cuda else None,
                "curves": (curves := self.curves()),
                "flops": self.flops(curves),
                "how": self.how,
            }

    def best(self, run: Callable[[], object]) -> float:
        """Seconds of the fastest single run, after one to warm up. On a busy machine late figures get one run."""
        run()
        self.wait()
        fastest, start = float("inf"), time.perf_counter()
        end = start + (LOOP_S if start < self.end else 0.0)
        while True:
            start = time.perf_counter()
            run()
            self.wait()
            now = time.perf_counter()
            fastest = min(fastest, now - start)
            if now >= end:
                return fastest

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def read(self) -> float:
        """Bytes per second that the best reading kernel gets, at the best number of threads."""
        size = READ_BYTES[self.device.type]
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
                found = size / self.best(kernel)
                if found > rate:
                    best, rate = f"{name}, {threads} threads" if not self.cuda else name, found
        torch.set_num_threads(self.threads)
        self.how["read"] = best
        return rate

    def _thread_counts(self) -> list[int]:
        return [self.threads] if self.cuda else sorted({1, max(1, self.threads // 2), self.threads})

    def copy(self) -> float:
        """Bytes per second, read and written together."""
        source = torch.ones(READ_BYTES[self.device.type] // 8, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() * 4 / self.best(lambda: target.copy_(source))

    def call(self) -> float:
        """Seconds of one small operator as models call them: through modules, from Python."""
        norm, small = _Norm(64).to(self.device), torch.ones(1, 1, 64, device=self.device)

        def run() -> None:
            for _ in range(CALLS // _Norm.OPERATORS):
                norm(small)

        return self.best(run) / (CALLS // _Norm.OPERATORS * _Norm.OPERATORS)

    def graph_call(self) -> float:
        """Seconds of one small kernel when a CUDA graph replays many."""
        small = torch.ones(64, device=self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_KERNELS):
                small.mul_(1.0)
        return self.best(graph.replay) / GRAPH_KERNELS

    def curves(self) -> dict[str, dict[str, float]]:
        """Seconds per stored byte of linear layers, by format and tokens."""
        found: dict[str, dict[str, float]] = {}
        for scheme, layers, dtype, nbytes in self._layers():
            found[scheme] = {}
            for tokens in TOKENS:
                inputs = torch.randn(tokens, WIDTH, device=self.device).to(dtype)
                turn = cycle(layers)
                many = max(1, len(layers) // max(1, tokens // 4))  # few tokens: a whole round through the pool

                def run(turn: Iterator[Any] = turn, inputs: torch.Tensor = inputs, many: int = many) -> None:
                    for _ in range(many):
                        next(turn)(inputs)

                found[scheme][str(tokens)] = self.best(run) / many / nbytes
            del layers
        return found

    def _layers(self) -> Iterator[tuple[str, Sequence[Layer], torch.dtype, int]]:
        for name, dtype in DTYPES.items():
            count = max(2, POOL_BYTES // (WIDTH * WIDTH * dtype.itemsize))
            weights = [torch.randn(WIDTH, WIDTH, device=self.device).to(dtype) for _ in range(count)]
            plain = [partial(functional.linear, weight=weight) for weight in weights]
            yield name, plain, dtype, WIDTH * WIDTH * dtype.itemsize
        try:
            import bitsandbytes as bnb
        except ImportError:
            return
        dtype = torch.float32 if not self.cuda else torch.bfloat16
        packed: dict[str, tuple[Callable[[], nn.Module], float]] = {
            "nf4": (lambda: bnb.nn.Linear4bit(WIDTH, WIDTH, False, dtype, quant_type="nf4"), 0.5625),
            "int8": (lambda: bnb.nn.Linear8bitLt(WIDTH, WIDTH, False, has_fp16_weights=False, threshold=6.0), 1.0),
        }
        for name, (make, per_weight) in packed.items():
            count = max(2, POOL_BYTES // 4 // int(WIDTH * WIDTH * per_weight))
            layers: list[Layer] = [make().to(self.device) for _ in range(count)]
            yield name, layers, dtype if name == "nf4" or not self.cuda else torch.float16, int(WIDTH**2 * per_weight)

    def flops(self, curves: dict[str, dict[str, float]]) -> dict[str, float]:
        """FLOP per second of the largest products, by dtype."""
        return {
            name: max(2 * int(tokens) / (seconds * dtype.itemsize) for tokens, seconds in curves[name].items())
            for name, dtype in DTYPES.items()
        }


class _Norm(nn.Module):
    """An RMS norm as models write it: seven operators and as many lines of Python."""

    OPERATORS = 7

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[…, size]``."""
        wide = hidden.float() * 1.0
        variance = wide.pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + 1e-6))


def main() -> None:
    """Measure the device named on the command line."""
    start = time.perf_counter()
    found = Gauge(sys.argv[1]).all()
    print(json.dumps(found | {"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
