"""The C++ loops of ``cpu/``: built once at first use, kept in the user's cache folder, loaded as torch operators.

Not built at installation: that would drag a second torch into pip's build environment. The sources need only a C++20
compiler and torch's stable headers; without a compiler the decode step runs on plain torch, and the row says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from profiler import paths
from profiler.units import printable

from . import shapes

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000")  # 2.10, the oldest we take
BASELINE = ("baseline", ("-DISA=baseline", "-DLANES=4"))
X86 = (
    ("avx2", ("-DISA=avx2", "-DLANES=8", "-mavx2", "-mfma")),
    ("avx512", ("-DISA=avx512", "-DLANES=16", "-mavx512f")),
)
BUILD_LIMIT_S = 300


class BuildFailed(Exception):
    """The loops cannot be had here. The message says why, in one line."""


@cache
def load() -> str:
    """Build if needed and register ``torch.ops.hwprofile``; gives the instruction set that was chosen at run time.

    Raises BuildFailed.
    """
    path = built()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise BuildFailed(f"{path.name} does not load: {printable(error)}") from error
    _register_shapes()
    name = ctypes.CDLL(str(path)).hwprofile_instruction_set
    name.restype = ctypes.c_char_p
    return str(name().decode())


@cache
def missing() -> str | None:
    """Why the loops cannot be used here, or ``None``. Builds them on the first call, and never tries twice."""
    try:
        load()
    except BuildFailed as error:
        return str(error)
    return None


def built(folder: Path | None = None) -> Path:
    """The library for these sources, this compiler and this torch, built into ``folder`` (default: the user's cache).

    Raises BuildFailed without a compiler, or when it fails.
    """
    compiler = _compiler()
    folder = folder or paths.native_folder()
    target = folder / f"decode-{_fingerprint(compiler)}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            library = _build(compiler, Path(work))
            os.replace(library, target)  # atomic: another process may be building the same
    except OSError as error:
        raise BuildFailed(f"cannot build into {printable(folder)}: {error.strerror}") from error
    return target


def _compiler() -> str:
    found = paths.compiler()
    if found is None:
        raise BuildFailed(paths.NO_COMPILER)
    return found


def _fingerprint(compiler: str) -> str:
    """Changes with everything that goes into the library."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=BUILD_LIMIT_S).stdout
    parts = [version, torch.__version__, platform.machine(), repr(FLAGS), repr(_variants())]
    texts = [part.encode() for part in parts] + [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def _variants() -> tuple[tuple[str, tuple[str, ...]], ...]:
    return (BASELINE, *X86) if platform.machine() in ("x86_64", "AMD64") else (BASELINE,)


def _build(compiler: str, work: Path) -> Path:
    """Compile every instruction set and the bindings side by side, and link them."""
    torch_folder = Path(torch.__file__).parent
    jobs: list[tuple[str, str, tuple[str, ...]]] = [
        ("bindings.cpp", "bindings.o", ("-I", str(torch_folder / "include")))
    ]
    jobs += [("kernels.cpp", f"{name}.o", flags) for name, flags in _variants()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in [
            pool.submit(_run, [compiler, *FLAGS, *flags, "-c", str(SOURCES / source), "-o", str(work / made)])
            for source, made, flags in jobs
        ]:
            result.result()
    library = work / "decode.so"
    objects = [str(work / made) for _, made, _ in jobs]
    _run([compiler, "-shared", *objects, "-o", str(library), "-L", str(torch_folder / "lib"), "-ltorch_cpu"])
    return library


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{Path(command[0]).name} took more than {BUILD_LIMIT_S} s") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise BuildFailed(f"{Path(command[0]).name} failed: {printable(errors[0])}")


def _register_shapes() -> None:
    """What the operators return, for compilation and for runs on fake tensors."""

    @torch.library.register_fake("hwprofile::matvec")
    def _(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return x.new_empty((x.shape[0], w.shape[0]))

    for shape in (shapes.expert_matvec, shapes.decode_attention):
        torch.library.register_fake(f"hwprofile::{shape.__name__}", shape)

    @torch.library.register_fake("hwprofile::gated_delta_step")
    def _(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        state: torch.Tensor,
    ) -> torch.Tensor:
        return state.new_empty((value.shape[0], 1, value.shape[2], value.shape[3]))
