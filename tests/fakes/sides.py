"""A bench without processes, whose two sides cost what a test says, and gates on it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from fakes.lab import make_case, source
from profiler.gate.block import Block
from profiler.gate.calibration import Noise
from profiler.gate.pairs import Rule
from profiler.gate.side import Side
from profiler.gate.trial import Plan, Trial
from profiler.gate.verdict import Verdict
from profiler.measure import worker
from profiler.measure.loop import Effort
from profiler.measure.process import Launch
from profiler.measure.protocol import Order
from profiler.measure.supervisor import Job
from profiler.results.measurement import Measurement, Memory, Sample

BASE, CANDIDATE = Side("base", Launch(("base",))), Side("candidate", Launch(("candidate",)))
JOB = Job(make_case(512), source())
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
        self.sides: list[tuple[Side, int, float]] = []

    def start(self, sides: Sequence[Side]) -> None:
        self.starts.append(tuple(side.name for side in sides))
        self.sides = []
        for side in sides:
            self.processes += 1
            luck = self.random.lognormvariate(0, self.process_noise / 2**0.5) if self.process_noise else 1.0
            self.sides.append((side, self.processes, luck))

    def block(self, slot: int, job: Job) -> Block:
        side, process, luck = self.sides[slot]
        self.ran.append(side.name)
        factor = luck * (1 + self.slowdown if side.name == "candidate" else 1.0)
        sd = self.noise / 2**0.5  # a pair has two of them
        times = [factor * (self.random.lognormvariate(0, sd) if sd else 1.0) for _ in range(2)]
        measured = row(job.case, *times)
        return Block(side.name, process, self.change.get(side.name, lambda same: same)(measured))


def gate(
    bench: FakeBench,
    *jobs: Job,
    delta: float = 0.05,
    known_noise: float | None = 0.0,
    metrics: tuple[Any, ...] = ("decode",),
    **plan: Any,
) -> tuple[list[Verdict], Trial]:
    """The verdicts of a gate. ``known_noise``: no A/A pairs, that is the noise; None: they are measured."""
    find = (
        {} if known_noise is None else {"find_noise": lambda job: dict.fromkeys(metrics, Noise(known_noise, 6, 0.0))}
    )
    planned = Plan(jobs or (JOB,), Rule(delta), metrics=metrics, **find, **plan)
    trial = Trial(planned, bench, BASE, CANDIDATE)
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

    def start(self, sides: Sequence[Side]) -> None:
        self.sides, self.starts = list(sides), self.starts + 1

    def check(self, side: Side, jobs: Sequence[Job]) -> None:
        pass

    def block(self, slot: int, job: Job) -> Block:
        order, wire = Order(job.case, job.source, self.effort, None), Wire()
        try:
            with mock.patch.dict(os.environ, self.sides[slot].launch.environ):
                measured = worker.measure_order(worker.load(order, wire), order, wire)  # type: ignore[arg-type]
        except Exception as error:
            measured = worker.failure(error, order, wire.phase)
        return Block(self.sides[slot].name, 2 * self.starts + slot, measured)
