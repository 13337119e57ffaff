"""A bench without processes, whose two sides cost what a test says, and gates on it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from fakes.lab import make_case, source
from profiler.case import Task
from profiler.gate.bench import ProcessBlock
from profiler.gate.rule import GateVerdict, RegressionRule
from profiler.gate.trial import GatePlan, GateTrial, Noise
from profiler.gate.variants import Variant
from profiler.results.measurement import Measurement, Memory, Sample
from profiler.run import worker
from profiler.run.loop import measure
from profiler.run.process import Launch
from profiler.run.repetitions import Effort, Repeater

BASE, CANDIDATE = Variant("base", Launch(("base",))), Variant("candidate", Launch(("candidate",)))
TASK = Task(make_case(512), source())
WEIGHTS = Memory(weights_bytes=1000, cache_bytes=100, process_peak_bytes=5000)

Change = Callable[[Measurement], Measurement]


def row(case: Any, prefill_s: float, decode_s: float, **changes: Any) -> Measurement:
    """One repetition of each phase, which is its own median; on the wall it takes three times as long."""
    samples = (
        Sample("prefill", 3 * prefill_s, case.batch * case.context, cpu_s=prefill_s),
        Sample("decode", 3 * decode_s, case.batch * case.steps, cpu_s=decode_s),
    )
    return replace(Measurement(case, {}, "ok", samples=samples, memory=WEIGHTS, threads=1), **changes)


@dataclass
class FakeBench:
    """``slowdown``: of the candidate. ``noise``: standard deviation of a pair, in logarithms."""

    slowdown: float = 0.0
    noise: float = 0.0
    seed: int = 0
    process_noise: float = 0.0  # of one process against another
    change: dict[str, Change] = field(default_factory=dict)  # of the rows of a side
    starts: list[tuple[str, ...]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    processes: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.variants: list[tuple[Variant, int, float]] = []

    def start(self, variants: Sequence[Variant]) -> None:
        self.starts.append(tuple(variant.name for variant in variants))
        self.variants = []
        for variant in variants:
            self.processes += 1
            luck = self.random.lognormvariate(0, self.process_noise / 2**0.5) if self.process_noise else 1.0
            self.variants.append((variant, self.processes, luck))

    def block(self, slot: int, task: Task) -> ProcessBlock:
        variant, process, luck = self.variants[slot]
        self.ran.append(variant.name)
        factor = luck * (1 + self.slowdown if variant.name == "candidate" else 1.0)
        sd = self.noise / 2**0.5  # a pair has two of them
        times = [factor * (self.random.lognormvariate(0, sd) if sd else 1.0) for _ in range(2)]
        measured = row(task.case, *times)
        return ProcessBlock(variant.name, process, self.change.get(variant.name, lambda same: same)(measured))


def gate(
    bench: FakeBench,
    *tasks: Task,
    delta: float = 0.05,
    known_noise: float | None = 0.0,
    metrics: tuple[Any, ...] = ("decode",),
    **plan: Any,
) -> tuple[list[GateVerdict], GateTrial]:
    """The verdicts of a gate. ``known_noise``: no A/A pairs, that is the noise; None: they are measured."""
    find = (
        {} if known_noise is None else {"find_noise": lambda task: dict.fromkeys(metrics, Noise(known_noise, 6, 0.0))}
    )
    planned = GatePlan(tasks or (TASK,), RegressionRule(delta), metrics=metrics, **find, **plan)
    trial = GateTrial(planned, bench, BASE, CANDIDATE)
    return trial.run(), trial


class Wire:
    """The worker's end of a pipe that nobody listens to."""

    phase = "start"

    def beat(self, words: str) -> None:
        self.phase = words.partition(" ")[0] or self.phase


class LocalBench:
    """Blocks of the fake backend in this process: what a worker does, without one. In place of WorkerBench."""

    def __init__(self, effort: Effort, *others: Any, **more: Any) -> None:
        self.effort = effort
        self.starts = 0

    def __enter__(self) -> LocalBench:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, variants: Sequence[Variant]) -> None:
        self.variants, self.starts = list(variants), self.starts + 1

    def check(self, variant: Variant, tasks: Sequence[Task]) -> None:
        pass

    def block(self, slot: int, task: Task) -> ProcessBlock:
        wire = Wire()
        try:
            with mock.patch.dict(os.environ, self.variants[slot].launch.environ):
                session, cost = worker.load(task, None, wire)  # type: ignore[arg-type]
                measured = worker.with_load_cost(measure(session, task.case, Repeater(self.effort, wire.beat)), cost)
        except Exception as error:
            measured = worker.failure(error, task.case, None, wire.phase)
        return ProcessBlock(self.variants[slot].name, 2 * self.starts + slot, measured)
