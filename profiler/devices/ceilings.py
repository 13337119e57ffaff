"""What a device of this machine was measured to do, kept in a file under the device's fingerprint.

Rates are the best of several kernels and thread counts, so that no real program beats them: a fraction above 1 of
such a ceiling is a bug of ours. Curves are what PyTorch's own products reach by format and number of tokens.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from profiler.case import digest
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError

SCHEMA = 1
PACKAGES = ("torch", "bitsandbytes")  # whose kernels were measured


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second, FLOP per second, seconds. ``None`` where there is no such thing."""

    title: str
    fingerprint: str
    measured_at: str
    seconds: float  # that measuring took
    read_bytes_s: float  # streaming, best kernel and thread count
    copy_bytes_s: float  # read and written bytes together
    call_s: float  # one small operator, called from Python
    graph_call_s: float | None  # one small kernel inside a CUDA graph
    flops: Mapping[str, float] = field(default_factory=dict)  # matrix products, by dtype
    curves: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Seconds per stored byte of a linear layer's weight, by format and by tokens in the pass (as text)."""
    how: Mapping[str, str] = field(default_factory=dict)  # kernel and threads behind a figure

    @cached_property
    def points(self) -> Mapping[str, list[tuple[float, float]]]:
        """Curves in logarithms, sorted: (log tokens, log seconds per byte)."""
        return {
            scheme: sorted((math.log(int(tokens)), math.log(seconds)) for tokens, seconds in curve.items())
            for scheme, curve in self.curves.items()
        }

    def byte_s(self, scheme: str, tokens: float) -> float | None:
        """Seconds per stored byte of a weight in a pass of ``tokens`` tokens; straight between points in logarithms.

        Beyond the last point in proportion to tokens: by then arithmetic binds. ``None`` for a format not measured.
        """
        points = self.points.get(scheme)
        if not points:
            return None
        at = math.log(max(tokens, 1.0))
        last_tokens, last = points[-1]
        if at >= last_tokens:
            return math.exp(last + at - last_tokens)
        for (left, low), (right, high) in pairwise(points):
            if at <= right:
                return math.exp(low + (high - low) * max(0.0, at - left) / (right - left))
        return math.exp(last)


def fingerprint(device: DeviceInfo) -> str:
    """Changes when the device, its driver, the cores this process may use or the measured packages do."""
    packages = [_version(name) for name in PACKAGES]
    return digest(
        [device.kind, device.title, device.cores, sorted(device.features), device.uuid, device.driver, packages]
    )


def folder() -> Path:
    """Beside the results: in the folder of ``$PROFILER_STORE``, else in the user data folder."""
    named = os.environ.get("PROFILER_STORE")
    if named:
        return Path(named).expanduser().parent / "ceilings"
    from platformdirs import user_data_path

    return user_data_path("profile", appauthor=False) / "ceilings"


def load(device: DeviceInfo) -> Ceilings | None:
    """What was measured of ``device``; ``None`` if nothing was, or if something about it has changed since."""
    mark = fingerprint(device)
    try:
        content = json.loads((folder() / f"{mark}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return parse(content) if isinstance(content, dict) and content.get("fingerprint") == mark else None


def save(ceilings: Ceilings) -> Path:
    """Keep it. ProfileError if the folder cannot be written."""
    path = folder() / f"{ceilings.fingerprint}.json"
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"schema": SCHEMA} | asdict(ceilings), indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ProfileError(
            f"cannot keep the ceilings: {error.strerror}", "PROFILER_STORE names another folder."
        ) from None
    return path


def parse(content: Mapping[str, Any]) -> Ceilings | None:
    """A stored file; ``None`` if a newer or older profiler wrote it, or a figure is no positive number."""
    known = {name: value for name, value in content.items() if name != "schema"}
    if content.get("schema") != SCHEMA or set(known) != set(Ceilings.__dataclass_fields__):
        return None
    numbers = [known[name] for name in ("read_bytes_s", "copy_bytes_s", "call_s", "seconds")]
    numbers += [*known["flops"].values(), *(value for curve in known["curves"].values() for value in curve.values())]
    if not all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in numbers):
        return None
    return Ceilings(**known)


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and only local devices need it

    try:
        return version(name)
    except PackageNotFoundError:
        return ""
