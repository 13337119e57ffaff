"""The ``graph`` path: the decode step, captured as a CUDA graph on a GPU or compiled by inductor on a CPU.

**CUDA.** A capture runs the Python code of the step but no kernels, so the state is restored after the warm-up and
the Python flags after each capture. All graphs share one memory pool and one stream; the largest is captured first,
so that the smaller ones fit into its memory. A replay is compared with the static step before it is used.

**CPU.** The step becomes C++ code around our own loops, without Triton. Inductor fuses the operators between the
matrix–vector products (norms, rotary positions, cache writes, activations) and removes the Python overhead of a few
thousand operator calls. Weights are not frozen into the graph: freezing would pack a second copy of every matrix for
a library product that is slower than our loops at one token.

Compilation takes a minute, so the number of cache slots is left dynamic: other contexts of the same model and batch
run the same code.
"""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from profiler.units import printable

from .audit import capture_reason
from .patches import native_reason
from .runner import RunnerStats, StaticRunner, decode_step
from .state import DecodeState, StaticLayer

WARM_UP_STEPS = 3  # before the capture, for cuBLAS workspaces, cuDNN plans and lazily loaded kernels
# How far logits may be off, relative to the largest. A replay runs the same operators as the static step, so only the
# order of sums may differ (unlike ``COMPILED_TOLERANCE``): 13 roundings of bf16 (2⁻⁸), 20 of fp16 (2⁻¹¹).
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}

# The operators between the products are too small to share among threads, and inductor's threads would compete with
# ours. The modules of a model do not change between steps, so the guards check only the state.
OPTIONS: dict[str, Any] = {
    "cpp.threads": 1,
    "size_asserts": False,
    "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
}
BATCHES = 64  # compiled steps of one model that may exist at a time
# How far logits may be off, relative to the largest. In fp32 only the order of sums differs. In bf16, inductor also
# passes values between fused operators in fp32, where the static step rounds after each operator. This adds up over
# the layers: a Gemma 3 of a few layers is off by 0.008 (torch 2.14). The limit of 0.25 is chosen, not measured.
COMPILED_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


class CudaGraphRunner(StaticRunner):
    """Falls back to the static step with a reason if capture is refused, fails, or replays wrongly."""

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
        captured = self.graphs.get(self.state.bucket_at(self.state.length))  # length already includes this step
        if captured is None:
            return super()._run()
        graph, logits = captured
        graph.replay()
        return logits  # valid until the next replay of any graph in the pool

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
            with self.patches, torch.inference_mode():
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
        except Exception as error:  # the static step still works after a failed capture
            self._drop()
            return f"not captured: {printable(' '.join(str(error).split()) or type(error).__name__)}"
        finally:
            torch.cuda.synchronize(device)
            self.state.restore(saved)
        return self._compare(given, expected)

    def _warm_up(self, bucket: int, saved: dict[str, object]) -> None:
        """Run a few steps of a bucket, which may use other kernels than the others."""
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
    """Memory that the allocator has reserved without a live tensor in it, after freeing what it can: the memory that
    graphs keep for their intermediate results.
    """
    torch.cuda.synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()
    stats = torch.cuda.memory_stats(device)
    return int(stats["reserved_bytes.all.current"]) - int(stats["allocated_bytes.all.current"])


def _nodes(graph: torch.cuda.CUDAGraph) -> int | None:
    """Nodes of a captured graph; ``None`` without the Python bindings for CUDA."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    error, _, count = runtime.cudaGraphGetNodes(graph.raw_cuda_graph())
    return int(count) if int(error) == 0 else None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disables garbage collection: freeing device memory during a capture would invalidate it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CompiledRunner(StaticRunner):
    """Falls back to the static step with a reason if compilation fails or gives other logits."""

    path = "graph"

    def adopt(self, cache: Cache, token: torch.Tensor, max_new: int) -> None:
        super().adopt(cache, token, max_new)
        self.compiled: Any = None
        self.prepare_s = 0.0
        self.reason = native_reason(self.model)
        if self.reason is None and max_new > 0:
            start = time.perf_counter()
            self.reason = self._compile()
            self.prepare_s = time.perf_counter() - start

    def stats(self) -> RunnerStats:
        static = super().stats()
        path = "graph" if self.compiled is not None else "static"
        fault = static.fault or (self.reason is not None and native_reason(self.model) is None)  # compilation failed
        return RunnerStats(path, self.reason, graphs=int(path == "graph"), prepare_s=self.prepare_s,
                           kernels=static.kernels, fault=fault)  # fmt: skip

    def _run(self) -> torch.Tensor:
        return super()._run() if self.compiled is None else self.compiled(self.model, self.state)

    def _compile(self) -> str | None:
        """Compile, compare one step with the static one, and restore the state. Returns why it falls back, or
        ``None``.
        """
        _forget_others(self.model)
        _mark_dynamic(self.state)
        saved = self.state.save()
        try:
            with self.patches, warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=BATCHES):
                warnings.simplefilter("ignore", DeprecationWarning)  # inductor's, about torch itself
                expected = self.advance().clone()
                self.state.restore(saved)
                self.compiled = torch.compile(decode_step, fullgraph=True, dynamic=False, options=OPTIONS)
                given = self.advance()
        except Exception as error:  # whatever the compiler raises, the static step still works
            self.compiled = None
            return f"not compiled: {printable(' '.join(str(error).split()) or type(error).__name__)}"
        finally:
            self.state.restore(saved)
        return self._compare(given, expected)

    def _compare(self, given: torch.Tensor, expected: torch.Tensor) -> str | None:
        error = float((given - expected).abs().max() / expected.abs().max())
        if error <= COMPILED_TOLERANCE.get(self.model.dtype, 0.0):
            return None
        self.compiled = None
        return f"compiled step gives other logits (off by {error:.2g} of the largest)"


_compiled_for: weakref.ref[PreTrainedModel] | None = None


def _forget_others(model: PreTrainedModel) -> None:
    """Drop code that was compiled for another model: the guards skip modules, so it would run for this one."""
    global _compiled_for
    if _compiled_for is None or _compiled_for() is not model:
        torch._dynamo.reset()
        _compiled_for = weakref.ref(model)


def _mark_dynamic(state: DecodeState) -> None:
    """Let the compiled step accept any number of cache slots and of new tokens."""
    torch._dynamo.maybe_mark_dynamic(state.out, 1)
    for layer in state.cache.layers:
        if isinstance(layer, StaticLayer):
            torch._dynamo.maybe_mark_dynamic(layer.keys, 2)
            torch._dynamo.maybe_mark_dynamic(layer.values, 2)
