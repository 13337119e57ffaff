"""nf4 with double quantization: the scales are themselves 8-bit, with one fp32 scale for every 256 of them."""

from __future__ import annotations

from profiler.quants.bitsandbytes import four_bit

QUANT = four_bit("nf4-dq", levels="nf4", double=True, start_calls=6)
