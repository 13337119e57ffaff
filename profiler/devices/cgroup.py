"""The control groups of this process, version 1 and 2: their limits, and what is left of them.

A limit of any group on the path to the root applies. ``/proc/self/mountinfo`` says where a hierarchy is mounted and
which of its groups is the mount's root. In a container, this may be the container's own group or the host's tree; in
a cgroup namespace, neither has the name that ``/proc/self/cgroup`` gives. Both versions may be mounted at once; a
controller belongs to one of them, and the other has no files for it. (man 7 cgroups, man 7 cgroup_namespaces)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from profiler.units import printable

ROOT = Path("/sys/fs/cgroup")  # where hierarchies are mounted if the kernel does not say
MEMBERSHIP = Path("/proc/self/cgroup")
MOUNTS = Path("/proc/self/mountinfo")
UNLIMITED_V1 = 1 << 62  # version 1 writes a number near 2^63 for "no limit"
RECLAIMABLE = ("inactive_file", "active_file")  # the page cache, which the kernel drops under memory pressure
DEFAULT_PERIOD_US = 100_000  # of a quota without a stated period
# Above memory.high the kernel reclaims pages and throttles the group, so a larger model does not run.
MEMORY_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
_ESCAPED = re.compile(r"\\([0-7]{3})")  # a blank in a path of mountinfo is \040
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.M)
MAX_NAME_CHARACTERS = 48  # of a group's name in messages; longer paths are cut to their last part
MAX_GROUPS = 4096  # searched per level; with more, the search would take too long
MAX_NUMBERS = 1 << 16  # a longer list is not a list of CPUs or memory nodes


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Bytes that a group may use, and what says so: ``memory.max of the control group /a``."""

    nbytes: int
    where: str


@dataclass(frozen=True, slots=True)
class Quota:
    """CPU time that a group may use: ``cores`` cores, renewed every ``period_s`` seconds."""

    cores: float
    period_s: float
    where: str
    folder: Path

    def throttled(self) -> tuple[int, int, float] | None:
        """Periods so far, periods in which the group used up its quota, and seconds for which its CPUs were stopped,
        summed over CPUs. None if the kernel does not count.
        """
        stat = _stat(self.folder / "cpu.stat")
        stopped_s = stat.get("throttled_usec", 0) / 1e6 or stat.get("throttled_time", 0) / 1e9
        if "nr_periods" not in stat:
            return None
        return stat["nr_periods"], stat.get("nr_throttled", 0), stopped_s


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy. ``controllers`` applies to version 1 and is empty for version 2."""

    place: Path
    shows: PurePosixPath  # the group that is its root
    controllers: frozenset[str]
    is_v2: bool


def folders(controller: str) -> list[Path]:
    """Folders that may have a controller's files: our own group's, then its ancestors'."""
    return [folder for folder, _ in _groups(controller)]


def memory_limit() -> MemoryLimit | None:
    """The tightest memory limit of any group on the path to the root; None without one. Swap does not count."""
    return min(_memory_limits(), key=lambda limit: limit.nbytes, default=None)


def tasks() -> tuple[int, str] | None:
    """The tightest limit on processes and threads of any group on the path to the root, and what says so."""
    limits = ((_number(folder / "pids.max"), name) for folder, name in _groups("pids"))
    found = [(limit, f"pids.max of the control group {name}") for limit, name in limits if limit is not None]
    return min(found, default=None)


def memory() -> tuple[int | None, int | None]:
    """Bytes that are allowed, and bytes that are still free; None without a limit.

    File pages count as used by a group, but they are dropped when memory is needed, so they count as free here.
    """
    allowed, free = [limit.nbytes for limit in _memory_limits()], []
    for folder in folders("memory"):
        limits = [limit.nbytes for limit in _limits_in(folder, "")]
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limits and used is not None:
            free.append(max(0, min(limits) - used + _reclaimable(folder)))
    return min(allowed, default=None), min(free, default=None)


def quota() -> Quota | None:
    """The tightest CPU quota on the path to the root; None without one."""
    return min(_quotas(), key=lambda quota: quota.cores, default=None)


def held_s() -> float | None:
    """Seconds for which CPUs of our own group were stopped by a quota of any group, even one that is not visible
    here. None if the kernel does not count (before Linux 6.7).
    """
    for folder in folders("cpu")[:1]:
        stat = _stat(folder / "cpu.stat.local")
        if stat:
            return stat.get("throttled_usec", 0) / 1e6 or stat.get("throttled_time", 0) / 1e9
    return None


def cores() -> float | None:
    """Allowed CPU time in cores; None without a limit."""
    found = quota()
    return None if found is None else found.cores


def cpus() -> frozenset[int] | None:
    """The CPUs that cpusets allow to this process's group, including ancestors; None if unknown."""
    for folder in folders("cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            found = numbers(_read(folder / name) or "")
            if found:
                return found
    return None


def oom_kills() -> int | None:
    """How many OOM kills the kernel counts: in this control group, or else on the machine.

    The kernel counts OOM kills of any cause in the victim's group, so the group's counter is sufficient and does not
    include processes of other groups. ``None``: no counter can be read.
    """
    for path in (*_kill_counters(), Path("/proc/vmstat")):
        try:
            found = _OOM_KILLS.search(path.read_text())
        except OSError:
            continue
        if found:
            return int(found[1])
    return None


def _kill_counters() -> list[Path]:
    """Candidate files with the counter of this process's memory group, version 2 and 1, innermost first."""
    return [folder / name for folder in folders("memory") for name in ("memory.events", "memory.oom_control")]


def _memory_limits() -> Iterator[MemoryLimit]:
    groups = _groups("memory")
    for folder, name in groups:
        yield from _limits_in(folder, name)
    for folder, name in groups[-1:]:  # version 1 also has the tightest limit of groups that the mount does not show
        above = _stat(folder / "memory.stat").get("hierarchical_memory_limit", UNLIMITED_V1)
        if above < UNLIMITED_V1:
            yield MemoryLimit(above, f"memory.limit_in_bytes of a control group above {name}")


def _limits_in(folder: Path, name: str) -> Iterator[MemoryLimit]:
    for file in MEMORY_LIMITS:
        limit = _number(folder / file)
        if limit is not None and limit < UNLIMITED_V1:
            yield MemoryLimit(limit, f"{file} of the control group {name}")


def _quotas() -> Iterator[Quota]:
    for folder, name in _groups("cpu"):
        quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        file = "cpu.max" if quota else "cpu.cfs_quota_us"
        quota = quota or _read(folder / "cpu.cfs_quota_us") or ""
        period = period or _read(folder / "cpu.cfs_period_us") or str(DEFAULT_PERIOD_US)
        if quota.isdigit() and period.isdigit() and int(quota) > 0 < int(period):  # max and -1: no limit
            where = f"{file} of the control group {name}"
            yield Quota(int(quota) / int(period), int(period) / 1e6, where, folder)


def _groups(controller: str) -> list[tuple[Path, str]]:
    """Folders of a controller's groups, innermost first, with their names."""
    return _found(controller, _read(MOUNTS) or "", _read(MEMBERSHIP) or "", ROOT, os.getpid())


@cache
def _found(controller: str, mountinfo: str, membership: str, root: Path, pid: int) -> list[tuple[Path, str]]:
    """``_groups`` from the contents of the two files. Cached, because it is called for every repetition."""
    found: dict[Path, str] = {}
    seen = _mounts(mountinfo)
    mounts = [mount for mount in seen if mount.place.is_relative_to(root)]  # others are the host's, or copies
    mounts = mounts or [*_usual_mounts(controller, root), *seen]
    for number, controllers, path in _memberships(membership):
        is_v2 = number == "0" and not controllers
        if not is_v2 and controller not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.is_v2 == is_v2 and (is_v2 or controller in mount.controllers):
                groups = _up(mount, PurePosixPath(path), pid)
                found |= {folder: name for folder, name in groups if folder not in found}
    if not found:  # the kernel lists no groups, so the roots of the mounts must do
        found = {mount.place: "/" for mount in mounts if mount.is_v2 or controller in mount.controllers}
    return list(found.items())


def _up(mount: _Mount, group: PurePosixPath, pid: int) -> Iterator[tuple[Path, str]]:
    """From ``group`` to the mount's root; only the root if the mount does not show the group.

    The group may have the host's name, while we see only what is below it: such folders do not exist, and reading
    them gives nothing.
    """
    inside = PurePosixPath()
    if ".." in mount.shows.parts and ".." not in group.parts:
        # A namespace without a mount of its own: the mount shows the tree above us, but only how deep in it we are.
        depth = mount.shows.parts.count("..") + len(group.parts) - 1
        inside = _where(mount.place, depth, pid)
    elif ".." not in group.parts and group.is_relative_to(mount.shows):
        inside = group.relative_to(mount.shows)
    for part in (inside, *inside.parents):
        yield mount.place / part, _name(PurePosixPath("/", part))


def _name(group: PurePosixPath) -> str:
    """For messages: orchestrators create long paths, and names may contain anything."""
    whole = printable(group)
    return whole if len(whole) <= MAX_NAME_CHARACTERS else f"…/{printable(group.name, MAX_NAME_CHARACTERS)}"


def _where(place: Path, depth: int, pid: int) -> PurePosixPath:
    """The group at this depth below ``place`` that contains the process; ``place`` itself if it is not found."""
    level = [place]
    for _ in range(depth):
        level = [child for folder in level for child in _children(folder)][:MAX_GROUPS]
    found = (each for each in level if str(pid) in (_read(each / "cgroup.procs") or "").split())
    return PurePosixPath(next(found, place).relative_to(place))


def _children(folder: Path) -> list[Path]:
    try:
        return [child for child in folder.iterdir() if child.is_dir()]
    except OSError:
        return []


def _memberships(text: str) -> Iterator[tuple[str, str, str]]:
    for line in text.splitlines():
        if line.count(":") >= 2:
            number, controllers, path = line.split(":", 2)
            yield number, controllers, path.removesuffix(" (deleted)")


def _mounts(mountinfo: str) -> list[_Mount]:
    """Every hierarchy that this process sees, from mountinfo."""
    found: dict[Path, _Mount] = {}  # by place: of several at one, the last covers the others
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 5 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        shows, place = (_ESCAPED.sub(lambda found: chr(int(found[1], 8)), text) for text in left[3:5])
        controllers = frozenset(right[2].split(",")) if right[0] == "cgroup" else frozenset()
        found[Path(place)] = _Mount(Path(place), PurePosixPath(shows), controllers, right[0] == "cgroup2")
    return list(found.values())


def _usual_mounts(controller: str, root: Path) -> list[_Mount]:
    """The paths at which distributions mount them."""
    return [
        _Mount(root, PurePosixPath("/"), frozenset(), True),
        _Mount(root / controller, PurePosixPath("/"), frozenset({controller}), False),
    ]


def numbers(text: str) -> frozenset[int]:
    """``0-3,8`` as numbers; empty for anything that is not such a list."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        match = _RANGE.fullmatch(part.strip())
        if match is None or not int(match[1]) <= int(match[2] or match[1]) < MAX_NUMBERS:
            return frozenset()
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files. Version 1 has the sum over child groups under ``total_``."""
    stat = _stat(folder / "memory.stat")
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in RECLAIMABLE)


def _stat(path: Path) -> dict[str, int]:
    """A file of ``name number`` lines."""
    lines = (line.split() for line in (_read(path) or "").splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def _number(*paths: Path) -> int | None:
    """The number in the first of these files that has one."""
    texts = (_read(path) for path in paths)
    return next((int(text) for text in texts if text is not None and text.isdigit()), None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
