"""The CPU's ``graph``: the decode step compiled by inductor into C++ around our own loops. No Triton, no CUDA.

Inductor fuses what lies between the matrix–vector products (norms, rotary positions, cache writes, activations) and
removes the Python of some thousand operator calls. Weights are not frozen into the graph: freezing packs a second
copy of every matrix for a library product that is slower than our loops at one token.

Compiling takes a minute, so it is done once for a model and batch: the number of cache slots is left open, and more
contexts run the same code.
"""

from __future__ import annotations

import time
import warnings
import weakref
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from profiler.units import printable

from .layers import StaticLayer
from .runner import RunnerStats, StaticRunner
from .state import DecodeState
from .step import decode_step
from .substitute import native_reason

# Between the products there is too little work to share; inductor's own threads would only meet ours at a barrier.
# The model's thousand modules do not change between steps: only what belongs to the state is looked at before each.
OPTIONS: dict[str, Any] = {
    "cpp.threads": 1,
    "size_asserts": False,
    "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
}
BATCHES = 64  # graphs of one model that may live at a time
# How far logits may be off, relative to the largest. In fp32 only the order of sums differs. In bf16 inductor also
# keeps what fused operators pass on in fp32, where the static step rounds after each of them. That adds up over the
# layers: a Gemma 3 of a few layers is off by 0.008 (torch 2.14). The margin up to 0.25 is chosen, not measured.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


class CompiledRunner(StaticRunner):
    """Falls back to the static step, and says why, when compilation fails or gives other logits."""

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
        fault = static.fault or (self.reason is not None and native_reason(self.model) is None)  # it did not compile
        return RunnerStats(path, self.reason, graphs=int(path == "graph"), prepare_s=self.prepare_s,
                           kernels=static.kernels, fault=fault)  # fmt: skip

    def _run(self) -> torch.Tensor:
        return super()._run() if self.compiled is None else self.compiled(self.model, self.state)

    def _compile(self) -> str | None:
        """Compile, compare one step with the static one, go back. Gives a reason to fall back, or ``None``."""
        _forget_others(self.model)
        _leave_open(self.state)
        saved = self.state.save()
        try:
            with self.substitutes, warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=BATCHES):
                warnings.simplefilter("ignore", DeprecationWarning)  # inductor's, about torch's own parts
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
        if error <= TOLERANCE.get(self.model.dtype, 0.0):
            return None
        self.compiled = None
        return f"compiled step gives other logits (off by {error:.2g} of the largest)"


_compiled_for: weakref.ref[PreTrainedModel] | None = None


def _forget_others(model: PreTrainedModel) -> None:
    """What was compiled for another model must not run for this one: no guard looks at modules."""
    global _compiled_for
    if _compiled_for is None or _compiled_for() is not model:
        torch._dynamo.reset()
        _compiled_for = weakref.ref(model)


def _leave_open(state: DecodeState) -> None:
    """Let the compiled step take any number of cache slots and of tokens to come."""
    torch._dynamo.maybe_mark_dynamic(state.out, 1)
    for layer in state.cache.layers:
        if isinstance(layer, StaticLayer):
            torch._dynamo.maybe_mark_dynamic(layer.keys, 2)
            torch._dynamo.maybe_mark_dynamic(layer.values, 2)
