"""The repetitions of a phase: how many there are, when they stop, and what disturbed them.

A phase warms up until it is steady and then repeats until its figure is precise.

**Warm-up.** Repetitions at full shape until the last five neither drift (Theil–Sen slope × 5 below 1% of the median)
nor spread (interquartile range below 2%), at most ``WARMUPS`` of them, and none starts once they have taken
``WARMUP_S`` seconds: a phase of five seconds or more gets the one that loads code, starts threads and touches memory,
and no more. On a machine with other work the spread never settles; then the caps end it, and the row says so. A
case that this process has measured before, as the blocks of a gate do, warms up for ``AGAIN_S`` at most: code and
memory are there.

**Repetitions.** ``-r N``: so many. Else until the 95% interval of the rate (``results.stats``) is within the
precision asked for, without process-to-process variation, which no repetition narrows. Looking after every repetition
makes the interval cover a little less than it says, and that neighbours count as alike where they look so by chance
makes it cover more: together 95 to 97% for independent noise of 0.5 to 8%, in 1200 simulated phases each. Either
way ``max_phase_s`` ends them earlier.

What the repetitions show by themselves (drift, spread, too few of them) is derived when a row is read:
``results/cautions.py``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from profiler.backends.base import Beat, Session
from profiler.devices.base import Meter, Overview, Pressure, Watcher
from profiler.results import stats
from profiler.results.measurement import Caution, Phase, Sample
from profiler.results.stats import summarize
from profiler.units import bytes_text, seconds_text

PRECISION = 0.02  # of the median: half of what a person would call a difference between two formats
FEWEST = 5  # repetitions before precision may end a phase: stopping at three would cover 91% instead of 95%
MOST = 20  # and at which it gives up: at the next step, 40, the interval is narrower by a third only
MAX_PHASE_S = 60.0

WARMUPS = 20
WARMUP_S = 5.0
AGAIN_S = 1.0
USUAL = 10  # repetitions that a precision of 2% takes where they spread by 2%; what a plan reckons with
INVALID_SHARE = 4  # one repetition in so many may be replaced, and one in any case
Stop = Literal["precision", "reps", "cap", "time", "cold", "invalid"]

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


@dataclass(frozen=True, slots=True)
class Effort:
    """``reps`` repetitions of each phase; None: until the 95% interval of its rate, by the repetitions
    alone, is within ``precision``.

    Precision decides from ``FEWEST`` repetitions on and gives up after ``MOST``. No repetition starts once those of
    its phase have taken ``max_phase_s`` seconds together.
    """

    reps: int | None = None
    max_phase_s: float = MAX_PHASE_S
    precision: float = PRECISION  # from the median to the farther end of the interval, ÷ median
    energy: bool = False  # measure it as well: ten seconds more of a phase that is short

    @property
    def fewest(self) -> int:
        """Repetitions below which a phase has been cut short."""
        return FEWEST if self.reps is None else self.reps

    @property
    def most(self) -> int:
        """Repetitions after which a phase ends in any case."""
        return MOST if self.reps is None else self.reps

    @property
    def asked(self) -> dict[str, float]:
        """What a row keeps of it."""
        wanted = {"precision": self.precision} if self.reps is None else {"reps": self.reps}
        return wanted | {"max_phase_s": self.max_phase_s} | ({"energy": True} if self.energy else {})


"""Why a phase ended: precision reached · the number asked for · the most that precision may take · ``--max-phase`` ·
the first repetition alone filled that · too many were invalid."""


def is_warm(warmups: Sequence[Sample], effort: Effort, measured_before: bool = False) -> bool:
    """Whether these warm-ups, of which there is at least one, are enough. ``measured_before``: as in ``repeat``."""
    seconds = [sample.seconds for sample in warmups]
    if len(seconds) >= WARMUPS or sum(seconds) >= min(AGAIN_S if measured_before else WARMUP_S, effort.max_phase_s):
        return True
    return stats.steady(seconds) is True


def stop(samples: Sequence[Sample], effort: Effort) -> Stop | None:
    """Why no further repetition is needed after ``samples``, invalid ones among them; None: go on."""
    valid = [sample for sample in samples if sample.invalid is None]
    replaced = len(samples) - len(valid)
    if effort.reps is None and len(valid) >= effort.fewest and _is_precise(valid, effort.precision):
        return "precision"
    if len(valid) >= effort.most:
        return "cap" if effort.reps is None else "reps"
    if replaced > max(1, effort.most // INVALID_SHARE):
        return "invalid"
    if sum(sample.seconds for sample in samples) < effort.max_phase_s or replaced == len(samples) <= 1:
        return None
    return "time" if valid else "invalid"


def likely(once_s: float, effort: Effort) -> int:
    """How often a phase of ``once_s`` seconds is likely to run, warm-ups included."""
    if once_s >= effort.max_phase_s:
        return 1
    warmups = min(stats.WINDOW, ceil(min(WARMUP_S, effort.max_phase_s) / once_s))
    return warmups + min(effort.reps or USUAL, ceil(effort.max_phase_s / once_s))


def _is_precise(samples: Sequence[Sample], precision: float) -> bool:
    if not all(sample.seconds > 0 for sample in samples):
        return False
    rate = summarize([sample.tokens / sample.seconds for sample in samples])
    return rate is not None and rate.relative_half is not None and rate.relative_half <= precision


@dataclass(frozen=True, slots=True)
class Measured:
    """A phase as it went: every repetition in order, why it ended, and the counters around those that were timed."""

    samples: tuple[Sample, ...]
    stopped: Stop
    before: Pressure
    after: Pressure


class Repetition:
    """One repetition from its making to ``end``, by the clocks of the device and what watches it."""

    def __init__(self, meter: Meter, watcher: Watcher) -> None:
        self._watcher = watcher
        self._watcher.start()
        self._window = meter.window()  # last: nothing of ours is inside

    def end(self, phase: Phase) -> Sample:
        """Wait until the device has finished what was launched; tokens and steps are for the caller to fill in."""
        lap = self._window.close()
        seen = self._watcher.stop(lap.seconds)
        return Sample(
            phase,
            lap.seconds,
            tokens=0,
            cpu_s=lap.cpu_s,
            wait_s=lap.wait_s,
            device_s=lap.device_s,
            drain_s=lap.drain_s,
            invalid=seen.invalid,
            ended_s=seen.ended_s,
            sm_mhz=seen.sm_mhz,
            temperature_c=seen.temperature_c,
            capped=seen.capped,
        )


def repeat(
    phase: Phase,
    once: Callable[[], Sample],
    session: Session,
    effort: Effort,
    beat: Beat,
    measured_before: bool = False,
) -> Measured:
    """Warm up, then repeat ``once`` as ``effort`` says. A first repetition that alone takes that long is all.

    ``measured_before``: this process has measured the case before.
    """
    before = session.meter.pressure()
    warmups, samples = _warmed(phase, once, effort, beat, measured_before), []
    if warmups[0].seconds >= effort.max_phase_s:
        samples, warmups = warmups, []
    else:
        before = session.meter.pressure()
    ended: Stop | None = "cold" if samples and samples[0].invalid is None else None
    while ended is None and (ended := stop(samples, effort)) is None:
        beat(f"{phase} {len(samples) + 1}{'/' if effort.reps else ' of at most '}{effort.most}")
        samples.append(once())
    marked = (replace(sample, warmup=True) for sample in warmups)
    return Measured((*marked, *samples), ended, before, session.meter.pressure())


def _warmed(
    phase: Phase, once: Callable[[], Sample], effort: Effort, beat: Beat, measured_before: bool
) -> list[Sample]:
    """The warm-ups: at least one, which may turn out to be all there is time for."""
    beat(f"{phase} warm-up")
    warmups = [once()]
    while not is_warm(warmups, effort, measured_before):
        beat(f"{phase} warm-up {len(warmups) + 1}")
        warmups.append(once())
    return warmups


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
        text = f"{phase}: the allocator had to free memory {retries:.0f} times to continue, which takes long"
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
        return [f"{phase}: the CPU was busy: other processes took {waited / wanted:.0%} of the time this one needed"]
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
