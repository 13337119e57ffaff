"""The trial of ``--path static`` and ``--path graph``: prefill as shipped, then our static-shape decode step."""

from __future__ import annotations

from transformers import PreTrainedModel

from profiler.backends.base import Beat, CacheState
from profiler.backends.hf import cache as caches
from profiler.backends.hf.session import MEMORY_WORDS, HfTrial, memory_errors
from profiler.case import Case
from profiler.errors import ProfileError
from profiler.kernels.compiled import CompiledRunner
from profiler.kernels.graph import CudaGraphRunner
from profiler.kernels.runner import RunnerStats, StaticRunner
from profiler.kernels.state import Saved
from profiler.paths import EAGER, SHORT_OF_MEMORY, machine_state
from profiler.results.measurement import Caution, DecodePath

EXTRA_STEPS = 1  # the measuring loop takes one step more, for the peak


def runner_for(model: PreTrainedModel, path: str) -> StaticRunner:
    """The runner of a path on the model's device."""
    if path == "static":
        return StaticRunner(model)
    return CudaGraphRunner(model) if model.device.type == "cuda" else CompiledRunner(model)


def _state(stats: RunnerStats) -> str:
    """What a row keeps of a machine that it fell back on: no look at it tells whether memory would be there again."""
    short = any(words in (stats.reason or "") for words in MEMORY_WORDS)
    return SHORT_OF_MEMORY if short else machine_state()


class StaticTrial(HfTrial):
    """Prefills like its parent; ``save`` moves the cache into static buffers and captures or compiles the step."""

    def __init__(self, model: PreTrainedModel, case: Case, beat: Beat) -> None:
        super().__init__(model, case, beat)
        self.runner: StaticRunner | None = None
        self.start: Saved | None = None
        self.refused: str | None = None  # why no runner takes this model

    @property
    def tokens(self) -> list[list[int]]:
        if self.runner is None:
            return super().tokens
        state = self.runner.state
        tokens: list[list[int]] = state.out[:, 1 : 1 + state.length - state.context].T.tolist()
        return tokens

    def save(self) -> None:
        if self.runner is None and self.refused is None:
            self.beat(f"{self.case.path} step: preparing")
            assert self.next is not None, "nothing is prefilled"
            self._adopt()
        if self.runner is None:
            super().save()
        else:
            self.start = self.runner.state.save()

    def _adopt(self) -> None:
        """Move the cache into a runner, unless it has a layer without a rule: then the model runs as shipped."""
        runner = runner_for(self.model, self.case.path)
        assert self.next is not None
        try:
            with memory_errors():
                runner.adopt(self.kv, self.next, self.case.steps + EXTRA_STEPS)
        except ProfileError as error:
            self.refused = error.message
        else:
            self.runner = runner

    def restore(self) -> None:
        if self.runner is None:
            super().restore()
        elif self.start is None:
            raise RuntimeError("restore without save")
        else:
            self.runner.state.restore(self.start)

    def release(self) -> None:
        super().release()
        self.start = None

    def step(self) -> None:
        if self.runner is None:
            super().step()
            return
        with memory_errors():
            self.runner.enqueue(1)

    def cache(self) -> CacheState:
        if self.runner is None:
            return super().cache()
        return caches.state(self.runner.state.cache, self.runner.state.length, self.stats().pool_bytes)

    def stats(self) -> RunnerStats:
        """What it took to prepare the path, and what really runs."""
        if self.runner is None:
            return RunnerStats(EAGER, self.refused)
        return self.runner.stats()

    def path(self) -> DecodePath:
        stats = self.stats()
        how = (stats.path, stats.reason, stats.kernels, stats.graphs, stats.nodes_per_token, stats.prepare_s)
        if self.runner is None:
            return DecodePath(*how)
        needed, read = self.runner.state.read_bytes()
        return DecodePath(*how, needed, read, _state(stats) if stats.fault else None)

    def cautions(self) -> tuple[Caution, ...]:
        """What a reader of the row must know about the path."""
        stats = self.stats()
        found = []
        if stats.path != self.case.path:
            found.append(Caution("path", f"path {stats.path} instead of {self.case.path}: {stats.reason}"))
        if stats.kernels and DecodePath(stats.path, kernels=stats.kernels).on_plain_torch:
            found.append(Caution("plain-torch", f"decode on {stats.kernels}"))
        elif stats.kernels and self.case.quant == "int8":
            found.append(Caution("int8-rows", "decode multiplies 8-bit rows by unrounded activations (not LLM.int8)"))
        return tuple(found)

    def _reset(self) -> None:
        super()._reset()
        self.runner = self.start = self.refused = None
