"""The trial of ``--path static`` and ``--path graph``: prefill as shipped, then our static-shape decode step."""

from __future__ import annotations

from transformers import PreTrainedModel

from profiler.backends.base import Beat, CacheState
from profiler.backends.hf import cache as caches
from profiler.backends.hf.session import HfTrial, memory_errors
from profiler.case import Case
from profiler.kernels.compiled import CompiledRunner
from profiler.kernels.graph import CudaGraphRunner
from profiler.kernels.runner import RunnerStats, StaticRunner
from profiler.kernels.state import Saved
from profiler.results.measurement import Caution, DecodePath

EXTRA_STEPS = 1  # the measuring loop takes one step more, for the peak


def runner_for(model: PreTrainedModel, path: str) -> StaticRunner:
    """The runner of a path on the model's device."""
    if path == "static":
        return StaticRunner(model)
    return CudaGraphRunner(model) if model.device.type == "cuda" else CompiledRunner(model)


class StaticTrial(HfTrial):
    """Prefills like its parent; ``save`` moves the cache into static buffers and captures or compiles the step."""

    def __init__(self, model: PreTrainedModel, case: Case, beat: Beat) -> None:
        super().__init__(model, case, beat)
        self.runner: StaticRunner | None = None
        self.start: Saved | None = None

    @property
    def tokens(self) -> list[list[int]]:
        if self.runner is None:
            return super().tokens
        state = self.runner.state
        tokens: list[list[int]] = state.out[:, 1 : 1 + state.length - state.context].T.tolist()
        return tokens

    def save(self) -> None:
        if self.runner is None:
            self.beat(f"{self.case.path} step: preparing")
            assert self.next is not None, "nothing is prefilled"
            self.runner = runner_for(self.model, self.case.path)
            with memory_errors():
                self.runner.adopt(self.kv, self.next, self.case.steps + EXTRA_STEPS)
        self.start = self.runner.state.save()

    def restore(self) -> None:
        if self.runner is None or self.start is None:
            raise RuntimeError("restore without save")
        self.runner.state.restore(self.start)

    def release(self) -> None:
        self.start = None

    def step(self) -> None:
        assert self.runner is not None, "step without save"
        with memory_errors():
            self.runner.enqueue(1)

    def cache(self) -> CacheState:
        if self.runner is None:
            return super().cache()
        return caches.state(self.runner.state.cache, self.runner.state.length, self.stats().pool_bytes)

    def stats(self) -> RunnerStats:
        """What it took to prepare the path, and what really runs."""
        assert self.runner is not None, "stats without save"
        return self.runner.stats()

    def path(self) -> DecodePath:
        assert self.runner is not None, "path without save"
        stats, (needed, read) = self.stats(), self.runner.state.read_bytes()
        how = (stats.path, stats.reason, stats.kernels, stats.graphs, stats.nodes_per_token, stats.prepare_s)
        return DecodePath(*how, needed, read)

    def cautions(self) -> tuple[Caution, ...]:
        """What a reader of the row must know about the path."""
        stats = self.stats()
        found = []
        if stats.path != self.case.path:
            found.append(Caution("path", f"path {stats.path} instead of {self.case.path}: {stats.reason}"))
        if stats.kernels and stats.kernels.startswith("plain torch"):
            found.append(Caution("plain-torch", f"decode on {stats.kernels}"))
        elif stats.kernels and self.case.quant == "int8":
            found.append(Caution("int8-rows", "decode multiplies 8-bit rows by unrounded activations (not LLM.int8)"))
        return tuple(found)

    def _reset(self) -> None:
        super()._reset()
        self.runner = self.start = None
