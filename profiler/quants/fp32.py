"""32-bit floats: what a CPU without bf16 units computes fastest."""

from __future__ import annotations

from profiler.quants.base import plain

QUANT = plain("fp32", own=frozenset({"cpu"}))
