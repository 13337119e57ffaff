"""4-bit NormalFloat (QLoRA, arXiv 2305.14314): 16 levels, one fp32 scale for every 64 weights."""

from __future__ import annotations

from profiler.quants.bitsandbytes import four_bit

QUANT = four_bit("nf4", levels="nf4", double=False, start_calls=4)
