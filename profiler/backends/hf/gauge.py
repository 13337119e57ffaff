"""Measures a device's ceilings and PyTorch's own rates; run as a process of its own, prints one JSON object.

    python -m profiler.backends.hf.gauge cpu

Ceilings are the fastest of many runs: what the device can do at all. Rates are medians: what a long run gets, once
clocks have settled. Weights rotate through a pool larger than any cache.

    product = bytes × byte_s + output features × row_s + call_s

is solved for each format and number of tokens from three shapes: square, few inputs a row, and small.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, cycle
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn import functional

from profiler.devices.cpu import process_bytes

TOKENS = (1, 4, 16, 64, 256)
SQUARE, NARROW, SMALL = (2048, 2048), (2048, 512), (256, 256)  # output features, input features
TALL, TALL_TOKENS = (65536, 1024), (1, 4, 16)  # an output head; it is given one token a sequence
PEAK_TOKENS = 1024
POOL_BYTES = 192 * 1024**2
POOL_LAYERS = 200
READ_BYTES = {"cpu": 384 * 1024**2, "cuda": 2 * 1024**3}
LOOP_S = 0.25  # a ceiling is the best of so many seconds
RATE_S = 0.04  # a rate the median of runs that take so long
ROUNDS = 3  # and of so many turns
CALM_S = 45.0  # after so long, figures are taken from a single run
CALLS = 2000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAPH_KERNELS = 200
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 128
STEP_DEPTH, PASS_TOKENS, PASS_DEPTH = 2048, 512, 1024
PASS_WIDTH = 1024  # hidden features of a prefill's element-wise operators
OUTLIER = 8.0  # above the threshold of LLM.int8: activations of trained models have a few such features

Layer = Callable[[torch.Tensor], torch.Tensor]
Product = tuple[Callable[[], None], int]
K = TypeVar("K")


class Times(NamedTuple):
    """Seconds of one run."""

    best: float
    median: float


class Format(NamedTuple):
    """A format of weights: its inputs' dtype, what makes a layer of so many outputs and inputs, bytes per weight."""

    name: str
    dtype: torch.dtype
    make: Callable[[int, int], Layer]
    width: float


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
        idle = process_bytes("VmRSS") if sys.platform == "linux" else 0
        with torch.inference_mode():
            products, tall = self.products()
            return {
                "process_bytes": idle,
                "read_bytes_s": self.read(),
                "copy_bytes_s": self.copy(),
                "call_s": self.call(),
                "graph_call_s": self.graph_call() if self.cuda else None,
                "activation_s": self.activations(),
                "attention": {name: self.attention(dtype) for name, dtype in DTYPES.items()},
                "products": products,
                "tall": tall,
                "flops": {name: self.flops(dtype) for name, dtype in DTYPES.items()},
                "how": self.how,
            }

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
                found = size / self.time(kernel, LOOP_S).best
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
        return 2 * source.numel() * 4 / self.time(lambda: target.copy_(source), LOOP_S).best

    def flops(self, dtype: torch.dtype) -> float:
        """FLOP per second of a large product."""
        rows, columns = SQUARE
        left = torch.randn(PEAK_TOKENS, columns, device=self.device).to(dtype)
        right = torch.randn(rows, columns, device=self.device).to(dtype)
        seconds = self.time(lambda: functional.linear(left, right), LOOP_S).best
        return 2 * PEAK_TOKENS * rows * columns / seconds

    def call(self) -> float:
        """Seconds of one small operator as models call them: through modules, from Python."""
        norm, small = _Norm(64).to(self.device), torch.ones(1, 1, 64, device=self.device)
        rounds = CALLS // _Norm.OPERATORS

        def run() -> None:
            for _ in range(rounds):
                norm(small)

        return self.time(run, LOOP_S).median / (rounds * _Norm.OPERATORS)

    def graph_call(self) -> float:
        """Seconds of one small kernel when a CUDA graph replays many."""
        small = torch.ones(64, device=self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_KERNELS):
                small.mul_(1.0)
        return self.time(graph.replay, LOOP_S).best / GRAPH_KERNELS

    def activations(self) -> float:
        """Seconds per byte that element-wise operators of a prefill read and write, fresh memory for each result."""
        norm = _Norm(PASS_WIDTH).to(self.device)
        hidden = torch.randn(1, PASS_TOKENS, PASS_WIDTH, device=self.device)
        return self.time(lambda: norm(hidden), LOOP_S).median / (_Norm.TENSORS * hidden.numel() * 4)

    def attention(self, dtype: torch.dtype) -> dict[str, float]:
        """Of a growing cache: seconds per byte of K and V in a decode step, and per FLOP in a masked prefill pass."""

        def random(heads: int, tokens: int) -> torch.Tensor:
            return torch.randn(1, heads, tokens, HEAD_DIM, device=self.device).to(dtype)

        query, new = random(HEADS, 1), random(KV_HEADS, 1)
        pool = cycle([(random(KV_HEADS, STEP_DEPTH), random(KV_HEADS, STEP_DEPTH)) for _ in range(32)])

        def step() -> None:
            keys, values = (torch.cat((each, new), dim=2) for each in next(pool))
            functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

        held = 2 * KV_HEADS * STEP_DEPTH * HEAD_DIM * dtype.itemsize
        queries, keys, values = random(HEADS, PASS_TOKENS), random(KV_HEADS, PASS_DEPTH), random(KV_HEADS, PASS_DEPTH)
        mask = torch.ones(PASS_TOKENS, PASS_DEPTH, dtype=torch.bool, device=self.device)
        mask = mask.tril(PASS_DEPTH - PASS_TOKENS)[None, None]

        def run() -> None:
            functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)

        flops = 4 * HEADS * HEAD_DIM * PASS_TOKENS * PASS_DEPTH
        return {
            "step_byte_s": self.time(step, LOOP_S).median / held,
            "pass_flop_s": self.time(run, LOOP_S).median / flops,
        }

    def products(self) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict[str, float]]]:
        """Costs of linear layers by format and tokens, and how much longer than that an output head takes."""
        formats = list(self._formats())
        runs = {
            (one.name, shape, tokens): self._product(layers, shape, tokens, one.dtype)
            for one in formats
            for shape, layers in self._pools(one)
            for tokens in (TALL_TOKENS if shape == TALL else TOKENS)
        }
        seconds = self._rounds(runs)
        found: dict[str, dict[str, dict[str, float]]] = {one.name: {} for one in formats}
        tall: dict[str, dict[str, float]] = {one.name: {} for one in formats}
        for one in formats:
            for tokens in TOKENS:
                points = [
                    (rows * columns * one.width, rows, seconds[one.name, (rows, columns), tokens])
                    for rows, columns in (SQUARE, NARROW, SMALL)
                ]
                cost = found[one.name][str(tokens)] = solve(points)
                taken = seconds.get((one.name, TALL, tokens))
                if taken is not None:
                    rows, columns = TALL
                    usual = rows * columns * one.width * cost["byte_s"] + rows * cost["row_s"] + cost["call_s"]
                    tall[one.name][str(tokens)] = taken / usual
        return found, tall

    def _rounds(self, runs: Mapping[K, Product]) -> dict[K, float]:
        """Seconds of one layer each. All take their turn several times: what a slower minute does, it does to all."""
        found: dict[K, list[float]] = {key: [] for key in runs}
        for _ in range(ROUNDS):
            for key, (run, many) in runs.items():
                found[key].append(self.time(run, RATE_S).median / many)
        return {key: statistics.median(values) for key, values in found.items()}

    def _product(self, layers: Sequence[Layer], shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> Product:
        """A run, and the layers that it multiplies with."""
        inputs = torch.randn(1, tokens, shape[1], device=self.device).to(dtype)
        inputs[..., 0] = OUTLIER
        turn = cycle(layers)
        many = max(1, len(layers) // max(1, tokens // 4))  # few tokens: a whole round through the pool

        def run() -> None:
            for _ in range(many):
                next(turn)(inputs)

        return run, many

    def _pools(self, one: Format) -> Iterator[tuple[tuple[int, int], list[Layer]]]:
        for shape in (SQUARE, NARROW, SMALL):
            yield shape, self._pool(one.make, shape, one.width)
        if one.name in DTYPES:
            yield TALL, [one.make(*TALL)]

    def _pool(self, make: Callable[[int, int], Layer], shape: tuple[int, int], width: float) -> list[Layer]:
        count = int(POOL_BYTES * min(1.0, width / 2) // (shape[0] * shape[1] * width))
        return [make(*shape) for _ in range(max(2, min(count, POOL_LAYERS)))]

    def _formats(self) -> Iterator[Format]:
        """Those that can be measured here."""

        def plain(dtype: torch.dtype, rows: int, columns: int) -> Layer:
            weight = torch.randn(rows, columns, device=self.device).to(dtype)
            return partial(functional.linear, weight=weight)

        for name, dtype in DTYPES.items():
            yield Format(name, dtype, partial(plain, dtype), dtype.itemsize)
        try:
            import bitsandbytes as bnb
        except ImportError:
            return
        dtype = torch.float32 if not self.cuda else torch.bfloat16

        def nf4(rows: int, columns: int) -> Layer:
            layer: Layer = bnb.nn.Linear4bit(columns, rows, False, dtype, quant_type="nf4").to(self.device)
            return layer

        def int8(rows: int, columns: int) -> Layer:
            layer = bnb.nn.Linear8bitLt(columns, rows, False, has_fp16_weights=False, threshold=6.0)
            moved: Layer = layer.to(self.device)
            return moved

        yield Format("nf4", dtype, nf4, 0.5625)
        yield Format("int8", torch.float16 if self.cuda else dtype, int8, 1.0)


def solve(points: Sequence[tuple[float, int, float]]) -> dict[str, float]:
    """Costs per byte, output feature and call, none below 0, from (bytes, output features, seconds) of three shapes.

    The fullest set of costs that all come out positive, by relative error: a shape may take less than the sum of what
    others show.
    """
    seconds = torch.tensor([point[2] for point in points], dtype=torch.float64)
    columns = torch.tensor([[point[0], point[1], 1.0] for point in points], dtype=torch.float64) / seconds[:, None]
    best, error = [0.0, 0.0, 0.0], float("inf")
    for size in (1, 2, 3):
        for chosen in combinations(range(3), size):
            part = columns[:, chosen]
            costs = torch.linalg.lstsq(part, torch.ones(len(points), 1, dtype=torch.float64)).solution
            miss = float((part @ costs - 1).square().sum())
            if bool((costs >= 0).all()) and miss < error:
                best, error = [0.0, 0.0, 0.0], miss
                for index, value in zip(chosen, costs.flatten().tolist(), strict=True):
                    best[index] = value
    return dict(zip(("byte_s", "row_s", "call_s"), best, strict=True))


class _Norm(nn.Module):
    """An RMS norm as models write it: seven operators and as many lines of Python."""

    OPERATORS = 7
    TENSORS = 9  # of the hidden width, read or written

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
