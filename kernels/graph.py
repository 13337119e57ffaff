"""The CUDA ``graph`` path: the decode step captured once per bucket and replayed. Needs a GPU to run.

Capture executes nothing but runs the Python of the step, so state is put back after the warm-up and flags after each
capture. Every graph shares one pool and one stream; the largest is captured first, so the smaller ones fit into its
memory. A replay is compared with the static step before it is trusted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache

from profiler.units import printable

from .audit import capture_reason
from .runner import RunnerStats, StaticRunner
from .step import decode_step

WARM_UP_STEPS = 3  # workspaces of cuBLAS, plans of cuDNN and lazily loaded kernels must exist before capture
# How far logits may be off, relative to the largest. A replay runs the operators of the static step one by one, so
# only the order of sums may differ, unlike in ``compiled.py``: 13 roundings of bf16 (2⁻⁸) and 20 of fp16 (2⁻¹¹).
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class CudaGraphRunner(StaticRunner):
    """Falls back to the static step, and says why, when capture is refused, fails or replays wrongly."""

    path = "graph"

    def adopt(self, cache: Cache, token: torch.Tensor, max_new: int) -> None:
        super().adopt(cache, token, max_new)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self.nodes: int | None = None
        self.pool_bytes: int | None = None
        start = time.perf_counter()
        self.reason, self.fault = capture_reason(self.model), False
        if self.reason is None and max_new <= WARM_UP_STEPS:
            self.reason = f"{max_new} steps are too few to warm up and capture"
        elif self.reason is None:
            self.reason = self._capture_all()
            self.fault = self.reason is not None
        self.prepare_s = time.perf_counter() - start

    def stats(self) -> RunnerStats:
        path = "graph" if self.graphs else "static"
        static = super().stats()
        how = (self.nodes, len(self.graphs), self.prepare_s, self.pool_bytes, static.kernels)
        return RunnerStats(path, self.reason, *how, self.fault or static.fault)

    def _run(self) -> torch.Tensor:
        captured = self.graphs.get(self.state.bucket_at(self.state.length))  # claimed: length counts this step
        if captured is None:
            return super()._run()
        graph, logits = captured
        graph.replay()
        return logits  # valid until the next replay of any graph of the pool

    def _buckets(self) -> list[int]:
        """Every bucket the run will need, largest first."""
        lengths = range(self.state.context + 1, self.state.capacity + 1)
        return sorted({self.state.bucket_at(length) for length in lengths}, reverse=True)

    def _capture_all(self) -> str | None:
        device = self.model.device
        saved = self.state.save()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with self.substitutes, torch.inference_mode():
                with torch.cuda.stream(stream):
                    for bucket in self._buckets():
                        self._warm_up(bucket, saved)
                    expected = self._first_logits(saved)
                torch.cuda.current_stream(device).wait_stream(stream)
                before = _kept_bytes(device)
                pool = torch.cuda.graph_pool_handle()
                captured = {}
                for bucket in self._buckets():
                    self.state.restore(saved)
                    captured[bucket] = self._capture(bucket, pool, stream)
                self.state.restore(saved)
                self.graphs = captured
                self.pool_bytes = max(0, _kept_bytes(device) - before)
                given = self.advance().clone()
        except Exception as error:  # a failed capture leaves the static step as good as before
            self._drop()
            return f"not captured: {printable(' '.join(str(error).split()) or type(error).__name__)}"
        finally:
            torch.cuda.synchronize(device)
            self.state.restore(saved)
        return self._compare(given, expected)

    def _warm_up(self, bucket: int, saved: dict[str, object]) -> None:
        """A bucket may take kernels of its own."""
        self.state.restore(saved)
        self.state.set_bucket(bucket)
        for _ in range(WARM_UP_STEPS):
            decode_step(self.model, self.state)

    def _first_logits(self, saved: dict[str, object]) -> torch.Tensor:
        self.state.restore(saved)
        return self.advance().clone()

    def _capture(
        self, bucket: int, pool: Any, stream: torch.cuda.Stream
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        self.state.set_bucket(bucket)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with _no_collection(), torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            logits = decode_step(self.model, self.state)
        graph.instantiate()
        self.nodes = _nodes(graph)
        return graph, logits

    def _drop(self) -> None:
        self.graphs, self.nodes, self.pool_bytes = {}, None, None

    def _compare(self, given: torch.Tensor, expected: torch.Tensor) -> str | None:
        error = float((given - expected).abs().max() / expected.abs().max())
        if error <= TOLERANCE.get(self.model.dtype, 0.0):
            return None
        self._drop()
        return f"replay gives other logits (off by {error:.2g} of the largest)"


def _kept_bytes(device: torch.device) -> int:
    """Memory that the allocator has taken and no living tensor fills, when all that can be given back has been: what
    graphs keep for their intermediate results."""
    torch.cuda.synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()
    stats = torch.cuda.memory_stats(device)
    return int(stats["reserved_bytes.all.current"]) - int(stats["allocated_bytes.all.current"])


def _nodes(graph: torch.cuda.CUDAGraph) -> int | None:
    """Nodes of a captured graph, ``None`` without the CUDA bindings for Python."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    error, _, count = runtime.cudaGraphGetNodes(graph.raw_cuda_graph())
    return int(count) if int(error) == 0 else None


@contextmanager
def _no_collection() -> Iterator[None]:
    """A collection that frees device memory in the middle of a capture invalidates it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
