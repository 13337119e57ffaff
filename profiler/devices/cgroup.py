"""The control groups this process lies in, version 2 and 1: what they allow, and what is left of it.

A limit of any group on the way up holds. In a container the path in ``/proc/self/cgroup`` may be the host's while the
mount shows our own group as its root; folders that are not there are passed over, and the root is always looked at.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED_V1 = 1 << 62  # version 1 writes a number near 2^63 for "no limit"
RECLAIMABLE = ("inactive_file", "active_file")  # the cache of files, which the kernel drops before it runs short


def folders(controller: str) -> list[Path]:
    """Where the files of a controller may be: our own group, then each it lies in, up to the root."""
    found = []
    for line in (_read(MEMBERSHIP) or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount = ROOT
        elif controller in controllers.split(","):
            mount = ROOT / controller
        else:
            continue
        group = PurePosixPath(path.strip("/"))
        if ".." in group.parts:  # outside of what this namespace shows
            group = PurePosixPath()
        found += [mount / part for part in (group, *group.parents)]
    return found or [ROOT, ROOT / controller]


def memory() -> tuple[int | None, int | None]:
    """Bytes that are allowed, and bytes that are still free of them; None without a limit.

    Pages of files count as used by a group, but they make room when it is needed, so they count as free here.
    """
    allowed, free = [], []
    for folder in folders("memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or limit > UNLIMITED_V1:
            continue
        allowed.append(limit)
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if used is not None:
            free.append(max(0, limit - used + _reclaimable(folder)))
    return min(allowed, default=None), min(free, default=None)


def cores() -> float | None:
    """Cores' worth of CPU time that is allowed; None without a limit."""
    allowed = []
    for folder in folders("cpu"):
        quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        quota = quota or _read(folder / "cpu.cfs_quota_us") or ""
        period = period or _read(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit():
            allowed.append(int(quota) / int(period))
    return min(allowed, default=None)


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files. Version 1 has the sum over the groups inside under ``total_``."""
    lines = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    stat = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in RECLAIMABLE)


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
