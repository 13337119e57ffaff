"""The repetitions of a phase: how many there are, when they stop, and what disturbed them.

A phase warms up until it is steady, then repeats until its rate is precise.

**Warm-up.** The phase runs at full shape until the last five runs neither drift (Theil–Sen slope × 5 below 1% of the
median) nor spread (interquartile range below 2%). There are at most ``MAX_WARMUPS`` such runs, and none starts after
``MAX_WARMUP_S`` seconds. A phase that takes five seconds or more therefore gets a single one, which loads code,
starts threads and touches memory. On a busy machine the spread never settles; then these limits end the warm-up, and
the row says so. A case that this process has measured before, as in the blocks of a gate, warms up for at most
``MAX_SHORT_WARMUP_S``, because code and memory are ready.

**Repetitions.** ``-r N`` runs exactly N. Otherwise they continue until the 95% interval of the rate
(``results.stats``) is within the requested precision. The process-to-process variation is excluded, because
repetitions cannot reduce it. Checking after every repetition lowers the coverage of the interval a little; treating
neighbors as correlated when they only look so by chance raises it. Together, coverage was 95 to 97% in simulations of
1200 phases with independent noise of 0.5 to 8%. In both modes ``max_phase_s`` may end the repetitions earlier.

What the repetitions themselves show (drift, spread, too few of them) is derived when a row is read:
``results/cautions.py``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from profiler.backends.base import Beat
from profiler.devices.base import Meter, Overview, Pressure, Watcher
from profiler.results import stats
from profiler.results.measurement import Caution, Phase, Sample
from profiler.results.stats import summarize
from profiler.units import bytes_text, seconds_text

PRECISION = 0.02  # of the median: half of what users would call a difference between two quantizations
MIN_REPS = 5  # repetitions before precision may end a phase: stopping at three would give 91% coverage instead of 95%
MAX_REPS = 20  # the limit: 40 repetitions would narrow the interval by only another third
MAX_PHASE_S = 60.0

MAX_WARMUPS = 20
MAX_WARMUP_S = 5.0
MAX_SHORT_WARMUP_S = 1.0
LIKELY_REPS = 10  # repetitions that 2% precision takes if they spread by 2%; the plan assumes this number
INVALID_SHARE = 4  # one of this many repetitions may be replaced, and always at least one
# Why a phase ended: the precision was reached · the requested number was reached · ``MAX_REPS`` was reached ·
# ``--max-phase`` was reached · the first repetition alone took that long · too many repetitions were invalid.
Stop = Literal["precision", "reps", "cap", "time", "cold", "invalid"]

MAX_WAIT_SHARE = 0.1  # share of the CPU time we needed; if others took more, the figure is disturbed
# Others are blamed for a wait only if they worked for at least this part of it: our threads also wait for each other.
MIN_SHARE_OF_OTHERS = 0.5
MAX_STALLED_SHARE = 0.25  # share of the time in which other processes waited for a core, so that none was free for us
MAX_STOLEN_SHARE = 0.02  # of all cores: a hypervisor that takes this much takes more when its other guests wake up
MIN_THROTTLED_SHARE = 0.02  # of the time; less may come from a thread that does no work for the phase
PERIODS_TO_AVERAGE = 5  # quota periods per repetition: in fewer, it matters whether one starts with a full quota
MIN_SWAP_BYTES = 16 * 1024**2  # bytes: any process that started long ago has less in swap
ONE_OTHER = "another process computes"  # a gate ignores this caution, since that process is its own second worker
QUIETER = "--fresh on a quieter machine"
SMALLER = "a smaller -q, -c or -b"


@dataclass(frozen=True, slots=True)
class Effort:
    """How often a phase is repeated: ``reps`` times, or until the 95% interval of its rate is within ``precision``.

    The interval is that of repetitions in one process. It is checked from ``MIN_REPS`` repetitions on, and
    ``MAX_REPS`` end the phase. No repetition starts once those of its phase have taken ``max_phase_s`` seconds in
    total.
    """

    reps: int | None = None  # None: as ``precision`` needs
    max_phase_s: float = MAX_PHASE_S
    precision: float = PRECISION  # from the median to the farther end of the interval, ÷ median
    energy: bool = False  # also measure energy: ten more seconds for a short phase

    @property
    def min_reps(self) -> int:
        """With fewer repetitions than this, a phase counts as cut short."""
        return MIN_REPS if self.reps is None else self.reps

    @property
    def max_reps(self) -> int:
        """The phase ends after this many repetitions."""
        return MAX_REPS if self.reps is None else self.reps

    @property
    def requested(self) -> dict[str, float]:
        """The requested effort, as a row stores it."""
        wanted = {"precision": self.precision} if self.reps is None else {"reps": self.reps}
        return wanted | {"max_phase_s": self.max_phase_s} | ({"energy": True} if self.energy else {})


def stop(samples: Sequence[Sample], effort: Effort) -> Stop | None:
    """Why the phase ends after ``samples``, which include invalid ones; None: it goes on."""
    valid = [sample for sample in samples if sample.invalid is None]
    replaced = len(samples) - len(valid)
    if effort.reps is None and len(valid) >= effort.min_reps and _is_precise(valid, effort.precision):
        return "precision"
    if len(valid) >= effort.max_reps:
        return "cap" if effort.reps is None else "reps"
    if replaced > max(1, effort.max_reps // INVALID_SHARE):
        return "invalid"
    if sum(sample.seconds for sample in samples) < effort.max_phase_s or replaced == len(samples) <= 1:
        return None
    return "time" if valid else "invalid"


def likely(once_s: float, effort: Effort) -> int:
    """The likely number of runs of a phase of ``once_s`` seconds, including warm-ups."""
    if once_s >= effort.max_phase_s:
        return 1
    warmups = min(stats.WINDOW, ceil(min(MAX_WARMUP_S, effort.max_phase_s) / once_s))
    return warmups + min(effort.reps or LIKELY_REPS, ceil(effort.max_phase_s / once_s))


def _is_precise(samples: Sequence[Sample], precision: float) -> bool:
    if not all(sample.seconds > 0 for sample in samples):
        return False
    rate = summarize([sample.tokens / sample.seconds for sample in samples])
    return rate is not None and rate.relative_half is not None and rate.relative_half <= precision


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured phase: its repetitions in order, why it ended, and the counters around the timed repetitions."""

    samples: tuple[Sample, ...]
    stopped: Stop
    before: Pressure
    after: Pressure


class Repetition:
    """One repetition, from its creation to ``end``, by the clocks of the device and of its watcher."""

    def __init__(self, meter: Meter, watcher: Watcher) -> None:
        self._watcher = watcher
        self._watcher.start()
        self._window = meter.window()  # last, so that none of our own work is inside

    def end(self, phase: Phase) -> Sample:
        """Wait until the device has finished. The caller fills in the tokens and step times."""
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


def unheard(text: str) -> None:
    """Ignores beats, for callers without a supervisor."""


@dataclass(frozen=True, slots=True)
class Repeater:
    """Repeats the phases of one case."""

    effort: Effort
    beat: Beat = unheard
    measured_before: bool = False  # by this process: code and memory are ready, so the warm-up is short

    def repeat(self, phase: Phase, once: Callable[[], Sample], meter: Meter) -> Measured:
        """Warm up, then repeat ``once`` as requested. If the first run takes ``max_phase_s``, it is the only one."""
        effort, before = self.effort, meter.pressure()
        warmups, samples = self._warmed(phase, once), []
        if warmups[0].seconds >= effort.max_phase_s:
            samples, warmups = warmups, []
        else:
            before = meter.pressure()
        ended: Stop | None = "cold" if samples and samples[0].invalid is None else None
        while ended is None and (ended := stop(samples, effort)) is None:
            self.beat(f"{phase} {len(samples) + 1}{'/' if effort.reps else ' of at most '}{effort.max_reps}")
            samples.append(once())
        marked = (replace(sample, warmup=True) for sample in warmups)
        return Measured((*marked, *samples), ended, before, meter.pressure())

    def is_warm(self, warmups: Sequence[Sample]) -> bool:
        """Whether these warm-ups, at least one, are enough."""
        seconds = [sample.seconds for sample in warmups]
        most_s = min(MAX_SHORT_WARMUP_S if self.measured_before else MAX_WARMUP_S, self.effort.max_phase_s)
        return len(seconds) >= MAX_WARMUPS or sum(seconds) >= most_s or stats.steady(seconds) is True

    def _warmed(self, phase: Phase, once: Callable[[], Sample]) -> list[Sample]:
        """The warm-ups: at least one, which becomes the only repetition if there is no time for more."""
        self.beat(f"{phase} warm-up")
        warmups = [once()]
        while not self.is_warm(warmups):
            self.beat(f"{phase} warm-up {len(warmups) + 1}")
            warmups.append(once())
        return warmups


def disturbances(phase: Phase, measured: Measured, cores: int) -> list[Caution]:
    """Cautions about one phase on a machine with ``cores`` cores."""
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
        text = f"{phase}: GPU memory was full {retries:.0f} times, and freeing cached blocks slowed it down"
        found.append(Caution(f"{phase}-allocator-retries", text, SMALLER))
    return found


def overview_cautions(seen: Overview, device: str) -> list[Caution]:
    """Cautions about other processes on the device, and about what could not be watched."""
    found = []
    if seen.others:
        many = ONE_OTHER if seen.others == 1 else f"{seen.others} other processes compute"
        found.append(Caution("other-processes", f"{many} on {device}", f"--fresh when {device} is free"))
    if seen.blind is not None:
        text = f"throttling of {device} could not be detected: {seen.blind}"
        found.append(Caution("unwatched", text))
    return found


def _pressure(phase: Phase, samples: Sequence[Sample], before: Pressure, after: Pressure, cores: int) -> list[str]:
    """At most one message about other work on the cores: the CPU time that we lacked, else what others did."""
    wall = after.at_s - before.at_s
    stood = _grown(before.throttled_s, after.throttled_s) or 0.0  # waiting for the quota is not caused by other work
    waited = max(0.0, sum(sample.wait_s or 0 for sample in samples) - stood)
    wanted = waited + sum(sample.cpu_s or 0 for sample in samples)
    others = _others(before, after)
    if wanted and waited / wanted > MAX_WAIT_SHARE and others >= waited * MIN_SHARE_OF_OTHERS:
        return [f"{phase}: the CPU was busy: other processes took {waited / wanted:.0%} of the CPU time we needed"]
    stolen = _grown(before.stolen_s, after.stolen_s)
    if wall > 0 and stolen is not None and stolen / (wall * cores) > MAX_STOLEN_SHARE:
        return [f"{phase}: the hypervisor gave {stolen / (wall * cores):.0%} of the CPU time to other guests"]
    stalled = _grown(before.stalled_s, after.stalled_s)
    stalled = None if stalled is None else max(0.0, stalled - stood)
    if not stalled or wall <= 0:
        return []
    if stalled / wall > MAX_STALLED_SHARE and others >= stalled * MIN_SHARE_OF_OTHERS:
        return [f"{phase}: all cores were busy: other processes waited for one {stalled / wall:.0%} of the time"]
    return []


def _throttled(phase: Phase, measured: Measured) -> str | None:
    """A message if the CPU quota was used up, which stops the process until the next period."""
    before, after = measured.before, measured.after
    periods, used_up = _grown(before.periods, after.periods), _grown(before.throttled, after.throttled)
    stood, wall = _grown(before.throttled_s, after.throttled_s), after.at_s - before.at_s
    if stood is None or wall <= 0 or stood / wall < MIN_THROTTLED_SHARE:
        return None
    if not periods or not used_up:
        what = f"cores were stopped for {seconds_text(stood)} of {seconds_text(wall)}"
        return f"{phase}: a CPU quota that is not visible here slowed the process down: {what}"
    text = f"{phase}: the CPU quota was used up in {used_up:.0f} of {periods:.0f} periods"
    seconds = [sample.seconds for sample in measured.samples if not sample.warmup]
    if seconds and after.period_s is not None and statistics.median(seconds) < PERIODS_TO_AVERAGE * after.period_s:
        many = seconds_text(after.period_s)
        text += f"; a repetition is not much longer than a period ({many}), so a longer run may be slower"
    return text


def _others(before: Pressure, after: Pressure) -> float:
    """Seconds that cores worked for other processes; infinite if there is no counter."""
    busy, own = _grown(before.busy_s, after.busy_s), _grown(before.own_s, after.own_s)
    return math.inf if busy is None or own is None else max(0.0, busy - own)


def _swapped(phase: Phase, before: Pressure, after: Pressure) -> str | None:
    read = _grown(before.swapped_in_bytes, after.swapped_in_bytes) or 0
    out = max(before.swapped_bytes or 0, after.swapped_bytes or 0)
    if out and read >= MIN_SWAP_BYTES:
        return f"{phase}: {bytes_text(read)} were read back from swap"
    return f"{phase}: {bytes_text(out)} of this process are in swap" if out >= MIN_SWAP_BYTES else None


def _grown(before: float | None, after: float | None) -> float | None:
    """How much a counter has grown; None if it does not exist."""
    return None if before is None or after is None else max(0.0, after - before)
