"""All cautions about a row: those recorded while it ran, and those derived from its samples and its device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from functools import cache
from math import ceil

from profiler.decode_path import EAGER
from profiler.results import energy, stats
from profiler.results.measurement import PHASES, Caution, Measurement, Phase
from profiler.results.stats import Z_975, Medians
from profiler.units import bytes_text, seconds_text

CAPPED = 0.05  # of the time: figures that differ by more were taken under different conditions
STATED = ("capped", "sm_mhz")  # fields of samples that these cautions use
DIFFERENT = 0.02  # of the clock: more than its 15 MHz steps, and more than most figures spread

ENOUGH_REPS = 5  # the interval of five repetitions is far narrower than that of two: t is 2.8 instead of 12.7
QUICK_REPS = 3  # what a quick look asks for
NOISY = 0.1  # interquartile range ÷ median, the first threshold of torch.utils.benchmark
QUARTILES_NEED = 4  # repetitions
UNFINISHED = ("cap", "time")  # reasons to stop before the requested precision is reached
SOME_DRIFT = 0.03  # over all repetitions; a smaller drift disappears in the requested interval
IN_QUEUE = 0.5  # of a step: with less work than this left after the last launch, the device was waiting for the host
MUCH_SLOWER = 1.3  # a step of the first repetition ÷ a step of later ones
CEILINGS = ("ceiling_s", "utilization")  # fields of a prediction that say what the device can reach
MUCH_RETAINED = 0.1  # of the peak of prefill


def device_cautions(measurement: Measurement) -> Iterator[Caution]:
    """Power limit and clocks of each phase, then energy that is unknown or implausible."""
    for phase in PHASES:
        if measurement.samples.has("capped"):
            yield from _capped(measurement, phase)
        if measurement.samples.has("sm_mhz"):
            yield from _clocks(measurement, phase)
    if measurement.energy is None:
        return
    if reason := energy.unknown(measurement):
        yield Caution("energy-unknown", f"energy: {reason}")
    if doubt := energy.suspect(measurement):
        yield Caution("energy-suspect", f"energy: {doubt}")


def _capped(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """Common on a card with a lowered power limit. That is no fault, but the figure holds only for this limit."""
    samples = measurement.samples.of(phase)
    known = [(sample.capped, sample.seconds) for sample in samples if sample.capped is not None]
    total = sum(seconds for _, seconds in known)
    share = sum(capped * seconds for capped, seconds in known) / total if total else 0.0
    if share > CAPPED:
        watts = (measurement.environment.get("device") or {}).get("power_limit_w")
        limit = f" of {watts:g} W" if isinstance(watts, int | float) else ""
        text = f"{phase}: the power limit{limit} lowered the clocks for {share:.0%} of the time"
        yield Caution(f"{phase}-power-capped", text)


def _clocks(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    known = [sample.sm_mhz for sample in measurement.samples.of(phase) if sample.sm_mhz]
    if known and max(known) > (1 + DIFFERENT) * min(known):
        text = f"{phase}: clocks differ between repetitions, {min(known):,.0f} to {max(known):,.0f} MHz"
        yield Caution(f"{phase}-clocks-differ", text, "locked clocks: sudo nvidia-smi --lock-gpu-clocks=MHZ")


def cautions(measurement: Measurement, medians: Medians | None = None) -> tuple[Caution, ...]:
    """Stored cautions first, then those that follow from the samples of each phase.

    Callers that have ``stats.medians`` pass them. Most rows have no caution, and this must be detected
    quickly: a check is skipped if no sample has its field.
    """
    medians, stated = medians or stats.medians(measurement), measurement.samples.columns.keys()
    precise = measurement.asked.get("precision") is not None
    found = [*measurement.cautions]
    varied = "tasks" in (measurement.serving or {})  # each request is another task, and they differ in length
    noted = measurement.stopped or "invalid" in stated or "warmup" in stated
    for phase, known in medians.items():
        if phase == "prefill" and measurement.serving and measurement.case.batch > 1:
            continue  # requests that wait for each other differ, and the figures of ``serving`` say by how much
        missed = precise and measurement.stopped.get(phase) in UNFINISHED
        exact = varied or known is None or (known.spread <= _unnoticed(known.n) and not missed)
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
    if not measurement.expected.keys().isdisjoint(CEILINGS):
        found += _too_fast(measurement, medians)
    if measurement.energy is not None or not stated.isdisjoint(STATED):
        found += device_cautions(measurement)
    return tuple(found)


@cache
def _unnoticed(n: int) -> float:
    """The ratio of the largest to the smallest of n repetitions up to which their spread needs no caution."""
    return min(stats.most_spread(n), 1 + NOISY)


def _of_phase(measurement: Measurement, phase: Phase, exact: bool) -> Iterator[Caution]:
    """Cautions from the repetitions of one phase; ``exact``: their spread needs no caution."""
    if measurement.samples.has("invalid"):
        yield from _invalid(measurement, phase)
    yield from _cut_short(measurement, phase)
    if not exact:
        yield from _inexact(measurement, phase)
    if measurement.samples.has("warmup"):  # without warm-ups the first repetition counts, which is always slow
        yield from _drifting(measurement, phase)


def _invalid(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """Invalid repetitions, and whether enough valid ones are left."""
    reasons = [sample.invalid for sample in measurement.samples.record(phase) if sample.invalid and not sample.warmup]
    if not reasons:
        return
    words = ", ".join(dict.fromkeys(reasons))
    times, was = ("1 repetition", "was") if len(reasons) == 1 else (f"{len(reasons)} repetitions", "were")
    if measurement.stopped.get(phase) == "invalid":
        kept = len(measurement.samples.of(phase))
        text = f"{phase}: {times} {was} invalid ({words}), too many to replace; {kept or 'none'} valid"
    else:
        text = f"{phase}: {times} {was} invalid and repeated ({words})"
    yield Caution(f"{phase}-invalid", text, "better cooling or a lower power limit, then --fresh")


def _cut_short(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """Fewer repetitions than requested, or than precision needs to decide."""
    stopped = measurement.stopped.get(phase)
    if stopped not in ("cold", "time"):
        return
    done = len(measurement.samples.timed(phase))
    fewest = QUICK_REPS if measurement.asked.get("quick") else ENOUGH_REPS
    limit, wanted = measurement.asked.get("max_phase_s"), measurement.asked.get("reps") or fewest
    if not done or limit is None or (stopped == "time" and done >= wanted):
        return
    took = statistics.median(measurement.samples.seconds(phase))
    enough = f"--max-phase {ceil(took * (wanted + 1))}s"
    if stopped == "cold":
        alone = f"that alone took {seconds_text(took)}, more than --max-phase"
        text = f"{phase}: measured once, without a warm-up, because {alone}"
        yield Caution(f"{phase}-cold", text, enough)
    else:
        of = f" of {wanted}" if measurement.asked.get("reps") else ""
        yield Caution(f"{phase}-few", f"{phase}: {done}{of} repetitions within --max-phase {limit:g}s", enough)


def _inexact(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """The strongest caution about the spread: incomparable, noisy, or less precise than requested."""
    rate = stats.rate(measurement, phase)
    if rate is None or rate.relative_half is None or rate.within is None or rate.busy:
        return
    asked, precision, stopped = measurement.asked, measurement.asked.get("precision"), measurement.stopped.get(phase)
    seconds = measurement.samples.seconds(phase)
    if rate.noisy:
        text = f"{phase}: repetitions differ too much to compare ({rate.n} of them): free the machine"
        cut_short = stopped == "time" or rate.n < (asked.get("reps") or 0)  # a larger -r would be cut short too
        more = -(-max(ENOUGH_REPS, rate.n + 2) // (measurement.case.batch if measurement.case.server else 1))
        yield Caution("spread", text, "a longer --max-phase" if cut_short else f"-r {more}")
    elif rate.n >= QUARTILES_NEED and stats.spread(seconds) > NOISY:
        text = f"{phase}: the middle half of the repetitions spreads over more than {NOISY:.0%} of their median"
        again = "a quieter machine" if measurement.serving else "--fresh on a quieter machine"
        yield Caution(f"{phase}-noisy", text, again)
    elif precision is not None and stopped in UNFINISHED and rate.within > precision:
        within = f"{rate.n} repetitions" if stopped == "cap" else "--max-phase"
        text = f"{phase}: --precision {precision:.2%} was not reached within {within}".replace(".00%", "%")
        yield Caution(f"{phase}-imprecise", text, f"-r {4 * rate.n}" if stopped == "cap" else "a longer --max-phase")


def _between(measurement: Measurement) -> Iterator[Caution]:
    """Phases whose repetitions reach the requested precision, while the process-to-process variation exceeds it."""
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
    """Repetitions that became slower or faster during the measurement."""
    counted, done = measurement.samples.seconds(phase, warmups=True), len(measurement.samples.timed(phase))
    last = counted[-max(stats.WINDOW, done) :]  # includes warm-ups if few repetitions count
    drift = stats.trend(last) if len(last) < len(counted) else None  # the first one is always slow
    if drift is None or abs(drift) < SOME_DRIFT:
        return
    way = "slower" if drift > 0 else "faster"
    text = f"{phase}: not steady, {abs(drift):.0%} {way} in the last repetition than in the first"
    yield Caution(f"{phase}-unsteady", text, "a longer --max-phase, or --fresh when the machine has cooled down")


def _retained(measurement: Measurement) -> Iterator[Caution]:
    """A sliding-window layer keeps a view of its last tokens, and so the whole chunk, until the first decode step."""
    retained, peak = measurement.memory.retained_bytes, measurement.memory.prefill_peak_bytes
    if retained and peak and retained / peak > MUCH_RETAINED:
        text = f"prefill: sliding-window caches still hold on to {bytes_text(retained)} of prefill memory"
        yield Caution("retained", text, f"--ubatch {max(1, measurement.case.ubatch // 4)}")


def _launch_bound(measurement: Measurement) -> Iterator[Caution]:
    """A GPU that waited: when the host had launched the last step, almost no work was left."""
    left = [
        sample.drain_s / statistics.median(sample.step_s)
        for sample in measurement.samples.of("decode")
        if sample.drain_s is not None and sample.step_s and statistics.median(sample.step_s) > 0
    ]
    if left and statistics.median(left) < IN_QUEUE:
        text = "decode: launch-bound, the GPU waits for the CPU to launch its kernels"
        yield Caution("launch-bound", text, None if measurement.case.path == "graph" else "--path graph")


def _new_lengths(measurement: Measurement) -> Iterator[Caution]:
    """A growing cache on a GPU whose attention library plans anew for each cache length. Repetitions reuse the plans,
    but in a real generation every length is new. cuDNN plans so for bf16 and fp16 on H100 and newer (60 ms per length
    on an H200)."""
    if measurement.case.path != EAGER:
        return
    first, later = next(iter(measurement.samples.record("decode")), None), measurement.samples.of("decode")
    steps = [statistics.median(sample.step_s) for sample in later if sample.step_s]
    if first is None or not first.warmup or len(first.step_s) < 2 or not steps:
        return
    usual, new = statistics.median(steps), statistics.median(first.step_s[1:])
    if new > MUCH_SLOWER * usual:
        took = f"{seconds_text(new)} instead of {seconds_text(usual)}"
        text = f"decode: a step at a new cache length takes {took}, and every step of a generation has a new length"
        yield Caution("new-lengths", text, "TORCH_CUDNN_SDPA_DEPRIORITIZED=1, or --path graph")


def _too_fast(measurement: Measurement, medians: Medians) -> Iterator[Caution]:
    """A figure above its ceiling is impossible: one of the two is wrong."""
    known = stats.ceiling(measurement, medians) or {}
    for phase, use in (("prefill", "mfu"), ("decode", "mbu")):
        share = max((known.get(f"{phase}_{name}") or 0.0 for name in ("fraction", use)), default=0.0)
        if share > 1:
            text = f"{phase}: {share:.2f} of the device's ceiling: the ceiling or this figure is wrong"
            yield Caution(f"{phase}-above-ceiling", text, "profile calibrate")
