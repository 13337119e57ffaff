"""Environment variables that change how fast the same code runs: a worker gets them, and a row records them.

One list for both, so that nothing reaches a worker unrecorded. Paths, places and what only says which card is meant
(the row has its UUID) are no part of it; nor is anything whose name sounds like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from profiler.case import digest

PREFIXES = (
    "ATEN|BITSANDBYTES|BNB|CUBLAS|CUDA|CUDNN|DNNL|GOMP|HIP|HSA|KMP|MALLOC|MKL|NCCL|NVIDIA|OMP|ONEDNN|OPENBLAS|PYTORCH"
    "|ROCM|ROCR|TORCH|TRITON"
)
SPEED = re.compile(
    f"GLIBC_TUNABLES|LD_LIBRARY_PATH|LD_PRELOAD|({PREFIXES})_.*|TORCHINDUCTOR.*"
    "|PYTHON(DEVMODE|MALLOC|OPTIMIZE|TRACEMALLOC|_CPU_COUNT|_GIL|_JIT)"
)
NEUTRAL = re.compile(
    ".*_(CACHE_DIR|CACHE_PATH|HOME|ROOT)|(CUDA|CUDNN|NCCL|ROCM)_(PATH|VERSION)"
    "|(CUDA|HIP|ROCR|NVIDIA)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER"
    "|NVIDIA_(DRIVER_CAPABILITIES|PRODUCT_NAME|REQUIRE_.*)"
)
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
LENGTH = 200  # characters kept of a value; a longer one is told from others by a hash


def is_secret(name: str) -> bool:
    """Whether a variable of this name may open somebody's account."""
    return any(word in name.upper() for word in SECRET)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Names and values of what changes speed."""
    return {name: _bounded(value) for name, value in sorted(environ.items()) if _is_recorded(name)}


def _is_recorded(name: str) -> bool:
    return bool(SPEED.fullmatch(name)) and not NEUTRAL.fullmatch(name) and not is_secret(name)


def _bounded(value: str) -> str:
    return value if len(value) <= LENGTH else f"{value[:LENGTH]}… {digest(value)}"
