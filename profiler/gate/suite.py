"""The pytest session behind ``profile_case``: it measures a case per test, and decides at the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from profiler import backends, devices
from profiler.case import Task
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.gate import page, variants
from profiler.gate import rule as gate_rule
from profiler.gate.baseline import PYTEST, Baseline
from profiler.gate.bench import METRICS, Interrupted, WorkerBench, threads_of
from profiler.gate.measured import BLOCKS, KINDS, BaselineGate, GateMeasurement, measure
from profiler.gate.rule import RegressionRule, exit_code, worst
from profiler.results import environment, stats
from profiler.results.environment import environment_key
from profiler.results.measurement import Measurement, Phase
from profiler.results.redact import redact_json
from profiler.run.grid import runnable
from profiler.run.repetitions import Effort
from profiler.run.request import SweepRequest, resolve_request
from profiler.run.supervisor import WorkerLimits
from profiler.units import parse_percent, printable

ARGUMENTS = {  # options of ``profile sweep`` → arguments of ``profile_case``, for messages
    "-m": "model",
    "-q": "quant",
    "-c": "context",
    "-b": "batch",
    "-n": "steps",
    "-r": "reps",
    **{f"--{name}": name for name in ("device", "backend", "path", "weights", "fill", "threads", "delta")},
}
OPTION = re.compile(r"(?<![\w-])--?[a-z]+(?![\w-])")
CASE = ("model", "quant", "context", "batch", "steps", "reps", "delta", "device", "phase")
SETTINGS = ("backend", "path", "weights", "fill", "threads", "ubatch", "seed", "max_phase_s")


class Replay:
    """A clock for pytest-benchmark that replays the times that a worker measured."""

    def __init__(self) -> None:
        self._now = 0.0
        self._left: Iterator[float] = iter(())

        def timer() -> float:  # a function, since pytest-benchmark asks for its name
            return self._now

        self.timer = timer

    def run(self, benchmark: Any, seconds: Sequence[float]) -> None:
        """Play one round per measured repetition."""
        self._left = iter(seconds)
        benchmark.pedantic(self._play, rounds=len(seconds))

    def _play(self) -> None:
        self._now += next(self._left, 0.0)


@dataclass(slots=True)
class Suite:
    """One pytest session. ``lines`` and then ``warnings`` are printed when it has finished."""

    gate: BaselineGate
    delta: float
    accepts: bool = False
    inconclusive_fails: bool = False
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _snapshots: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by device and backend
    _variant: variants.Variant | None = None

    def recorder(self, node: pytest.Item, replay: Replay, benchmark: Any) -> Callable[..., Measurement]:
        """``profile_case`` of one test."""

        def profile_case(model: str, *, phase: Phase = "decode", **asked: Any) -> Measurement:
            """Measure a case. pytest-benchmark's table shows ``phase``; see ``Suite.measure`` for the arguments."""
            __tracebackhide__ = True
            if node.nodeid in self.gate.measured:
                pytest.fail("profile_case measures one case per test: parametrize the test", pytrace=False)
            refused: ProfileError | None = None
            try:
                found = self.measure(node.nodeid, model, **asked)
            except ProfileError as error:
                refused = error
            except Interrupted:
                raise KeyboardInterrupt from None
            if refused is not None:  # outside of ``except``, where pytest would print the message twice
                self.gate.unmeasured.setdefault(node.nodeid, _as_arguments(refused.message))
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
    ) -> GateMeasurement:
        """Measure one case. ``settings`` are those of ``profile sweep``: backend, path, weights, fill, threads, seed.

        Raises ProfileError for invalid arguments, Interrupted.
        """
        found = devices.find(device)
        task, effort = _task(found, model, quant, (context, batch, steps), reps, settings)
        rule = RegressionRule(self.delta if delta is None else _percent(delta))
        backend = task.case.backend
        if (found.name, backend) not in self._snapshots:
            described = environment.snapshot(found, backends.find(backend).versions())
            self._snapshots[found.name, backend] = redact_json(described)
        snapshot = self._snapshots[found.name, backend]
        with WorkerBench(effort, WorkerLimits(), snapshot, seed=0) as bench:
            blocks = BLOCKS if self.gate.path is not None and "time" in self.gate.kinds else 1
            measured = measure(name, task, bench, self._here(), snapshot, METRICS, blocks)
        self.gate.add(measured, rule)  # a test that is rerun does not get a second chance
        return measured

    def finish(self, status: int) -> int:
        """Compute the verdicts of the session, or accept the baseline; return the exit code."""
        gate = self.gate
        if gate.path is None:
            return 0
        if self.accepts:
            return self._accept(gate, status)
        verdicts = gate.verdicts()
        reasons = page.reasons(verdicts) + gate.notes
        self.lines = [page.headline(verdicts), "", *page.table(verdicts), *([""] if reasons else []), *reasons]
        word = worst(verdicts)
        if word == "INCONCLUSIVE" and not self.inconclusive_fails:
            self.warnings = [page.undecided("session", "--profile-gate-inconclusive fail")]
        return exit_code(word, self.inconclusive_fails)

    def close(self) -> None:
        """Release what was measured."""
        self.gate.measured.clear()

    def _accept(self, gate: BaselineGate, status: int) -> int:
        """Write the file, unless any test failed."""
        if status != 0 or gate.failed or not gate.measured:
            why = "nothing was measured" if not gate.measured else "not every test passed"
            self.lines = [f"{gate.path} was not changed: {why}"]
            return 1
        try:
            accepted = gate.accept()
        except ProfileError as error:
            self.lines = str(error).splitlines()
            return 1
        others = [name for name in gate.known.entries if name not in accepted]
        self.lines = [f"{name}: {how}" for name, how in accepted.items()]
        self.lines += [f"{name}: unchanged, not measured" for name in others]
        self.lines += gate.notes
        return 0

    def _here(self) -> variants.Variant:
        if self._variant is None:
            self._variant = variants.here()
        return self._variant


def open_suite(config: pytest.Config) -> Suite:
    """The suite of a session. Raises UsageError for invalid options and for an unusable baseline."""
    try:
        delta = _percent(config.getoption("profile_gate_delta"), "--profile-gate-delta")
        named = config.getoption("profile_gate")
        if not named:
            return Suite(BaselineGate(Baseline({})), delta)
        words = [word.strip() for word in config.getoption("profile_gate_kinds").split(",")]
        unknown = [word for word in words if word not in KINDS]
        if unknown:
            raise ProfileError(
                f"--profile-gate-kinds: unknown kind {printable(unknown[0], 60)!r}",
                f"Known: {', '.join(KINDS)}.",
            )
        accepts = bool(config.getoption("profile_gate_accept"))
        gate = BaselineGate.open(Path(named), accepts, PYTEST, kinds=frozenset(words))
    except ProfileError as error:
        raise pytest.UsageError(str(error)) from None
    return Suite(gate, delta, accepts, config.getoption("profile_gate_inconclusive") == "fail")


def _task(
    device: DeviceInfo, model: str, quant: str | None, sizes: Sequence[int | str], reps: int, settings: dict[str, Any]
) -> tuple[Task, Effort]:
    unknown = [name for name in settings if name not in SETTINGS]
    if unknown:
        raise ProfileError(f"profile_case has no argument {unknown[0]}", f"Known: {', '.join(CASE + SETTINGS)}.")
    context, batch, steps = map(str, sizes)
    settings = settings | {"threads": threads_of(device.name, settings.get("threads"))}
    if "path" in settings:
        settings["paths"] = (settings.pop("path"),)
    quants = () if quant is None else (quant,)
    request = SweepRequest((model,), quants, (context,), (batch,), (steps,), reps=reps, **settings)
    resolved = resolve_request(request, device, device.free_bytes, lambda text: None)
    if len(resolved.tasks) != 1:
        raise ProfileError(
            f"profile_case measures one case, but this names {len(resolved.tasks)}", "Parametrize the test."
        )
    (task,) = runnable(resolved.tasks)
    return task, resolved.effort


def _show(found: GateMeasurement, phase: Phase, replay: Replay, benchmark: Any) -> None:
    """Put rates, bytes and fingerprint into pytest-benchmark's JSON, and a round per repetition into its table."""
    first = found.rows[0]
    samples = [sample for row in found.rows for sample in row.samples.of(phase)]
    if not samples:
        pytest.fail(f"profile_case: this case has no {phase}", pytrace=False)
    per = first.case.steps if phase == "decode" else 1
    if benchmark.group is None:
        benchmark.group = f"profile_case: seconds per {'decode step' if phase == 'decode' else 'prefill'}"
    benchmark.extra_info["profile"] = {
        "case": first.case.label,
        "key": first.case.key,
        "fingerprint": environment_key(dict(found.environment)),
        **{f"{name}_tps": _rates(found.rows, name) for name in METRICS},
        **gate_rule.exact_figures(first),
        "cautions": sorted({caution.code for row in found.rows for caution in row.cautions}),
    }
    replay.run(benchmark, [sample.seconds / per for sample in samples])


def _rates(rows: Sequence[Measurement], phase: Phase) -> dict[str, float | None] | None:
    summary = stats.summarize([rate for row in rows for rate in stats.rates(row, phase)])
    return None if summary is None else {"median": summary.median, "low": summary.low, "high": summary.high}


def _as_arguments(text: str) -> str:
    """Replace options of ``profile sweep`` in a message by the corresponding arguments of ``profile_case``."""
    return OPTION.sub(lambda option: ARGUMENTS.get(option[0], option[0]), text)


def _percent(text: str, name: str = "delta") -> float:
    try:
        share = parse_percent(text)
    except ValueError as error:
        raise ProfileError(f"{name}: {error}") from None
    if share <= 0:
        raise ProfileError(f"{name}: it must be more than 0%")
    return share
