"""4-bit floats: sign, two exponent bits, one of mantissa; one fp32 scale for every 64 weights."""

from __future__ import annotations

from profiler.quants.bitsandbytes import four_bit

QUANT = four_bit("fp4", levels="fp4", double=False, start_calls=4)
