"""How much two equal sides differ here: the standard deviation s of an A/A pair, and what a gate can tell at that
noise.

Six pairs of the base against itself. The figure is kept for a week for the same cell on the same machine and
software.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler import files, folders
from profiler.case import digest
from profiler.errors import ProfileError
from profiler.foreign import read_json
from profiler.gate.series import RESTART
from profiler.results.measurement import Phase

PAIRS = 6
KEPT_S = 7 * 24 * 3600.0  # a week: kernels, drivers and neighbours change without a fingerprint showing it


@dataclass(frozen=True, slots=True)
class Noise:
    """Of one metric of one cell."""

    sd: float  # of ln(B ÷ A) between equal sides
    pairs: int
    measured_at: float  # Unix time


def noise(logs: Sequence[float], now: float) -> Noise:
    """Of at least two A/A pairs. The mean is known to be 0, but a wrong one would hide there: it is estimated too."""
    return Noise(statistics.stdev(logs), len(logs), now)


class Calibrations:
    """Kept noise, a small file for each cell; a file that cannot be read or written is as good as none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, key: str, now: float | None = None) -> dict[Phase, Noise] | None:
        """What was measured within the last week under ``key``."""
        path = self._path(key)
        if path is None:
            return None
        now = time.time() if now is None else now
        try:
            content = read_json(path)
            found: dict[Phase, Noise] = {name: Noise(**values) for name, values in content.items()}
            good = all(
                name in ("prefill", "decode")
                and math.isfinite(each.sd)
                and each.sd >= 0
                and 0 <= now - each.measured_at < KEPT_S
                for name, each in found.items()
            )
        except (ProfileError, ValueError, TypeError, AttributeError):
            return None
        return found if good and found else None

    def keep(self, key: str, found: Mapping[Phase, Noise]) -> None:
        """For the next gate."""
        path = self._path(key)
        if path is None:
            return
        content = {name: {"sd": n.sd, "pairs": n.pairs, "measured_at": n.measured_at} for name, n in found.items()}
        with suppress(OSError, ProfileError):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, json.dumps(content))

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{key}.json"


def key_of(case_key: str, environment_key: str, base: Mapping[str, Any], effort: Mapping[str, Any]) -> str:
    """Under what noise is kept: another case, machine, base or way of measuring has another."""
    return digest([case_key, environment_key, dict(base), dict(effort), RESTART, PAIRS])


def default_folder() -> Path:
    """In the user's cache folder, which may be deleted at any time."""
    return folders.cache("gate")
