"""What one pytest session measures by ``profile_case``, its cases compared with a baseline, and its verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from profiler import backends, devices, files
from profiler.case import Task
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.gate import baseline, page
from profiler.gate import baseline as gate_baseline
from profiler.gate import rule as gate_rule
from profiler.gate import variants as variants
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

BLOCKS = 6  # in two processes: an interval needs some, and one process may be slow from start to end

ARGUMENTS = {"-m": "model", "-q": "quant", "-c": "context", "-b": "batch", "-n": "steps", "-r": "reps"}
OPTION = re.compile(r"(?<![\w-])--?[a-z]+(?![\w-])")
KINDS = ("workload", "machine", "time")
CASE = ("model", "quant", "context", "batch", "steps", "reps", "delta", "device", "phase")
SETTINGS = ("backend", "path", "weights", "fill", "threads", "ubatch", "seed", "max_phase_s")
UNSETTLED = (
    "warning: some stored times are too noisy to settle anything. That does not fail the session;"
    " --profile-gate-inconclusive fail makes it."
)


@dataclass(frozen=True, slots=True)
class GateMeasurement:
    """What was measured. ``rows`` ends with the one that failed, if one did."""

    name: str
    task: Task
    environment: Mapping[str, Any]
    rows: tuple[Measurement, ...]
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # metric → median seconds of each block
    reference_s: float | None = None

    @property
    def failed(self) -> Measurement | None:
        """The row that did not end well."""
        return next((row for row in self.rows if row.outcome != "ok"), None)

    @property
    def clock(self) -> GateClock:
        return clock_of(self.task.case.device)

    def entry(self) -> BaselineEntry:
        """For a baseline. All rows must be ok."""
        first = self.rows[0]
        at = datetime.now(UTC).isoformat(timespec="seconds")
        sessions: tuple[BaselineSession, ...] = ()
        steps = {measurement.step(row) for row in self.rows}
        if len(self.rows) > 1 and len(steps) == 1:  # one block says nothing of times, nor do those of two programs
            sessions = (BaselineSession(at, self.clock, dict(self.times), self.reference_s),)
        return BaselineEntry(
            self.task.case, gate_rule.facts(first), self.environment, first.threads, sessions, measurement.step(first)
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
    """Blocks of one cell, from two processes in turns; it ends with the first that fails."""
    bench.start((variant, variant))
    blocks: list[ProcessBlock] = []
    for number in range(count):
        blocks.append(bench.block(number % 2, task))
        if blocks[-1].row.outcome != "ok":
            break
    clock = clock_of(task.case.device)
    times: dict[str, tuple[float, ...]] = {}
    for metric in metrics:
        known = [block.seconds(metric, clock) for block in blocks if block.spoilt(clock) is None]
        if known and None not in known:
            times[metric] = tuple(value for value in known if value is not None)
    rows = tuple(block.row for block in blocks)
    timed = count > 1 and not _invented(task)
    return GateMeasurement(name, task, environment, rows, times, gate_baseline.reference_seconds() if timed else None)


def against(
    cell: GateMeasurement,
    baseline: Baseline,
    rule: RegressionRule,
    metrics: Sequence[Phase],
    front: FrontEnd = COMMAND,
) -> list[GateVerdict]:
    """The verdicts on a cell. One that failed, or that the baseline does not know, is a FAIL."""
    if cell.failed is not None:
        return [GateVerdict(cell.name, "case", "FAIL", f"{cell.failed.outcome}: {cell.failed.reason}")]
    entry = baseline.cells.get(cell.name)
    if entry is None:
        reason = "it is not in the baseline: new, or under another name"
        return [GateVerdict(cell.name, "case", "FAIL", reason, front.if_meant)]
    changed = _changed(entry, cell)
    if changed:
        reason = f"it is another case than the baseline's: {', '.join(changed)}"
        return [GateVerdict(cell.name, "case", "INCOMPARABLE", reason, front.if_meant)]
    same = not differences(entry.environment, cell.environment)
    other_step = gate_rule.unlike_baseline(entry.step, cell.rows)
    facts = gate_rule.facts(cell.rows[0])
    found = gate_rule.verdicts(cell.name, entry.facts, facts, "the baseline", same, front.if_meant, other_step)
    for metric in metrics:
        if other_step and metric == "decode":
            found.append(
                GateVerdict(cell.name, f"decode_{cell.clock}_s", "INCOMPARABLE", other_step, gate_rule.ADVICE)
            )
            continue
        now = gate_baseline.Now(
            cell.times.get(metric, ()), cell.clock, cell.environment, cell.rows[0].threads, cell.reference_s
        )
        found.append(gate_baseline.verdict(cell.name, metric, entry, now, rule, front, settle(cell.task)))
    return found


def fallbacks(cells: Iterable[GateMeasurement]) -> list[str]:
    """Cases that ran another decode step than was asked for, in words."""
    found = (gate_rule.fallback(row) for cell in cells for row in cell.rows if row.outcome == "ok")
    return list(dict.fromkeys(text for text in found if text))


def missing(baseline: Baseline, measured: Sequence[str], front: FrontEnd = COMMAND) -> list[GateVerdict]:
    """A FAIL for each cell of the baseline that was not measured: deleted, renamed, or not selected."""
    reason = "it is in the baseline and was not measured: deleted, renamed, or not selected"
    advice = f"measure all of it; or, if it is meant, delete the baseline and add {front.accept}"
    return [GateVerdict(name, "case", "FAIL", reason, advice) for name in baseline.cells if name not in measured]


def adds_up(cell: GateMeasurement, baseline: Baseline) -> bool:
    """Whether a cell is what the baseline has, measured once more: then its times are one more session."""
    entry = baseline.cells.get(cell.name)
    if entry is None or _changed(entry, cell) or differences(entry.environment, cell.environment):
        return False
    if gate_rule.unlike_baseline(entry.step, cell.rows):
        return False
    return entry.threads == cell.rows[0].threads and not any(
        verdict.word == "FAIL"
        for verdict in gate_rule.verdicts(cell.name, entry.facts, gate_rule.facts(cell.rows[0]), "the baseline")
    )


def accept(path: Path, known: Baseline, cells: Sequence[GateMeasurement]) -> dict[str, str]:
    """Write ``cells``, none of which failed, into the baseline ``known`` at ``path``. Says of each how it was taken.

    Raises ProfileError where the file cannot be written.
    """
    same = {each.name: adds_up(each, known) for each in cells}
    write(path, known.accepted({each.name: each.entry() for each in cells}, same))
    return {name: "accepted as one more session" if more else "accepted" for name, more in same.items()}


def _changed(entry: BaselineEntry, cell: GateMeasurement) -> list[str]:
    """The fields in which the cases differ, ``context 512 → 1024``; the shown name of the model is none."""
    before, now = entry.case, cell.task.case
    if before.key == now.key:
        return []
    names = [name for name in before.__slots__ if name != "model"]
    return [
        f"{name} {getattr(before, name)} → {getattr(now, name)}"
        for name in names
        if getattr(before, name) != getattr(now, name)
    ]


def _invented(task: Task) -> bool:
    """Whether the machine is the backend's own invention, which no reference work runs on."""
    return backends.made_up(task.case.backend) is not None


ARGUMENTS |= {f"--{name}": name for name in ("device", "backend", "path", "weights", "fill", "threads", "delta")}


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
class PytestGateOptions:
    """What ``--profile-gate`` asks for."""

    path: Path
    accept: bool
    known: baseline.Baseline
    kinds: frozenset[str]
    inconclusive_fails: bool


@dataclass(slots=True)
class Suite:
    """One session. ``lines`` and then ``warnings`` are for the terminal, once it has finished."""

    gate: PytestGateOptions | None
    delta: float
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _cells: dict[str, GateMeasurement] = field(default_factory=dict)  # by the id of the test
    _rules: dict[str, RegressionRule] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)  # why a test has no cell
    _snapshots: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by device and backend
    _variant: variants.Variant | None = None

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
    ) -> GateMeasurement:
        """Measure one case; ``settings`` are as of ``profile sweep``: backend, path, weights, fill, threads, seed.

        Raises ProfileError for what cannot be meant, Interrupted.
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
            GateVerdict(name, "case", "FAIL", why) for name, why in self._broken.items() if name not in self._cells
        ]
        verdicts += missing(gate.known, [*self._cells, *self._broken], PYTEST)
        told = page.reasons(verdicts)
        told += fallbacks(self._cells.values())
        self.lines = [page.headline(verdicts), "", *page.table(verdicts), *([""] if told else []), *told]
        word = worst(verdicts)
        if word == "INCONCLUSIVE" and not gate.inconclusive_fails:
            self.warnings = [UNSETTLED]
        return exit_code(word, gate.inconclusive_fails)

    def close(self) -> None:
        """Nothing of ours outlives the session."""
        self._cells.clear()

    def _verdicts(self, gate: PytestGateOptions, name: str) -> list[GateVerdict]:
        timed = METRICS if "time" in gate.kinds else ()
        found = against(self._cells[name], gate.known, self._rules[name], timed, PYTEST)
        return [
            verdict
            for verdict in found
            if verdict.metric not in gate_rule.BOUNDS or gate_rule.BOUNDS[verdict.metric].of in gate.kinds
        ]

    def _accept(self, gate: PytestGateOptions, status: int) -> int:
        """Write the file, unless anything at all went wrong."""
        failed = [found.name for found in self._cells.values() if found.failed] + list(self._broken)
        if status != 0 or failed or not self._cells:
            why = "nothing was measured" if not self._cells else "not every test passed"
            self.lines = [f"{gate.path} is as it was: {why}"]
            return 1
        try:
            accepted = accept(gate.path, gate.known, list(self._cells.values()))
        except ProfileError as error:
            self.lines = str(error).splitlines()
            return 1
        others = [name for name in gate.known.cells if name not in accepted]
        self.lines = [f"{name}: {how}" for name, how in accepted.items()]
        self.lines += [f"{name}: kept as it was, not measured" for name in others]
        self.lines += fallbacks(self._cells.values())
        return 0

    def _here(self) -> variants.Variant:
        if self._variant is None:
            self._variant = variants.here()
        return self._variant


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
    return Suite(
        PytestGateOptions(path, accept, known, kinds, config.getoption("profile_gate_inconclusive") == "fail"), delta
    )


def _task(
    device: DeviceInfo, model: str, quant: str | None, sizes: Sequence[int | str], reps: int, settings: dict[str, Any]
) -> tuple[Task, Effort]:
    strange = [name for name in settings if name not in SETTINGS]
    if strange:
        raise ProfileError(f"profile_case has no argument {strange[0]}", f"Known: {', '.join(CASE + SETTINGS)}.")
    context, batch, steps = map(str, sizes)
    settings = settings | {"threads": threads_of(device.name, settings.get("threads"))}
    if "path" in settings:
        settings["paths"] = (settings.pop("path"),)
    quants = () if quant is None else (quant,)
    request = SweepRequest((model,), quants, (context,), (batch,), (steps,), reps=reps, **settings)
    resolved = resolve_request(request, device, device.free_bytes, lambda text: None)
    if len(resolved.tasks) != 1:
        raise ProfileError(
            f"profile_case measures one case, and these are {len(resolved.tasks)}", "Parametrize the test."
        )
    (task,) = runnable(resolved.tasks)
    return task, resolved.effort


def _show(found: GateMeasurement, phase: Phase, replay: Replay, benchmark: Any) -> None:
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
        **gate_rule.facts(first),
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
