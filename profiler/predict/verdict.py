"""Whether a case fits: fits · tight · offload · no, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profiler.predict.engines.base import Terms
from profiler.predict.machine import Machine
from profiler.units import GIB, bytes_text

Word = Literal["fits", "tight", "offload", "no"]
TIGHT_SHARE, TIGHT_BYTES = 0.05, 512 * 1024**2  # less headroom than either of these is tight
RAM_RESERVE = 2 * GIB  # the system's own


@dataclass(frozen=True, slots=True)
class Verdict:
    """``headroom_bytes`` are left on the device at the peak; negative: missing. ``reason`` in words."""

    word: Word
    headroom_bytes: int
    usable_bytes: int
    reason: str
    offloaded_bytes: int = 0  # of weights, in the host's memory


def judge(terms: Terms, machine: Machine) -> Verdict:
    """The verdict on what the fullest device has to hold.

    By the value of the peak; where only its upper bound does not fit, that is tight.
    """
    usable = machine.usable_bytes
    peak = terms.peak
    shared = round(terms.host.value) if machine.target.unified else 0
    needed = round(peak.value) + shared
    headroom = usable - needed
    limit = machine.target.memory_limit
    bound = "" if limit is None else f" of the {bytes_text(usable)} that {limit} allows"
    if headroom >= 0:
        close = headroom < max(TIGHT_SHARE * usable, TIGHT_BYTES) or peak.high + shared > usable
        sure = "" if peak.high + shared <= usable else f", but it may take {bytes_text(peak.high + shared)}"
        return Verdict("tight" if close else "fits", headroom, usable, f"{bytes_text(headroom)} left{bound}{sure}")
    missing = f"{bytes_text(-headroom)} missing{bound and f': {limit} allows {bytes_text(usable)}'}"
    room = machine.ram_bytes - RAM_RESERVE - round(terms.host.value) if machine.ram_bytes is not None else 0
    offloaded = -headroom * machine.target.count
    movable = terms.weights.value * machine.target.count
    if machine.target.unified or offloaded > room or offloaded > movable:
        return Verdict("no", headroom, usable, missing)
    return Verdict("offload", headroom, usable, f"{bytes_text(offloaded)} of weights in host memory", offloaded)
