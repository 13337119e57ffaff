"""``profile gate`` from its options to its result: base and candidate are measured in turns, or this installation is
measured and compared with a stored baseline. What they predict is compared first.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from profiler import backends, devices
from profiler.backends.llama_cpp import build as llama_cpp
from profiler.case import Case, Task
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.gate import builds, numerics, revision, variants
from profiler.gate import trial as gate_trial
from profiler.gate.agreement import KL_LIMIT, KL_LIMIT_F32, agreement
from profiler.gate.bench import (
    METRICS,
    GateClock,
    Interrupted,
    KeptBlocks,
    WorkerBench,
    clock_of,
    threads_of,
    wait_until_quiet,
)
from profiler.gate.measured import BaselineGate, GateMeasurement, measure, name_of, of_row
from profiler.gate.rule import DELTA, GateVerdict, RegressionRule, worst
from profiler.gate.trial import MAX_CASES, GatePlan, GateTrial
from profiler.gate.variants import Variant
from profiler.results import environment, reading
from profiler.results.environment import differences, environment_key
from profiler.results.measurement import Phase
from profiler.results.redact import redact_json
from profiler.run.grid import runnable
from profiler.run.refusal import Refusal, combined_error
from profiler.run.request import ResolvedRequest, SweepRequest, resolve_request
from profiler.run.supervisor import WorkerLimits
from profiler.units import printable

REPS = 5  # per block, whose value is their median: with fewer, one slow repetition moves it
CASES = ("models", "quants", "contexts", "batches", "steps")  # options that choose cases
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class GateRequest:
    """The options of ``profile gate`` as typed; None or empty means that an option was not given."""

    sweep: SweepRequest  # cases, and how they are run
    base: str | None = None
    candidate: str | None = None
    build: str | None = None  # shell command that builds a revision of the user's project
    baseline: Path | None = None
    rows: str | None = None
    store: Path | None = None
    accept: bool = False
    delta: float = DELTA
    metrics: tuple[str, ...] = ()
    device: str | None = None
    wait_s: float = 60.0
    seed: int | None = None

    def check(self) -> None:
        """Raises ProfileError for options that do not go together, and for a baseline that cannot be used."""
        if self.rows is not None:
            if self.baseline is None or self.base is not None:
                raise ProfileError("--rows judges stored rows by a baseline: it needs --baseline FILE and no --base")
            if any(getattr(self.sweep, name) for name in CASES):
                raise ProfileError("--rows has its cases already", "Leave out -m, -q, -c, -b and -n.")
        elif self.base is None and self.baseline is None:
            of_builds = backends.find(self.sweep.backend).find_build is not None
            bases = (
                "--base OLD_BUILD_DIR, the folder of another build,"
                if of_builds
                else ("--base HEAD~1, --base ../old/.venv,")
            )
            raise ProfileError(
                "there is nothing to compare with", f"Use {bases} or --baseline FILE (made with --accept)."
            )
        elif self.accept and (self.baseline is None or self.base is not None):
            raise ProfileError("--accept writes a baseline: it needs --baseline FILE and no --base")
        elif self.base is None and (self.candidate is not None or self.build is not None):
            raise ProfileError(f"{'--candidate' if self.build is None else '--build'} needs --base")
        elif not self.sweep.models:
            raise ProfileError("no model was given", "Add -m MODEL; profile models lists the catalog.")
        if self.baseline is not None:  # fail before anything is measured
            BaselineGate.open(self.baseline, self.accept)

    @property
    def timed(self) -> tuple[Phase, ...]:
        """The chosen metrics. Raises ProfileError for unknown ones."""
        chosen = [word for value in self.metrics for word in value.split(",") if word]
        if self.metrics and not chosen:
            raise ProfileError("--metric: the list is empty", f"Known: {', '.join(METRICS)}.")
        unknown = [word for word in chosen if word not in METRICS]
        if unknown:
            raise ProfileError(f"--metric: unknown metric {unknown[0]!r}", f"Known: {', '.join(METRICS)}.")
        return tuple(metric for metric in METRICS if not chosen or metric in chosen)


@dataclass(slots=True)
class GateResult:
    """What a gate found, and everything that its output shows."""

    rule: RegressionRule
    cases: Sequence[Case]
    environment: Mapping[str, Any]
    verdicts: list[GateVerdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clock: GateClock = "wall"
    seed: int | None = None
    effort: Mapping[str, Any] | None = None
    variants: dict[str, Any] = field(default_factory=dict)
    blocks: KeptBlocks = field(default_factory=list)  # all that ran, including those that do not count
    interrupted: bool = False  # by the user: there is no verdict

    def to_json(self) -> dict[str, Any]:
        """The whole gate as plain JSON. Variants are stored as ``sides``, their name since the first version."""
        content: dict[str, Any] = redact_json(
            {
                "schema": 1,
                "word": worst(self.verdicts),
                "rule": asdict(self.rule),
                "seed": self.seed,
                "effort": self.effort,
                "clock": self.clock,
                "sides": self.variants,
                "blocks": self.blocks,
                "notes": self.notes,
                "cases": [asdict(case) | {"key": case.key} for case in self.cases],
                "environment": dict(self.environment),
                "verdicts": [verdict.to_json() for verdict in self.verdicts],
            }
        )
        return content


def run(request: GateRequest, say: Say) -> GateResult:
    """Measure, or read the rows, and judge. ``say`` gets messages for the user.

    Raises ProfileError for options that cannot be used, and for variants that cannot measure the cases.
    """
    rule, metrics = RegressionRule(request.delta), request.timed
    if request.rows is not None:
        return _judge_rows(request, rule, metrics)
    with llama_cpp.using(request.sweep.llama_cpp or _candidate_build(request, say) or _built_here(request)):
        return _measure(request, rule, metrics, say)


def _candidate_build(request: GateRequest, say: Say) -> str | None:
    """The folder in which the candidate was built, if ``--build`` makes one of its revision.

    The cases are resolved with the programs that will run them, so no other build has to be installed.
    """
    named, line = request.candidate, request.build
    if (
        named is None
        or line is None
        or Path(named).exists()
        or backends.find(request.sweep.backend).find_build is None
    ):
        return None
    return str(builds.of_revision(named, line, say)[0])


def _built_here(request: GateRequest) -> str | None:
    """The repository that the user stands in, if ``--build`` is about it and it has a build of llama.cpp, which then
    is the candidate.
    """
    root = None if request.build is None else revision.toplevel(Path.cwd())
    return str(root) if root is not None and llama_cpp.is_in(root) else None


def _measure(request: GateRequest, rule: RegressionRule, metrics: tuple[Phase, ...], say: Say) -> GateResult:
    device = devices.find(request.device)
    threads = threads_of(device.name, request.sweep.threads)
    sweep = replace(request.sweep, reps=request.sweep.reps or REPS, threads=threads)
    resolved = resolve_request(sweep, device, device.free_bytes, say)
    if request.accept and resolved.refused:  # every later comparison would report a missing model as new
        raise combined_error(resolved.refused)
    tasks = tuple(runnable(resolved.tasks))
    if len(tasks) > MAX_CASES:
        raise ProfileError(
            f"{len(tasks)} cases are too many: with more than {MAX_CASES}, a gate cannot tell slowdowns from chance",
            "Gate the cases that matter; profile sweep and profile compare show the others.",
        )
    seed = random.SystemRandom().randrange(2**32) if request.seed is None else request.seed
    here = redact_json(environment.snapshot(device, backends.find(resolved.backend).versions()))
    gate = _Gate(device, resolved, tasks, metrics, request.wait_s, say, rule, here, seed)
    result = gate.result
    result.verdicts += [_refused(refusal) for refusal in resolved.refused]
    try:
        with tempfile.TemporaryDirectory(prefix="profile-gate-") as scratch:
            if request.base is not None:
                result.verdicts += gate.pairs(request, Path(scratch))
            if request.baseline is not None:
                result.verdicts += gate.against_baseline(request.baseline, request.accept)
    except Interrupted:
        result.interrupted, result.verdicts = True, []
    return result


def _judge_rows(request: GateRequest, rule: RegressionRule, metrics: tuple[Phase, ...]) -> GateResult:
    """Compare stored rows of a server with the baseline, or add them to it. Raises ProfileError for other rows."""
    assert request.rows is not None and request.baseline is not None  # checked
    rows = list({row.case.key: row for row in reading.named(request.rows, request.store)}.values())
    others = [row.case.label for row in rows if row.case.server is None]
    if others or not rows:
        what = f"{printable(others[0])} was not measured by profile endpoint" if others else "there are no rows"
        raise ProfileError(f"--rows: {what}", "For any other case, leave --rows out: a gate measures it itself.")
    gate = BaselineGate.open(request.baseline, request.accept, metrics=metrics)
    for row in rows:
        gate.add(of_row(row, metrics), rule)
    entries = ((gate.known.entries.get(name), each) for name, each in gate.measured.items())
    changed = (differences(entry.environment, each.environment) for entry, each in entries if entry)
    notes = list(dict.fromkeys(text for texts in changed for text in texts))
    verdicts = gate.accepted_or_failed() if request.accept else gate.verdicts()
    return GateResult(rule, [row.case for row in rows], rows[0].environment, verdicts, notes)


class _Gate:
    """A gate that measures, on one device. ``result`` has what is known so far."""

    def __init__(
        self,
        device: DeviceInfo,
        resolved: ResolvedRequest,
        tasks: tuple[Task, ...],
        metrics: tuple[Phase, ...],
        wait_s: float,
        say: Say,
        rule: RegressionRule,
        here: dict[str, Any],
        seed: int,
    ) -> None:
        self._device, self._effort, self._tasks, self._metrics = device, resolved.effort, tasks, metrics
        self._traits = backends.find(resolved.backend)
        self._wait_s, self._say, self._rule, self._here, self._seed = wait_s, say, rule, here, seed
        self.result = GateResult(
            rule,
            [task.case for task in tasks],
            here,
            clock="wall" if any(clock_of(task.case) == "wall" for task in tasks) else "cpu",
            seed=seed,
            effort=asdict(resolved.effort),
        )

    def pairs(self, request: GateRequest, scratch: Path) -> list[GateVerdict]:
        """Measure base and candidate in turns."""
        base = self._variant(request.base, request.build, scratch, "the base")
        candidate = self._variant(request.candidate, request.build, scratch, "the candidate")
        builds.refuse_shared_libraries(base, candidate)
        self._note_variants(base, candidate)
        with self._bench() as bench:
            for variant in (base, candidate):
                bench.check(variant, self._tasks)
            agreed = self._numerics(bench, base, candidate)
        agreed += self._agreement(base, candidate)
        obstacles = wait_until_quiet(self._device, self.result.clock, self._say, self._wait_s)
        if obstacles:
            reason = "; ".join(obstacles)
            return agreed + [
                GateVerdict(task.case.label, "machine", "INCONCLUSIVE", reason, "quiet the machine")
                for task in self._tasks
            ]
        plan = GatePlan(self._tasks, self._rule, self._seed, self._metrics, *self._noise_cache(base))
        with self._bench() as bench:
            trial = GateTrial(plan, bench, base, candidate, self._say, self.result.blocks)
            verdicts = trial.run()
        self.result.notes += trial.notes
        return agreed + verdicts

    def _agreement(self, base: Variant, candidate: Variant) -> list[GateVerdict]:
        """Verdicts on the tokens of each loaded model, if the backend can give those of both variants."""
        complete = self._traits.complete
        if complete is None or base.build is None or candidate.build is None:
            return []
        found: list[GateVerdict] = []
        for task in self._loads():
            self._say(f"{printable(task.case.label)}: greedy tokens of both builds")
            try:
                before, now = (complete(task.case, task.source, each) for each in (base.build, candidate.build))
            except KeyboardInterrupt:
                raise Interrupted from None
            except ProfileError as error:
                hint = f" ({error.hint})" if error.hint else ""
                self.result.notes.append(f"tokens of {task.case.model}: unknown, because {error.message}{hint}")
            else:
                limit = KL_LIMIT_F32 if task.case.quant == "f32" else KL_LIMIT
                agreed = agreement(task.case.label, before, now, limit)
                self.result.notes += [f"{each.metric}: {each.reason}" for each in agreed if each.word == "PASS"]
                found += agreed
        return found

    def _numerics(self, bench: WorkerBench, base: Variant, candidate: Variant) -> list[GateVerdict]:
        """Verdicts on the predictions of each loaded model, if the backend gives logits."""
        found: list[GateVerdict] = []
        for task in self._loads() if self._traits.agreement else ():
            self._say(f"{printable(task.case.label)}: predictions of both versions")
            predict = numerics.predictor(bench, base, self._device, self._effort)
            now = numerics.predictor(bench, candidate, self._device, self._effort)
            try:
                own = predict(task, None)["kept"]
                judged = numerics.verdicts(
                    task.case.label, task, partial(numerics.kept, task, predict, own), own, now
                )
            except ProfileError as error:
                self.result.notes.append(f"predictions of {task.case.label}: unknown, because {error.message}")
                continue
            found += judged
            for each in judged:  # at once, because times take minutes
                if each.word == "FAIL":
                    self._say(f"{printable(task.case.label)}: {each.metric}: FAIL: {each.reason}")
        self.result.notes += [f"{each.metric}: {each.reason}" for each in found if each.word == "PASS"]
        return found

    def _loads(self) -> Iterable[Task]:
        """The first task of each loaded model."""
        return {task.case.load_key: task for task in reversed(self._tasks)}.values()

    def _variant(self, named: str | None, line: str | None, scratch: Path, role: str) -> Variant:
        """What ``--base`` or ``--candidate`` names, built by the shell command ``line``; None: the usual one."""
        find = self._traits.find_build
        if named is not None and line is not None and not Path(named).exists():
            return builds.of_project(named, line, find, scratch, self._say)
        if find is not None:
            if named is not None:
                builds.refuse_unbuilt(named, self._traits.build_command)
            variant = builds.of_build(named, find)
            assert variant.build is not None
            self._say(f"{role} runs the programs in {printable(variant.build.folder)}")
            return variant
        if named is None:
            return variants.here()
        return variants.resolve(named, scratch, lambda words: self._say(f"{role} {words}"))

    def against_baseline(self, path: Path, accept: bool) -> list[GateVerdict]:
        """Measure blocks of each case and compare them with the file, or write them there."""
        gate = BaselineGate.open(path, accept, metrics=self._metrics)
        with self._bench() as bench:
            here = variants.here()
            for task in self._tasks:
                measured = measure(name_of(task.case), task, bench, here, self._here, self._metrics)
                bench.start(())  # its processes hold the model
                predict = numerics.predictor(bench, here, self._device, self._effort)
                gate.add(self._predicted(measured, gate, predict, accept), self._rule)
        self.result.notes += gate.notes
        return gate.accepted_or_failed() if accept else gate.verdicts()

    def _predicted(
        self, measured: GateMeasurement, gate: BaselineGate, predict: numerics.Predict, accept: bool
    ) -> GateMeasurement:
        """``measured`` with predictions to store or, if not ``accept``, with the verdicts on them."""
        task, entry = measured.task, gate.known.entries.get(measured.name)
        if not self._traits.agreement or measured.failed is not None or not (accept or entry):
            return measured
        self._say(f"{printable(task.case.label)}: predictions")
        try:
            if accept or entry is None:
                return replace(measured, predictions=numerics.kept(task, predict))
            stored = entry.predictions
            if stored is None:
                raise ProfileError("the baseline has none; to store them, add --accept")
            agreed = numerics.verdicts(measured.name, task, lambda: stored, stored.own, predict)
        except ProfileError as error:
            self.result.notes.append(f"predictions of {task.case.label}: unknown, because {error.message}")
            return measured
        self.result.notes += [f"{each.metric}: {each.reason}" for each in agreed if each.word == "PASS"]
        return replace(measured, agreed=tuple(agreed))

    def _bench(self) -> WorkerBench:
        return WorkerBench(self._effort, WorkerLimits(), self._here, self._seed)

    def _note_variants(self, base: Variant, candidate: Variant) -> None:
        for role, variant in (("base", base), ("candidate", candidate)):
            self.result.variants[role] = {
                "name": variant.name,
                "repository": variant.repository,
                "command": list(variant.launch.python),
                "facts": dict(variant.reported),
            }
        self.result.notes += variants.differences(base, candidate)
        if variants.is_same(base, candidate):
            what = "code in the same environment" if base.build is None else "build"
            note = f"base and candidate are the same {what}: this gate tests itself"
            self.result.notes.append(note)

    def _noise_cache(self, base: Variant) -> tuple[gate_trial.FindNoise, gate_trial.KeepNoise]:
        kept = gate_trial.NoiseCache(gate_trial.default_folder())
        here, effort = environment_key(self._here), asdict(self._effort)
        identity = {"command": list(base.launch.python), "name": base.name, **base.reported}

        def key(task: Task) -> str:
            return gate_trial.key_of(task.case.key, here, identity, effort)

        return (lambda task: kept.find(key(task))), (lambda task, found: kept.keep(key(task), found))


def _refused(refusal: Refusal) -> GateVerdict:
    """The verdict on a model that neither variant can run: the others are judged without it."""
    return GateVerdict(printable(refusal.name), "case", "INCOMPARABLE", f"the model was refused: {refusal.text}")
