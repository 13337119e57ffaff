"""Our CUDA kernels (``fused/``), compiled for the required shapes on first use by NVRTC, which comes with torch.

This needs no compiler, builds nothing at installation, and the sources include no CUDA headers. The kernels are
registered as torch operators, so that captures, audits and fake tensors see them. Without NVRTC the decode step runs
on plain torch.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

from profiler.units import printable

from . import native

SOURCES = Path(__file__).parent / "fused"
ARCHITECTURES = (80, 86, 89, 90, 120)  # compiled in tests: A100, RTX 30 series, RTX 40 series, H100, RTX 50 series
DTYPES: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
MAX_KEY = 256  # kLargestKey in delta_step.cu
COLUMNS, PARTS = 32, 8  # kColumns and kParts there
WIDTHS = (16, 32, 64, 128, 256, 512)  # of attention heads
GROUPS = (4, 2, 1)  # query heads per block
THREADS, JOINERS, MORE = 128, 512, 4  # kThreads, kJoiners and kPart - WIDTH in attention.cu
MAX_CHUNKS, MIN_CHUNK_SLOTS = JOINERS, 64  # the most chunks, and the fewest slots per chunk
BLOCKS_EACH = 8  # per multiprocessor, so that none is idle towards the end
NORM_THREADS = 256  # kThreads in rms_norm.cu
MATVEC_WARPS, VECTOR_BYTES = 4, 16  # of matvec.cu
MAX_TOKENS, MAX_WEIGHT_BYTES = 4, 32 * 1024**2  # beyond either, cuBLAS is as fast
Defines = tuple[str, ...]

LIBRARY = torch.library.Library("hwprofile_cuda", "DEF")
LIBRARY.define(
    "gated_delta_step(Tensor query, Tensor key, Tensor value, Tensor g, Tensor beta, Tensor(a!) state) -> Tensor"
)
LIBRARY.define("rms_norm(Tensor x, Tensor? weight, Tensor? gate, float offset, float eps) -> Tensor")
LIBRARY.define("matvec(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
LIBRARY.define("expert_matvec(Tensor x, Tensor weight, Tensor ids) -> Tensor")
LIBRARY.define("decode_attention(Tensor query, Tensor keys, Tensor values, Tensor mask, float scale) -> Tensor")


class KernelFailed(RuntimeError):
    """A kernel is unavailable or cannot be launched. The message says why, in one line."""


@cache
def missing(device: int | None = None) -> str | None:
    """Why the kernels are unavailable on ``device``, or ``None``. Without a device: whether they compile at all."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except ImportError:
        return "the Python package cuda-bindings is not installed"
    try:
        if device is None:
            compiled("delta_step", min(ARCHITECTURES), ())
        else:
            module("delta_step", device, ())
    except KernelFailed as error:
        return str(error)
    return None


def compiled(source: str, architecture: int, defines: Defines) -> bytes:
    """Compile ``fused/<source>.cu`` to machine code for one architecture (90: H100). Raises KernelFailed."""
    from cuda.bindings import nvrtc

    header = "element.h"
    text, included = (SOURCES / f"{source}.cu").read_bytes(), (SOURCES / header).read_bytes()
    try:
        status, program = nvrtc.nvrtcCreateProgram(text, f"{source}.cu".encode(), 1, [included], [header.encode()])
    except RuntimeError as error:  # the NVRTC library is missing
        raise KernelFailed(printable(error)) from None
    _check(nvrtc, status)
    options = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", *defines]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(status):
        log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
        nvrtc.nvrtcGetProgramLog(program, log)
        lines = [line for line in log.decode(errors="replace").splitlines() if "error" in line] or [str(status)]
        raise KernelFailed(f"NVRTC failed: {printable(lines[0])}")
    status, size = nvrtc.nvrtcGetCUBINSize(program)
    _check(nvrtc, status)
    code = b" " * size
    _check(nvrtc, *nvrtc.nvrtcGetCUBIN(program, code))
    nvrtc.nvrtcDestroyProgram(program)
    return code


@cache
def module(source: str, device: int, defines: Defines) -> Any:
    """The compiled module, loaded on one device."""
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(device)
    with torch.cuda.device(device):
        torch.cuda.current_stream()  # creates torch's context, into which the module is loaded
        status, loaded = driver.cuModuleLoadData(compiled(source, 10 * major + minor, defines))
    _check(driver, status)
    return loaded


@cache
def function(source: str, name: str, device: int, defines: Defines) -> Any:
    """A kernel of a module."""
    from cuda.bindings import driver

    status, found = driver.cuModuleGetFunction(module(source, device, defines), name.encode())
    _check(driver, status)
    return found


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    block: tuple[int, int],
    shared: int,
    *values: torch.Tensor | int | float | None,
) -> None:
    """Launch a kernel on the current stream, so that a capture sees it; ``None`` is a null pointer.

    Raises KernelFailed if the launch is refused.
    """
    from cuda.bindings import driver

    device = next(value.device for value in values if isinstance(value, torch.Tensor))
    kinds = {int: ctypes.c_int, float: ctypes.c_float}
    plain = tuple(value.data_ptr() if isinstance(value, torch.Tensor) else value or 0 for value in values)
    types = tuple(kinds.get(type(value), ctypes.c_void_p) for value in values)
    stream = torch.cuda.current_stream(device).cuda_stream
    with torch.cuda.device(device):
        (status,) = driver.cuLaunchKernel(kernel, *grid, *block, 1, shared, stream, (plain, types), 0)
    _check(driver, status)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy with the alignment that 16-byte reads need."""
    return tensor if tensor.data_ptr() % VECTOR_BYTES == 0 else tensor.clone()


def _check(library: Any, status: Any, *_: Any) -> None:
    if int(status):
        raise KernelFailed(f"{library.__name__.rpartition('.')[2]}: {status.name}")


def _index(tensor: torch.Tensor) -> int | None:
    """The number of the tensor's GPU; ``None`` on machines without one, where tests use stand-ins."""
    return tensor.device.index or 0 if torch.cuda.is_available() else None


def serves_delta(query: torch.Tensor, value: torch.Tensor, state: torch.Tensor) -> bool:
    """Whether ``gated_delta_step`` supports this case."""
    shapes = query.shape[-1] <= MAX_KEY and value.dtype == query.dtype and state.is_contiguous()
    return shapes and query.dtype in DTYPES and missing(_index(query)) is None


def serves_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether ``decode_attention`` supports this case."""
    alike = query.dtype == keys.dtype == values.dtype and keys.shape == values.shape
    laid_out = keys.is_contiguous() and values.is_contiguous() and mask.numel() == keys.shape[2]
    known = query.dtype in DTYPES and query.shape[-1] in WIDTHS
    return alike and laid_out and known and missing(_index(query)) is None


@torch.library.impl(LIBRARY, "gated_delta_step", "CUDA")
def _delta_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """See ``hwprofile::gated_delta_step`` for the shapes."""
    batch, _, heads, dv = value.shape
    key_heads, dk = key.shape[2:]
    out = torch.empty_like(value)
    kernel = function("delta_step", "delta_step", query.device.index or 0, DTYPES[query.dtype])
    tensors = (query, key, value, g.float(), beta.to(query.dtype), state, out)
    grid, block = (batch * heads, -(-dv // COLUMNS), 1), (COLUMNS, PARTS)
    launch(kernel, grid, block, 4 * COLUMNS * dk, *tensors, heads, key_heads, dk, dv)
    return out


@torch.library.impl(LIBRARY, "decode_attention", "CUDA")
def _decode_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """See ``hwprofile::decode_attention`` for the shapes."""
    batch, heads, _, width = query.shape
    kv_heads, slots, device = keys.shape[1], keys.shape[2], query.device.index or 0
    defines, group = attention_defines(query.dtype, width, heads // kv_heads)
    size = chunk_slots(slots, batch * heads // group, _multiprocessors(device))
    chunks = -(-slots // size)
    parts = torch.empty((batch, heads, chunks, width + MORE), dtype=torch.float32, device=query.device)
    out = query.new_empty((batch, 1, heads, width))
    kernels = [function("attention", f"attention_{name}", device, defines) for name in ("part", "join")]
    launch(kernels[0], (chunks, heads // group, batch), (THREADS, 1), 0, query, keys, values, mask, parts,
           heads, kv_heads, slots, size, scale * math.log2(math.e))  # fmt: skip
    launch(kernels[1], (heads, batch, 1), (JOINERS, 1), 0, parts, out, heads, chunks)
    return out


@torch.library.impl(LIBRARY, "rms_norm", "CUDA")
def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, gate: torch.Tensor | None, offset: float, eps: float
) -> torch.Tensor:
    """``x / rms(x) · (offset + weight)`` over the last axis, times ``silu(gate)``; fp32 inside. All contiguous."""
    out, width = torch.empty_like(x), x.shape[-1]
    defines = (*DTYPES[x.dtype], *(() if gate is None else ("-DGATED",)))
    kernel = function("rms_norm", "rms_norm", x.device.index or 0, defines)
    launch(kernel, (x.numel() // width, 1, 1), (NORM_THREADS, 1), 0, x, weight, gate, out, width, offset, eps)
    return out


@torch.library.impl(LIBRARY, "rms_norm", "CPU")
def _rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor | None, gate: torch.Tensor | None, offset: float, eps: float
) -> torch.Tensor:
    """The same computation in plain torch, as a reference for tests."""
    wide = x.float()
    out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out = out if weight is None else out * (offset + weight.float())
    return (out if gate is None else out * torch.nn.functional.silu(gate.float())).to(x.dtype)


@torch.library.register_fake("hwprofile_cuda::rms_norm", lib=LIBRARY)
def _(
    x: torch.Tensor, weight: torch.Tensor | None, gate: torch.Tensor | None, offset: float, eps: float
) -> torch.Tensor:
    return torch.empty_like(x)


def serves_matvec(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``matvec`` computes ``x [..., columns]`` times ``weight`` faster than cuBLAS does."""
    few = x.numel() <= MAX_TOKENS * x.shape[-1] and weight.nbytes <= MAX_WEIGHT_BYTES
    aligned = weight[0].nbytes % VECTOR_BYTES == 0
    return few and aligned and x.dtype == weight.dtype == torch.bfloat16


@torch.library.impl(LIBRARY, "matvec", "CUDA")
def _matvec(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``torch.nn.functional.linear`` of contiguous tensors."""
    rows, columns = weight.shape
    out = x.new_empty((*x.shape[:-1], rows))
    defines = (*DTYPES[x.dtype], f"-DTOKENS={x.numel() // columns}")
    kernel = function("matvec", "matvec", x.device.index or 0, defines)
    grid, block = (-(-rows // MATVEC_WARPS), 1, 1), (32 * MATVEC_WARPS, 1)
    launch(kernel, grid, block, 0, _aligned(x), weight, bias, out, rows, columns, None)
    return out


def serves_experts(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``expert_matvec`` supports ``x [tokens, columns]`` times matrices of ``weight``."""
    laid_out = weight.is_contiguous() and weight.shape[-1] * weight.element_size() % VECTOR_BYTES == 0
    return laid_out and x.dtype == weight.dtype and x.dtype in DTYPES and weight.data_ptr() % VECTOR_BYTES == 0


@torch.library.impl(LIBRARY, "expert_matvec", "CUDA")
def _expert_matvec(x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """One matrix of ``weight [experts, rows, columns]`` per token; see ``hwprofile::expert_matvec`` for the
    shapes.
    """
    _, rows, columns = weight.shape
    out = x.new_empty((x.shape[0], rows))
    kernel = function("matvec", "matvec", x.device.index or 0, (*DTYPES[x.dtype], "-DTOKENS=1", "-DCHOSEN"))
    grid, block = (-(-rows // MATVEC_WARPS), x.shape[0], 1), (32 * MATVEC_WARPS, 1)
    launch(kernel, grid, block, 0, _aligned(x.contiguous()), weight, None, out, rows, columns, ids)
    return out


@torch.library.impl(LIBRARY, "expert_matvec", "CPU")
def _expert_matvec_reference(x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.einsum("tk,trk->tr", x, weight[ids])


@torch.library.impl(LIBRARY, "matvec", "CPU")
def _matvec_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight, bias)


@torch.library.register_fake("hwprofile_cuda::matvec", lib=LIBRARY)
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


for _shape in (native.expert_matvec, native.gated_delta_step, native.decode_attention):
    torch.library.register_fake(f"hwprofile_cuda::{_shape.__name__}", _shape, lib=LIBRARY)


def attention_defines(dtype: torch.dtype, width: int, shared_by: int) -> tuple[Defines, int]:
    """Compiler options for ``attention.cu``, and the query heads per block if ``shared_by`` of them share a cache."""
    group = next(group for group in GROUPS if shared_by % group == 0)
    return (*DTYPES[dtype], f"-DWIDTH={width}", f"-DGROUP={group}"), group


def chunk_slots(slots: int, rows: int, multiprocessors: int) -> int:
    """Slots per chunk if a chunk of all sequences and head groups takes ``rows`` blocks."""
    chunks = max(1, min(MAX_CHUNKS, BLOCKS_EACH * multiprocessors // rows))
    return max(MIN_CHUNK_SLOTS, -(-slots // chunks))


@cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
