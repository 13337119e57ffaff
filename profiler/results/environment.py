"""What a row was measured on: hardware, software and settings that change speed or memory, and nothing else.

Everything here is named one by one. The environment of the process is never dumped: it holds tokens.
No torch is imported: versions come from installed metadata.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import profiler
from profiler.case import digest
from profiler.devices.base import DeviceInfo

LIBRARIES = ("llm-hwprofile", "torch", "transformers", "bitsandbytes", "nvidia-ml-py", "triton")
SETTINGS = (  # environment variables that change how fast the same code runs
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_DYNAMIC",
    "KMP_BLOCKTIME",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
    "MKL_DYNAMIC",
    "OPENBLAS_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "MALLOC_ARENA_MAX",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "CUDA_DEVICE_MAX_CONNECTIONS",
)
SETTING_LENGTH = 200  # characters kept of one: a longer value is no setting we know
COMMAND_TIMEOUT_S = 2
UNLIMITED_V1 = 1 << 62  # control groups version 1 write a number near 2^63 for "no limit"


def snapshot(device: DeviceInfo) -> dict[str, Any]:
    """Plain JSON content that describes the machine now. Bytes, watts and cores; unknown is None."""
    return {
        "cpu": {"title": _cpu_title(), "cores": len(os.sched_getaffinity(0))},
        "memory_bytes": _memory_bytes(),
        "limits": limits(),
        "device": {
            "name": device.name,
            "kind": device.kind,
            "title": device.title,
            "memory_bytes": device.memory_bytes,
            "free_bytes": device.free_bytes,
            "features": list(device.features),
            "uuid_hash": None if device.uuid is None else digest(device.uuid),
            "driver": device.driver,
            "power_limit_w": None if device.uuid is None else _power_limit_w(device.uuid),
        },
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "settings": {name: os.environ[name][:SETTING_LENGTH] for name in SETTINGS if name in os.environ},
        "source": _source(Path(profiler.__file__).parents[1]),
    }


def environment_key(content: dict[str, Any]) -> str:
    """Equal for snapshots between which speed is the same: a new driver, library, limit or setting changes it.

    Amounts of memory and the state of the checkout are no part of it. A GPU counts by its UUID: of two equal cards
    one may be the slower.
    """
    ignored = ("name", "memory_bytes", "free_bytes")
    device = {name: value for name, value in content.get("device", {}).items() if name not in ignored}
    parts = [content.get(name) for name in ("cpu", "system", "python", "libraries", "settings")]
    return digest([device, content.get("limits", {}).get("cores"), *parts])


def limits(root: Path = Path("/sys/fs/cgroup")) -> dict[str, float | None]:
    """What the control group allows: bytes of memory and cores' worth of CPU time; None where it sets no limit."""
    memory = _read(root / "memory.max") or _read(root / "memory/memory.limit_in_bytes")
    quota, period = (_read(root / "cpu.max") or "").split() or ("", "")
    if not quota:
        quota = _read(root / "cpu/cpu.cfs_quota_us") or ""
        period = _read(root / "cpu/cpu.cfs_period_us") or ""
    memory_bytes = int(memory) if memory and memory.isdigit() else None
    return {
        "memory_bytes": None if memory_bytes is None or memory_bytes > UNLIMITED_V1 else memory_bytes,
        "cores": int(quota) / int(period) if quota.isdigit() and period.isdigit() else None,
    }


def _cpu_title() -> str | None:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or None


def _memory_bytes() -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB$", _read(Path("/proc/meminfo")) or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _version(name: str) -> str | None:
    """Version of an installed distribution; of torch with its local part (``+cu130``), which metadata may lack."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    if name != "torch":
        return distribution.version
    source = _read(Path(str(distribution.locate_file("torch/version.py")))) or ""
    found = re.search(r"^__version__ = '([^']+)'", source, re.MULTILINE)
    return found[1] if found else distribution.version


def _power_limit_w(uuid: str) -> float | None:
    """The enforced power limit of a GPU, or None where NVML or the board does not tell."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            return float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _source(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout the profiler runs from, and whether it was changed; None for an installed copy."""
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changed is None else bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
