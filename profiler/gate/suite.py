"""What one pytest session measures by ``profile_case``, and its verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from profiler import devices, files
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.gate import baseline, cell, exact, page
from profiler.gate import side as sides
from profiler.gate.advice import PYTEST
from profiler.gate.bench import Interrupted, WorkerBench
from profiler.gate.block import METRICS, threads_of
from profiler.gate.pairs import Rule
from profiler.gate.verdict import Verdict, exit_code, worst
from profiler.measure.loop import Effort
from profiler.measure.supervisor import Job
from profiler.measure.watch import Limits
from profiler.plan.grid import runnable
from profiler.plan.request import Request, work
from profiler.results import environment, stats
from profiler.results.environment import environment_key
from profiler.results.measurement import Measurement, Phase
from profiler.results.redact import redact_json
from profiler.units import parse_percent, printable

ARGUMENTS = {"-m": "model", "-q": "quant", "-c": "context", "-b": "batch", "-n": "steps", "-r": "reps"}
ARGUMENTS |= {f"--{name}": name for name in ("device", "backend", "path", "weights", "fill", "threads", "delta")}
OPTION = re.compile(r"(?<![\w-])--?[a-z]+(?![\w-])")
KINDS = ("workload", "machine", "time")
CASE = ("model", "quant", "context", "batch", "steps", "reps", "delta", "device", "phase")
SETTINGS = ("backend", "path", "weights", "fill", "threads", "ubatch", "seed", "max_phase_s")
UNSETTLED = (
    "warning: some stored times are too noisy to settle anything. That does not fail the session;"
    " --profile-gate-inconclusive fail makes it."
)


class Replay:
    """A clock for pytest-benchmark that shows what a worker's clock has measured."""

    def __init__(self) -> None:
        self._now = 0.0
        self._left: Iterator[float] = iter(())

        def timer() -> float:  # a function, since pytest-benchmark asks for its name
            return self._now

        self.timer = timer

    def run(self, benchmark: Any, seconds: Sequence[float]) -> None:
        """One round for each repetition that was measured."""
        self._left = iter(seconds)
        benchmark.pedantic(self._play, rounds=len(seconds))

    def _play(self) -> None:
        self._now += next(self._left, 0.0)


@dataclass(slots=True)
class Gate:
    """What ``--profile-gate`` asks for."""

    path: Path
    accept: bool
    known: baseline.Baseline
    kinds: frozenset[str]
    inconclusive_fails: bool


@dataclass(slots=True)
class Suite:
    """One session. ``lines`` and then ``warnings`` are for the terminal, once it has finished."""

    gate: Gate | None
    delta: float
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _cells: dict[str, cell.Cell] = field(default_factory=dict)  # by the id of the test
    _rules: dict[str, Rule] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)  # why a test has no cell
    _snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)  # by device
    _side: sides.Side | None = None

    def recorder(self, node: pytest.Item, replay: Replay, benchmark: Any) -> Callable[..., Measurement]:
        """``profile_case`` of one test."""

        def profile_case(model: str, *, phase: Phase = "decode", **asked: Any) -> Measurement:
            """Measure a case; ``phase`` is what the table shows, the rest what ``Suite.measure`` takes."""
            __tracebackhide__ = True
            if node.nodeid in self._cells:
                pytest.fail("profile_case measures one case a test: parametrize the test", pytrace=False)
            refused: ProfileError | None = None
            try:
                found = self.measure(node.nodeid, model, **asked)
            except ProfileError as error:
                refused = error
            except Interrupted:
                raise KeyboardInterrupt from None
            if refused is not None:  # outside of ``except``: pytest would show the message of that once more
                self._broken.setdefault(node.nodeid, _as_arguments(refused.message))
                pytest.fail(_as_arguments(str(refused)), pytrace=False)
            failed = found.failed
            if failed is not None:
                pytest.fail(f"{failed.case.label}: {failed.outcome}: {failed.reason}", pytrace=False)
            if benchmark is not None:
                _show(found, phase, replay, benchmark)
            return found.rows[0]

        return profile_case

    def measure(
        self,
        name: str,
        model: str,
        quant: str | None = None,
        context: int | str = 512,
        batch: int = 1,
        steps: int = 32,
        reps: int = 3,
        delta: str | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> cell.Cell:
        """Measure one case; ``settings`` are as of ``profile sweep``: backend, path, weights, fill, threads, seed.

        Raises ProfileError for what cannot be meant, Interrupted.
        """
        found = devices.find(device)
        job, effort = _job(found, model, quant, (context, batch, steps), reps, settings)
        rule = Rule(self.delta if delta is None else _percent(delta))
        snapshot = self._snapshots.setdefault(found.name, redact_json(environment.snapshot(found)))
        with WorkerBench(effort, Limits(), snapshot, seed=0) as bench:
            timed = self.gate is not None and "time" in self.gate.kinds
            blocks = cell.BLOCKS if timed else 1
            measured = cell.measure(name, job, bench, self._here(), snapshot, METRICS, blocks)
        if name not in self._cells:  # a test that is run again does not get a second chance
            self._cells[name], self._rules[name] = measured, rule
        return measured

    def finish(self, status: int) -> int:
        """The verdicts of the session, or the accepted baseline; the exit code."""
        gate = self.gate
        if gate is None:
            return 0
        if gate.accept:
            return self._accept(gate, status)
        verdicts = [verdict for name in self._cells for verdict in self._verdicts(gate, name)]
        verdicts += [
            Verdict(name, "case", "FAIL", why) for name, why in self._broken.items() if name not in self._cells
        ]
        verdicts += cell.missing(gate.known, [*self._cells, *self._broken], PYTEST)
        told = page.reasons(verdicts)
        told += cell.fallbacks(self._cells.values())
        self.lines = [page.headline(verdicts), "", *page.table(verdicts), *([""] if told else []), *told]
        word = worst(verdicts)
        if word == "INCONCLUSIVE" and not gate.inconclusive_fails:
            self.warnings = [UNSETTLED]
        return exit_code(word, gate.inconclusive_fails)

    def close(self) -> None:
        """Nothing of ours outlives the session."""
        self._cells.clear()

    def _verdicts(self, gate: Gate, name: str) -> list[Verdict]:
        timed = METRICS if "time" in gate.kinds else ()
        found = cell.against(self._cells[name], gate.known, self._rules[name], timed, PYTEST)
        return [
            verdict
            for verdict in found
            if verdict.metric not in exact.BOUNDS or exact.BOUNDS[verdict.metric].of in gate.kinds
        ]

    def _accept(self, gate: Gate, status: int) -> int:
        """Write the file, unless anything at all went wrong."""
        failed = [found.name for found in self._cells.values() if found.failed] + list(self._broken)
        if status != 0 or failed or not self._cells:
            why = "nothing was measured" if not self._cells else "not every test passed"
            self.lines = [f"{gate.path} is as it was: {why}"]
            return 1
        try:
            accepted = cell.accept(gate.path, gate.known, list(self._cells.values()))
        except ProfileError as error:
            self.lines = str(error).splitlines()
            return 1
        others = [name for name in gate.known.cells if name not in accepted]
        self.lines = [f"{name}: {how}" for name, how in accepted.items()]
        self.lines += [f"{name}: kept as it was, not measured" for name in others]
        self.lines += cell.fallbacks(self._cells.values())
        return 0

    def _here(self) -> sides.Side:
        if self._side is None:
            self._side = sides.here()
        return self._side


def open_suite(config: pytest.Config) -> Suite:
    """The suite of a session. Raises UsageError for options that cannot be meant, and for a baseline that is none."""
    try:
        delta = _percent(config.getoption("profile_gate_delta"), "--profile-gate-delta")
        named = config.getoption("profile_gate")
        if not named:
            return Suite(None, delta)
        words = [word.strip() for word in config.getoption("profile_gate_kinds").split(",")]
        unknown = [word for word in words if word not in KINDS]
        if unknown:
            raise ProfileError(
                f"--profile-gate-kinds: {printable(unknown[0], 60)!r} is not a kind",
                f"Known: {', '.join(KINDS)}.",
            )
        kinds = frozenset(words)
        path, accept = Path(named), bool(config.getoption("profile_gate_accept"))
        if accept:
            files.check(path)
        known = baseline.Baseline({}) if accept and not path.exists() else baseline.read(path, PYTEST)
    except ProfileError as error:
        raise pytest.UsageError(str(error)) from None
    return Suite(Gate(path, accept, known, kinds, config.getoption("profile_gate_inconclusive") == "fail"), delta)


def _job(
    device: DeviceInfo, model: str, quant: str | None, sizes: Sequence[int | str], reps: int, settings: dict[str, Any]
) -> tuple[Job, Effort]:
    strange = [name for name in settings if name not in SETTINGS]
    if strange:
        raise ProfileError(f"profile_case has no argument {strange[0]}", f"Known: {', '.join(CASE + SETTINGS)}.")
    context, batch, steps = map(str, sizes)
    settings = settings | {"threads": threads_of(device.name, settings.get("threads"))}
    if "path" in settings:
        settings["paths"] = (settings.pop("path"),)
    quants = () if quant is None else (quant,)
    request = Request((model,), quants, (context,), (batch,), (steps,), reps=reps, **settings)
    task = work(request, device, device.free_bytes, lambda text: None)
    if len(task.points) != 1:
        raise ProfileError(
            f"profile_case measures one case, and these are {len(task.points)}", "Parametrize the test."
        )
    (point,) = runnable(task.points)
    return Job(point.case, point.source), task.effort


def _show(found: cell.Cell, phase: Phase, replay: Replay, benchmark: Any) -> None:
    """Rates, bytes and fingerprint into pytest-benchmark's JSON, and one round a repetition into its table."""
    first = found.rows[0]
    samples = [sample for row in found.rows for sample in row.of(phase)]
    if not samples:
        pytest.fail(f"profile_case: this case has no {phase}", pytrace=False)
    per = first.case.steps if phase == "decode" else 1
    if benchmark.group is None:
        benchmark.group = f"profile_case: seconds of a {'decode step' if phase == 'decode' else 'prefill'}"
    benchmark.extra_info["profile"] = {
        "case": first.case.label,
        "key": first.case.key,
        "fingerprint": environment_key(dict(found.environment)),
        **{f"{name}_tps": _rates(found.rows, name) for name in METRICS},
        **exact.facts(first),
        "cautions": sorted({caution.code for row in found.rows for caution in row.cautions}),
    }
    replay.run(benchmark, [sample.seconds / per for sample in samples])


def _rates(rows: Sequence[Measurement], phase: Phase) -> dict[str, float | None] | None:
    summary = stats.summarize([rate for row in rows for rate in stats.rates(row, phase)])
    return None if summary is None else {"median": summary.median, "low": summary.low, "high": summary.high}


def _as_arguments(text: str) -> str:
    """A message about options of ``profile sweep``, in the arguments of ``profile_case`` that stand for them."""
    return OPTION.sub(lambda option: ARGUMENTS.get(option[0], option[0]), text)


def _percent(text: str, name: str = "delta") -> float:
    try:
        share = parse_percent(text)
    except ValueError as error:
        raise ProfileError(f"{name}: {error}") from None
    if share <= 0:
        raise ProfileError(f"{name}: it must be more than 0 %")
    return share
