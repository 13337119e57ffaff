"""Environment variables that change how fast the same code runs: a worker gets them, and a row records them.

One list for both, so that nothing reaches a worker unrecorded. Paths, places and what only says which card is meant
(the row has its UUID) are no part of it; nor is anything whose name sounds like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from profiler.case import digest
from profiler.units import GIB

PREFIXES = (
    "ATEN|BITSANDBYTES|BNB|CUBLAS|CUDA|CUDNN|DNNL|GOMP|HIP|HSA|KMP|MALLOC|MKL|NCCL|NVIDIA|OMP|ONEDNN|OPENBLAS|PYTORCH"
    "|ROCM|ROCR|TORCH|TRITON"
)
SPEED = re.compile(
    f"GLIBC_TUNABLES|LD_LIBRARY_PATH|LD_PRELOAD|({PREFIXES})_.*|TORCHINDUCTOR.*"
    "|TRANSFORMERS_(SDPA|DISABLE)_.*"
    "|PYTHON(DEVMODE|MALLOC|TRACEMALLOC|_CPU_COUNT|_GIL|_JIT)"
)
NEUTRAL = re.compile(
    ".*_(CACHE_DIR|CACHE_PATH|HOME|ROOT)|(CUDA|CUDNN|NCCL|ROCM)_(PATH|VERSION)"
    "|(CUDA|HIP|ROCR|NVIDIA)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER"
    "|NVIDIA_(DRIVER_CAPABILITIES|PRODUCT_NAME|REQUIRE_.*)"
)
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(GIB // 32), "MALLOC_TRIM_THRESHOLD_": str(1024 * GIB)}
HEAP_SETTINGS = re.compile("GLIBC_TUNABLES|LD_PRELOAD|MALLOC_.*")
LENGTH = 200  # characters kept of a value; a longer one is told from others by a hash


def is_secret(name: str) -> bool:
    """Whether a variable of this name may open somebody's account."""
    return any(word in name.upper() for word in SECRET)


def heap(environ: Mapping[str, str]) -> dict[str, str]:
    """What glibc's heap is set to in a worker, unless the user has set it up.

    Blocks of 32 MiB are mapped anew each time, as in any process; smaller ones come from memory that stays. Left to
    itself, glibc raises that threshold, and returns memory, by what was freed before: one step of Gemma 3 270M in nf4
    took between 0 and 55,000 page faults, and up to 455 ms of system time in a step of 585.
    """
    return {} if any(HEAP_SETTINGS.fullmatch(name) for name in environ) else dict(HEAP)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Names and values of what changes speed in a worker that is started from here."""
    given = heap(environ) | dict(environ)
    return {name: _bounded(value) for name, value in sorted(given.items()) if _is_recorded(name)}


def _is_recorded(name: str) -> bool:
    return bool(SPEED.fullmatch(name)) and not NEUTRAL.fullmatch(name) and not is_secret(name)


def _bounded(value: str) -> str:
    return value if len(value) <= LENGTH else f"{value[:LENGTH]}… {digest(value)}"
