"""What came between a phase and its machine while it was measured, as cautions: other work, swap, the allocator.

What the repetitions show by themselves (drift, spread, too few of them) is derived when a row is read:
``results/cautions.py``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from profiler.devices.base import Overview, Pressure
from profiler.measure.phase import Measured
from profiler.results.measurement import Caution, Phase, Sample
from profiler.units import bytes_text, seconds_text

MAX_WAIT = 0.1  # share of the wanted CPU time that a process may miss before its figure is another program's as well
MIN_BLAME = 0.5  # of a wait that others must have worked: threads of one process wait for each other as well
MAX_STALLED = 0.25  # share of the time in which others may wait for a core: they then run on all that we leave them
MAX_STOLEN = 0.02  # of all cores: a hypervisor that takes this much takes more when its other guests wake
SOME_THROTTLED = 0.02  # of the time: now and then a period is used up by a thread that does nothing for the phase
PERIODS_TO_AVERAGE = 5  # in a repetition, which may begin with all of a period's time or with none
SOME_SWAP = 16 * 1024**2  # bytes: less is what any program has that started long ago
ONE_OTHER = "another process computes"  # a gate knows this one: it is the other side's
QUIETER = "--fresh on a quieter machine"
SMALLER = "a smaller -q, -c or -b"


def disturbances(phase: Phase, measured: Measured, cores: int) -> list[Caution]:
    """Cautions about one phase on a machine of so many ``cores``."""
    before, after = measured.before, measured.after
    found = [
        Caution(f"{phase}-cpu-pressure", text, QUIETER)
        for text in _pressure(phase, [s for s in measured.samples if not s.warmup], before, after, cores)
    ]
    throttled = _throttled(phase, measured)
    if throttled:
        found.append(Caution(f"{phase}-throttled", throttled, "a larger CPU quota"))
    swapped = _swapped(phase, before, after)
    if swapped:
        found.append(Caution(f"{phase}-swap", swapped, SMALLER))
    retries = _grown(before.retries, after.retries)
    if retries:
        text = f"{phase}: the allocator gave memory back {retries:.0f} times to go on, which takes long"
        found.append(Caution(f"{phase}-allocator-retries", text, SMALLER))
    return found


def company(seen: Overview, device: str) -> list[Caution]:
    """Cautions about who else was on the device, and about what nobody could see."""
    found = []
    if seen.others:
        many = ONE_OTHER if seen.others == 1 else f"{seen.others} other processes compute"
        found.append(Caution("other-processes", f"{many} on {device}", f"--fresh when {device} is free"))
    if seen.blind is not None:
        text = f"a slowdown of {device} would have gone unseen: {seen.blind}"
        found.append(Caution("unwatched", text))
    return found


def _pressure(phase: Phase, samples: Sequence[Sample], before: Pressure, after: Pressure, cores: int) -> list[str]:
    """Other work on the cores, told once: as what this process missed, else as what others did."""
    wall = after.at_s - before.at_s
    stood = _grown(before.throttled_s, after.throttled_s) or 0.0  # for the quota, which is nobody else's work
    waited = max(0.0, sum(sample.wait_s or 0 for sample in samples) - stood)
    wanted = waited + sum(sample.cpu_s or 0 for sample in samples)
    others = _others(before, after)
    if wanted and waited / wanted > MAX_WAIT and others >= waited * MIN_BLAME:
        return [f"{phase}: other work held the CPU for {waited / wanted:.0%} of the time this process wanted it"]
    stolen = _grown(before.stolen_s, after.stolen_s)
    if wall > 0 and stolen is not None and stolen / (wall * cores) > MAX_STOLEN:
        return [f"{phase}: the hypervisor took {stolen / (wall * cores):.0%} of the cores' time for other guests"]
    stalled = _grown(before.stalled_s, after.stalled_s)
    stalled = None if stalled is None else max(0.0, stalled - stood)
    if wall > 0 and stalled is not None and stalled / wall > MAX_STALLED and others >= stalled * MIN_BLAME:
        return [f"{phase}: other programs waited for a core {stalled / wall:.0%} of the time, so all cores were busy"]
    return []


def _throttled(phase: Phase, measured: Measured) -> str | None:
    """That a CPU quota was used up, so that the process stood still for the rest of the period."""
    before, after = measured.before, measured.after
    periods, used_up = _grown(before.periods, after.periods), _grown(before.throttled, after.throttled)
    stood, wall = _grown(before.throttled_s, after.throttled_s), after.at_s - before.at_s
    if stood is None or wall <= 0 or stood / wall < SOME_THROTTLED:
        return None
    if not periods or not used_up:
        what = f"cores stood still for {seconds_text(stood)} of {seconds_text(wall)}"
        return f"{phase}: a CPU quota that cannot be seen from here held this process up: {what}"
    text = f"{phase}: the CPU quota was used up in {used_up:.0f} of {periods:.0f} periods"
    seconds = [sample.seconds for sample in measured.samples if not sample.warmup]
    if seconds and after.period_s is not None and statistics.median(seconds) < PERIODS_TO_AVERAGE * after.period_s:
        many = seconds_text(after.period_s)
        text += f"; repetitions are not much longer than a period ({many}), so a long run may be slower"
    return text


def _others(before: Pressure, after: Pressure) -> float:
    """Seconds that cores worked for other programs; endless where nobody counts."""
    busy, own = _grown(before.busy_s, after.busy_s), _grown(before.own_s, after.own_s)
    return math.inf if busy is None or own is None else max(0.0, busy - own)


def _swapped(phase: Phase, before: Pressure, after: Pressure) -> str | None:
    read = _grown(before.swapped_in_bytes, after.swapped_in_bytes) or 0
    out = max(before.swapped_bytes or 0, after.swapped_bytes or 0)
    if out and read >= SOME_SWAP:
        return f"{phase}: {bytes_text(read)} were read back from swap while it ran"
    return f"{phase}: {bytes_text(out)} of this process lie in swap" if out >= SOME_SWAP else None


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)
