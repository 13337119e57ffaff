"""The CPU: what ``/proc`` says about it, its clock, its peak memory by ``VmHWM``, and its RAPL energy counters.

``VmHWM`` is reset by writing 5 to ``/proc/self/clear_refs``. ``ru_maxrss`` is no substitute: it survives exec, so a
small child of a large parent reports the parent's peak.

Since CVE-2020-8694 most kernels let only root read them, and virtual machines have none. Either is a reason.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from profiler.devices import allowance, base
from profiler.devices.base import DeviceInfo, HostWindow, Peak, Pressure, Watcher
from profiler.devices.sampler import Sampler
from profiler.devices.telemetry import Snapshot, Unknown

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"  # also AMD's; a domain inside a package is intel-rapl:0:0

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


@dataclass(slots=True)
class Package:
    """One counter. It starts again from 0 above ``range_uj``, after minutes on a large machine."""

    path: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def joules(self) -> float:
        """Since the package was found. Raises OSError, ValueError."""
        now = int(self.path.read_text())
        self.total_uj += now - self.last_uj if now >= self.last_uj else now - self.last_uj + self.range_uj
        self.last_uj = now
        return self.total_uj / 1e6


class Rapl:
    """Energy of all CPU packages together. Memory is a domain of its own and is not in it."""

    name = "rapl"
    scope = "cpu-package"
    coarse = False  # every millisecond
    guards = False

    def __init__(self, folder: Path = POWERCAP) -> None:
        self.unknown: dict[str, str] = {}
        self._folder = folder
        self._packages: list[Package] = []

    def open(self) -> None:
        domains = [path for path in sorted(self._folder.glob(PACKAGES)) if path.name.count(":") == 1]
        try:
            self._packages = [_package(path) for path in domains if (path / "name").read_text().startswith("package")]
        except PermissionError:
            where = self._folder / "intel-rapl:*/energy_uj"
            raise Unknown(f"only root may read the energy counters of this CPU ({where})") from None
        except (OSError, ValueError) as error:
            raise Unknown(f"the energy counters of this CPU cannot be read ({error})") from None
        if not self._packages:
            raise Unknown("this machine shows no energy counters of its CPU (RAPL)")

    def begin(self) -> None:
        """Nothing was given up."""

    def read(self, at_s: float) -> Snapshot:
        try:
            return Snapshot(at_s, energy_j=sum(package.joules() for package in self._packages))
        except (OSError, ValueError) as error:
            raise Unknown(f"the energy counters of this CPU can no longer be read ({error})") from None

    def others(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing is open."""


def _package(folder: Path) -> Package:
    now, range_uj = (int((folder / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
    return Package(folder / "energy_uj", range_uj, now)


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
        return base.read()


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
