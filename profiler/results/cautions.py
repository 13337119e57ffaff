"""Everything to be careful about in a row: what was noted while it ran, and what its samples and its device show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from functools import cache
from math import ceil

from profiler.decode_path import EAGER
from profiler.results import energy, stats
from profiler.results.measurement import Caution, Measurement, Phase
from profiler.results.stats import Z_975, Centres
from profiler.units import bytes_text, seconds_text

STATED_PHASES: tuple[Phase, ...] = ("prefill", "decode")
CAPPED = 0.05  # of the time: two figures further apart in it were taken under different conditions
STATED = ("capped", "sm_mhz")  # fields of samples that are looked at
DIFFERENT = 0.02  # of the clock: more than the step of 15 MHz in which boards set it, and than most figures spread

ENOUGH_REPS = 5  # the interval of five repetitions is far narrower than that of two: t is 2.8 instead of 12.7
NOISY = 0.1  # interquartile range ÷ median, the first threshold of torch.utils.benchmark
QUARTILES_NEED = 4  # repetitions
UNFINISHED = ("cap", "time")  # why repetitions stopped, other than that they were as precise as was asked
SOME_DRIFT = 0.03  # over all repetitions; less hides in the interval that is asked for
IN_QUEUE = 0.5  # of a step: a device that has less than this left to do after the last launch was waiting for it
MUCH_SLOWER = 1.3  # a step of the first repetition than of later ones
MUCH_RETAINED = 0.1  # of the peak of prefill
PHASES: tuple[Phase, ...] = ("prefill", "decode")


def device_cautions(measurement: Measurement) -> Iterator[Caution]:
    """Power limit and clocks of each phase, then energy that is unknown or not to be believed."""
    for phase in STATED_PHASES:
        if measurement.states("capped"):
            yield from _capped(measurement, phase)
        if measurement.states("sm_mhz"):
            yield from _clocks(measurement, phase)
    if measurement.energy is None:
        return
    if reason := energy.unknown(measurement):
        yield Caution("energy-unknown", f"energy: {reason}")
    if doubt := energy.suspect(measurement):
        yield Caution("energy-suspect", f"energy: {doubt}")


def _capped(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """Usual on a card that is set to less power than it could take: no fault, but the figure is of that limit."""
    known = [(sample.capped, sample.seconds) for sample in measurement.of(phase) if sample.capped is not None]
    total = sum(seconds for _, seconds in known)
    share = sum(capped * seconds for capped, seconds in known) / total if total else 0.0
    if share > CAPPED:
        watts = (measurement.environment.get("device") or {}).get("power_limit_w")
        limit = f" of {watts:g} W" if isinstance(watts, int | float) else ""
        text = f"{phase}: the power limit{limit} held the clocks down for {share:.0%} of the time"
        yield Caution(f"{phase}-power-capped", text)


def _clocks(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    known = [sample.sm_mhz for sample in measurement.of(phase) if sample.sm_mhz]
    if known and max(known) > (1 + DIFFERENT) * min(known):
        text = f"{phase}: clocks differ between repetitions, {min(known):,.0f} to {max(known):,.0f} MHz"
        yield Caution(f"{phase}-clocks-differ", text, "locked clocks: sudo nvidia-smi --lock-gpu-clocks=MHZ")


def cautions(measurement: Measurement, centres: Centres | None = None) -> tuple[Caution, ...]:
    """Stored cautions first, then those that follow from the samples of each phase.

    ``centres`` by ``stats.centres``, from those who have worked them out already. Most rows deserve no caution, and
    that has to be seen quickly: what no sample states and nobody asked for is not looked for.
    """
    centres, stated = centres or stats.centres(measurement), measurement.stated
    precise = measurement.asked.get("precision") is not None
    found = [*measurement.cautions]
    noted = measurement.stopped or "invalid" in stated or "warmup" in stated
    for phase, centre in centres.items():
        missed = precise and measurement.stopped.get(phase) in UNFINISHED
        exact = centre is None or (centre.spread <= _unnoticed(centre.n) and not missed)
        if noted or not exact:
            found += _of_phase(measurement, phase, exact)
    if precise:
        found += _between(measurement)
    if measurement.memory.retained_bytes:
        found += _retained(measurement)
    if "drain_s" in stated:
        found += _launch_bound(measurement)
    if measurement.case.device.startswith("cuda"):
        found += _new_lengths(measurement)
    if measurement.expected.get("ceiling_s"):
        found += _too_fast(measurement, centres)
    if measurement.energy is not None or not stated.isdisjoint(STATED):
        found += device_cautions(measurement)
    return tuple(found)


@cache
def _unnoticed(n: int) -> float:
    """The largest ÷ the smallest of n repetitions up to which there is nothing to say of how they spread."""
    return min(stats.most_spread(n), 1 + NOISY)


def _of_phase(measurement: Measurement, phase: Phase, exact: bool) -> Iterator[Caution]:
    """What follows from the repetitions of one phase; ``exact``: they surely lie near enough to each other."""
    if measurement.states("invalid"):
        yield from _invalid(measurement, phase)
    yield from _cut_short(measurement, phase)
    if not exact:
        yield from _inexact(measurement, phase)
    if measurement.states("warmup"):  # without them the very first counts, which is slow in any case
        yield from _drifting(measurement, phase)


def _invalid(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """Repetitions that were thrown out, and whether enough others were had."""
    reasons = [sample.invalid for sample in measurement.record(phase) if sample.invalid and not sample.warmup]
    if not reasons:
        return
    words = ", ".join(dict.fromkeys(reasons))
    times, was = ("1 repetition", "was") if len(reasons) == 1 else (f"{len(reasons)} repetitions", "were")
    if measurement.stopped.get(phase) == "invalid":
        kept = len(measurement.of(phase))
        text = f"{phase}: {times} did not count ({words}), too many to replace; {kept or 'none'} did"
    else:
        text = f"{phase}: {times} did not count and {was} repeated ({words})"
    yield Caution(f"{phase}-invalid", text, "better cooling or a lower power limit, then --fresh")


def _cut_short(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """Fewer repetitions than were asked for, or than precision needs to decide."""
    stopped = measurement.stopped.get(phase)
    if stopped not in ("cold", "time"):
        return
    done = len(measurement.timed(phase))
    limit, wanted = measurement.asked.get("max_phase_s"), measurement.asked.get("reps") or ENOUGH_REPS
    if not done or limit is None or (stopped == "time" and done >= wanted):
        return
    took = statistics.median(measurement.seconds(phase))
    enough = f"--max-phase {ceil(took * (wanted + 1))}s"
    if stopped == "cold":
        text = f"{phase}: one repetition without warm-up, since its {seconds_text(took)} alone reached --max-phase"
        yield Caution(f"{phase}-cold", text, enough)
    else:
        of = f" of {wanted}" if measurement.asked.get("reps") else ""
        yield Caution(f"{phase}-few", f"{phase}: {done}{of} repetitions within --max-phase {limit:g}s", enough)


def _inexact(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """The worst there is to say of how repetitions spread: incomparable, noisy, or less exact than asked."""
    rate = stats.rate(measurement, phase)
    if rate is None or rate.relative_half is None or rate.within is None:
        return
    asked, precision, stopped = measurement.asked, measurement.asked.get("precision"), measurement.stopped.get(phase)
    seconds = measurement.seconds(phase)
    if rate.wide:
        text = f"{phase}: repetitions differ too much to compare ({rate.n} of them): free the machine"
        cut_short = stopped == "time" or rate.n < (asked.get("reps") or 0)  # more would not be run either
        yield Caution("spread", text, "a longer --max-phase" if cut_short else f"-r {max(ENOUGH_REPS, rate.n + 2)}")
    elif rate.n >= QUARTILES_NEED and stats.spread(seconds) > NOISY:
        text = f"{phase}: the middle half of the repetitions is spread over more than {NOISY:.0%} of their median"
        yield Caution(f"{phase}-noisy", text, "--fresh on a quieter machine")
    elif precision is not None and stopped in UNFINISHED and rate.within > precision:
        within = "the repetitions that takes at most" if stopped == "cap" else "--max-phase"
        text = f"{phase}: --precision {precision:.2%} was not reached within {within}".replace(".00%", "%")
        yield Caution(f"{phase}-imprecise", text, f"-r {4 * rate.n}" if stopped == "cap" else "a longer --max-phase")


def _between(measurement: Measurement) -> Iterator[Caution]:
    """Phases whose repetitions are as precise as was asked and whose figure is not: another process gives another."""
    asked, known = measurement.asked.get("precision"), measurement.expected.get("between")
    if asked is None or not known:
        return
    rates = {
        phase: stats.rate(measurement, phase)
        for phase in PHASES
        if (apart := known.get(phase)) and asked < math.expm1(Z_975 * apart)
    }
    wide = [
        f"{rate.between:.1%} in {phase}"
        for phase, rate in rates.items()
        if rate and rate.between and (rate.within or 0) <= asked
    ]
    if wide:
        calibrated = known.get("basis") == "calibrated"
        basis = "by your calibrations" if calibrated else "usual on CPUs"
        text = f"process-to-process variation ({basis}) is {' and '.join(wide)}: more repetitions would not reduce it"
        yield Caution("between", text, "a quieter machine" if calibrated else "profile calibrate, three times")


def _drifting(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """Repetitions that became slower or faster while they were measured."""
    counted = measurement.seconds(phase, warmups=True)
    last = counted[-max(stats.WINDOW, len(measurement.timed(phase))) :]  # with warm-ups, where few repetitions count
    drift = stats.trend(last) if len(last) < len(counted) else None  # the very first is slow in any case
    if drift is None or abs(drift) < SOME_DRIFT:
        return
    way = "slower" if drift > 0 else "faster"
    text = f"{phase}: not steady, it became {abs(drift):.0%} {way} from the first repetition to the last"
    yield Caution(f"{phase}-unsteady", text, "a longer --max-phase, or --fresh when the machine has cooled down")


def _retained(measurement: Measurement) -> Iterator[Caution]:
    """A view of its last tokens makes a sliding layer keep the whole chunk until the first decode step."""
    retained, peak = measurement.memory.retained_bytes, measurement.memory.prefill_peak_bytes
    if retained and peak and retained / peak > MUCH_RETAINED:
        text = f"prefill: sliding-window caches still hold on to {bytes_text(retained)} of prefill memory"
        yield Caution("retained", text, f"--ubatch {max(1, measurement.case.ubatch // 4)}")


def _launch_bound(measurement: Measurement) -> Iterator[Caution]:
    """A GPU that was kept waiting: when the host had launched the last step, next to nothing was left to do."""
    left = [
        sample.drain_s / statistics.median(sample.step_s)
        for sample in measurement.of("decode")
        if sample.drain_s is not None and sample.step_s and statistics.median(sample.step_s) > 0
    ]
    if left and statistics.median(left) < IN_QUEUE:
        text = "decode: launch-bound, the GPU waits for the CPU to launch its kernels"
        yield Caution("launch-bound", text, None if measurement.case.path == "graph" else "--path graph")


def _new_lengths(measurement: Measurement) -> Iterator[Caution]:
    """A growing cache on a GPU whose attention is planned for each length: repetitions meet the same ones again, a
    generation only new ones. cuDNN does so for bf16 and fp16 on an H100 and newer (60 ms a length on an H200)."""
    if measurement.case.path != EAGER:
        return
    first, later = next(iter(measurement.record("decode")), None), measurement.of("decode")
    steps = [statistics.median(sample.step_s) for sample in later if sample.step_s]
    if first is None or not first.warmup or len(first.step_s) < 2 or not steps:
        return
    usual, new = statistics.median(steps), statistics.median(first.step_s[1:])
    if new > MUCH_SLOWER * usual:
        took = f"{seconds_text(new)} instead of {seconds_text(usual)}"
        text = f"decode: a step at a length met for the first time takes {took}, and a generation meets no others"
        yield Caution("new-lengths", text, "TORCH_CUDNN_SDPA_DEPRIORITIZED=1, or --path graph")


def _too_fast(measurement: Measurement, centres: Centres) -> Iterator[Caution]:
    """Above the ceiling is impossible: the ceiling or the figure is wrong."""
    at, prefill, decode = measurement.expected["ceiling_s"], centres["prefill"], centres["decode"]
    fractions = stats.shares(measurement.case, at, prefill and prefill.median, decode and decode.median)
    for phase, fraction in fractions.items():
        if fraction is not None and fraction > 1:
            text = f"{phase}: {fraction:.2f} of the device's ceiling: the ceiling or this figure is wrong"
            yield Caution(f"{phase}-above-ceiling", text, "profile calibrate")
