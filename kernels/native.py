"""Our C++ loops (``cpu/``): built on first use, kept in the user's cache folder, loaded as torch operators.

They are not built at installation, because that would pull a second torch into pip's build environment. The sources
need only a C++20 compiler and torch's stable headers. Without a compiler the decode step runs on plain torch, and the
row says so.

The shapes that the operators return, for compilation and fake tensors, are declared once for the CPU and CUDA
versions.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from profiler import decode_path, folders
from profiler.units import printable

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000")  # 2.10, the oldest we support
BASELINE = ("baseline", ("-DISA=baseline", "-DLANES=4"))
X86 = (
    ("avx2", ("-DISA=avx2", "-DLANES=8", "-mavx2", "-mfma")),
    ("avx512", ("-DISA=avx512", "-DLANES=16", "-mavx512f")),
)
BUILD_LIMIT_S = 300
NOEXEC = "failed to map segment"  # the loader's message for a file on a file system mounted noexec
ONLY_OURS = 0o700
REMEDY = f"set {folders.CACHE}=FOLDER to use another folder"


class BuildFailed(Exception):
    """The loops are unavailable. The message says why, in one line."""


class FolderFailed(BuildFailed):
    """The loops are unavailable from this folder, but perhaps not from another one."""


@cache
def load() -> str:
    """Build the library if needed and register ``torch.ops.hwprofile``; returns the instruction set it chose.

    If the cache cannot store the library (full or read-only), it is built in a temporary folder; if libraries cannot
    be loaded from there (mounted noexec), it is copied to one. Raises BuildFailed.
    """
    try:
        library = _opened(built())
    except FolderFailed as error:
        library = _built_in_temporary(error)
    _register_shapes()
    library.hwprofile_instruction_set.restype = ctypes.c_char_p
    return str(library.hwprofile_instruction_set().decode())


def _built_in_temporary(first: FolderFailed) -> ctypes.CDLL:
    """The library, built in a folder that is removed after loading. Raises BuildFailed with both reasons."""
    try:
        with tempfile.TemporaryDirectory(prefix="profile-native-") as work:
            library = _build(_compiler(), Path(work))
            library.chmod(ONLY_OURS)
            return _opened(library)
    except BuildFailed as error:
        raise BuildFailed(f"{first}; {error}; {REMEDY}") from error
    except OSError as error:
        raise BuildFailed(f"{first}; in a temporary folder: {folders.describe(error)}; {REMEDY}") from error


def _opened(path: Path) -> ctypes.CDLL:
    """Load exactly the file that was checked, even if another one takes its place. Raises BuildFailed."""
    file = -1
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(file)
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & folders.OTHERS:
            raise FolderFailed(f"{printable(path)} may have been written by another user")
        with torch._ops.dl_open_guard():
            try:
                return ctypes.CDLL(f"/proc/self/fd/{file}")
            except OSError as error:
                if NOEXEC not in str(error):
                    raise
                return _copied(file)
    except OSError as error:
        folder = printable(path.parent)
        if NOEXEC in str(error):
            why = f"{folder} and {printable(tempfile.gettempdir())} are mounted noexec, so no library can be loaded"
            raise BuildFailed(f"{why}; {REMEDY}") from error
        raise FolderFailed(f"{path.name} in {folder} does not load: {printable(error)}") from error
    finally:
        if file >= 0:
            os.close(file)


def _copied(file: int) -> ctypes.CDLL:
    """The library, copied to a folder that allows loading it. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="profile-native-") as work, os.fdopen(os.dup(file), "rb") as source:
        target = Path(work) / "decode.so"
        with target.open("xb") as copy:
            shutil.copyfileobj(source, copy)
        return ctypes.CDLL(str(target))


@cache
def missing() -> str | None:
    """Why the loops are unavailable, or ``None``. The first call builds them; a failed build is not retried."""
    try:
        load()
    except BuildFailed as error:
        return str(error)
    return None


def built(folder: Path | None = None) -> Path:
    """The library for these sources, compiler and torch, built into ``folder`` (default: the user's cache).

    A library that another user may have written is rebuilt. Raises BuildFailed if there is no compiler or it fails.
    """
    compiler = _compiler()
    try:
        folder = folder or folders.cache("native")
        target = folder / f"decode-{_fingerprint(compiler)}.so"
        with suppress(FileNotFoundError):
            why = folders.distrust(target, folder)
            if why is None:
                return target
            folders.note(f"{why}: rebuilding our kernels")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            library = _build(compiler, Path(work))
            library.chmod(ONLY_OURS)
            os.replace(library, target)  # atomic: another process may be building the same library
    except OSError as error:
        raise FolderFailed(f"cannot build into the cache: {folders.describe(error)}") from error
    return target


def _compiler() -> str:
    found = decode_path.compiler()
    if found is None:
        raise BuildFailed(decode_path.NO_COMPILER)
    return found


def _fingerprint(compiler: str) -> str:
    """A hash of everything that goes into the library."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=BUILD_LIMIT_S).stdout
    parts = [
        version.decode("utf-8", "replace"),
        torch.__version__,
        platform.machine(),
        repr(FLAGS),
        repr(_variants()),
    ]
    texts = [part.encode() for part in parts] + [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def _variants() -> tuple[tuple[str, tuple[str, ...]], ...]:
    return (BASELINE, *X86) if platform.machine() in ("x86_64", "AMD64") else (BASELINE,)


def _build(compiler: str, work: Path) -> Path:
    """Compile every instruction set and the bindings in parallel, and link them."""
    torch_folder = Path(torch.__file__).parent
    jobs: list[tuple[str, str, tuple[str, ...]]] = [
        ("bindings.cpp", "bindings.o", ("-I", str(torch_folder / "include")))
    ]
    jobs += [("kernels.cpp", f"{name}.o", flags) for name, flags in _variants()]
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for result in [
                pool.submit(
                    _run, [compiler, *FLAGS, *flags, "-c", str(SOURCES / source), "-o", str(work / made)], work
                )
                for source, made, flags in jobs
            ]:
                result.result()
    except RuntimeError as error:  # a limit on threads
        raise BuildFailed(f"cannot compile: {printable(error)}") from error
    library = work / "decode.so"
    objects = [str(work / made) for _, made, _ in jobs]
    _run([compiler, "-shared", *objects, "-o", str(library), "-L", str(torch_folder / "lib"), "-ltorch_cpu"], work)
    return library


def _run(command: list[str], work: Path) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=BUILD_LIMIT_S,
            env={**os.environ, "TMPDIR": str(work)},  # the compiler's intermediate files end up in the library
        )
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{Path(command[0]).name} took more than {BUILD_LIMIT_S} s") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        full = any(os.strerror(number) in done.stderr for number in (errno.ENOSPC, errno.EDQUOT))
        kind = FolderFailed if full else BuildFailed
        raise kind(f"{Path(command[0]).name} failed: {printable(errors[0])}")


def _register_shapes() -> None:
    """Declare the shapes that the operators return, for compilation and fake tensors."""

    @torch.library.register_fake("hwprofile::matvec")
    def _(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return x.new_empty((x.shape[0], w.shape[0]))

    for shape in (expert_matvec, decode_attention):
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


def decode_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Returns ``[batch, 1, heads, width]``."""
    return query.new_empty((query.shape[0], 1, query.shape[1], values.shape[3]))


def expert_matvec(x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Returns ``[tokens, rows]``."""
    return x.new_empty((x.shape[0], weight.shape[1]))


def gated_delta_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """Returns ``[batch, 1, heads, dv]`` in the dtype of the values."""
    return torch.empty_like(value)
