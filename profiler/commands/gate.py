"""``profile gate``: decide whether a change made inference slower or larger."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from profiler import backends, devices, files
from profiler.case import Case, Task
from profiler.commands import options
from profiler.commands.options import MeasuringCommand
from profiler.console import say
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.gate import baseline, page, suite, variants
from profiler.gate import trial as gate_trial
from profiler.gate.bench import METRICS, Interrupted, WorkerBench, clock_of, threads_of, wait_until_quiet
from profiler.gate.rule import DELTA, GateVerdict, RegressionRule, exit_code, worst
from profiler.gate.trial import MAX_CASES, GatePlan, GateTrial
from profiler.results import environment, reading
from profiler.results.environment import environment_key
from profiler.results.measurement import Measurement
from profiler.results.redact import redact_json
from profiler.run.grid import runnable
from profiler.run.refusal import Refusal, combined_error
from profiler.run.request import MAX_THREADS, ResolvedRequest, SweepRequest, resolve_request
from profiler.run.supervisor import WorkerLimits
from profiler.units import printable

REPS = 5  # per block, whose value is their median: with fewer, one slow repetition moves it
INTERRUPTED = 130
FORMATS = page.FORMATS
CASES = ("models", "quants", "contexts", "batches", "steps")  # options that choose cases
UNMEASURED: dict[str, Any] = {"seed": None, "effort": None, "clock": "wall", "sides": {}, "blocks": []}


@click.command(
    "gate",
    cls=MeasuringCommand,
    examples={
        "profile gate --base HEAD~1 -m gemma-3-270m -c 64 -n 16": "this checkout against its previous commit",
        "profile gate --base ../old/.venv -m ./my-model -q nf4": "against an environment with other library versions",
        "profile gate --baseline speed.json --accept -m gemma-3-270m": "store a baseline; without --accept, compare",
        "profile gate --baseline server.json --rows latest": "judge the latest run of profile endpoint",
    },
)
@options.group(
    "What to compare",
    click.option(
        "--base",
        metavar="REV|VENV|CMD",
        help="What to compare with: a git revision, a virtual environment or a Python command.",
    ),
    click.option("--candidate", metavar="REV|VENV|CMD", help="What to judge. [default: this installation]"),
    click.option(
        "--baseline",
        "stored",
        type=options.FilePath(),
        metavar="FILE",
        help="Compare with this stored baseline: bytes and tokens exactly, times only coarsely.",
    ),
    click.option(
        "--rows",
        metavar="RUN|FILE",
        help="Compare stored rows of profile endpoint with --baseline, instead of measuring.",
    ),
    click.option(
        "--accept", is_flag=True, help="Store the new measurements in --baseline. Nothing else changes that file."
    ),
)
@options.group(
    "Cases",
    options.many(
        "-m",
        "--model",
        "models",
        metavar="MODEL",
        help="Models: catalog names (see profile models), folders, .gguf files or Hugging Face ids.",
    ),
    options.many(
        "-q", "--quant", "quants", metavar="QUANT", help="Quantizations, such as bf16,nf4. [default: as in a sweep]"
    ),
    options.many(
        "-c", "--context", "contexts", metavar="TOKENS", help="Tokens in the cache when decode starts. [default: 512]"
    ),
    options.many("-b", "--batch", "batches", metavar="N", help="Sequences processed combined_error. [default: 1]"),
    options.many("-n", "--steps", "steps", metavar="N", help="Tokens to decode for each sequence. [default: 32]"),
    options.choice(
        "--weights",
        ("auto", "real", "synthetic"),
        default="auto",
        help="auto: real weights if they are on this machine, otherwise random values.",
    ),
    options.choice(
        "--fill",
        ("prefill", "synthetic"),
        help="Fill the cache by a real prefill or with random values. [default: prefill]",
    ),
)
@options.group(
    "Decision",
    options.percentage(
        "--delta", default=f"{100 * DELTA:g}%", help="The smallest slowdown that counts as a regression."
    ),
    options.many("--metric", "metrics", metavar="METRIC", help="Time prefill or decode. [default: both]"),
    options.choice(
        "--inconclusive",
        ("fail", "warn"),
        default="fail",
        help="Exit with 3 (fail) or 0 (warn) when the gate cannot decide.",
    ),
)
@options.group(
    "How to run it",
    options.device(),
    options.plugin_name(
        "--backend",
        folder=backends.FOLDER,
        default=backends.DEFAULT,
        help="What runs the models; hf is Hugging Face transformers.",
    ),
    options.choice(
        "--path",
        ("eager", "static", "graph"),
        default="eager",
        help="How decode runs. A sweep uses static or graph unless told otherwise.",
    ),
    options.count(
        "--threads", most=MAX_THREADS, help="CPU threads. [default: 1 on a CPU, where idle threads use CPU time]"
    ),
    options.count("-r", "--reps", help=f"Repetitions of each phase in each measurement of a pair. [default: {REPS}]"),
    options.duration(
        "--max-phase", "max_phase_s", help="Start no further repetition of a phase after this time. [default: 60s]"
    ),
    options.duration("--wait", "wait_s", default="60s", help="How long to wait for the machine to become quiet."),
    click.option(
        "--seed",
        type=click.IntRange(0),
        metavar="N",
        help="Seed of the order within pairs. [default: random, and recorded]",
    ),
)
@options.group(
    "Results",
    click.option(
        "--record",
        type=options.FilePath(),
        metavar="FILE",
        help="Write all measurements to this JSON file, including those that do not count.",
    ),
    options.store(),
    click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS, case_sensitive=False),
        default="table",
        show_default=True,
        help="Output format.",
    ),
)
def gate(
    base: str | None,
    candidate: str | None,
    stored: Path | None,
    rows: str | None,
    store: Path | None,
    accept: bool,
    delta: float,
    metrics: tuple[str, ...],
    inconclusive: str,
    device: str | None,
    wait_s: float,
    seed: int | None,
    record: Path | None,
    output: str,
    **asked: Any,
) -> int:
    """Decide whether a change made inference slower or larger.

    With --base, the gate runs both versions in turns, in worker processes, as pairs in random order. After 6, 10 and
    16 pairs it decides PASS or FAIL, or continues; a FAIL has to be confirmed in new processes. On a CPU it compares
    CPU time. With --baseline, it compares bytes and tokens exactly with a stored file, and times only coarsely.

    Exit codes: 0 PASS, 1 FAIL, 2 usage error, 3 inconclusive, 4 incomparable, 130 interrupted.
    """
    _check(base, candidate, stored, accept, rows, asked)
    if stored is not None:  # fail before anything is measured
        _known(stored, accept)
    if record is not None:
        files.check(record, (stored,))
    if rows is not None and stored is not None:
        judged = StoredRun(reading.named(rows, store), RegressionRule(delta), _metrics(metrics))
        return _print(judged, judged.verdicts(stored, accept), record, output, inconclusive)
    found = devices.find(device)
    asked["paths"] = (asked.pop("path"),)
    asked |= {"reps": asked["reps"] or REPS, "threads": threads_of(found.name, asked["threads"])}
    resolved = resolve_request(SweepRequest(**asked), found, found.free_bytes, say)
    if accept and resolved.refused:  # every later comparison would report a model that is missing here as new
        raise combined_error(resolved.refused)
    tasks = tuple(runnable(resolved.tasks))
    if len(tasks) > MAX_CASES:
        raise ProfileError(
            f"{len(tasks)} cases are too many: with more than {MAX_CASES}, a gate cannot tell slowdowns from chance",
            "Gate the cases that matter; profile sweep and profile compare show the others.",
        )
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    chosen = _metrics(metrics)
    run = GateRun(found, resolved, tasks, RegressionRule(delta), chosen, seed, wait_s)
    try:
        with tempfile.TemporaryDirectory(prefix="profile-gate-") as scratch:
            verdicts = [_refused(refusal) for refusal in resolved.refused]
            verdicts += run.pairs(base, candidate, Path(scratch)) if base is not None else []
            verdicts += run.standing(stored, accept) if stored else []
    except Interrupted:
        say("interrupted: there is no verdict")
        if record is not None:
            page.keep(record, run.content([]))
        return INTERRUPTED
    return _print(run, verdicts, record, output, inconclusive)


def _print(
    run: GateRun | StoredRun, verdicts: Sequence[GateVerdict], record: Path | None, output: str, inconclusive: str
) -> int:
    """Print the verdicts; return the exit code."""
    content = run.content(verdicts)
    if record is not None:
        page.keep(record, content)
    click.echo(page.render(content, verdicts, output), nl=False)
    return exit_code(worst(verdicts), inconclusive == "fail")


class StoredRun:
    """A gate on stored rows of a server, which measures nothing. Raises ProfileError for other rows."""

    def __init__(self, rows: Sequence[Measurement], rule: RegressionRule, metrics: tuple[Any, ...]) -> None:
        self._rows = list({row.case.key: row for row in rows}.values())
        self._rule, self._metrics, self._notes = rule, metrics, list[str]()
        others = [row.case.label for row in self._rows if row.case.server is None]
        if others or not self._rows:
            what = f"{printable(others[0])} was not measured by profile endpoint" if others else "there are no rows"
            raise ProfileError(f"--rows: {what}", "For any other case, leave --rows out: a gate measures it itself.")

    def verdicts(self, path: Path, accept: bool) -> list[GateVerdict]:
        """Compare the rows with the baseline, or add them to it."""
        known = _known(path, accept)
        measured = [suite.of_row(row, self._metrics) for row in self._rows]
        entries = ((known.entries.get(each.name), each) for each in measured)
        changed = (environment.differences(entry.environment, each.environment) for entry, each in entries if entry)
        self._notes = list(dict.fromkeys(text for texts in changed for text in texts))
        if accept:
            return _accept(path, known, measured, self._rule, self._metrics)
        found = [verdict for each in measured for verdict in suite.against(each, known, self._rule, self._metrics)]
        return found + suite.missing(known, [each.name for each in measured])

    def content(self, verdicts: Sequence[GateVerdict]) -> dict[str, Any]:
        """The whole gate as plain JSON."""
        return _content(
            verdicts, self._rule, self._notes, [row.case for row in self._rows], self._rows[0].environment
        )


class GateRun:
    """One gate on one device: it measures and collects everything for the output."""

    def __init__(
        self,
        device: DeviceInfo,
        resolved: ResolvedRequest,
        tasks: tuple[Task, ...],
        rule: RegressionRule,
        metrics: tuple[Any, ...],
        seed: int,
        wait_s: float,
    ) -> None:
        self._device, self._resolved, self._tasks, self._rule = device, resolved, tasks, rule
        self._metrics, self._seed, self._wait_s = metrics, seed, wait_s
        self._environment = redact_json(environment.snapshot(device, backends.find(resolved.backend).versions()))
        self._notes: list[str] = []
        self._kept: list[dict[str, Any]] = []
        self._variants: dict[str, Any] = {}

    def pairs(self, base: str, candidate: str | None, scratch: Path) -> list[GateVerdict]:
        """Measure base and candidate in turns."""
        left = variants.resolve(base, scratch, lambda words: say(f"the base {words}"))
        right = (
            variants.resolve(candidate, scratch, lambda words: say(f"the candidate {words}"))
            if candidate is not None
            else variants.here()
        )
        self._note_variants(left, right)
        with self._bench() as bench:
            for variant in (left, right):
                bench.check(variant, self._tasks)
        obstacles = wait_until_quiet(self._device, self._clock, say, self._wait_s)
        if obstacles:
            reason = "; ".join(obstacles)
            return [
                GateVerdict(task.case.label, "machine", "INCONCLUSIVE", reason, "quiet the machine")
                for task in self._tasks
            ]
        plan = GatePlan(self._tasks, self._rule, self._seed, self._metrics, *self._noise_cache(left))
        with self._bench() as bench:
            trial = GateTrial(plan, bench, left, right, say, self._kept)
            verdicts = trial.run()
        self._notes += trial.notes
        return verdicts

    def standing(self, path: Path, accept: bool) -> list[GateVerdict]:
        """Measure blocks of each case and compare them with the file, or write them there."""
        known = _known(path, accept)
        with self._bench() as bench:
            here = variants.here()
            measured = [
                suite.measure(_name(task), task, bench, here, self._environment, self._metrics)
                for task in self._tasks
            ]
        self._notes += suite.fallbacks(measured)
        if accept:
            return _accept(path, known, measured, self._rule, self._metrics)
        found = [verdict for each in measured for verdict in suite.against(each, known, self._rule, self._metrics)]
        return found + suite.missing(known, [each.name for each in measured])

    def content(self, verdicts: Sequence[GateVerdict]) -> dict[str, Any]:
        """The whole gate as plain JSON."""
        cases = [task.case for task in self._tasks]
        return _content(
            verdicts, self._rule, self._notes, cases, self._environment,
            seed=self._seed, effort=asdict(self._resolved.effort), clock=self._clock, sides=self._variants,
            blocks=self._kept,
        )  # fmt: skip

    @property
    def _clock(self) -> str:
        return clock_of(self._device.name)

    def _bench(self) -> WorkerBench:
        return WorkerBench(self._resolved.effort, WorkerLimits(), self._environment, self._seed)

    def _note_variants(self, base: variants.Variant, candidate: variants.Variant) -> None:
        self._variants = {
            name: {
                "name": variant.name,
                "repository": variant.repository,
                "command": list(variant.launch.python),
                "facts": dict(variant.reported),
            }
            for name, variant in (("base", base), ("candidate", candidate))
        }
        self._notes += variants.differences(base, candidate)
        if variants.is_same(base, candidate):
            self._notes.append("base and candidate are the same code in the same environment: this gate tests itself")

    def _noise_cache(self, base: variants.Variant) -> tuple[Any, Any]:
        kept = gate_trial.NoiseCache(gate_trial.default_folder())
        here, effort = environment_key(self._environment), asdict(self._resolved.effort)
        identity = {"command": list(base.launch.python), "name": base.name, **base.reported}

        def key(task: Task) -> str:
            return gate_trial.key_of(task.case.key, here, identity, effort)

        return (lambda task: kept.find(key(task))), (lambda task, found: kept.keep(key(task), found))


def _accept(
    path: Path,
    known: baseline.Baseline,
    measured: Sequence[suite.GateMeasurement],
    rule: RegressionRule,
    metrics: tuple[Any, ...],
) -> list[GateVerdict]:
    """Write the cases, unless one failed: a baseline holds no failures."""
    failed = [each for each in measured if each.failed is not None]
    if failed:
        return [verdict for each in failed for verdict in suite.against(each, known, rule, metrics)]
    accepted = suite.accept(path, known, measured)
    return [GateVerdict(name, "case", "PASS", words) for name, words in accepted.items()]


def _content(
    verdicts: Sequence[GateVerdict],
    rule: RegressionRule,
    notes: Sequence[str],
    cases: Sequence[Case],
    machine: dict[str, Any],
    **measured: Any,
) -> dict[str, Any]:
    """A gate as plain JSON. ``measured``: what only a gate has that measures; fields in ``UNMEASURED``."""
    whole: dict[str, Any] = redact_json(
        {
            "schema": 1,
            "word": worst(verdicts),
            "rule": asdict(rule),
            **UNMEASURED,
            **measured,
            "notes": list(notes),
            "cases": [asdict(case) | {"key": case.key} for case in cases],
            "environment": machine,
            "verdicts": [verdict.to_json() for verdict in verdicts],
        }
    )
    return whole


def _check(
    base: str | None,
    candidate: str | None,
    stored: Path | None,
    accept: bool,
    rows: str | None,
    asked: dict[str, Any],
) -> None:
    """Refuse options that do not go combined_error."""
    if rows is not None:
        if stored is None or base is not None:
            raise ProfileError("--rows judges stored rows by a baseline: it needs --baseline FILE and no --base")
        if any(asked[name] for name in CASES):
            raise ProfileError("--rows has its cases already", "Leave out -m, -q, -c, -b and -n.")
        return
    if base is None and stored is None:
        raise ProfileError(
            "there is nothing to compare with",
            "Use --base HEAD~1, --base ../old/.venv, or --baseline FILE (made with --accept).",
        )
    if accept and (stored is None or base is not None):
        raise ProfileError("--accept writes a baseline: it needs --baseline FILE and no --base")
    if candidate is not None and base is None:
        raise ProfileError("--candidate needs --base")
    if not asked["models"]:
        raise ProfileError("no model was given", "Add -m MODEL; profile models lists the catalog.")


def _known(path: Path, accept: bool) -> baseline.Baseline:
    """The baseline to compare with, or to add to. Raises ProfileError if it cannot be read or written."""
    if accept:
        files.check(path)
    return baseline.Baseline({}) if accept and not path.exists() else baseline.read(path)


def _refused(refusal: Refusal) -> GateVerdict:
    """The verdict on a model that neither variant can run: the others are judged without it."""
    return GateVerdict(printable(refusal.name), "case", "INCOMPARABLE", f"the model was refused: {refusal.text}")


def _metrics(names: Sequence[str]) -> tuple[Any, ...]:
    chosen = [word for value in names for word in value.split(",") if word]
    if names and not chosen:
        raise ProfileError("--metric: the list is empty", f"Known: {', '.join(METRICS)}.")
    unknown = [word for word in chosen if word not in METRICS]
    if unknown:
        raise ProfileError(f"--metric: unknown metric {unknown[0]!r}", f"Known: {', '.join(METRICS)}.")
    return tuple(metric for metric in METRICS if not chosen or metric in chosen)


def _name(task: Task) -> str:
    """The name of a case in a baseline: its label for the reader, its key for identity."""
    return f"{task.case.label} n={task.case.steps} {task.case.key}"
