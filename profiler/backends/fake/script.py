"""What the fake model costs, how large it is, and what goes wrong: the ``fake`` section of a config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from profiler.backends.fake.fault import FAULTS, PHASES, Fault
from profiler.errors import ProfileError
from profiler.foreign import json_value
from profiler.units import printable

MIB = 1024**2
OTHERWISE = "PROFILER_FAKE"  # fields of the script as JSON, so that one of two processes may do otherwise


@dataclass(frozen=True, slots=True)
class Script:
    """Costs in virtual seconds, sizes in virtual bytes; the figures of a small model on a small machine."""

    load_s: float = 1.0
    prefill_s_per_token: float = 1e-4  # of every sequence
    step_s: float = 0.01  # one decode step of the whole batch
    step_s_per_cached_token: float = 0.0  # and what it grows by with depth, of every sequence
    noise: float = 0.0  # relative standard deviation of a phase, seeded by the case
    idle_w: float | None = None  # virtual watts; None: nothing tells the energy
    prefill_w: float = 200.0  # while it computes
    decode_w: float = 100.0
    path: Mapping[str, Any] | None = None  # what became of ``--path``: fields of ``DecodePath``
    pause_s: float = 0.0  # real seconds slept in each prefill and step, to have something to interrupt
    weights_bytes: int = 1024 * MIB
    load_extra_bytes: int = 0  # held beside the weights while they are loaded
    unquantized_bytes: int = 0
    cache_bytes_per_token: int = 16 * 1024
    window: int | None = None  # tokens after which the cache stops growing
    activation_bytes_per_token: int = 64 * 1024  # of every sequence, while a prefill chunk runs
    capacity_bytes: int | None = None  # the process may not hold more
    oom_above_tokens: int | None = None  # batch × context
    faults: tuple[Fault, ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Script:
        """The script in a config; defaults where there is none. Raises ProfileError for what it does not know."""
        try:
            fields = dict(config.get("fake") or {}) | json_value(os.environ.get(OTHERWISE) or "{}")
            faults = tuple(Fault(**fault) for fault in fields.pop("faults", ()))
            script = cls(**fields, faults=faults)
        except (TypeError, ValueError) as error:
            raise ProfileError(f"the config's 'fake' section is not a script: {printable(error)}") from None
        for fault in faults:
            if fault.kind not in FAULTS:
                raise ProfileError(f"unknown fault {printable(fault.kind)}", f"Known: {', '.join(FAULTS)}.")
            if fault.when not in PHASES:
                raise ProfileError(f"unknown phase {printable(fault.when)}", f"Known: {', '.join(PHASES)}.")
        return script
