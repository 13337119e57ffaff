"""The measuring loops, including the memory and energy of each phase.

    prefill × (warm-ups + n) → save → (restore → decode) × (warm-ups + n) → release → one step for the peak

In a quick look, cases that differ only in their decode steps share a measurement (``SharedPhases``).

``repetitions.Repeater`` runs a phase by its rules for warm-up and stopping; ``repetitions.Repetition`` times one. The
device opens and closes every window (``devices.base.Meter.window``), so no caller can forget to synchronize. A
watcher of the device (``Session.watcher``) starts before each repetition and is read after it: its ``Reading`` gives
the energy and may declare the repetition invalid, which is then replaced. Every repetition is kept as a ``Sample``;
warm-ups and invalid ones are marked and excluded from statistics.

After each repetition the number of processed tokens and the length of the cache are checked, so that no figure
belongs to a different shape. Time and memory come from separate passes, since the saved cache that makes decode
repeatable would count towards the peak.

**Programs that time themselves** (``Backend.times_itself``) repeat a phase on their own: the samples are those that
the program prints, so a row has the rate that a user of the program sees. When a phase has enough of them is decided
by the same rules, whenever the program has printed some:

    reserve → prefill repetitions → decode repetitions

**Memory.** The peak of a phase, what is still held afterwards, and the difference, which are its activations:

    peak → free everything unused → held now = weights + framework + cache
    activations = peak − held

What is held is read after the phase and not before it, because mapped weights become resident when the first prefill
reads them, and libraries when their kernels are first used.

**Energy.** It is taken over the timed repetitions if they are long, otherwise over a separate window of ten seconds.

An energy counter updates about every 100 ms, and repetitions are often shorter. So the phase is repeated back to back
for ``RESOLVED_S`` seconds without reading the counter in between, and one window covers all repetitions. The time
between them (restoring the saved cache) is subtracted in proportion; if it is not small, the figure is unknown
(``results/energy.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from profiler.backends.base import (
    Beat,
    CacheState,
    Generation,
    ModelInfo,
    Session,
    ShapeMismatch,
    TimedCase,
    TimedSession,
)
from profiler.case import Case
from profiler.decode_path import EAGER
from profiler.devices.base import Consumed, Meter, Peak, Unwatched, Watcher, kind_of
from profiler.results.energy import RESOLVED_S
from profiler.results.measurement import (
    PHASES,
    SHARED_DECODE,
    SHARED_PREFILL,
    Caution,
    Energy,
    Measurement,
    Memory,
    Phase,
    PhaseEnergy,
    Repetitions,
    Sample,
)
from profiler.run.repetitions import (
    QUICK_STEPS,
    Effort,
    Measured,
    Repeater,
    Repetition,
    Stop,
    disturbances,
    overview_cautions,
    stop,
)

NO_PEAK = Peak(None, None, None)

LONG_S = 1.0  # ten counter updates: accurate enough without a window of its own

UNWATCHED = Unwatched()


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of one phase."""

    peak: Peak
    held: Peak  # right after the phase
    cache: CacheState | None  # at the same time

    @property
    def activation_bytes(self) -> int | None:
        """What the phase used at its peak and freed afterwards."""
        peak, held = peak_bytes(self.peak), peak_bytes(self.held)
        return None if peak is None or held is None else max(0, peak - held)


def footprint(meter: Meter, generation: Generation) -> Footprint:
    """Memory of the phase since the last ``reset_peak``; starts a new window."""
    peak = meter.peak()
    meter.reset_peak()
    return Footprint(peak, meter.peak(), generation.cache())


def step_footprint(meter: Meter, generation: Generation) -> Footprint:
    """Memory of one more decode step. The saved copy of the cache is freed first, because it would be counted."""
    generation.release()
    meter.reset_peak()
    generation.step()
    return footprint(meter, generation)


@dataclass(frozen=True, slots=True)
class SharedPhases:
    """What was measured for one case, and is the same for cases that differ only in their decode steps: the prefill,
    and the first steps of a longer decode.
    """

    steps: int  # decode steps of the case that it was measured for
    prefill: Measured
    footprint: Footprint  # of the prefill
    decode: Measured
    static: bool = False  # whether it decoded with a cache of a fixed size

    def first_steps(self, case: Case) -> Measured | None:
        """Decode as if it had ended after the steps of ``case``; None if it was shorter, or if steps were timed on
        a device's own clock, which does not count what the host does in between.
        """
        if case.steps > self.steps or not kind_of(case.device).is_host:
            return None
        return replace(self.decode, samples=tuple(_cut(sample, case) for sample in self.decode.samples))


KnownPhases = dict[Case, SharedPhases]
"""What one loaded model has run, by its case with one decode step."""


def memory_breakdown(info: ModelInfo, prefill: Footprint, decode: Footprint, after: CacheState) -> Memory:
    """The memory of a case by parts; ``after`` is the cache at the end of its decode steps."""
    return Memory(
        weights_bytes=info.weights_bytes,
        unquantized_bytes=info.unquantized_bytes,
        cache_bytes=after.storage_bytes,
        growing_cache_bytes=after.growing_bytes,
        window_cache_bytes=after.window_bytes,
        recurrent_bytes=after.recurrent_bytes,
        prefill_cache_bytes=None if prefill.cache is None else prefill.cache.storage_bytes,
        retained_bytes=None if prefill.cache is None else prefill.cache.retained_bytes,
        prefill_peak_bytes=peak_bytes(prefill.peak),
        decode_peak_bytes=_with_pool(peak_bytes(decode.peak), after),
        prefill_activation_bytes=prefill.activation_bytes,
        decode_activation_bytes=decode.activation_bytes,
        graph_pool_bytes=after.pool_bytes,
        framework_bytes=decode.held.framework_bytes,
        left_mapped_bytes=info.left_mapped_bytes,
        process_peak_bytes=largest(prefill.peak.process_bytes, decode.peak.process_bytes),
        phases_process_bytes=largest(prefill.peak.process_bytes, decode.peak.process_bytes),
        reserved_bytes=largest(prefill.peak.reserved_bytes, decode.peak.reserved_bytes),
        device_bytes=largest(prefill.peak.device_bytes, decode.peak.device_bytes),
    )


def _with_pool(peak: int | None, cache: CacheState) -> int | None:
    """The peak plus the memory pool of a replayed graph, which does not count as live tensors."""
    return None if peak is None else peak + (cache.pool_bytes or 0)


def peak_bytes(peak: Peak) -> int | None:
    """The peak of a phase: live tensors if the device counts them, else the process."""
    return peak.process_bytes if peak.allocated_bytes is None else peak.allocated_bytes


def largest(*values: int | None) -> int | None:
    """The largest of the known values; None if none is known."""
    return max((value for value in values if value is not None), default=None)


class EnergyBook:
    """Energy of the phases of one case, if it was requested or if repetitions are long enough to have it anyway."""

    def __init__(self, session: Session | TimedSession, repeater: Repeater) -> None:
        self._watcher, self._meter = session.watcher, session.meter
        self._asked, self._beat = repeater.effort.energy, repeater.beat
        self._parts: dict[Phase, PhaseEnergy] = {}
        self._how: Consumed | None = None
        self._idle_w: float | None = None
        self._reason: str | None = None
        if self._asked:
            self._beat("idle")
            self._idle_w, self._reason = self._watcher.idle_w()

    def enter(self, phase: Phase, samples: Sequence[Sample], unwatched: Callable[[], Sample]) -> None:
        """Add the energy of a phase that has just been timed. ``unwatched`` repeats it without reading the
        counters."""
        timed = [sample for sample in samples if not sample.warmup and sample.invalid is None]
        spans = [(sample.ended_s - sample.seconds, sample.ended_s) for sample in timed if sample.ended_s is not None]
        if spans and sum(s.seconds for s in timed) >= RESOLVED_S and all(s.seconds >= LONG_S for s in timed):
            self._note(phase, timed, spans)
        elif self._asked and self._idle_w is None:  # the device reports no energy, so nothing is repeated
            self._parts[phase] = PhaseEnergy(0, 0.0, 0.0, 0, counter_reason=self._reason, power_reason=self._reason)
        elif self._asked:
            self._repeat(phase, unwatched)

    def enter_window(self, phase: Phase, run: Callable[[], Sequence[Sample]]) -> None:
        """Measure the energy of repetitions that ``run`` makes back to back, in one window."""
        if self._idle_w is None:
            self._parts[phase] = PhaseEnergy(0, 0.0, 0.0, 0, counter_reason=self._reason, power_reason=self._reason)
            return
        self._beat(f"{phase} energy")
        samples = run()
        ends = [sample.ended_s for sample in samples if sample.ended_s is not None]
        if ends and len(ends) == len(samples):
            start, end = ends[0] - samples[0].seconds, ends[-1]
            self._note(phase, samples, [(start, end)], self._watcher.stop(end - start).invalid)

    @property
    def energy(self) -> Energy | None:
        """What is known; None if energy was neither requested nor available."""
        if not self._parts:
            return None
        source, scope = (None, None) if self._how is None else (self._how.source, self._how.scope)
        return Energy(
            source, scope, self._parts.get("prefill"), self._parts.get("decode"), self._idle_w, self._reason
        )

    def _repeat(self, phase: Phase, unwatched: Callable[[], Sample]) -> None:
        samples: list[Sample] = []
        start = now = self._meter.now()
        while now - start < RESOLVED_S:
            self._beat(f"{phase} energy {(now - start) / RESOLVED_S:.0%}")
            samples.append(unwatched())
            now = self._meter.now()
        slowed = self._watcher.stop(now - start).invalid
        self._note(phase, samples, [(start, now)], slowed)

    def _note(
        self, phase: Phase, samples: Sequence[Sample], spans: Sequence[tuple[float, float]], slowed: str | None = None
    ) -> None:
        consumed = self._watcher.consumed(spans)
        if consumed is None:  # only available if a watcher runs
            return
        self._how = consumed
        self._parts[phase] = PhaseEnergy(
            repetitions=len(samples),
            seconds=sum(sample.seconds for sample in samples),
            window_s=sum(end - start for start, end in spans),
            tokens=sum(sample.tokens for sample in samples),
            counter_j=consumed.counter[0],
            counter_reason=consumed.counter[1],
            power_j=consumed.power[0],
            power_reason=consumed.power[1],
            invalid=slowed,
        )


def measure(session: Session, case: Case, repeater: Repeater, known: KnownPhases | None = None) -> Measurement:
    """Measure one case on a loaded model. The caller adds the environment and the cost of loading to the row.

    ``known``: what was measured of the model before, which a quick look does not measure again.

    Raises ShapeMismatch if a phase did not process what the case specifies, and whatever the backend raises.
    """
    meter, generation = session.meter, session.begin(case)
    session.watcher.begin(repeater.effort.energy)
    book = EnergyBook(session, repeater)

    prefill_once = partial(_prefill, meter, generation, case)
    decode_once = partial(_decode, meter, generation, case, repeater.beat)
    phases: dict[Phase, Measured] = {}
    prefill = Footprint(NO_PEAK, NO_PEAK, None)
    shared = None if known is None else known.get(replace(case, steps=1))
    decode_before = None if shared is None else shared.first_steps(case)
    if case.fill == "synthetic":
        repeater.beat("fill")
        generation.fill()
        _check_length(generation, case.context, "fill")
    elif shared is not None:
        if decode_before is not None and shared.static:  # only its memory is measured, whatever the cache contains
            repeater.beat("fill")
            generation.fill()
        else:
            repeater.beat("prefill for decode")
            prefill_once(UNWATCHED)
        phases["prefill"], prefill = shared.prefill, shared.footprint
    else:
        meter.reset_peak()
        phases["prefill"] = repeater.repeat("prefill", partial(prefill_once, session.watcher), meter)
        prefill = footprint(meter, generation)
        book.enter("prefill", phases["prefill"].samples, partial(prefill_once, UNWATCHED))
    generation.save()
    if decode_before is not None:
        if _is_static(generation):  # what depends on its length, such as the bytes that a step reads
            generation.skip(case.steps)
            _check_length(generation, case.context + case.steps, "decode")
        else:  # the cache grows with each step
            repeater.beat("decode once")
            decode_once(UNWATCHED)
        phases["decode"] = decode_before
    else:
        warm = partial(_few_steps, generation, case) if _is_brief(generation, repeater) else None
        phases["decode"] = repeater.repeat("decode", partial(decode_once, session.watcher), meter, warm)
        book.enter("decode", phases["decode"].samples, partial(decode_once, UNWATCHED))
        if known is not None and case.fill != "synthetic":
            found = SharedPhases(case.steps, phases["prefill"], prefill, phases["decode"], _is_static(generation))
            known[replace(case, steps=1)] = found
    after = generation.cache()
    decode = step_footprint(meter, generation)
    info = session.info
    cautions = (*info.cautions, *generation.cautions(), *_disturbances(session, case, phases, info.threads))
    cautions += () if shared is None else _shared_cautions(shared, decode_before is not None)
    row = _row(case, phases, cautions, book.energy)
    memory = memory_breakdown(info, prefill, decode, after)
    return replace(row, memory=memory, threads=info.threads, decode_path=generation.path())


def measure_timed(session: TimedSession, case: Case, repeater: Repeater) -> Measurement:
    """The same for a program that times itself. Raises ShapeMismatch if the program measured something else."""
    effort = repeater.effort
    session.watcher.begin(effort.energy)
    book = EnergyBook(session, repeater)
    run = session.begin(case)
    phases = {phase: _repeat_timed(phase, run, session, effort) for phase in PHASES}
    if run.together:
        before, after = phases["prefill"].before, phases["decode"].after
        phases = {phase: replace(measured, before=before, after=after) for phase, measured in phases.items()}
    if effort.energy:
        for phase, measured in phases.items():
            _enter_window(book, phase, run, measured)
    row = _row(case, phases, (*run.cautions(), *_disturbances(session, case, phases, run.threads)), book.energy)
    return replace(row, memory=run.memory(), threads=run.threads, decode_path=run.path())


def _row(
    case: Case, phases: Mapping[Phase, Measured], cautions: Sequence[Caution], energy: Energy | None
) -> Measurement:
    """The row of measured phases, to which the caller adds what only its kind of session knows."""
    return Measurement(
        case,
        environment={},  # the parent adds it
        outcome="ok",
        samples=Repetitions(sample for measured in phases.values() for sample in measured.samples),
        cautions=tuple(cautions),
        energy=energy,
        stopped={phase: measured.stopped for phase, measured in phases.items()},
    )


def _disturbances(
    session: Session | TimedSession, case: Case, phases: Mapping[Phase, Measured], threads: int | None
) -> list[Caution]:
    """Cautions about what disturbed the phases, which ran in so many ``threads``."""
    found = disturbances(phases, os.cpu_count() or 1, threads)
    return found + overview_cautions(session.watcher.overview(), case.device)


def _prefill(meter: Meter, generation: Generation, case: Case, watcher: Watcher) -> Sample:
    """One timed prefill of exactly ``context`` tokens into an empty cache."""
    repetition = Repetition(meter, watcher)
    tokens = generation.prefill()
    sample = repetition.end("prefill")
    if tokens != case.batch * case.context:
        raise ShapeMismatch(f"prefill processed {tokens} tokens instead of {case.batch} × {case.context}")
    _check_length(generation, case.context, "prefill")
    return replace(sample, tokens=tokens)


def _decode(meter: Meter, generation: Generation, case: Case, beat: Beat, watcher: Watcher) -> Sample:
    """``steps`` timed decode steps from the saved cache."""
    generation.restore()
    repetition = Repetition(meter, watcher)
    timestamps = [meter.timestamp()]
    for _ in range(case.steps):
        generation.step()
        timestamps.append(meter.timestamp())
        beat("")
    sample = repetition.end("decode")
    tokens = sum(len(step) for step in generation.tokens)
    if tokens != case.batch * case.steps:
        raise ShapeMismatch(f"decode gave {tokens} tokens instead of {case.batch} × {case.steps}")
    _check_length(generation, case.context + case.steps, "decode")
    return replace(sample, tokens=tokens, step_s=tuple(meter.elapsed(timestamps)))


def _is_brief(generation: Generation, repeater: Repeater) -> bool:
    """Whether a few steps warm up decode. With transformers' own cache, every step has a new shape, for which some
    libraries prepare a kernel, so a whole repetition is needed.
    """
    return repeater.brief("decode") and _is_static(generation)


def _is_static(generation: Generation) -> bool:
    """Whether decode steps write into a cache of a fixed size, so that all of them have one shape."""
    path = generation.path()
    return path is not None and path.ran != EAGER


def _few_steps(generation: Generation, case: Case) -> None:
    generation.restore()
    for _ in range(min(QUICK_STEPS, case.steps)):
        generation.step()


def _shared_cautions(shared: SharedPhases, decode: bool) -> tuple[Caution, ...]:
    """What of the row is part of another row; ``decode``: the decode steps are, too."""
    text = f"prefill was measured once for all numbers of decode steps, in the case with {shared.steps}"
    found = (Caution(SHARED_PREFILL, text),)
    if not decode:
        return found
    return (*found, Caution(SHARED_DECODE, f"decode was measured as the first steps of the case with {shared.steps}"))


def _cut(sample: Sample, case: Case) -> Sample:
    """A repetition of decode that ends after the steps of ``case``."""
    steps = sample.step_s[: case.steps]
    seconds = sum(steps)
    share = seconds / sample.seconds if sample.seconds else 1.0
    cpu, wait = (None if value is None else value * share for value in (sample.cpu_s, sample.wait_s))
    return replace(sample, seconds=seconds, tokens=case.batch * case.steps, step_s=steps, cpu_s=cpu, wait_s=wait)


def _check_length(generation: Generation, expected: int, phase: str) -> None:
    length = generation.cache().length
    if length != expected:
        raise ShapeMismatch(f"after {phase} the cache holds {length} tokens instead of {expected}")


def _repeat_timed(phase: Phase, run: TimedCase, session: TimedSession, effort: Effort) -> Measured:
    """Repetitions of one phase, until ``effort`` is satisfied."""
    before = session.meter.pressure()
    samples: list[Sample] = []
    stopped: Stop | None = None
    session.watcher.start()
    with closing(run.repeat(phase, effort.min_reps, effort.max_phase_s)) as groups:
        for group in groups:
            seen = session.watcher.stop(sum(sample.seconds for sample in group))
            samples += [
                replace(
                    sample,
                    invalid=seen.invalid,
                    sm_mhz=seen.sm_mhz,
                    temperature_c=seen.temperature_c,
                    capped=seen.capped,
                )
                for sample in group
            ]
            stopped = _stop_timed(samples, effort)
            if stopped is not None:
                break
            session.watcher.start()
    if samples and all(sample.warmup for sample in samples):  # there was no time for another one
        stopped = "cold" if len(samples) == 1 else "time"
        samples[-1] = replace(samples[-1], warmup=False)
    return Measured(tuple(samples), stopped or "time", before, session.meter.pressure())


def _stop_timed(samples: Sequence[Sample], effort: Effort) -> Stop | None:
    if samples[0].warmup and samples[0].seconds >= effort.max_phase_s:
        return "cold"  # there is no time for more
    timed = [sample for sample in samples if not sample.warmup]
    return stop(timed, effort) if timed else None


def _enter_window(book: EnergyBook, phase: Phase, run: TimedCase, measured: Measured) -> None:
    """The energy of as many further repetitions as the counters need, in one window."""
    once_s = measured.samples[-1].seconds

    def window() -> list[Sample]:
        count = max(2, round(RESOLVED_S / once_s) + 1)
        with closing(run.repeat(phase, count, float("inf"))) as groups:
            return [sample for group in groups for sample in group][:count]

    book.enter_window(phase, window)
