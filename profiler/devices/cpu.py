"""The CPU: what ``/proc`` says of it, its clock, and its peak memory by ``VmHWM``.

``VmHWM`` is reset by writing 5 to ``/proc/self/clear_refs``. ``ru_maxrss`` is no substitute: it survives exec, so a
small child of a large parent reports the parent's peak.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from profiler.devices import allowance, pressure
from profiler.devices.base import DeviceInfo, Peak, Pressure, Watcher
from profiler.devices.rapl import Rapl
from profiler.devices.sampler import Sampler
from profiler.devices.window import HostWindow

CLEAR_REFS = Path("/proc/self/clear_refs")
SMAPS = Path("/proc/self/smaps")
MAPPING = re.compile("[0-9a-f]+-[0-9a-f]+ ")  # the first line of each mapping; those that follow begin with a name
WEIGHT_FILES = (".safetensors", ".gguf")
BF16_UNITS = {
    "avx512_bf16",
    "amx_bf16",
}  # without one of them PyTorch's bf16 GEMM is several times slower than fp32
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "i8mm",
    "bf16",
)


def find() -> list[DeviceInfo]:
    """The one CPU device of this machine."""
    cpuinfo = _fields(Path("/proc/cpuinfo"))
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    features = tuple(name for name in FEATURES if name in flags)
    has_bf16 = bool(BF16_UNITS & flags) or "bf16" in flags
    allowed = allowance.find()
    total, free = allowance.memory(allowed.memory_limit)
    return [
        DeviceInfo(
            name="cpu",
            kind="cpu",
            title=cpuinfo.get("model name", "CPU"),
            memory_bytes=total,
            free_bytes=free,
            default_dtype="bf16" if has_bf16 else "fp32",
            cores=allowed.cpus,
            features=features,
            threads=allowed.threads,
            physical=allowed.physical,
            installed=allowed.installed,
            quota=None if allowed.quota is None else allowed.quota.cores,
            confined=allowed.confined,
            limits=allowed.reasons,
            memory_limit=None if allowed.memory_limit is None else allowed.memory_limit.where,
        )
    ]


def _fields(path: Path) -> dict[str, str]:
    """The first block of a ``name : value`` file of ``/proc``."""
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            break
        fields.setdefault(name.strip(), value.strip())
    return fields


class CpuMeter:
    """Clock and peak memory of this process. The peak is unknown where the kernel offers no way to reset it."""

    def __init__(self) -> None:
        self._has_peak = True
        self._before = _known("RssAnon")

    def now(self) -> float:
        return time.perf_counter()

    def window(self) -> HostWindow:
        return HostWindow()

    def mark(self) -> object:
        return time.perf_counter()

    def elapsed(self, marks: Sequence[object]) -> list[float]:
        return [after - before for before, after in pairwise(marks)]  # type: ignore[operator]

    def reset_peak(self) -> None:
        """Give freed heap pages back first, or the last case's garbage is the next one's peak."""
        _trim_heap()
        try:
            CLEAR_REFS.write_text("5")
        except OSError:  # gVisor and hardened machines
            self._has_peak = False

    def peak(self) -> Peak:
        highest = _known("VmHWM") if self._has_peak else None
        return Peak(None, None, process_bytes=highest, framework_bytes=self._framework_bytes())

    def _framework_bytes(self) -> int | None:
        """Private memory from before the model, and the pages of libraries now, which come in as they are used."""
        files, weights = _known("RssFile"), mapped_weights_bytes()
        if self._before is None or files is None or weights is None:
            return None
        return self._before + max(0, files - weights)

    def pressure(self) -> Pressure:
        return pressure.read()


def meter(device: str) -> CpuMeter:
    """The meter of ``cpu``."""
    return CpuMeter()


def watcher(device: str) -> Watcher:
    """What looks at the energy of the CPU while repetitions run."""
    return Sampler(Rapl())


def process_bytes(field: str, pid: int | str = "self") -> int:
    """A memory figure of a process: ``VmRSS`` (now), ``VmHWM`` (peak), ``RssAnon``, ``VmData``. Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no {field}")


def mapped_weights_bytes() -> int | None:
    """Resident pages of weight files that this process has mapped instead of read; None where that is not told.

    safetensors are mapped when they are taken as they are, and their pages come in when they are first used.
    """
    resident, is_weights = 0, False
    try:
        with SMAPS.open(errors="replace") as lines:  # line by line: the text would be megabytes of the next peak
            for line in lines:
                if MAPPING.match(line):
                    is_weights = line.rstrip().endswith(WEIGHT_FILES)
                elif is_weights and line.startswith("Rss:"):
                    resident += int(line.split()[1]) * 1024
    except OSError:
        return None
    return resident


def _known(field: str) -> int | None:
    """A memory figure of this process; None where there is no such field, or no ``/proc``."""
    with suppress(OSError):
        return process_bytes(field)
    return None


def _trim_heap() -> None:
    """glibc keeps freed small blocks; another libc has no such call and needs none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
