"""The CPU's ``graph``: the decode step compiled by inductor into C++ around our own loops. No Triton, no CUDA.

Inductor fuses what lies between the matrix–vector products (norms, rotary positions, cache writes, activations) and
removes the Python of some thousand operator calls. Weights are not frozen into the graph: freezing packs a second
copy of every matrix for a library product that is slower than our loops at one token.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from transformers.cache_utils import Cache

from profiler.units import printable

from .runner import RunnerStats, StaticRunner
from .step import decode_step
from .substitute import native_reason

# Between the products there is too little work to share; inductor's own threads would only meet ours at a barrier.
# The model's thousand modules do not change between steps: only what belongs to the state is looked at before each.
OPTIONS: dict[str, Any] = {
    "cpp.threads": 1,
    "size_asserts": False,
    "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # of logits, relative to their largest; order of sums differs


class CompiledRunner(StaticRunner):
    """Falls back to the static step, and says why, when compilation fails or gives other logits."""

    path = "graph"

    def adopt(self, cache: Cache, token: torch.Tensor, max_new: int, noise: torch.Tensor | None = None) -> None:
        super().adopt(cache, token, max_new, noise)
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
        return RunnerStats(path, self.reason, graphs=int(path == "graph"), prepare_s=self.prepare_s,
                           kernels=static.kernels)  # fmt: skip

    def _run(self) -> torch.Tensor:
        return super()._run() if self.compiled is None else self.compiled(self.model, self.state)

    def _compile(self) -> str | None:
        """Compile, compare one step with the static one, go back. Gives a reason to fall back, or ``None``."""
        torch._dynamo.reset()  # graphs of earlier runners count against its limit
        saved = self.state.save()
        try:
            with self.substitutes, warnings.catch_warnings():
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
