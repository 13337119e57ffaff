"""What a CPU is taken to do before `profile calibrate`: rates of PyTorch's kernels, not a maker's peaks.

Per core, seen on a 2-core AVX2 server CPU with torch 2.13 and 2.14; the factor ``SPREAD`` either way.
"""

from __future__ import annotations

from profiler.devices.base import DeviceInfo

READ_BYTES_S = 10e9  # weights of one token; two cores read 14 to 21 GB/s of them
READ_MOST = 60e9  # all cores of a socket with two to four memory channels
FP32_FLOPS = {"avx512f": 60e9, "avx2": 30e9, "asimd": 20e9}  # large products; the first that is there
FLOPS_OTHERWISE = 8e9
BF16_FLOPS = 100e9  # with AMX or AVX512-BF16 units
HALF_FLOPS = 4.5e9  # bf16 or fp16 without such units: converted element by element
SPREAD = 1.5
BETWEEN = {"prefill": 0.025, "decode": 0.01}  # of processes on such a machine: benchmarks/drift.py


def read_bytes_s(device: DeviceInfo) -> float:
    """Bytes per second of all cores."""
    return min(READ_BYTES_S * (device.cores or 1), READ_MOST)


def flops(device: DeviceInfo) -> dict[str, float]:
    """FLOP per second of all cores, by dtype."""
    fp32 = next((rate for name, rate in FP32_FLOPS.items() if name in device.features), FLOPS_OTHERWISE)
    each = {name: BF16_FLOPS if name == device.default_dtype else HALF_FLOPS for name in ("bf16", "fp16")}
    return {name: rate * (device.cores or 1) for name, rate in ({"fp32": fp32} | each).items()}
