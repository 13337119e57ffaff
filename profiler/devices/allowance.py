"""What this process may use of the machine: cores, memory nodes, CPU time and memory, under the tightest limits.

Cores and nodes are read from ``/sys/devices/system``; limits come from affinity, cpusets, quotas and rlimits. This
module gives workers their number of threads, predictions the cores and the memory, rows and calibrations the limits
under which they were measured, and tables the messages about them.

**Threads under a quota.** Every running thread uses up the quota, even while it spins at a barrier. With more threads
than the quota has cores, all of them stop for the rest of each period. ``n`` threads reach
``min(1, quota ÷ n) × R(n)``, where R is the rate without a quota. One thread more than the quota has cores therefore
pays off if R(n + 1) ÷ R(n) exceeds (n + 1) ÷ quota. On two cores a second thread made decode 1.3 times as fast and
prefill 1.4 to 1.7 times; two threads were slower than one at a quota of 1, about equal at 1.25 and faster at 1.5. (A
prefill in LLM.int8, where the second thread gained a factor of 1.2, was slower at 1.5 too.) So the quota is rounded
to the nearest integer, but at least one thread. ``benchmarks/quota.py`` measures this.
"""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from profiler.devices import cgroup
from profiler.devices.cgroup import MemoryLimit, Quota
from profiler.errors import EXHAUSTED
from profiler.units import bytes_text

CPUS = Path("/sys/devices/system/cpu")
NODES = Path("/sys/devices/system/node")
SIBLINGS = ("topology/core_cpus_list", "topology/thread_siblings_list")  # the second is the older name
SPEEDS = ("cpu_capacity", "cpufreq/cpuinfo_max_freq")  # distinguishes fast from efficient cores: Arm, x86

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
# The variables that set torch's default number of threads; the first one that is set counts.
THREAD_SETTINGS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")
THREAD_LIMIT = "OMP_THREAD_LIMIT"
# Not RLIMIT_RSS, which Linux has ignored since 2.4.30 (man 2 getrlimit).
RLIMITS = {"RLIMIT_AS": "ulimit -v", "RLIMIT_DATA": "ulimit -d"}
# RLIMIT_AS also counts address space that is never touched: libraries, and 64 MiB for the heap of each thread. A
# worker of Gemma 3 270M on two cores had 2.8 to 3.0 GiB more of it than resident memory (torch 2.14 with CUDA).
MAPPED_BYTES, MAPPED_BYTES_PER_CPU = 3 * 2**30, 72 * 2**20


def physical_cores(cpus: Iterable[int]) -> int:
    """Physical cores of ``cpus``: hardware threads of a core count once. Without data, each CPU counts as a core."""
    return len({_read(CPUS, cpu, SIBLINGS) or str(cpu) for cpu in cpus})


def speeds(cpus: Iterable[int]) -> tuple[int, ...]:
    """Distinct speeds of ``cpus``, sorted: kHz, or Arm's capacity. Empty if unknown."""
    found = (_read(CPUS, cpu, SPEEDS) for cpu in cpus)
    return tuple(sorted({int(text) for text in found if text is not None and text.isdigit()}))


def last_cache_bytes(cpus: Iterable[int] | None = None) -> int:
    """Total size of the last-level caches of ``cpus``; None: of the CPUs this process may use. 0 if unknown."""
    return _last_cache_bytes(CPUS, frozenset(os.sched_getaffinity(0) if cpus is None else cpus))


@cache
def _last_cache_bytes(root: Path, cpus: frozenset[int]) -> int:
    found: dict[tuple[int, str], int] = {}
    for cpu in cpus:
        for folder in (root / f"cpu{cpu}" / "cache").glob("index*"):
            with suppress(OSError, ValueError):
                level, size, shared = (
                    (folder / name).read_text().strip() for name in ("level", "size", "shared_cpu_list")
                )
                found[int(level), shared] = int(size.removesuffix("K")) * 1024
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last)


def memory_nodes() -> frozenset[int]:
    """Numbers of the machine's memory nodes, including nodes without memory."""
    return _nodes(NODES)


@cache
def _nodes(root: Path) -> frozenset[int]:
    return frozenset(int(name) for path in root.glob("node[0-9]*") if (name := path.name[len("node") :]).isdigit())


def node_bytes() -> dict[int, tuple[int, int]]:
    """Total and available memory of each node in bytes; cached files count as available. Empty if unknown."""
    found = {}
    for node in memory_nodes():
        with suppress(OSError, ValueError, KeyError, IndexError):
            text = (NODES / f"node{node}" / "meminfo").read_text()
            lines = (line.split() for line in text.splitlines())  # Node 0 MemTotal: 1 kB
            known = {line[2].rstrip(":"): int(line[3]) * 1024 for line in lines}
            free = known["MemFree"] + known.get("Active(file)", 0) + known.get("Inactive(file)", 0)
            found[node] = known["MemTotal"], free
    return {node: size for node, size in found.items() if size[0]}


@cache
def _read(root: Path, cpu: int, names: tuple[str, ...]) -> str | None:
    """The first of these files that a CPU has. Cached, because they do not change and large machines have many."""
    for name in names:
        with suppress(OSError):
            return (root / f"cpu{cpu}" / name).read_text().strip()
    return None


@dataclass(frozen=True, slots=True)
class Allowance:
    """CPU time and memory of this process. Bytes; ``None`` without a limit."""

    cpus: int  # logical CPUs it may run on
    installed: int  # logical CPUs that are online
    physical: int  # physical cores of ``cpus``
    threads: int  # the default number of threads of a worker
    threads_from: str | None  # the variable that sets fewer threads than cores: OMP_NUM_THREADS
    quota: Quota | None  # only if it is less than ``cpus``
    confined: tuple[int, ...] | None  # physical cores, cache bytes and speeds, if not all CPUs are usable
    memory_limit: MemoryLimit | None

    @property
    def cores(self) -> float:
        """CPU time in cores, at most the number of CPUs."""
        return self.cpus if self.quota is None else self.quota.cores

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why this process may not use the whole machine: one message per limit."""
        return tuple(self._reasons())

    def _reasons(self) -> Iterator[str]:
        if self.cpus < self.installed:
            yield f"CPU affinity or a cpuset allows {self.cpus} of {self.installed} cores"
        if self.quota is not None:
            yield self.quota_text(self.threads)
        if self.threads_from is not None:
            yield f"{self.threads_from} allows {_threads(self.threads)}"
        if self.memory_limit is not None:
            of = bytes_text(_meminfo("MemTotal"))
            yield f"{self.memory_limit.where} allows {bytes_text(self.memory_limit.nbytes)} of {of} of memory"

    def quota_text(self, threads: int) -> str:
        """What the quota, which must exist, means for ``threads`` threads."""
        assert self.quota is not None
        text = f"a CPU quota allows {self.cores:g} of {_cores(self.cpus)} ({self.quota.where})"
        if threads <= self.cores:
            return text
        return f"{text} and throttles {_threads(threads)}"


def find(environ: Mapping[str, str] = os.environ) -> Allowance:
    """The allowance of this process now. Workers that it starts inherit it."""
    usable = usable_cpus()
    quota = cgroup.quota()
    if quota is not None and quota.cores >= len(usable):
        quota = None
    physical = physical_cores(usable)
    default, setting = _default_threads(environ, physical)
    installed = max(len(usable), os.sysconf("SC_NPROCESSORS_ONLN"))
    confined = None
    if len(usable) < installed:
        confined = (physical, last_cache_bytes(usable), *speeds(usable))
    return Allowance(
        cpus=len(usable),
        installed=installed,
        physical=physical,
        threads=default if quota is None else min(default, threads_within(quota.cores)),
        threads_from=setting,
        quota=quota,
        confined=confined,
        memory_limit=memory_limit(),
    )


@cache
def at_start() -> Allowance:
    """The allowance at the first call in this process.

    Call it before OpenMP is loaded, which may pin the loading thread to one CPU (OMP_PROC_BIND).
    """
    return find()


def usable_cpus() -> frozenset[int]:
    """CPUs that affinity and cpusets allow. A cpuset that has none of the affinity's CPUs is ignored."""
    affinity = frozenset(os.sched_getaffinity(0))
    group = cgroup.cpus()
    return affinity if group is None else affinity & group or affinity


def threads_within(quota: float) -> int:
    """The best number of threads for a quota in cores, as derived at the top of this module."""
    return max(1, math.floor(quota + 0.5))


def is_thread_refused(error: BaseException) -> bool:
    """Whether the system refused to start a thread: Python has no class for it."""
    return isinstance(error, RuntimeError) and "start new thread" in str(error)


def exhausted(error: BaseException) -> tuple[str, str] | None:
    """Which limit of the system an error is about, and what to do; None for any other error."""
    if is_thread_refused(error):
        return "the system cannot start another thread", _task_hint()
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EAGAIN:
        return f"system error: {os.strerror(number)}", _task_hint()
    return None if number not in EXHAUSTED else (f"system error: {os.strerror(number)}", EXHAUSTED[number])


def _task_hint() -> str:
    """What allows no further process or thread: a control group if its limit is the lower one, else ulimit."""
    group, user = cgroup.tasks(), resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if group is not None and (user == resource.RLIM_INFINITY or group[0] <= user):
        limit, where = group
        return f"{where} allows {limit:,} processes and threads: raise it (docker run --pids-limit), or end some."
    return "The limit on processes and threads is reached: raise it (ulimit -u), or end some."


def memory_limit() -> MemoryLimit | None:
    """The tightest limit on a worker's memory below the machine's memory, and what sets it."""
    found = [limit for limit in (cgroup.memory_limit(), _nodes_limit(), *_rlimits()) if limit is not None]
    tightest = min(found, key=lambda limit: limit.nbytes, default=None)
    return tightest if tightest is not None and tightest.nbytes < _meminfo("MemTotal") else None


def memory(limit: MemoryLimit | None) -> tuple[int, int]:
    """Bytes that a worker may use in total under ``limit`` (``memory_limit``), and bytes available now."""
    total = _meminfo("MemTotal") if limit is None else limit.nbytes
    free, (_, left), nodes = _meminfo("MemAvailable"), cgroup.memory(), _allowed_nodes()
    of_nodes = sum(free for _, free in nodes.values()) if nodes else None
    return total, min(bound for bound in (total, free, left, of_nodes) if bound is not None)


def _allowed_nodes() -> dict[int, tuple[int, int]] | None:
    """Memory nodes that a cpuset allows, as in ``node_bytes``; None if it allows all."""
    lines = (line.partition(":") for line in _lines(STATUS))
    allowed = next((cgroup.numbers(value.strip()) for name, _, value in lines if name == "Mems_allowed_list"), None)
    if not allowed or memory_nodes() <= allowed:
        return None
    nodes = node_bytes()
    kept = {node: size for node, size in nodes.items() if node in allowed}
    return kept if kept and len(kept) < len(nodes) else None


def _nodes_limit() -> MemoryLimit | None:
    nodes = _allowed_nodes()
    if nodes is None:
        return None
    where = f"a cpuset with memory of node{'s' * (len(nodes) > 1)} {', '.join(map(str, sorted(nodes)))}"
    return MemoryLimit(sum(total for total, _ in nodes.values()), where)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _rlimits() -> Iterator[MemoryLimit]:
    for name, command in RLIMITS.items():
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft == resource.RLIM_INFINITY:
            continue
        if name == "RLIMIT_AS":
            mapped = MAPPED_BYTES + MAPPED_BYTES_PER_CPU * len(os.sched_getaffinity(0))
            where = f"{name} ({command}, less {bytes_text(mapped)} of address space for libraries and threads)"
            yield MemoryLimit(max(soft - mapped, 0), where)
        else:
            yield MemoryLimit(soft, f"{name} ({command})")


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _default_threads(environ: Mapping[str, str], physical: int) -> tuple[int, str | None]:
    """PyTorch's default number of threads, and the variable that sets it to fewer than the physical cores.

    PyTorch uses the physical cores of its process's affinity, and never more (MKL_DYNAMIC).
    """
    settings = {name: _count(environ.get(name, "")) for name in (*THREAD_SETTINGS, THREAD_LIMIT)}
    first = next((name for name in THREAD_SETTINGS if settings[name]), None)
    named = [(settings[name], name) for name in (first, THREAD_LIMIT) if name is not None]
    least, name = min(((count, name) for count, name in named if count), default=(physical, None))
    return (least, name) if least < physical else (physical, None)


def _count(text: str) -> int | None:
    """A number of threads; of a list, which has one per nesting level, the first. None for values that OpenMP
    ignores.
    """
    first = text.partition(",")[0].strip()
    return int(first) if first.isdecimal() and first.isascii() and len(first) < 10 and int(first) else None


def _meminfo(field: str) -> int:
    """Bytes of a line of ``/proc/meminfo``."""
    for line in MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{MEMINFO} has no {field}")
