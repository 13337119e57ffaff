"""The environment of a row (hardware, software and relevant settings), and the differences between two of them.

Every entry is chosen. The process environment is never dumped, because it contains tokens (see ``settings``).
No torch is imported: versions come from installed metadata.

**Settings** are the environment variables that change how fast the same code runs. One list decides both what is
recorded and what a worker gets, so nothing reaches a worker unrecorded. Paths, and variables that only select a card
(the row has its UUID), are excluded, and so is everything whose name looks like a secret.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import profiler
from profiler import git
from profiler.case import digest
from profiler.devices import allowance, cgroup, nvml
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
LENGTH = 200  # characters kept of a value; a hash distinguishes longer ones

LIBRARIES = (  # what runs a model, and packages that transformers and bitsandbytes use if they are installed
    *("llm-hwprofile", "torch", "transformers", "bitsandbytes", "nvidia-ml-py", "triton", "cuda-bindings"),
    *("accelerate", "safetensors", "gguf", "peft"),  # what loads weights
    *("kernels", "flash-attn", "flash-attn-4", "flash-linear-attention", "fla-core", "causal-conv1d", "tilelang"),
    *("autoawq", "gptqmodel", "optimum", "compressed-tensors", "auto-round", "torchao", "hqq", "optimum-quanto"),
    *("fbgemm-gpu-genai", "liger-kernel", "deepspeed", "intel-extension-for-pytorch", "nvidia-cudnn-cu13"),
)
COMMAND_TIMEOUT_S = 2
CODE = ("profiler", "kernels", "scenarios")  # the parts of a checkout that run
LINK, SHA1_DIGITS = "120000", 40  # git: the mode of a link, and the length of a SHA-1 name
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")  # absent if the host controls the clocks

VALUE_LENGTH = 60  # characters of one value
NAMES = {  # readable names, where "cpu governor" is not clear enough
    "cpu title": "CPU",
    "cpu cores": "cores",
    "device title": "device",
    "device uuid_hash": "card",
    "device power_limit_w": "power limit in W",
    "limits cores": "cores' worth of CPU time allowed",
    "limits cpus": "physical cores, caches and speeds of the CPUs allowed",
    "python": "Python",
}
PARTS = ("cpu", "device", "server")
REMOTE = "remote"  # the device of a server on another machine
NEUTRAL_FIELDS = ("name", "memory_bytes", "free_bytes")  # fields of a device that do not change speed
ALONE = ("system", "virtual", "python")
NAMED = ("libraries", "settings")  # each name in them is an entry of its own


def is_secret(name: str) -> bool:
    """Whether a variable of this name may contain a credential."""
    return any(word in name.upper() for word in SECRET)


def heap(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of glibc's heap in a worker, unless the user has set them.

    Blocks of 32 MiB are mapped anew each time, as in any process; smaller ones come from memory that is kept. By
    default glibc adapts that threshold, and returns memory, depending on what was freed before: one step of Gemma 3
    270M in nf4 took between 0 and 55,000 page faults, and up to 455 ms of system time in a step of 585.
    """
    return {} if any(HEAP_SETTINGS.fullmatch(name) for name in environ) else dict(HEAP)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Names and values of the variables that change speed in a worker started from here."""
    given = heap(environ) | dict(environ)
    return {name: _bounded(value) for name, value in sorted(given.items()) if _is_recorded(name)}


def _is_recorded(name: str) -> bool:
    return bool(SPEED.fullmatch(name)) and not NEUTRAL.fullmatch(name) and not is_secret(name)


def _bounded(value: str) -> str:
    return value if len(value) <= LENGTH else f"{value[:LENGTH]}… {digest(value)}"


def snapshot(device: DeviceInfo, versions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A JSON description of the machine now. Bytes, watts and cores; unknown is None. No secrets.

    ``versions``: of what the backend runs in addition to the libraries (``Backend.versions``).
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
            "power_limit_w": None if device.uuid is None else nvml.power_limit_w(device.uuid),
            **({} if device.slice is None else {"slice": asdict(device.slice)}),
        },
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "settings": settings(os.environ),
        "source": _source(Path(profiler.__file__).parents[1]),
    }


def of_server(device: DeviceInfo | None, host: str, kind: str, version: str | None) -> dict[str, Any]:
    """A description of a server's machine: of this one if the server runs here on ``device``, else its name alone.

    What runs this program says nothing about how fast a server is, and is left out.
    """
    here = {} if device is None else _content(device)
    content: dict[str, Any] = {
        name: here[name] for name in ("cpu", "memory_bytes", "swap_bytes", "virtual", "system") if name in here
    }
    content["device"] = here.get("device") or {"name": REMOTE, "kind": REMOTE, "title": f"the machine {host}"}
    content["server"] = {"kind": kind, "version": version}
    content["libraries"] = {LIBRARIES[0]: _version(LIBRARIES[0])}
    content["source"] = here["source"] if here else _source(Path(profiler.__file__).parents[1])
    clean: dict[str, Any] = redact_json(content)
    return clean


def environment_key(content: dict[str, Any]) -> str:
    """Equal for snapshots with equal speed: a new driver, library, limit or setting changes it.

    Memory sizes and the state of the checkout are not included. A GPU counts by its UUID, because one of two equal
    cards may be slower.
    """
    device = {name: value for name, value in content.get("device", {}).items() if name not in NEUTRAL_FIELDS}
    parts = [content.get(name) for name in ("cpu", "system", "virtual", "python", "settings")]
    installed = {name: version for name, version in content.get("libraries", {}).items() if version is not None}
    parts.append(installed)  # so that recording another library does not change the key of every row
    limits = content.get("limits", {})
    confined = [limits["cpus"]] if limits.get("cpus") else []  # rows from before it was recorded keep their key
    server = [content["server"]] if content.get("server") else []
    return digest([device, limits.get("cores"), *parts, *confined, *server])


def limits() -> dict[str, Any]:
    """What this process may use: memory in bytes and CPU time in cores as control groups allow, the default number of
    threads of a worker, physical cores, and which CPUs they are. None without a limit.
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
    """Whether the machine is virtual, so that a hypervisor can steal CPU time. Only x86 reports it."""
    flags = re.search(r"^flags\s*:(.*)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return "hypervisor" in flags[1].split() if flags else None


def _version(name: str) -> str | None:
    """Version of an installed distribution; for torch with the local part (``+cu130``), which metadata may lack."""
    from importlib import metadata  # slow to import, and readers of a store do without it

    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    if name != "torch":
        return distribution.version
    source = _read(Path(str(distribution.locate_file("torch/version.py")))) or ""
    found = re.search(r"^__version__ = '([^']+)'", source, re.MULTILINE)
    return found[1] if found else distribution.version


def _source(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the profiler runs from, and whether its code differs from that; None for an
    installed copy.

    The files are compared here, because ``git status`` would run filters that the repository configures.
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
    """Whether a file differs from its entry in the commit's tree."""
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
    """``torch 2.12.0 → 2.13.0`` for each difference between ``a`` and ``b`` that may change speed."""
    left, right = dict(_flat(a)), dict(_flat(b))
    return [
        f"{printable(NAMES.get(name, name), VALUE_LENGTH)} {_text(left.get(name))} → {_text(right.get(name))}"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _flat(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in PARTS:
        yield from (
            (f"{part} {name}", value) for name, value in _part(environment, part) if name not in NEUTRAL_FIELDS
        )
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
