"""What a CPU is taken to do before `profile calibrate`: rates of PyTorch's kernels, not a maker's peaks.

Per core, seen on two cores of server CPUs with AVX2, AVX-512 (without and with units for bf16) and AMX, torch
2.13 and 2.14; the factor ``SPREAD`` either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from profiler.devices.base import DeviceInfo

READ_BYTES_S = 10e9  # weights of one token; two cores read 14 to 21 GB/s of them
READ_MOST = 60e9  # all cores of a socket with two to four memory channels
FP32_FLOPS = {
    "amx_bf16": 180e9,
    "avx512f": 90e9,
    "avx2": 30e9,
    "asimd": 20e9,
}  # large products; the first that is there
FLOPS_OTHERWISE = 8e9
# Likewise. A CPU without units for bf16 converts it: in blocks where it has AVX-512, otherwise element by element.
BF16_FLOPS = {"amx_bf16": 1000e9, "avx512_bf16": 150e9, "bf16": 100e9, "avx512f": 30e9}
FP16_FLOPS = {"avx512f": 14e9}
HALF_FLOPS = 4.5e9  # of others, in both
SPREAD = 1.5
BETWEEN = {"prefill": 0.025, "decode": 0.01}  # of processes on such a machine: benchmarks/drift.py


def read_bytes_s(device: DeviceInfo) -> float:
    """Bytes per second of the threads that run at once, as long as they may run."""
    return min(READ_BYTES_S * device.at_once, READ_MOST)


def flops(device: DeviceInfo) -> dict[str, float]:
    """FLOP per second of the threads that run at once, as long as they may run, by dtype."""
    rates = {
        "fp32": _first(FP32_FLOPS, device.features, FLOPS_OTHERWISE),
        "bf16": _first(BF16_FLOPS, device.features, HALF_FLOPS),
        "fp16": _first(FP16_FLOPS, device.features, HALF_FLOPS),
    }
    return {name: rate * device.at_once for name, rate in rates.items()}


def _first(rates: Mapping[str, float], features: Sequence[str], otherwise: float) -> float:
    return next((rate for name, rate in rates.items() if name in features), otherwise)
