"""The CPU: its description in ``/proc``, its clock, its peak memory from ``VmHWM``, and its RAPL energy counters.

``VmHWM`` is reset by writing 5 to ``/proc/self/clear_refs``. ``ru_maxrss`` is no substitute: it survives exec, so a
small child of a large parent reports the parent's peak.

Since CVE-2020-8694 most kernels let only root read RAPL, and virtual machines have none. Both are reported as
reasons.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.case import PREFILL_CHUNK_CPU
from profiler.decode_path import EAGER, NO_COMPILER, STATIC, compiler
from profiler.devices import allowance, base
from profiler.devices.base import BenchmarkSizes, DeviceInfo, DeviceKind, HostWindow, Peak, Pressure, Watcher
from profiler.devices.sampler import Sampler
from profiler.devices.telemetry import Snapshot, Unknown

if TYPE_CHECKING:
    from profiler.devices.target import Target

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"  # also AMD's; a domain inside a package is intel-rapl:0:0

CLEAR_REFS = Path("/proc/self/clear_refs")
MAPS, SMAPS = Path("/proc/self/maps"), Path("/proc/self/smaps")
MAPPING = re.compile("[0-9a-f]+-[0-9a-f]+ ")  # the first line of each mapping; the following lines begin with a name
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


# Rates of PyTorch's kernels per core on a CPU that was not calibrated: measured on two cores of server CPUs with AVX2
# and with AMX under torch 2.13 and 2.14, within a factor of ``SPREAD`` in either direction.
READ_BYTES_S = 10e9  # weights of one token; two cores read them at 14 to 21 GB/s
MAX_READ_BYTES_S = 60e9  # all cores of a socket with two to four memory channels
FP32_FLOPS = {
    "amx_bf16": 180e9,
    "avx512f": 90e9,
    "avx2": 30e9,
    "asimd": 20e9,
}  # large matrix products; the first available feature counts
FLOPS_OTHERWISE = 8e9
# The same. A CPU without bf16 units converts it: in blocks with AVX-512, otherwise element by element.
BF16_FLOPS = {"amx_bf16": 1000e9, "avx512_bf16": 150e9, "bf16": 100e9, "avx512f": 30e9}
FP16_FLOPS = {"avx512f": 14e9}
HALF_FLOPS = 4.5e9  # of other CPUs, for both dtypes
SPREAD = 1.5
BETWEEN = {"prefill": 0.025, "decode": 0.01}  # process-to-process variation on such a machine: benchmarks/drift.py


@dataclass(slots=True)
class Package:
    """One counter. It wraps around above ``range_uj``, after minutes on a large machine."""

    path: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def joules(self) -> float:
        """Joules since the package was found. Raises OSError, ValueError."""
        now = int(self.path.read_text())
        self.total_uj += now - self.last_uj if now >= self.last_uj else now - self.last_uj + self.range_uj
        self.last_uj = now
        return self.total_uj / 1e6


class Rapl:
    """Energy of all CPU packages together. Memory is a separate domain and not included."""

    name = "rapl"
    scope = "cpu-package"
    coarse = False  # it updates every millisecond
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
            raise Unknown("this machine has no energy counters of its CPU (RAPL)")

    def begin(self) -> None:
        """Nothing to retry."""

    def read(self, at_s: float) -> Snapshot:
        try:
            return Snapshot(at_s, energy_j=sum(package.joules() for package in self._packages))
        except (OSError, ValueError) as error:
            raise Unknown(f"the energy counters of this CPU can no longer be read ({error})") from None

    def others(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing to close."""


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


class HostClock:
    """The clock of a meter whose work is done when its call returns."""

    def now(self) -> float:
        return time.perf_counter()

    def window(self) -> HostWindow:
        return HostWindow()

    def timestamp(self) -> object:
        return time.perf_counter()

    def elapsed(self, timestamps: Sequence[object]) -> list[float]:
        return [after - before for before, after in pairwise(timestamps)]  # type: ignore[operator]


class CpuMeter(HostClock):
    """Clock and peak memory of this process. The peak is unknown if the kernel cannot reset it."""

    def __init__(self) -> None:
        self._has_peak = True
        self._before = _known("RssAnon")

    def reset_peak(self) -> None:
        """Free unused heap pages first; otherwise garbage of the previous case would count in the next peak."""
        _trim_heap()
        try:
            CLEAR_REFS.write_text("5")
        except OSError:  # gVisor and hardened machines
            self._has_peak = False

    def peak(self) -> Peak:
        highest = _known("VmHWM") if self._has_peak else None
        return Peak(None, None, process_bytes=highest, framework_bytes=self._framework_bytes())

    def _framework_bytes(self) -> int | None:
        """Private memory before the model was loaded, plus the library pages that are resident now."""
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
    """Watches the energy of the CPU while repetitions run."""
    return Sampler(Rapl())


def assumed_read_bytes_s(device: DeviceInfo) -> float:
    """Bytes per second of the threads that run at once, while a quota lets them run."""
    return min(READ_BYTES_S * device.at_once, MAX_READ_BYTES_S)


def assumed_flops(device: DeviceInfo) -> dict[str, float]:
    """FLOP per second of the threads that run at once, while a quota lets them run, by dtype."""
    rates = {
        "fp32": _first(FP32_FLOPS, device.features, FLOPS_OTHERWISE),
        "bf16": _first(BF16_FLOPS, device.features, HALF_FLOPS),
        "fp16": _first(FP16_FLOPS, device.features, HALF_FLOPS),
    }
    return {name: rate * device.at_once for name, rate in rates.items()}


def _first(rates: Mapping[str, float], features: Sequence[str], otherwise: float) -> float:
    return next((rate for name, rate in rates.items() if name in features), otherwise)


def describe(device: DeviceInfo) -> Target:
    """A target for predictions, from typical rates of CPUs with these features."""
    from profiler.devices.target import Target  # target imports calibrations, which workers do not need

    return Target(
        device.title,
        "CPU",
        "cpu",
        device.memory_bytes,
        assumed_read_bytes_s(device) * device.duty_cycle,
        {dtype: rate * device.duty_cycle for dtype, rate in assumed_flops(device).items()},
        local=device.name,
        source="not calibrated",
        spread=SPREAD,
        features=device.features,
        duty_cycle=device.duty_cycle,
        limits=device.limits,
        memory_limit=device.memory_limit,
    )


def _step_path(here: bool) -> str:
    """The static step. The compiled one is faster, most of all for small models, but takes a minute to compile for
    each. Without a compiler our CPU kernels are unavailable; other machines' compilers are unknown."""
    return STATIC if not here or compiler() else EAGER


KIND = DeviceKind(
    maker="CPU",
    is_host=True,
    prefill_chunk=PREFILL_CHUNK_CPU,
    step_path=_step_path,
    no_step=lambda: NO_COMPILER if compiler() is None else None,
    describe=describe,
    between=BETWEEN,
    fill_bytes_s=2e9,
    pack_elements_s=0.1e9,
    compile_layer_s=3.0,  # Gemma 3 270M: 2.4 to 4.3, and 0.5 once inductor's cache has it
    cache_bytes=lambda device: allowance.last_cache_bytes(),
    sizes=BenchmarkSizes(
        peak=(1024, 2048, 2048),
        read_bytes=384 * 1024**2,
        step_hidden=512,
        pass_hidden=1024,
        pass_tokens=512,
        step_depth=2048,
        delta_batch=1,
        shapes=((2048, 2048), (2048, 512), (256, 256)),
        own_tokens=(1, 4, 8),
        run_bytes=32 * 1024**2,
        calm_s=40.0,
    ),
)


def process_bytes(field: str, pid: int | str = "self") -> int:
    """A memory figure of a process: ``VmRSS`` (now), ``VmHWM`` (peak), ``RssAnon``, ``VmData``. Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no {field}")


def mapped_weights_bytes() -> int | None:
    """Resident pages of weight files that this process has mapped; None if the kernel does not report them.

    safetensors files are mapped if they are used unchanged, and their pages become resident on first use. Counting
    them takes 50 ms, so it is only done if such a file is mapped and the number of resident file pages has changed.
    """
    global _counted
    try:
        if not any(line.rstrip().endswith(WEIGHT_FILES) for line in MAPS.read_text(errors="replace").splitlines()):
            return 0
        resident = _known("RssFile")
        if resident is None or resident != _counted[0]:
            _counted = resident, _resident_weights()
    except OSError:
        return None
    return _counted[1]


_counted: tuple[int | None, int] = (None, 0)  # resident file pages, and those of weight files among them


def _resident_weights() -> int:
    """Resident bytes of mapped weight files (``mapped_weights_bytes``). Raises OSError."""
    resident, is_weights = 0, False
    with SMAPS.open(errors="replace") as lines:  # the whole text would add megabytes to the peak
        for line in lines:
            if MAPPING.match(line):
                is_weights = line.rstrip().endswith(WEIGHT_FILES)
            elif is_weights and line.startswith("Rss:"):
                resident += int(line.split()[1]) * 1024
    return resident


def _known(field: str) -> int | None:
    """A memory figure of this process; None if there is no such field, or no ``/proc``."""
    with suppress(OSError):
        return process_bytes(field)
    return None


def _trim_heap() -> None:
    """glibc keeps freed small blocks; other libcs have no such call and need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
