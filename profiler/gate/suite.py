"""Cases measured for a baseline and their verdicts: for ``profile gate --baseline FILE``, and for a pytest session.

``measure``, ``against``, ``missing`` and ``accept`` serve both; ``Suite`` is the session behind ``profile_case``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from profiler import backends, devices, files
from profiler.case import Source, Task
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.gate import baseline as gate_baseline
from profiler.gate import page, variants
from profiler.gate import rule as gate_rule
from profiler.gate.baseline import COMMAND, PYTEST, Baseline, BaselineEntry, BaselineSession, FrontEnd, settle, write
from profiler.gate.bench import (
    METRICS,
    Bench,
    GateClock,
    Interrupted,
    ProcessBlock,
    WorkerBench,
    clock_of,
    threads_of,
)
from profiler.gate.rule import GateVerdict, RegressionRule, exit_code, worst
from profiler.gate.variants import Variant
from profiler.results import environment, measurement, stats
from profiler.results.environment import differences, environment_key
from profiler.results.measurement import Measurement, Phase
from profiler.results.redact import redact_json
from profiler.run.grid import runnable
from profiler.run.repetitions import Effort
from profiler.run.request import SweepRequest, resolve_request
from profiler.run.supervisor import WorkerLimits
from profiler.units import parse_percent, printable

BLOCKS = 6  # in two processes: an interval needs several blocks, and a single process may be slow throughout

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
KINDS = ("workload", "machine", "time")
CASE = ("model", "quant", "context", "batch", "steps", "reps", "delta", "device", "phase")
SETTINGS = ("backend", "path", "weights", "fill", "threads", "ubatch", "seed", "max_phase_s")
UNDECIDED = (
    "warning: some stored times are too noisy for a decision. That does not fail the session; to make it fail, add"
    " --profile-gate-inconclusive fail"
)


@dataclass(frozen=True, slots=True)
class GateMeasurement:
    """The blocks of one case. If one failed, its row is the last of ``rows``."""

    name: str
    task: Task
    environment: Mapping[str, Any]
    rows: tuple[Measurement, ...]
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # metric → median seconds of each block
    reference_s: float | None = None

    @property
    def failed(self) -> Measurement | None:
        """The row that failed, or None."""
        return next((row for row in self.rows if row.outcome != "ok"), None)

    @property
    def clock(self) -> GateClock:
        return "wall" if self.task.case.server is not None else clock_of(self.task.case.device)

    def entry(self) -> BaselineEntry:
        """The entry for a baseline. All rows must be ok."""
        first = self.rows[0]
        at = datetime.now(UTC).isoformat(timespec="seconds")
        sessions: tuple[BaselineSession, ...] = ()
        steps = {measurement.step(row) for row in self.rows}
        several = len(self.rows) > 1 or self.task.case.server is not None
        if several and len(steps) == 1:  # neither one block nor blocks of different steps give times
            sessions = (BaselineSession(at, self.clock, dict(self.times), self.reference_s),)
        return BaselineEntry(
            self.task.case,
            gate_rule.exact_figures(first),
            self.environment,
            first.threads,
            sessions,
            measurement.step(first),
        )


def measure(
    name: str,
    task: Task,
    bench: Bench,
    variant: Variant,
    environment: Mapping[str, Any],
    metrics: Sequence[Phase],
    count: int = BLOCKS,
) -> GateMeasurement:
    """Measure blocks of one case from two processes in turns, up to the first failure."""
    bench.start((variant, variant))
    blocks: list[ProcessBlock] = []
    for number in range(count):
        blocks.append(bench.block(number % 2, task))
        if blocks[-1].row.outcome != "ok":
            break
    clock = clock_of(task.case.device)
    times: dict[str, tuple[float, ...]] = {}
    for metric in metrics:
        known = [block.seconds(metric, clock) for block in blocks if block.disturbed(clock) is None]
        if known and None not in known:
            times[metric] = tuple(value for value in known if value is not None)
    rows = tuple(block.row for block in blocks)
    timed = count > 1 and not _simulated(task)
    return GateMeasurement(name, task, environment, rows, times, gate_baseline.reference_seconds() if timed else None)


def of_row(row: Measurement, metrics: Sequence[Phase]) -> GateMeasurement:
    """A stored row of a server as a measurement of its case. Each request is a block, scaled to the case's tokens."""
    case, url = row.case, str((row.serving or {}).get("url"))
    tokens = {"prefill": case.context, "decode": case.steps}
    times = {name: tuple(tokens[name] / rate for rate in stats.rates(row, name)) for name in metrics}
    known: dict[str, tuple[float, ...]] = {name: seconds for name, seconds in times.items() if seconds}
    task = Task(case, Source("url", url, None, {}))
    return GateMeasurement(f"{case.label} n={case.steps} {case.key}", task, row.environment, (row,), known)


def machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """An environment without the server's version, which may differ: a gate judges a server before and after an
    update."""
    return {name: value for name, value in environment.items() if name != "server"}


def against(
    measured: GateMeasurement,
    baseline: Baseline,
    rule: RegressionRule,
    metrics: Sequence[Phase],
    front: FrontEnd = COMMAND,
) -> list[GateVerdict]:
    """The verdicts on a measured case. If it failed or is not in the baseline, that is a FAIL."""
    name = measured.name
    if measured.failed is not None:
        return [GateVerdict(name, "case", "FAIL", f"{measured.failed.outcome}: {measured.failed.reason}")]
    entry = baseline.entries.get(name)
    if entry is None:
        reason = "it is not in the baseline: it is new or was renamed"
        return [GateVerdict(name, "case", "FAIL", reason, front.if_meant)]
    changed = _changed(entry, measured)
    if changed:
        reason = f"it is not the case of the baseline: {', '.join(changed)}"
        return [GateVerdict(name, "case", "INCOMPARABLE", reason, front.if_meant)]
    here = machine(measured.environment)
    entry = replace(entry, environment=machine(entry.environment))
    same = not differences(entry.environment, here)
    other_step = gate_rule.unlike_baseline(entry.step, measured.rows)
    figures = gate_rule.exact_figures(measured.rows[0])
    found = gate_rule.verdicts(name, entry.figures, figures, "the baseline", same, front.if_meant, other_step)
    for metric in metrics:
        if other_step and metric == "decode":
            timed = f"decode_{measured.clock}_s"
            found.append(GateVerdict(name, timed, "INCOMPARABLE", other_step, gate_rule.ADVICE))
            continue
        now = gate_baseline.Now(
            measured.times.get(metric, ()),
            measured.clock,
            here,
            measured.rows[0].threads,
            measured.reference_s,
        )
        found.append(gate_baseline.verdict(name, metric, entry, now, rule, front, settle(measured.task)))
    return found


def fallbacks(measured: Iterable[GateMeasurement]) -> list[str]:
    """A message for each case that ran another decode step than was requested."""
    found = (gate_rule.fallback(row) for each in measured for row in each.rows if row.outcome == "ok")
    return list(dict.fromkeys(text for text in found if text))


def missing(baseline: Baseline, measured: Sequence[str], front: FrontEnd = COMMAND) -> list[GateVerdict]:
    """A FAIL for each case of the baseline that was not measured."""
    reason = "it is in the baseline but was not measured: it was deleted, renamed, or not selected"
    advice = f"measure all of them; if this is intended, delete the baseline and add {front.accept}"
    return [GateVerdict(name, "case", "FAIL", reason, advice) for name in baseline.entries if name not in measured]


def only_times_differ(measured: GateMeasurement, baseline: Baseline) -> bool:
    """Whether nothing but the times differs from the baseline's entry, so that they can be added as one more
    session."""
    entry = baseline.entries.get(measured.name)
    if entry is None or _changed(entry, measured) or differences(entry.environment, measured.environment):
        return False
    if gate_rule.unlike_baseline(entry.step, measured.rows):
        return False
    figures = gate_rule.exact_figures(measured.rows[0])
    return entry.threads == measured.rows[0].threads and not any(
        verdict.word == "FAIL"
        for verdict in gate_rule.verdicts(measured.name, entry.figures, figures, "the baseline")
    )


def accept(path: Path, known: Baseline, measured: Sequence[GateMeasurement]) -> dict[str, str]:
    """Write cases, none of which failed, into the baseline ``known`` at ``path``; return how each was stored.

    Raises ProfileError if the file cannot be written.
    """
    same = {each.name: only_times_differ(each, known) for each in measured}
    write(path, known.accepted({each.name: each.entry() for each in measured}, same))
    return {name: "accepted as one more session" if more else "accepted" for name, more in same.items()}


def _changed(entry: BaselineEntry, measured: GateMeasurement) -> list[str]:
    """The fields in which the cases differ, such as ``context 512 → 1024``. The model's display name may differ."""
    before, now = entry.case, measured.task.case
    if before.key == now.key:
        return []
    names = [name for name in before.__slots__ if name != "model"]
    return [
        f"{name} {getattr(before, name)} → {getattr(now, name)}"
        for name in names
        if getattr(before, name) != getattr(now, name)
    ]


def _simulated(task: Task) -> bool:
    """Whether the backend simulates the machine, so that the reference work would say nothing about it."""
    return backends.simulated(task.case.backend) is not None


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
class PytestGateOptions:
    """The options of ``--profile-gate``."""

    path: Path
    accept: bool
    known: Baseline
    kinds: frozenset[str]
    inconclusive_fails: bool


@dataclass(slots=True)
class Suite:
    """One pytest session. ``lines`` and then ``warnings`` are printed when it has finished."""

    gate: PytestGateOptions | None
    delta: float
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _measured: dict[str, GateMeasurement] = field(default_factory=dict)  # by the id of the test
    _rules: dict[str, RegressionRule] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)  # why a test measured no case
    _snapshots: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by device and backend
    _variant: variants.Variant | None = None

    def recorder(self, node: pytest.Item, replay: Replay, benchmark: Any) -> Callable[..., Measurement]:
        """``profile_case`` of one test."""

        def profile_case(model: str, *, phase: Phase = "decode", **asked: Any) -> Measurement:
            """Measure a case. pytest-benchmark's table shows ``phase``; see ``Suite.measure`` for the arguments."""
            __tracebackhide__ = True
            if node.nodeid in self._measured:
                pytest.fail("profile_case measures one case per test: parametrize the test", pytrace=False)
            refused: ProfileError | None = None
            try:
                found = self.measure(node.nodeid, model, **asked)
            except ProfileError as error:
                refused = error
            except Interrupted:
                raise KeyboardInterrupt from None
            if refused is not None:  # outside of ``except``, where pytest would print the message twice
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
            timed = self.gate is not None and "time" in self.gate.kinds
            blocks = BLOCKS if timed else 1
            measured = measure(name, task, bench, self._here(), snapshot, METRICS, blocks)
        if name not in self._measured:  # a test that is rerun does not get a second chance
            self._measured[name], self._rules[name] = measured, rule
        return measured

    def finish(self, status: int) -> int:
        """Compute the verdicts of the session, or accept the baseline; return the exit code."""
        gate = self.gate
        if gate is None:
            return 0
        if gate.accept:
            return self._accept(gate, status)
        verdicts = [verdict for name in self._measured for verdict in self._verdicts(gate, name)]
        verdicts += [
            GateVerdict(name, "case", "FAIL", why) for name, why in self._broken.items() if name not in self._measured
        ]
        verdicts += missing(gate.known, [*self._measured, *self._broken], PYTEST)
        reasons = page.reasons(verdicts) + fallbacks(self._measured.values())
        self.lines = [page.headline(verdicts), "", *page.table(verdicts), *([""] if reasons else []), *reasons]
        word = worst(verdicts)
        if word == "INCONCLUSIVE" and not gate.inconclusive_fails:
            self.warnings = [UNDECIDED]
        return exit_code(word, gate.inconclusive_fails)

    def close(self) -> None:
        """Release what was measured."""
        self._measured.clear()

    def _verdicts(self, gate: PytestGateOptions, name: str) -> list[GateVerdict]:
        timed = METRICS if "time" in gate.kinds else ()
        found = against(self._measured[name], gate.known, self._rules[name], timed, PYTEST)
        return [
            verdict
            for verdict in found
            if verdict.metric not in gate_rule.BOUNDS or gate_rule.BOUNDS[verdict.metric].depends_on in gate.kinds
        ]

    def _accept(self, gate: PytestGateOptions, status: int) -> int:
        """Write the file, unless any test failed."""
        failed = [found.name for found in self._measured.values() if found.failed] + list(self._broken)
        if status != 0 or failed or not self._measured:
            why = "nothing was measured" if not self._measured else "not every test passed"
            self.lines = [f"{gate.path} was not changed: {why}"]
            return 1
        try:
            accepted = accept(gate.path, gate.known, list(self._measured.values()))
        except ProfileError as error:
            self.lines = str(error).splitlines()
            return 1
        others = [name for name in gate.known.entries if name not in accepted]
        self.lines = [f"{name}: {how}" for name, how in accepted.items()]
        self.lines += [f"{name}: unchanged, not measured" for name in others]
        self.lines += fallbacks(self._measured.values())
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
            return Suite(None, delta)
        words = [word.strip() for word in config.getoption("profile_gate_kinds").split(",")]
        unknown = [word for word in words if word not in KINDS]
        if unknown:
            raise ProfileError(
                f"--profile-gate-kinds: unknown kind {printable(unknown[0], 60)!r}",
                f"Known: {', '.join(KINDS)}.",
            )
        kinds = frozenset(words)
        path, accept = Path(named), bool(config.getoption("profile_gate_accept"))
        if accept:
            files.check(path)
        known = Baseline({}) if accept and not path.exists() else gate_baseline.read(path, PYTEST)
    except ProfileError as error:
        raise pytest.UsageError(str(error)) from None
    return Suite(
        PytestGateOptions(path, accept, known, kinds, config.getoption("profile_gate_inconclusive") == "fail"), delta
    )


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
