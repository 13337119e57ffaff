"""The loop over a program that times itself: when it has enough, and the energy of further repetitions."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from types import SimpleNamespace

import pytest
from fakes.lab import make_case

from profiler.backends.fake import FakeMeter, FakeWatcher
from profiler.devices.base import Pressure
from profiler.results.energy import RESOLVED_S
from profiler.results.measurement import Memory, Phase, Sample
from profiler.run.loop import measure_timed as measure
from profiler.run.repetitions import MAX_REPS, MIN_REPS, Effort, Repeater


class Script:
    """A program that prints groups of repetitions of ``seconds``; those of a warm-up first, if there is one."""

    def __init__(
        self, meter: FakeMeter, seconds: Sequence[float], warmup_s: float | None = None, size: int = 5
    ) -> None:
        self.meter, self.seconds, self.warmup_s, self.size = meter, seconds, warmup_s, size
        self.asked: list[tuple[Phase, int, float]] = []
        self.printed = 0  # repetitions of both phases
        self.closed = 0
        self.threads = 2
        self.together = False

    def repeat(self, phase: Phase, count: int, most_s: float) -> Generator[Sequence[Sample], None, None]:
        self.asked.append((phase, count, most_s))
        try:
            if self.warmup_s is not None:
                yield [self.sample(phase, self.warmup_s, warmup=True)]
            for start in range(0, 1000, self.size):
                numbers = range(start, start + self.size)
                yield [self.sample(phase, self.seconds[number % len(self.seconds)]) for number in numbers]
        finally:
            self.closed += 1

    def sample(self, phase: Phase, seconds: float, warmup: bool = False) -> Sample:
        self.meter.work(seconds, 100.0)
        self.printed += 1
        return Sample(phase, seconds, tokens=512, warmup=warmup, ended_s=self.meter.seconds)

    def memory(self) -> Memory:
        return Memory(weights_bytes=1)

    def path(self) -> None:
        return None

    def cautions(self) -> tuple[()]:
        return ()


def session(script: Script, idle_w: float | None = None) -> SimpleNamespace:
    watcher = FakeWatcher(script.meter, idle_w)
    return SimpleNamespace(meter=script.meter, watcher=watcher, begin=lambda case: script)


@pytest.mark.parametrize(
    ("seconds", "effort", "repetitions", "why"),
    [
        ([1.0], Effort(), MIN_REPS, "precision"),
        ([1.0, 1.5, 0.6, 1.2], Effort(), MAX_REPS, "cap"),
        ([1.0], Effort(reps=3), 5, "reps"),
        ([1.0, 2.0], Effort(max_phase_s=6.0), 5, "time"),
    ],
)
def test_a_phase_ends_with_the_first_group_that_is_enough(
    seconds: list[float], effort: Effort, repetitions: int, why: str
) -> None:
    script = Script(FakeMeter(), seconds)
    row = measure(session(script), make_case(), Repeater(effort))
    assert (len(row.samples.of("prefill")), len(row.samples.of("decode"))) == (repetitions, repetitions)
    assert row.stopped == {"prefill": why, "decode": why}
    assert script.asked == [(phase, effort.reps or MIN_REPS, effort.max_phase_s) for phase in ("prefill", "decode")]
    assert script.closed == 2
    assert (row.outcome, row.threads, row.memory.weights_bytes) == ("ok", 2, 1)


def test_a_warmup_that_fills_the_phase_is_its_only_repetition() -> None:
    script = Script(FakeMeter(), [1.0], warmup_s=70.0)
    row = measure(session(script), make_case(), Repeater(Effort()))
    assert row.samples.seconds("decode") == [70.0]
    assert row.stopped["decode"] == "cold"
    assert script.printed == 2
    assert measure(session(script), make_case(), Repeater(Effort(max_phase_s=100))).samples.seconds("decode") == [
        *[1.0] * MIN_REPS
    ]


@pytest.mark.parametrize(("together", "busy"), [(True, ["prefill", "decode"]), (False, ["prefill"])])
def test_a_decode_that_came_with_the_prefill_is_as_disturbed(
    together: bool, busy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads on two cores got 30% of their time; the decodes were printed while prefill was repeated."""

    class Both(Script):
        def repeat(self, phase: Phase, count: int, most_s: float) -> Generator[Sequence[Sample], None, None]:
            seconds = {"prefill": 9.0, "decode": 1.0}[phase]
            if phase == "prefill":
                meter.work(30.0, 100.0)
                meter.disturbances = Pressure(0.0, busy_s=60.0, own_s=18.0)
            yield [Sample(phase, seconds, 8, cpu_s=0.6 * seconds, ended_s=meter.seconds)] * 3

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    meter = FakeMeter()
    meter.disturbances = Pressure(0.0, busy_s=0.0, own_s=0.0)
    script = Both(meter, [1.0])
    script.together = together
    row = measure(session(script), make_case(batch=2), Repeater(Effort(reps=3)))
    assert [caution.code for caution in row.cautions if "busy" in caution.code] == [f"{phase}-busy" for phase in busy]


def test_energy_is_that_of_further_repetitions_in_one_window() -> None:
    script = Script(FakeMeter(), [0.5])
    row = measure(session(script, idle_w=10.0), make_case(), Repeater(Effort(reps=3, energy=True)))
    assert row.energy is not None and row.energy.prefill is not None
    part = row.energy.prefill
    assert part.repetitions * 0.5 == pytest.approx(part.window_s)
    assert part.window_s >= RESOLVED_S
    assert part.counter_j == pytest.approx(100.0 * part.window_s)


def test_a_device_without_energy_repeats_nothing_and_says_why() -> None:
    script = Script(FakeMeter(), [0.5])
    row = measure(session(script), make_case(), Repeater(Effort(reps=3, energy=True)))
    assert row.energy is not None and row.energy.decode is not None
    assert row.energy.decode.counter_reason == "the script states no power"
    assert len(script.asked) == 2
