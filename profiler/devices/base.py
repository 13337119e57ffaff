"""The interface of a device, and the kernel's counters for disturbances while a device is timed.

``devices/NAME.py`` has ``KIND``, the traits of this kind of device, ``find() -> list[DeviceInfo]`` (without
torch), ``unavailable()``, ``meter(name)`` and ``watcher(name)``. Other files ask for traits and do not compare names;
the exceptions are CUDA graphs, our own kernels, and the rules of predictions, which were fitted for CPUs and GPUs.

Every timed window also includes the host's clocks: time spent waiting for a core, time stolen by a hypervisor, and
swapping.
"""

from __future__ import annotations

import math
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

MAX_WAIT = 0.1  # share of the CPU time we needed; if others took more, the figure is disturbed
FULL_SHARE = 0.9  # of the CPU time of all cores: if less was used, a core was free
# Others are blamed for a wait only if they worked for at least this part of it: our threads also wait for each other.
MIN_BLAME = 0.5
MAX_STALLED = 0.25  # share of the time in which other processes waited for a core, so that none was free for us
MAX_STOLEN = 0.02  # of all cores: a hypervisor that takes this much takes more when its other guests wake up


@dataclass(frozen=True, slots=True, eq=False)
class BenchmarkSizes:
    """Sizes of the microbenchmarks of `profile calibrate` on a kind of device.

    The defaults are for a GPU. A CPU could not finish them in a minute.
    """

    peak: tuple[int, int, int] = (8192, 8192, 8192)  # tokens, output and input features of the largest matrix product
    read_bytes: int = 2 * 1024**3  # minimum bytes to read
    step_hidden: int = 2048  # hidden size of the model whose decode step is timed; operators get slower with it
    pass_hidden: int = 4096  # hidden size of the model whose prefill is timed
    pass_tokens: int = 2048  # tokens of that prefill: a sweep's prefill chunk
    step_depth: int = 65536  # tokens in the cache that attention reads
    delta_batch: int = 16  # sequences of the gated delta rule
    shapes: tuple[tuple[int, int], ...] = ((8192, 8192), (8192, 2048), (1024, 1024))
    """Output and input features of linear layers: a square one, one with few inputs, and one so small that it takes
    longer to launch than to compute."""
    own_tokens: tuple[int, ...] = (1, 4)  # numbers of tokens for timing our own kernels
    run_bytes: int = 512 * 1024**2  # the most bytes that one run of a single token reads
    calm_s: float = 100.0  # after this time, a single run decides each figure


def _eager(here: bool) -> str:
    return EAGER


def _nothing(*about: Any) -> None:
    return None


def _no_caches(device: Any) -> int:
    return 0


@dataclass(frozen=True, slots=True, eq=False)
class DeviceKind:
    """The traits of a kind of device. The defaults describe an unknown accelerator."""

    maker: str | None = None  # the ``vendor`` of its data sheets in the catalog
    is_host: bool = False  # models are in host memory: the process's CPU time and peak memory are the model's
    prefill_chunk: int = PREFILL_CHUNK  # default tokens per sequence and prefill pass
    step_path: Callable[[bool], str] = _eager
    """The default decode path of backends that have our own step; eager if the step does not run on such devices. The
    argument is whether the device is in this machine."""
    no_step: Callable[[], str | None] = _nothing  # why this machine cannot build our own step
    describe: Callable[[DeviceInfo], Target] | None = None  # its figures for predictions; None: from a data sheet
    between: Mapping[str, float] | None = None  # process-to-process variation by phase (σ ÷ median), uncalibrated
    fill_bytes_s: float = 5e9  # bytes per second of random values written to fresh memory
    pack_elements_s: float = 2e9  # elements per second that are quantized while a model is loaded
    compile_layer_s: float = 0.0  # seconds to compile a layer for --path graph
    select: Callable[[str], None] = _nothing  # makes a device the one on which torch launches kernels
    wait: Callable[[Any], None] = _nothing  # waits until a torch.device has finished everything queued
    cache_bytes: Callable[[Any], int] = _no_caches  # size of the last-level caches of a torch.device
    sizes: BenchmarkSizes = BenchmarkSizes()


ACCELERATOR = DeviceKind()


def kind_of(device: str) -> DeviceKind:
    """The kind of a device, by its name (``cuda:0``) or kind (``cuda``); ``ACCELERATOR`` if it has no file."""
    module = _module(device.partition(":")[0], tuple(sys.modules["profiler.devices"].__path__))
    return ACCELERATOR if module is None else module.KIND


@lru_cache(maxsize=64)
def _module(name: str, folders: tuple[str, ...]) -> ModuleType | None:
    """Cached per set of ``folders``, because listing a folder takes longer than a prediction."""
    try:
        module = registry.load("devices", name, "device kind")
    except NotFound:
        return None
    return module if hasattr(module, "KIND") else None


@dataclass(frozen=True, slots=True)
class Slice:
    """A MIG slice as a part of a card. Shares are 0..1; ``None`` if NVML does not report it."""

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
    memory_bytes: int  # in total
    free_bytes: int  # available now
    default_dtype: str  # fp32 on a CPU without bf16 units
    cores: int | None = None  # CPUs that this process may run on
    features: tuple[str, ...] = ()  # avx2, avx512_bf16, amx_bf16; sm_89
    uuid: str | None = None
    driver: str | None = None
    threads: int | None = None  # CPU: the default number of threads of a worker
    physical: int | None = None  # cores behind ``cores``: hardware threads of one core count once
    installed: int | None = None  # CPUs of the machine, usable or not
    quota: float | None = None  # CPU time in cores, if a control group allows less than ``cores``
    confined: tuple[int, ...] | None = None  # as ``allowance.Allowance.confined``
    unsupported_dtypes: tuple[str, ...] = ()  # dtypes that it only emulates: bf16 on NVIDIA GPUs before Ampere
    limits: tuple[str, ...] = ()  # why this process may not use the whole machine, one message per limit
    memory_limit: str | None = None  # what limits ``memory_bytes``, if it is less than the machine has
    slice: Slice | None = None  # of a MIG slice: which part of a card it is

    @property
    def usable_cores(self) -> float | None:
        """CPU time in cores."""
        if self.quota is None:
            return self.cores
        return int(self.quota) if self.quota.is_integer() else self.quota

    @property
    def at_once(self) -> int:
        """Threads that compute at the same time: at most the number of cores."""
        cores = self.cores or 1
        return min(self.threads or cores, cores)

    @property
    def duty_cycle(self) -> float:
        """Share of the time in which those threads may run, 0..1: below 1 if they exhaust a quota.

        Threads that wait for each other spin, so each of them uses the quota as long as any has work. One thread is
        enough to launch a GPU's work.
        """
        return 1.0 if self.quota is None else min(1.0, self.quota / self.at_once)

    @property
    def confinement(self) -> dict[str, Any]:
        """The limits that make figures of this device incomparable with those of the same device without them."""
        if not kind_of(self.kind).is_host:  # one thread launches its work and needs at most one core
            return {"quota": self.quota} if self.quota is not None and self.quota < 1 else {}
        own = {
            "quota": self.quota,
            "threads": None if self.threads in (None, self.physical) else self.threads,
            "cpus": None if self.confined is None else list(self.confined),
        }
        return {name: value for name, value in own.items() if value is not None}

    @property
    def repacks(self) -> bool:
        """Whether bitsandbytes repacks 4-bit weights in their first pass on this device."""
        return repacks(self.features)


def repacks(features: Sequence[str]) -> bool:
    """Whether a CPU with these features has the units for which bitsandbytes repacks 4-bit weights."""
    return "avx512_bf16" in features


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest memory since the last reset, in bytes; ``None`` if the device has no such counter."""

    allocated_bytes: int | None  # live tensors (CUDA); None on a CPU
    reserved_bytes: int | None  # the allocator's segments (CUDA); None on a CPU
    process_bytes: int | None  # all memory of this process on the device: decides whether the case fits
    framework_bytes: int | None = None  # the part that is not tensors: libraries and interpreter, or the CUDA context
    device_bytes: int | None = None  # all memory used on the device, by all processes (CUDA)


@dataclass(frozen=True, slots=True)
class Lap:
    """A device's clocks over one window; ``None`` if it has no such clock."""

    seconds: float  # wall, from before the first launch to after the device has finished
    cpu_s: float | None  # CPU time of this process, all threads
    wait_s: float | None  # its threads were ready to run but had no core, summed
    device_s: float | None = None  # between events at both ends of the device's queue
    drain_s: float | None = None  # from the last launch until the device had finished


@dataclass(frozen=True, slots=True)
class Pressure:
    """Counters of disturbances; ``None`` if they do not exist."""

    at_s: float  # on a monotonic clock
    stalled_s: float | None = None  # some task of the machine was waiting for a core
    stolen_s: float | None = None  # the hypervisor ran something else, summed over cores
    swapped_in_bytes: int | None = None  # read back from swap, whole machine
    swapped_bytes: int | None = None  # of this process, in swap now: a state, not a counter
    retries: int | None = None  # CUDA: the allocator freed its unused segments to continue
    busy_s: float | None = None  # cores worked for any process, summed
    own_s: float | None = None  # cores worked for this process
    # Of the control group with the tightest CPU quota. Without a visible quota, throttled_s is for any hidden one.
    period_s: float | None = None  # after which the quota is renewed; not a counter
    periods: int | None = None
    throttled: int | None = None  # periods in which the quota was used up
    throttled_s: float | None = None  # for which its cores were stopped, summed over cores


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Other work on the cores while something was timed."""

    text: str
    lacked: float = 0.0  # the share of the CPU time we needed that we did not get, as far as it is known
    others: float = 0.0  # cores that other processes kept busy on average; infinite if it is unknown


@dataclass(frozen=True, slots=True)
class Reading:
    """What was observed on a device during one repetition."""

    invalid: str | None = None  # why the repetition does not count: "thermal slowdown"
    ended_s: float | None = None  # on the meter's clock
    sm_mhz: float | None = None  # median
    temperature_c: float | None = None  # highest
    capped: float | None = None  # share of the time in which the power limit lowered the clocks


FigureOrReason = tuple[float | None, str | None]
"""A figure in joules or watts and ``None``, or ``None`` and the reason why it is unknown."""


@dataclass(frozen=True, slots=True)
class Consumed:
    """Total joules of some windows, from two sources."""

    source: str  # nvml-counter, nvml-power, rapl-counter: which of the two to use
    scope: str  # gpu-board, cpu-package: what the energy covers
    counter: FigureOrReason  # the device's own energy counter
    power: FigureOrReason  # its power, sampled and integrated


@dataclass(frozen=True, slots=True)
class Overview:
    """What was observed on a device over a whole case; ``None`` if it does not report it."""

    blind: str | None = None  # why throttling could not be detected
    others: int | None = None  # the most other processes that computed there


class Window(Protocol):
    """An open window of the device's clocks."""

    def close(self) -> Lap:
        """Wait until the device has finished, then read the clocks."""


class Watcher(Protocol):
    """Observes a device while repetitions run on it. It is called outside the timed windows."""

    def begin(self, energy: bool) -> None:
        """Called before the repetitions of a case. ``energy``: whether their energy will be requested."""

    def start(self) -> None:
        """Called before a repetition."""

    def stop(self, seconds: float) -> Reading:
        """Called after a repetition that took ``seconds``, with the device idle; not after one that failed."""

    def consumed(self, spans: Sequence[tuple[float, float]]) -> Consumed | None:
        """Energy of windows of this case, by start and end on the meter's clock; None if it was not observed."""

    def idle_w(self) -> FigureOrReason:
        """Mean power while nothing runs. The first call takes several seconds."""

    def overview(self) -> Overview:
        """What was observed since ``begin``."""

    def close(self) -> None:
        """Called after the last repetition."""


class Unwatched:
    """The watcher for devices without telemetry."""

    def begin(self, energy: bool) -> None:
        """Nothing to reset."""

    def start(self) -> None:
        """Nothing to start."""

    def stop(self, seconds: float) -> Reading:
        return Reading()

    def consumed(self, spans: Sequence[tuple[float, float]]) -> Consumed | None:
        return None

    def idle_w(self) -> FigureOrReason:
        return None, "the power of this device is not observed"

    def overview(self) -> Overview:
        return Overview()

    def close(self) -> None:
        """Nothing to close."""


class Meter(Protocol):
    """Clock and peak memory of one device. The clock synchronizes the device, so that no caller can forget to."""

    def now(self) -> float:
        """Seconds on a monotonic clock, read after the device has finished everything queued."""

    def window(self) -> Window:
        """Open a window once the device has finished everything queued."""

    def timestamp(self) -> object:
        """A point in the device's queue of work. Cheap, and does not wait."""

    def elapsed(self, timestamps: Sequence[object]) -> list[float]:
        """Seconds between each timestamp and the next. Waits for the device."""

    def reset_peak(self) -> None:
        """Reset ``peak`` to the memory in use now."""

    def peak(self) -> Peak:
        """The highest values since ``reset_peak``."""

    def pressure(self) -> Pressure:
        """The counters of disturbances now. Only differences between two calls mean anything."""


def read() -> Pressure:
    """The counters now; None for those that the kernel does not have."""
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
    """Seconds that all cores together were busy: user, nice, system, irq and softirq of /proc/stat."""
    try:
        user, nice, system, _, _, irq, softirq = map(int, STAT.read_text().split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / TICKS


def run_delay_s() -> float | None:
    """Seconds that all living threads of this process waited for a core; None if the kernel does not count.

    The second figure of ``/proc/PID/task/TID/schedstat``, in nanoseconds (Documentation/scheduler/sched-stats).
    """
    waited = None
    for stat in TASKS.glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread may end during the loop
            waited = (waited or 0) + int(stat.read_text().split()[1])
    return None if waited is None else waited / 1e9


def disturbance(
    before: Pressure,
    after: Pressure,
    waited_s: float,
    cpu_s: float,
    cores: int,
    stalls: bool = True,
    needs: str = "we needed",
) -> Disturbance | None:
    """At most one disturbance on a machine with ``cores`` cores: the CPU time that we lacked, else what others did.

    Our threads used ``cpu_s`` and had no core for ``waited_s``, summed. ``stalls``: whether it counts that processes
    waited for a core, whichever they were. ``needs``: whose CPU time it was, in words.
    """
    wall = after.at_s - before.at_s
    stood = grown(before.throttled_s, after.throttled_s) or 0.0  # waiting for the quota is not caused by other work
    waited_s = max(0.0, waited_s - stood)
    busy, own = grown(before.busy_s, after.busy_s), grown(before.own_s, after.own_s)
    others_s = math.inf if busy is None or own is None else max(0.0, busy - own)
    others = others_s / wall if wall > 0 else 0.0
    lacked = waited_s / (waited_s + cpu_s) if waited_s else 0.0
    if lacked > MAX_WAIT and others_s >= waited_s * MIN_BLAME:
        text = f"the CPU was busy: other processes took {lacked:.0%} of the CPU time {needs}"
        return Disturbance(text, lacked, others)
    stolen = grown(before.stolen_s, after.stolen_s)
    if wall > 0 and stolen is not None and stolen / (wall * cores) > MAX_STOLEN:
        return Disturbance(f"the hypervisor gave {stolen / (wall * cores):.0%} of the CPU time to other guests")
    stalled = grown(before.stalled_s, after.stalled_s)
    stalled = None if stalled is None else max(0.0, stalled - stood)
    if not stalls or wall <= 0 or stalled is None or stalled / wall <= MAX_STALLED or others_s < stalled * MIN_BLAME:
        return None
    text = f"all cores were busy: other processes waited for one {stalled / wall:.0%} of the time"
    return Disturbance(text, others=others)


def grown(before: float | None, after: float | None) -> float | None:
    """How much a counter has grown; None if it does not exist."""
    return None if before is None or after is None else max(0.0, after - before)


def _number(path: Path, pattern: str) -> int | None:
    """The number in the first matching line of a file; None if the file or the line does not exist."""
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


class HostWindow:
    """Wall time, CPU time and waiting time of this process from creation to ``close``."""

    def __init__(self) -> None:
        self._waited, self._cpu_s = run_delay_s(), time.process_time()
        self._start = time.perf_counter()

    def close(self) -> Lap:
        seconds = time.perf_counter() - self._start
        cpu_s, waited = time.process_time() - self._cpu_s, run_delay_s()
        wait_s = None
        if waited is not None and self._waited is not None:
            wait_s = max(0.0, waited - self._waited)  # a thread that ended takes its count with it
        return Lap(seconds, cpu_s, wait_s)
