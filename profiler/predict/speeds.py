"""What a device is taken to do before anybody measured it: rates that eager PyTorch reaches, not data-sheet peaks.

CPU figures are per core, seen on a 2-core AVX2 server CPU with torch 2.13 and bitsandbytes 0.50; GPU figures are
shares of the catalog's peaks that eager transformers commonly reaches at batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiler.devices import catalog
from profiler.devices.base import DeviceInfo

CPU_READ_BYTES_S = 5e9  # per core, reading weights for one token: two cores read 9 to 14 GB/s
CPU_READ_MAX_BYTES_S = 40e9  # all cores of a socket with two to four memory channels
CPU_FP32_FLOPS = {"avx512f": 60e9, "avx2": 30e9, "asimd": 20e9}  # per core, large products; the first that is there
CPU_FLOPS_OTHERWISE = 8e9
CPU_BF16_FLOPS = 100e9  # per core, with AMX or AVX512-BF16 units
CPU_HALF_FLOPS = 4.5e9  # per core, bf16 or fp16 without such units: converted element by element
CPU_HALF_RATE_TOKENS = 12  # tokens in a pass at which a matrix product reaches half its full rate
CONVERTING_HALF_RATE_TOKENS = 1  # where converting elements is what takes the time, tokens hardly matter
GPU_HALF_RATE_TOKENS = 12  # below some hundred tokens reading the weights takes longer than multiplying
CPU_UNPACK_ELEMENTS_S = 0.06e9  # per core: bitsandbytes unpacks a whole weight for every pass over it
CPU_LAYER_S = 0.3e-3  # a layer's operators, from Python
CPU_FILL_BYTES_S = 2e9  # writing fresh pages
GPU_READ_SHARE = 0.6
GPU_FLOPS_SHARE = 0.35
GPU_UNPACK_BYTES = 5  # read packed, write and read again in 16 bits
GPU_LAYER_S = 0.6e-3  # some 15 launches and their Python
GPU_FILL_BYTES_S = 5e9
UNKNOWN_GPU = (300e9, 20e12)  # bytes/s and FLOP/s of a small card of 2020


@dataclass(frozen=True, slots=True)
class Speeds:
    """Rates of one device and compute dtype, and the factor that each may be off by."""

    read_bytes_s: float  # weights and cache, at one token a sequence
    flops: float  # large products in the compute dtype
    half_rate_tokens: int  # tokens in a pass at which a product reaches half of it
    unpack_elements_s: float  # quantized weights to the compute dtype
    layer_s: float  # per layer and pass, whatever its size
    fill_bytes_s: float  # making synthetic weights
    spread: float


def speeds(device: DeviceInfo, dtype: str, threads: int | None = None) -> Speeds:
    """Priors for a device. ``threads`` bounds the cores of a CPU."""
    return _cpu(device, dtype, threads) if device.kind == "cpu" else _gpu(device, dtype)


def _cpu(device: DeviceInfo, dtype: str, threads: int | None) -> Speeds:
    cores = min(threads or device.cores or 1, device.cores or 1)
    half_rate = CPU_HALF_RATE_TOKENS
    if dtype == "fp32":
        flops = next((rate for name, rate in CPU_FP32_FLOPS.items() if name in device.features), CPU_FLOPS_OTHERWISE)
    elif dtype == device.default_dtype:
        flops = CPU_BF16_FLOPS
    else:
        flops, half_rate = CPU_HALF_FLOPS, CONVERTING_HALF_RATE_TOKENS
    return Speeds(
        read_bytes_s=min(CPU_READ_BYTES_S * cores, CPU_READ_MAX_BYTES_S),
        flops=flops * cores,
        half_rate_tokens=half_rate,
        unpack_elements_s=CPU_UNPACK_ELEMENTS_S * cores,
        layer_s=CPU_LAYER_S,
        fill_bytes_s=CPU_FILL_BYTES_S,
        spread=2.0,
    )


def _gpu(device: DeviceInfo, dtype: str) -> Speeds:
    known = catalog.match(device.title, device.memory_bytes)
    bandwidth, flops = UNKNOWN_GPU
    if known is not None:
        bandwidth = known.bandwidth_bytes_s
        flops = known.flops.get(dtype) or known.flops.get("fp32") or flops
    return Speeds(
        read_bytes_s=bandwidth * GPU_READ_SHARE,
        flops=flops * GPU_FLOPS_SHARE,
        half_rate_tokens=GPU_HALF_RATE_TOKENS,
        unpack_elements_s=bandwidth / GPU_UNPACK_BYTES,
        layer_s=GPU_LAYER_S,
        fill_bytes_s=GPU_FILL_BYTES_S,
        spread=2.0 if known else 4.0,
    )
