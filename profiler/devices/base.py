"""What a device provides, and what the host's kernel counts while a device is timed.

``devices/NAME.py`` has ``KIND``, the traits of this kind of device, ``find() -> list[DeviceInfo]`` (without
torch), ``unavailable()``, ``meter(name)`` and ``watcher(name)``. No other file knows the kind by name.

Every timed window also holds the host's own clocks: time spent waiting for a core, time stolen by a hypervisor, and
swapping.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from profiler import registry
from profiler.case import PREFILL_CHUNK
from profiler.decode_path import EAGER
from profiler.devices import cgroup
from profiler.errors import NotFound

if TYPE_CHECKING:
    from profiler.devices.target import Target

TASKS = Path("/proc/self/task")
STALLS = Path("/proc/pressure/cpu")
STAT = Path("/proc/stat")
VMSTAT = Path("/proc/vmstat")
STATUS = Path("/proc/self/status")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STEAL = 8  # the column of /proc/stat, after the name


@dataclass(frozen=True, slots=True, eq=False)
class BenchmarkSizes:
    """Sizes of the microbenchmarks of `profile calibrate` on a kind of device.

    The defaults are for a GPU, which needs larger ones to be busy than a CPU could finish in a minute.
    """

    peak: tuple[int, int, int] = (8192, 8192, 8192)  # tokens, output and input features of the largest product
    read_bytes: int = 2 * 1024**3  # bytes to read, at least
    step_hidden: int = 2048  # hidden size of the model whose decode step is timed; operators get slower with it
    pass_hidden: int = 4096  # hidden size of the model whose prefill is timed
    pass_tokens: int = 2048  # tokens of that prefill: a sweep's prefill chunk
    step_depth: int = 65536  # tokens in the cache that attention reads
    delta_batch: int = 16  # sequences of the gated delta rule
    shapes: tuple[tuple[int, int], ...] = ((8192, 8192), (8192, 2048), (1024, 1024))
    """Output and input features of linear layers: a square one, one with few inputs, and one so small that it takes
    longer to launch than to compute."""
    own_tokens: tuple[int, ...] = (1, 4)  # numbers of tokens that the kernels of our own step are timed with
    run_bytes: int = 512 * 1024**2  # most bytes that a run of one token reads
    calm_s: float = 100.0  # after this time, one run decides each figure


def _eager(here: bool) -> str:
    return EAGER


def _nothing(*about: Any) -> None:
    return None


def _no_caches(device: Any) -> int:
    return 0


@dataclass(frozen=True, slots=True, eq=False)
class DeviceKind:
    """The traits of a kind of device. The defaults describe an accelerator about which nothing is known."""

    maker: str | None = None  # the ``vendor`` of its data sheets in the catalog
    is_host: bool = False  # models are in the host's memory, and the process's CPU time and peak are the model's
    prefill_chunk: int = PREFILL_CHUNK  # default tokens per sequence and prefill pass
    step_path: Callable[[bool], str] = _eager
    """The default decode path where our own step may run: eager if it has none. The argument is whether the device is
    in this machine."""
    no_step: Callable[[], str | None] = _nothing  # why this machine cannot build the step that the kind has, in words
    describe: Callable[[DeviceInfo], Target] | None = None  # a target for predictions; None: from a data sheet
    between: Mapping[str, float] | None = (
        None  # by phase, process-to-process variation (σ ÷ median), if not calibrated
    )
    fill_bytes_s: float = 5e9  # bytes per second of random values written to fresh memory
    pack_elements_s: float = 2e9  # elements per second that are quantized while a model is loaded
    compile_layer_s: float = 0.0  # seconds to compile a layer for --path graph
    select: Callable[[str], None] = _nothing  # makes a device the one on which torch launches kernels
    wait: Callable[[Any], None] = _nothing  # waits until a torch.device has finished everything queued
    cache_bytes: Callable[[Any], int] = _no_caches  # size of the last-level caches of a torch.device
    sizes: BenchmarkSizes = BenchmarkSizes()


ACCELERATOR = DeviceKind()


def kind_of(device: str) -> DeviceKind:
    """The kind of a device, from its name (``cuda:0``) or its kind (``cuda``); ``ACCELERATOR`` if it has no file."""
    module = _module(device.partition(":")[0], tuple(sys.modules["profiler.devices"].__path__))
    return ACCELERATOR if module is None else module.KIND


@lru_cache(maxsize=64)
def _module(name: str, folders: tuple[str, ...]) -> ModuleType | None:
    """Cached for each set of ``folders``, because listing one takes longer than a prediction."""
    try:
        module = registry.load("devices", name, "device kind")
    except NotFound:
        return None
    return module if hasattr(module, "KIND") else None


@dataclass(frozen=True, slots=True)
class Slice:
    """A MIG slice: which part of a whole card it is. Shares are 0..1; ``None`` where NVML does not tell."""

    profile: str  # 1g.10gb
    of_title: str  # NVIDIA H100 80GB HBM3
    of_bytes: int  # memory of the whole card
    memory_share: float  # of its memory, and so of the bandwidth: slices have memory controllers of their own
    compute_share: float | None  # of its multiprocessors


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device as found without torch. Bytes, bytes per second, FLOP per second; unknown is ``None``."""

    name: str  # cpu | cuda:0
    kind: str  # cpu | cuda
    title: str  # AMD EPYC 7763, NVIDIA GeForce RTX 4090
    memory_bytes: int  # all of it
    free_bytes: int  # available now
    default_dtype: str  # fp32 on a CPU without bf16 units
    cores: int | None = None  # CPUs that this process may run on
    features: tuple[str, ...] = ()  # avx2, avx512_bf16, amx_bf16; sm_89
    uuid: str | None = None
    driver: str | None = None
    threads: int | None = None  # that a worker computes with unless it is told otherwise; CPU
    physical: int | None = None  # cores behind ``cores``: hardware threads of one core count once
    installed: int | None = None  # CPUs of the machine, usable or not
    quota: float | None = None  # cores' worth of CPU time, where a control group allows less than ``cores``
    confined: tuple[int, ...] | None = None  # as ``allowance.Allowance.confined``
    limits: tuple[str, ...] = ()  # why less than the machine may be used, in words
    memory_limit: str | None = None  # what ``memory_bytes`` is bounded by, where it is less than the machine has
    slice: Slice | None = None  # of a card that is shared out (MIG)

    @property
    def usable_cores(self) -> float | None:
        """Cores' worth of CPU time."""
        if self.quota is None:
            return self.cores
        return int(self.quota) if self.quota.is_integer() else self.quota

    @property
    def at_once(self) -> int:
        """Threads that compute at the same time: no more than there are cores."""
        cores = self.cores or 1
        return min(self.threads or cores, cores)

    @property
    def running(self) -> float:
        """Share of the time in which those threads may run, 0..1: below 1 where they use a quota up before it ends.

        Threads that wait for each other spin, so each of them takes time of the quota as long as any has work. A GPU
        is started by one thread.
        """
        return 1.0 if self.quota is None else min(1.0, self.quota / self.at_once)

    @property
    def mark(self) -> dict[str, Any]:
        """What tells this device from the same one without limits: figures of one are no figures of the other."""
        if not kind_of(self.kind).is_host:  # one thread starts its work, which takes less than a core
            return {"quota": self.quota} if self.quota is not None and self.quota < 1 else {}
        own = {
            "quota": self.quota,
            "threads": None if self.threads in (None, self.physical) else self.threads,
            "cpus": None if self.confined is None else list(self.confined),
        }
        return {name: value for name, value in own.items() if value is not None}

    @property
    def repacks(self) -> bool:
        """Whether bitsandbytes packs 4-bit weights anew here in their first pass."""
        return repacks(self.features)


def repacks(features: Sequence[str]) -> bool:
    """Whether a CPU with these features has the units that bitsandbytes packs 4-bit weights anew for."""
    return "avx512_bf16" in features


@dataclass(frozen=True, slots=True)
class Peak:
    """Highest memory since the last reset, in bytes; ``None`` where the device has no such counter."""

    allocated_bytes: int | None  # live tensors (CUDA); None on a CPU
    reserved_bytes: int | None  # the allocator's segments (CUDA); None on a CPU
    process_bytes: int | None  # all this process takes on the device: what decides whether it fits
    framework_bytes: int | None = None  # part of it that is no tensor: libraries and interpreter, or the CUDA context
    device_bytes: int | None = None  # all that is used of the device, by all programs (CUDA)


@dataclass(frozen=True, slots=True)
class Lap:
    """What a device's clocks say of one window; ``None`` where it has no such clock."""

    seconds: float  # wall, from before the first launch to after the device has finished
    cpu_s: float | None  # CPU time of this process, all threads
    wait_s: float | None  # its threads were ready to run and got no core, summed
    device_s: float | None = None  # between events at both ends of the device's queue
    drain_s: float | None = None  # from the last launch until the device had finished


@dataclass(frozen=True, slots=True)
class Pressure:
    """Counters that grow when something comes between a program and its machine; ``None`` where they do not exist."""

    at_s: float  # of a monotonic clock
    stalled_s: float | None = None  # some task of the machine was waiting for a core
    stolen_s: float | None = None  # the hypervisor ran something else, summed over cores
    swapped_in_bytes: int | None = None  # read back from swap, whole machine
    swapped_bytes: int | None = None  # of this process, in swap now: no counter, a state
    retries: int | None = None  # CUDA: the allocator gave its unused segments back to go on
    busy_s: float | None = None  # cores worked for anybody, summed
    own_s: float | None = None  # and for this process
    # Of the control group whose quota of CPU time is the tightest; without one the last is of any there may be:
    period_s: float | None = None  # after which there is new time; no counter
    periods: int | None = None
    throttled: int | None = None  # periods in which the time was used up
    throttled_s: float | None = None  # for which its cores stood still, summed


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen of a device during one repetition."""

    invalid: str | None = None  # why the repetition is no figure of this device, in words: "thermal slowdown"
    ended_s: float | None = None  # on the meter's clock
    sm_mhz: float | None = None  # median
    temperature_c: float | None = None  # highest
    capped: float | None = None  # share of the time in which the power limit held the clocks down


CeilingFigure = tuple[float | None, str | None]

"""A figure, or None and why."""


@dataclass(frozen=True, slots=True)
class Consumed:
    """Joules of some windows together, by two ways of telling."""

    source: str  # nvml-counter, nvml-power, rapl-counter: which of the two is to be taken
    scope: str  # gpu-board, cpu-package: what they are of
    counter: CeilingFigure  # the device's own counter of energy
    power: CeilingFigure  # its power, read all the time and integrated


@dataclass(frozen=True, slots=True)
class Overview:
    """What was seen of a device over a whole case; ``None`` where it does not tell."""

    blind: str | None = None  # why a slowdown may have gone unseen
    others: int | None = None  # most other processes that computed there


class Window(Protocol):
    """An open window of the device's clocks."""

    def close(self) -> Lap:
        """Wait until the device has finished, then read the clocks."""


class Watcher(Protocol):
    """Looks at a device from outside while repetitions run on it. Its calls lie outside of what is timed."""

    def begin(self, energy: bool) -> None:
        """The repetitions of another case follow, and whether their energy will be asked for."""

    def start(self) -> None:
        """A repetition is about to begin."""

    def stop(self, seconds: float) -> Reading:
        """It has just ended after so many, and the device is idle. A repetition that failed is not stopped."""

    def consumed(self, spans: Sequence[tuple[float, float]]) -> Consumed | None:
        """Energy of windows of this case, by start and end on the meter's clock; None if nobody looked."""

    def idle_w(self) -> CeilingFigure:
        """Mean power while nothing runs; waits for seconds when it is first asked."""

    def overview(self) -> Overview:
        """What was seen since ``begin``."""

    def close(self) -> None:
        """No repetition follows."""


class Unwatched:
    """The watcher of a device at which nobody looks."""

    def begin(self, energy: bool) -> None:
        """Nothing to forget."""

    def start(self) -> None:
        """Nothing to start."""

    def stop(self, seconds: float) -> Reading:
        return Reading()

    def consumed(self, spans: Sequence[tuple[float, float]]) -> Consumed | None:
        return None

    def idle_w(self) -> CeilingFigure:
        return None, "nobody looked"

    def overview(self) -> Overview:
        return Overview()

    def close(self) -> None:
        """Nothing to close."""


class Meter(Protocol):
    """Clock and peak memory of one device. The clock synchronises, so that no caller can forget to."""

    def now(self) -> float:
        """Seconds of a monotonic clock, read after the device has finished everything queued."""

    def window(self) -> Window:
        """Open a window once the device has finished everything queued."""

    def mark(self) -> object:
        """A point in the device's own order of work; cheap, does not wait."""

    def elapsed(self, marks: Sequence[object]) -> list[float]:
        """Seconds between each mark and the next. Waits for the device."""

    def reset_peak(self) -> None:
        """Start anew for ``peak``, which then is what is held now."""

    def peak(self) -> Peak:
        """The highest values since ``reset_peak``."""

    def pressure(self) -> Pressure:
        """Counters of what may disturb; their differences count."""


def read() -> Pressure:
    """The counters now; what the kernel does not count is None."""
    stalled, swapped = _number(STALLS, r"^some .*total=(\d+)"), _number(STATUS, r"^VmSwap:\s+(\d+) kB")
    stolen, paged = _number(STAT, rf"^cpu +(?:\d+ ){{{STEAL - 1}}}(\d+)"), _number(VMSTAT, r"^pswpin (\d+)")
    quota = cgroup.quota()
    periods, throttled, throttled_s = (quota and quota.throttled()) or (None, None, cgroup.held_s())
    return Pressure(
        at_s=time.monotonic(),
        stalled_s=None if stalled is None else stalled / 1e6,
        stolen_s=None if stolen is None else stolen / TICKS,
        swapped_in_bytes=None if paged is None else paged * PAGE,
        swapped_bytes=None if swapped is None else swapped * 1024,
        busy_s=_busy_s(),
        own_s=time.process_time(),
        period_s=None if quota is None else quota.period_s,
        periods=periods,
        throttled=throttled,
        throttled_s=throttled_s,
    )


def _busy_s() -> float | None:
    """Seconds that all cores together did not idle: user, nice, system, irq and softirq of /proc/stat."""
    try:
        user, nice, system, _, _, irq, softirq = map(int, STAT.read_text().split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / TICKS


def run_delay_s() -> float | None:
    """Seconds that all living threads of this process have waited for a core; None where the kernel does not count.

    The second figure of ``/proc/PID/task/TID/schedstat``, in nanoseconds (Documentation/scheduler/sched-stats).
    """
    waited = None
    for stat in TASKS.glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread may end meanwhile
            waited = (waited or 0) + int(stat.read_text().split()[1])
    return None if waited is None else waited / 1e9


def _number(path: Path, pattern: str) -> int | None:
    """The number in the first line of a file that matches; None where the file or the line is not there."""
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


class HostWindow:
    """Wall time, CPU time and waiting of this process from its making to ``close``."""

    def __init__(self) -> None:
        self._waited, self._cpu_s = run_delay_s(), time.process_time()
        self._start = time.perf_counter()

    def close(self) -> Lap:
        seconds = time.perf_counter() - self._start
        cpu_s, waited = time.process_time() - self._cpu_s, run_delay_s()
        wait_s = None
        if waited is not None and self._waited is not None:
            wait_s = max(0.0, waited - self._waited)  # a thread that ended takes its count along
        return Lap(seconds, cpu_s, wait_s)
