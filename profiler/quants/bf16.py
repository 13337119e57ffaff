"""bfloat16: the dtype most checkpoints are published in."""

from __future__ import annotations

from profiler.quants.base import plain

QUANT = plain("bf16", own=frozenset({"cpu", "cuda"}))
