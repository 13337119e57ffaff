"""The fused gated delta step on CUDA: built by nvcc at first use, kept in the user's cache folder, called by ctypes.

Without nvcc the step stays transformers' own, which computes the same in some seventy launches.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import platformdirs
import torch

from profiler.units import printable

from .native import BUILD_LIMIT_S, BuildFailed

SOURCES = Path(__file__).parent / "fused"
ARCHITECTURES = (80, 86, 89, 90, 120)  # A100, 30 series, 40 series, H100, 50 series
LARGEST_KEY = 256  # of kLargestKey in delta_step.cu
FUNCTIONS = {torch.float32: "hwprofile_delta_step_f32", torch.bfloat16: "hwprofile_delta_step_bf16"}


def command(nvcc: str, output: Path, architectures: Sequence[int] = ARCHITECTURES) -> list[str]:
    """How the library is compiled; ptxas reports registers and spills on stderr."""
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    source = str(SOURCES / "delta_step.cu")
    return [nvcc, "-O3", "-std=c++17", "-Xptxas", "-v", "-Xcompiler", "-fPIC", "-shared", *targets, source,
            "-o", str(output)]  # fmt: skip


def built(architecture: int) -> Path:
    """The library for one architecture (90: H100), from the cache or built now. Raises BuildFailed."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise BuildFailed("nvcc is not installed")
    texts = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    digest = hashlib.sha256(b"\0".join([nvcc.encode(), *texts])).hexdigest()[:16]
    target = Path(platformdirs.user_cache_dir("profile")) / "native" / f"delta-sm{architecture}-{digest}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        made = Path(work) / "delta.so"
        done = subprocess.run(
            command(nvcc, made, [architecture]), capture_output=True, text=True, timeout=BUILD_LIMIT_S
        )
        if done.returncode:
            raise BuildFailed(f"nvcc failed: {printable(done.stderr.strip().splitlines()[0])}")
        os.replace(made, target)
    return target


@cache
def library(device: int) -> ctypes.CDLL | None:
    """The loaded library for a device, ``None`` where it cannot be had."""
    major, minor = torch.cuda.get_device_capability(device)
    try:
        return ctypes.CDLL(str(built(10 * major + minor)))
    except (BuildFailed, OSError, subprocess.TimeoutExpired):
        return None


def serves(query: torch.Tensor, value: torch.Tensor, state: torch.Tensor) -> bool:
    """Whether the fused step computes this case."""
    shapes = query.shape[-1] <= LARGEST_KEY and value.dtype == query.dtype and state.is_contiguous()
    return shapes and query.is_cuda and query.dtype in FUNCTIONS and library(query.device.index or 0) is not None


def delta_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """Shapes of ``hwprofile::gated_delta_step``; launched on the current stream, so that a capture sees it.

    Raises RuntimeError when the launch fails.
    """
    loaded = library(query.device.index or 0)
    assert loaded is not None, "ask serves() first"
    batch, _, heads, dv = value.shape
    out = torch.empty_like(value)
    tensors = (query, key, value, g.float(), beta.to(query.dtype), state, out)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    stream = ctypes.c_void_p(torch.cuda.current_stream(query.device).cuda_stream)
    sizes = (batch, heads, key.shape[2], key.shape[3], dv)
    error = getattr(loaded, FUNCTIONS[query.dtype])(*pointers, *sizes, stream)
    if error:
        raise RuntimeError(f"the fused delta step failed with CUDA error {error}")
    return out
