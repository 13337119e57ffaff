"""The repetitions of a phase: how many there are, when they stop, and what disturbed them.

A phase warms up until it is steady, then repeats until its rate is precise.

**Warm-up.** The first case of a process runs each phase at full shape until the last five runs neither drift
(Theil–Sen slope × 5 below 1% of the median) nor spread (interquartile range below 2%). There are at most
``MAX_WARMUPS`` such runs, and none starts after ``MAX_WARMUP_S`` seconds. A phase that takes five seconds or more
therefore gets a single one, which loads code, starts threads and touches memory. On a busy machine the spread never
settles; then these limits end the warm-up, and the row says so. Code is then loaded and clocks have settled, so each
later case gets one warm-up per phase, for its new shape. ``benchmarks/drift.py`` shows that the next run is no slower
than those that follow. A case that this process has measured before, as in the blocks of a gate, warms up for at most
``MAX_SHORT_WARMUP_S``. ``Effort.quick`` warms up ``QUICK_WARMUPS`` times in the first case. Later cases of a quick
look warm up decode by a few steps instead of a whole repetition where all steps have one shape (``Repeater.brief``).

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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from profiler.backends.base import Beat
from profiler.devices.base import FULL_SHARE, Disturbance, Meter, Overview, Pressure, Watcher, disturbance, grown
from profiler.results import stats
from profiler.results.measurement import Caution, Phase, Sample
from profiler.results.stats import summarize
from profiler.units import bytes_text, seconds_text

PRECISION = 0.02  # of the median: half of what users would call a difference between two quantizations
MIN_REPS = 5  # repetitions before precision may end a phase: stopping at three would give 91% coverage instead of 95%
MAX_REPS = 20  # the limit: 40 repetitions would narrow the interval by only another third
QUICK_PRECISION, QUICK_MIN_REPS, QUICK_MAX_REPS = 0.05, 3, 6  # the same with ``quick``, for a first look at a grid
QUICK_WARMUPS = 2  # of the first case of a process, whose first run loads code
QUICK_STEPS = 2  # of a brief warm-up of decode: the first touches the buffers, the second runs as all later ones
MAX_PHASE_S = 60.0

MAX_WARMUPS = 20
MAX_WARMUP_S = 5.0
MAX_SHORT_WARMUP_S = 1.0
LIKELY_REPS = 10  # repetitions that 2% precision takes if they spread by 2%; the plan assumes this number
INVALID_SHARE = 4  # one of this many repetitions may be replaced, and always at least one
# Why a phase ended: the precision was reached · the requested number was reached · ``MAX_REPS`` was reached ·
# ``--max-phase`` was reached · the first repetition alone took that long · too many repetitions were invalid.
Stop = Literal["precision", "reps", "cap", "time", "cold", "invalid"]

# Share of the CPU time we needed. If others took more, the figure says how busy the machine was: threads wait for
# each other after every operator, so one that lacks a core stops them all.
BUSY_SHARE = 0.2
MIN_THROTTLED_SHARE = 0.02  # of the time; less may come from a thread that does no work for the phase
PERIODS_TO_AVERAGE = 5  # quota periods per repetition: in fewer, it matters whether one starts with a full quota
MIN_SWAP_BYTES = 16 * 1024**2  # any process that started long ago has less in swap
ONE_OTHER = "another process computes"  # a gate ignores this caution, since that process is its own second worker
SPARE = 0.25  # of a core: what other processes need less does not cost us a thread
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
    quick: bool = False  # few warm-ups, and from ``QUICK_MIN_REPS`` repetitions on, precision may end a phase
    quality: Mapping[str, Any] | None = None  # also compare predictions with a reference's (``run/quality.py``)
    agreement: Mapping[str, Any] | None = None  # only give predictions, for a gate (``gate/numerics.py``)

    @property
    def min_reps(self) -> int:
        """With fewer repetitions than this, a phase counts as cut short."""
        return self.reps or (QUICK_MIN_REPS if self.quick else MIN_REPS)

    @property
    def max_reps(self) -> int:
        """The phase ends after this many repetitions."""
        return self.reps or (QUICK_MAX_REPS if self.quick else MAX_REPS)

    @property
    def requested(self) -> dict[str, Any]:
        """The requested effort, as a row stores it."""
        wanted: dict[str, Any] = {"precision": self.precision} if self.reps is None else {"reps": self.reps}
        wanted |= {name: True for name in ("energy", "quick") if getattr(self, name)}
        wanted |= {} if self.quality is None else {"quality": self.quality["hash"]}
        return wanted | {"max_phase_s": self.max_phase_s}


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
    usual = effort.reps or (QUICK_MIN_REPS + 1 if effort.quick else LIKELY_REPS)
    return 1 + min(usual, ceil(effort.max_phase_s / once_s))


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
    settled: Collection[Phase] = ()  # phases that this process has warmed up before, in other cases

    def brief(self, phase: Phase) -> bool:
        """Whether a few steps are enough to warm up a phase whose steps all have one shape."""
        return self.effort.quick and phase in self.settled and not self.measured_before

    def repeat(
        self, phase: Phase, once: Callable[[], Sample], meter: Meter, warm: Callable[[], None] | None = None
    ) -> Measured:
        """Warm up, then repeat ``once`` as requested. If the first run takes ``max_phase_s``, it is the only one.

        ``warm``: warms up instead of repetitions, and is not timed.
        """
        effort, before = self.effort, meter.pressure()
        warmups, samples = self._warmed(phase, once, warm), []
        if warmups and warmups[0].seconds >= effort.max_phase_s:
            samples, warmups = warmups, []
        else:
            before = meter.pressure()
        ended: Stop | None = "cold" if samples and samples[0].invalid is None else None
        while ended is None and (ended := stop(samples, effort)) is None:
            self.beat(f"{phase} {len(samples) + 1}{'/' if effort.reps else ' of at most '}{effort.max_reps}")
            samples.append(once())
        marked = (replace(sample, warmup=True) for sample in warmups)
        return Measured((*marked, *samples), ended, before, meter.pressure())

    def is_warm(self, phase: Phase, warmups: Sequence[Sample]) -> bool:
        """Whether these warm-ups, at least one, are enough."""
        if phase in self.settled and not self.measured_before:
            return True
        if self.effort.quick and len(warmups) >= QUICK_WARMUPS:
            return True
        seconds = [sample.seconds for sample in warmups]
        most_s = min(MAX_SHORT_WARMUP_S if self.measured_before else MAX_WARMUP_S, self.effort.max_phase_s)
        return len(seconds) >= MAX_WARMUPS or sum(seconds) >= most_s or stats.steady(seconds) is True

    def _warmed(self, phase: Phase, once: Callable[[], Sample], warm: Callable[[], None] | None) -> list[Sample]:
        """The warm-ups: none after ``warm``; otherwise at least one, which becomes the only repetition if there is no
        time for more.
        """
        self.beat(f"{phase} warm-up")
        if warm is not None:
            warm()
            return []
        warmups = [once()]
        while not self.is_warm(phase, warmups):
            self.beat(f"{phase} warm-up {len(warmups) + 1}")
            warmups.append(once())
        return warmups


def disturbances(phases: Mapping[Phase, Measured], cores: int, threads: int | None = None) -> list[Caution]:
    """Cautions about the phases of a case on a machine with ``cores`` cores; ``threads``: those of the model."""
    return [found for phase, measured in phases.items() for found in _disturbances(phase, measured, cores, threads)]


def _disturbances(phase: Phase, measured: Measured, cores: int, threads: int | None) -> Iterator[Caution]:
    before, after = measured.before, measured.after
    timed = [sample for sample in measured.samples if not sample.warmup]
    cpu_s = sum(sample.cpu_s or 0 for sample in timed)
    waited_s = sum(sample.wait_s or 0 for sample in timed)
    if all(sample.wait_s is None for sample in timed):
        waited_s = _missing_s(timed, before, after, cores, threads)
    if (other := disturbance(before, after, waited_s, cpu_s, cores)) is not None:
        yield disturbed_caution(phase, other, _less_disturbed(other, cores, threads))
    if throttled := _throttled(phase, measured):
        yield Caution(f"{phase}-throttled", throttled, "a larger CPU quota")
    if swapped := _swapped(phase, before, after):
        yield Caution(f"{phase}-swap", swapped, SMALLER)
    if retries := grown(before.retries, after.retries):
        text = f"{phase}: GPU memory was full {retries:.0f} times, and freeing cached blocks slowed it down"
        yield Caution(f"{phase}-allocator-retries", text, SMALLER)


def disturbed_caution(phase: Phase, other: Disturbance, helps: str) -> Caution:
    """That other work disturbed a phase. If it took too much, the code withholds the figures (``stats.busy``)."""
    told = f"{phase}: {other.text}", helps
    return Caution(f"{phase}-busy", *told) if other.lacked > BUSY_SHARE else Caution(f"{phase}-cpu-pressure", *told)


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


def _missing_s(timed: Sequence[Sample], before: Pressure, after: Pressure, cores: int, threads: int | None) -> float:
    """Where the kernel does not count how long threads wait for a core: the CPU time that ``threads`` did not use.

    They spin while they wait for each other, so they use it all unless others do. 0 if cores were free.
    """
    busy_s, known = grown(before.busy_s, after.busy_s), [sample for sample in timed if sample.cpu_s is not None]
    if busy_s is None or not threads or busy_s < FULL_SHARE * cores * (after.at_s - before.at_s):
        return 0.0
    return max(0.0, sum(threads * sample.seconds - (sample.cpu_s or 0.0) for sample in known))


def _less_disturbed(other: Disturbance, cores: int, threads: int | None) -> str:
    """What helps: only as many threads as there are free cores, since threads wait for the slowest of them."""
    free = max(1, math.floor(cores - other.others + SPARE)) if math.isfinite(other.others) else cores
    return f"--threads {free}, or {QUIETER}" if other.lacked and threads and threads > free else QUIETER


def _throttled(phase: Phase, measured: Measured) -> str | None:
    """A message if the CPU quota was used up, which stops the process until the next period."""
    before, after = measured.before, measured.after
    periods, used_up = grown(before.periods, after.periods), grown(before.throttled, after.throttled)
    stood, wall = grown(before.throttled_s, after.throttled_s), after.at_s - before.at_s
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


def _swapped(phase: Phase, before: Pressure, after: Pressure) -> str | None:
    read = grown(before.swapped_in_bytes, after.swapped_in_bytes) or 0
    out = max(before.swapped_bytes or 0, after.swapped_bytes or 0)
    if out and read >= MIN_SWAP_BYTES:
        return f"{phase}: {bytes_text(read)} were read back from swap"
    return f"{phase}: {bytes_text(out)} of this process are in swap" if out >= MIN_SWAP_BYTES else None
