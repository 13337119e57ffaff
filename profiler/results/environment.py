"""What a row was measured on (hardware, software and settings that matter), and how two such environments differ.

Everything here is chosen. The environment of the process is never dumped: it holds tokens (see ``settings``).
No torch is imported: versions come from installed metadata.

**Settings** are the environment variables that change how fast the same code runs. One list for both, so that nothing
reaches a worker unrecorded. Paths, places and what only says which card is meant (the row has its UUID) are no part
of it; nor is anything whose name sounds like a secret.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import profiler
from profiler import git
from profiler.case import digest
from profiler.devices import allowance, cgroup
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.results.redact import redact_json
from profiler.units import GIB, UNKNOWN, printable

PREFIXES = (
    "ATEN|BITSANDBYTES|BNB|CUBLAS|CUDA|CUDNN|DNNL|GOMP|HIP|HSA|KMP|MALLOC|MKL|NCCL|NVIDIA|OMP|ONEDNN|OPENBLAS|PYTORCH"
    "|ROCM|ROCR|TORCH|TRITON"
)
SPEED = re.compile(
    f"GLIBC_TUNABLES|LD_LIBRARY_PATH|LD_PRELOAD|({PREFIXES})_.*|TORCHINDUCTOR.*"
    "|TRANSFORMERS_(SDPA|DISABLE)_.*"
    "|PYTHON(DEVMODE|MALLOC|TRACEMALLOC|_CPU_COUNT|_GIL|_JIT)"
)
NEUTRAL = re.compile(
    ".*_(CACHE_DIR|CACHE_PATH|HOME|ROOT)|(CUDA|CUDNN|NCCL|ROCM)_(PATH|VERSION)"
    "|(CUDA|HIP|ROCR|NVIDIA)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER"
    "|NVIDIA_(DRIVER_CAPABILITIES|PRODUCT_NAME|REQUIRE_.*)"
)
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(GIB // 32), "MALLOC_TRIM_THRESHOLD_": str(1024 * GIB)}
HEAP_SETTINGS = re.compile("GLIBC_TUNABLES|LD_PRELOAD|MALLOC_.*")
LENGTH = 200  # characters kept of a value; a longer one is told from others by a hash

LIBRARIES = (  # what runs a model, and what transformers and bitsandbytes take instead of their own where it is there
    *("llm-hwprofile", "torch", "transformers", "bitsandbytes", "nvidia-ml-py", "triton", "cuda-bindings"),
    *("accelerate", "safetensors", "gguf", "peft"),  # what loads weights
    *("kernels", "flash-attn", "flash-attn-4", "flash-linear-attention", "fla-core", "causal-conv1d", "tilelang"),
    *("autoawq", "gptqmodel", "optimum", "compressed-tensors", "auto-round", "torchao", "hqq", "optimum-quanto"),
    *("fbgemm-gpu-genai", "liger-kernel", "deepspeed", "intel-extension-for-pytorch", "nvidia-cudnn-cu13"),
)
COMMAND_TIMEOUT_S = 2
CODE = ("profiler", "kernels", "scenarios")  # what of a checkout runs
LINK, SHA1_DIGITS = "120000", 40  # of git: a mode, and the length of a name in a repository that uses SHA-1
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")  # absent where the host sets the clocks

VALUE_LENGTH = 60  # characters of one value
NAMES = {  # what a person calls it, where "cpu governor" is not good enough
    "cpu title": "CPU",
    "cpu cores": "cores",
    "device title": "device",
    "device uuid_hash": "card",
    "device power_limit_w": "power limit in W",
    "limits cores": "cores' worth of CPU time allowed",
    "limits cpus": "physical cores, caches and speeds of the CPUs allowed",
    "python": "Python",
}
PARTS = ("cpu", "device")
OF_NO_WEIGHT = ("name", "memory_bytes", "free_bytes")  # of a device
ALONE = ("system", "virtual", "python")
NAMED = ("libraries", "settings")  # each name in them stands for itself


def is_secret(name: str) -> bool:
    """Whether a variable of this name may open somebody's account."""
    return any(word in name.upper() for word in SECRET)


def heap(environ: Mapping[str, str]) -> dict[str, str]:
    """What glibc's heap is set to in a worker, unless the user has set it up.

    Blocks of 32 MiB are mapped anew each time, as in any process; smaller ones come from memory that stays. Left to
    itself, glibc raises that threshold, and returns memory, by what was freed before: one step of Gemma 3 270M in nf4
    took between 0 and 55,000 page faults, and up to 455 ms of system time in a step of 585.
    """
    return {} if any(HEAP_SETTINGS.fullmatch(name) for name in environ) else dict(HEAP)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Names and values of what changes speed in a worker that is started from here."""
    given = heap(environ) | dict(environ)
    return {name: _bounded(value) for name, value in sorted(given.items()) if _is_recorded(name)}


def _is_recorded(name: str) -> bool:
    return bool(SPEED.fullmatch(name)) and not NEUTRAL.fullmatch(name) and not is_secret(name)


def _bounded(value: str) -> str:
    return value if len(value) <= LENGTH else f"{value[:LENGTH]}… {digest(value)}"


def snapshot(device: DeviceInfo, versions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Plain JSON content that describes the machine now. Bytes, watts and cores; unknown is None. No secrets.

    ``versions`` of what the backend runs beside the libraries (``Backend.versions``).
    """
    content: dict[str, Any] = redact_json(_content(device))
    content["libraries"] |= redact_json(dict(versions or {}))
    return content


def _content(device: DeviceInfo) -> dict[str, Any]:
    return {
        "cpu": {
            "title": _cpu_title(),
            "cores": len(allowance.usable_cpus()),  # that this process may use
            "cores_installed": os.cpu_count(),
            "governor": _read(GOVERNOR),
        },
        "memory_bytes": _meminfo("MemTotal"),
        "swap_bytes": _meminfo("SwapTotal"),
        "virtual": _is_virtual(),
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
            **({} if device.slice is None else {"slice": asdict(device.slice)}),
        },
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "settings": settings(os.environ),
        "source": _source(Path(profiler.__file__).parents[1]),
    }


def environment_key(content: dict[str, Any]) -> str:
    """Equal for snapshots between which speed is the same: a new driver, library, limit or setting changes it.

    Amounts of memory and the state of the checkout are no part of it. A GPU counts by its UUID: of two equal cards
    one may be the slower.
    """
    ignored = ("name", "memory_bytes", "free_bytes")
    device = {name: value for name, value in content.get("device", {}).items() if name not in ignored}
    parts = [content.get(name) for name in ("cpu", "system", "virtual", "python", "settings")]
    installed = {name: version for name, version in content.get("libraries", {}).items() if version is not None}
    parts.append(installed)  # so that a library which is recorded from now on does not make every row a stranger
    limits = content.get("limits", {})
    confined = [limits["cpus"]] if limits.get("cpus") else []  # rows from before it was recorded keep their key
    return digest([device, limits.get("cores"), *parts, *confined])


def limits() -> dict[str, Any]:
    """What this process may use: bytes of memory and cores' worth of CPU time that control groups allow, threads that
    a worker takes by itself and physical cores, and which CPUs these are; None where there is no limit.
    """
    found = allowance.find()
    return {
        "memory_bytes": None if found.memory_limit is None else found.memory_limit.nbytes,
        "cores": cgroup.cores(),
        "threads": found.threads,
        "physical": found.physical,
        "cpus": None if found.confined is None else list(found.confined),
    }


def _cpu_title() -> str | None:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or None


def _meminfo(field: str) -> int | None:
    found = re.search(rf"^{field}:\s*(\d+) kB$", _read(Path("/proc/meminfo")) or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _is_virtual() -> bool | None:
    """Whether a hypervisor shares this machine's cores out: then time can be stolen. Only x86 says so."""
    flags = re.search(r"^flags\s*:(.*)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return "hypervisor" in flags[1].split() if flags else None


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
    """Commit of the checkout the profiler runs from, and whether the code that runs is another; None for an installed
    copy.

    The files are compared here: ``git status`` would run the filters that the repository names.
    """
    if not (root / ".git").exists():
        return None
    try:
        commit = git.output(root, "rev-parse", "--verify", "HEAD", wait_s=COMMAND_TIMEOUT_S)
        names = ("--", *CODE)
        listed = commit and git.output(root, "ls-tree", "-r", "-z", "HEAD", *names, wait_s=COMMAND_TIMEOUT_S)
    except ProfileError:  # another user's repository
        return {"commit": None, "changed": None}
    return {
        "commit": commit.decode().strip() if commit else None,
        "changed": any(_differs(root, entry) for entry in listed.split(b"\0")[:-1]) if listed else None,
    }


def _differs(root: Path, entry: bytes) -> bool:
    """Whether a file is another than its entry in the tree of the commit says."""
    fields, _, name = entry.partition(b"\t")
    mode, kind, stored = fields.decode().split()
    if kind != "blob":  # a submodule, whose code is in another repository
        return False
    path = root / os.fsdecode(name)
    try:
        content = os.fsencode(os.readlink(path)) if mode == LINK else path.read_bytes()
    except OSError:
        return True
    digest_of = hashlib.sha1 if len(stored) == SHA1_DIGITS else hashlib.sha256
    return digest_of(b"blob %d\0" % len(content) + content).hexdigest() != stored


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """``torch 2.12.0 → 2.13.0`` for everything between ``a`` and ``b`` that may change speed; empty for equals."""
    left, right = dict(_flat(a)), dict(_flat(b))
    return [
        f"{printable(NAMES.get(name, name), VALUE_LENGTH)} {_text(left.get(name))} → {_text(right.get(name))}"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _flat(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in PARTS:
        yield from ((f"{part} {name}", value) for name, value in _part(environment, part) if name not in OF_NO_WEIGHT)
    limits = dict(_part(environment, "limits"))
    yield from ((f"limits {name}", limits.get(name)) for name in ("cores", "cpus"))
    yield from ((name, environment.get(name)) for name in ALONE)
    for part in NAMED:
        yield from _part(environment, part)


def _part(environment: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    content = environment.get(name)
    return list(content.items()) if isinstance(content, Mapping) else []


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return UNKNOWN if value is None else printable(value, VALUE_LENGTH)
