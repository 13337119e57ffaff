"""16-bit IEEE floats."""

from __future__ import annotations

from profiler.quants.base import plain

QUANT = plain("fp16")
