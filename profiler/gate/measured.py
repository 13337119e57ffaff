"""Cases measured for a stored baseline, and the comparison with it.

A ``BaselineGate`` holds the measurements of one comparison. The command measures its cases or takes stored rows of a
server; the pytest plugin measures one case per test.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiler import backends, files
from profiler.case import Case, Source, Task
from profiler.gate import baseline as gate_baseline
from profiler.gate import rule as gate_rule
from profiler.gate.baseline import COMMAND, Baseline, BaselineEntry, BaselineSession, FrontEnd, advice_for, write
from profiler.gate.bench import METRICS, Bench, GateClock, ProcessBlock, clock_of
from profiler.gate.numerics import Predictions
from profiler.gate.rule import GateVerdict, RegressionRule
from profiler.gate.variants import Variant
from profiler.results import measurement, stats
from profiler.results.environment import differences
from profiler.results.measurement import Measurement, Phase

BLOCKS = 6  # of two processes in turns: an interval needs several, and a single process may be slow throughout
KINDS = ("workload", "machine", "time")  # of figures: of the case alone, of the machine as well, and times


@dataclass(frozen=True, slots=True)
class GateMeasurement:
    """The blocks of one case. If one failed, its row is the last of ``rows``."""

    name: str  # its name in the baseline
    task: Task
    environment: Mapping[str, Any]
    rows: tuple[Measurement, ...]
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # metric → median seconds of each block
    reference_s: float | None = None
    predictions: Predictions | None = None  # if they are to be stored
    agreed: tuple[GateVerdict, ...] = ()  # the verdicts on its predictions, against those of the baseline

    @property
    def failed(self) -> Measurement | None:
        """The row that failed, or None."""
        return next((row for row in self.rows if row.outcome != "ok"), None)

    @property
    def clock(self) -> GateClock:
        return clock_of(self.task.case)

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
            self.predictions,
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
    clock = clock_of(task.case)
    times: dict[str, tuple[float, ...]] = {}
    for metric in metrics:
        known = [block.seconds(metric, clock) for block in blocks if block.disturbed(clock) is None]
        if known and None not in known:
            times[metric] = tuple(value for value in known if value is not None)
    rows = tuple(block.row for block in blocks)
    timed = count > 1 and not _simulated(task)
    return GateMeasurement(name, task, environment, rows, times, gate_baseline.reference_seconds() if timed else None)


def name_of(case: Case) -> str:
    """The name of a case in a baseline: its label for the reader, its key for identity."""
    return f"{case.label} n={case.steps} {case.key}"


def of_row(row: Measurement, metrics: Sequence[Phase]) -> GateMeasurement:
    """A stored row of a server as a measurement of its case. Each request is a block, scaled to the case's tokens."""
    case, url = row.case, str((row.serving or {}).get("url"))
    tokens = {"prefill": case.context, "decode": case.steps}
    times = {name: tuple(tokens[name] / rate for rate in stats.rates(row, name)) for name in metrics}
    known: dict[str, tuple[float, ...]] = {name: seconds for name, seconds in times.items() if seconds}
    task = Task(case, Source("url", url, None, {}))
    return GateMeasurement(name_of(case), task, row.environment, (row,), known)


def machine(environment: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """An environment without the version of a server or of an engine's own programs, which may differ: a gate judges
    them before and after an update.
    """
    found = {name: value for name, value in environment.items() if name != "server"}
    if backends.find(case.backend).find_build is not None and isinstance(found.get("libraries"), Mapping):
        found["libraries"] = {name: text for name, text in found["libraries"].items() if name != case.backend}
    return found


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
    here = machine(measured.environment, entry.case)
    entry = replace(entry, environment=machine(entry.environment, entry.case))
    same = not differences(entry.environment, here)
    other_step = gate_rule.unlike_baseline(entry.step, measured.rows)
    figures = gate_rule.exact_figures(measured.rows[0])
    found = gate_rule.verdicts(name, entry.figures, figures, "the baseline", same, front.if_meant, other_step)
    found += measured.agreed
    for metric in metrics:
        if other_step and metric == "decode":
            timed = f"decode_{measured.clock}_s"
            found.append(GateVerdict(name, timed, "INCOMPARABLE", other_step, gate_rule.ADVICE))
            continue
        now = gate_baseline.NewTimes(
            measured.times.get(metric, ()),
            measured.clock,
            here,
            measured.rows[0].threads,
            measured.reference_s,
        )
        found.append(gate_baseline.verdict(name, metric, entry, now, rule, front, advice_for(measured.task)))
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


@dataclass(slots=True)
class BaselineGate:
    """The cases measured for one comparison with a stored baseline, by name; a name is measured once."""

    known: Baseline
    path: Path | None = None  # None: measured for its own sake, and compared with nothing
    metrics: tuple[Phase, ...] = METRICS
    kinds: Collection[str] = KINDS
    front: FrontEnd = COMMAND
    measured: dict[str, GateMeasurement] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)  # name → why no case was measured
    _rules: dict[str, RegressionRule] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, accept: bool, front: FrontEnd = COMMAND, **options: Any) -> BaselineGate:
        """A gate on the file at ``path``. Raises ProfileError if it cannot be read or, for ``accept``, written."""
        if accept:
            files.check(path)
        known = Baseline({}) if accept and not path.exists() else gate_baseline.read(path, front)
        return cls(known, path, front=front, **options)

    def add(self, measured: GateMeasurement, rule: RegressionRule) -> None:
        """Add a case. A name that is measured again keeps its first measurement."""
        self.measured.setdefault(measured.name, measured)
        self._rules.setdefault(measured.name, rule)

    @property
    def failed(self) -> list[str]:
        """Names whose case failed, or that measured none."""
        return [name for name, each in self.measured.items() if each.failed] + list(self.unmeasured)

    @property
    def notes(self) -> list[str]:
        """Messages about decode steps other than those that were requested."""
        return fallbacks(self.measured.values())

    def verdicts(self) -> list[GateVerdict]:
        """The verdicts on all cases, including those that only the baseline has."""
        found = [
            verdict
            for name, each in self.measured.items()
            for verdict in against(each, self.known, self._rules[name], self._timed, self.front)
            if verdict.metric not in gate_rule.BOUNDS or gate_rule.BOUNDS[verdict.metric].depends_on in self.kinds
        ]
        without = {name: why for name, why in self.unmeasured.items() if name not in self.measured}
        found += [GateVerdict(name, "case", "FAIL", why) for name, why in without.items()]
        return found + missing(self.known, [*self.measured, *without], self.front)

    def accept(self) -> dict[str, str]:
        """Write all cases, none of which may have failed, into the file; return how each was stored.

        Raises ProfileError if the file cannot be written.
        """
        assert self.path is not None
        same = {name: only_times_differ(each, self.known) for name, each in self.measured.items()}
        write(self.path, self.known.accepted({name: each.entry() for name, each in self.measured.items()}, same))
        return {name: "accepted as one more session" if more else "accepted" for name, more in same.items()}

    def accepted_or_failed(self) -> list[GateVerdict]:
        """Accept all cases, unless one failed: a baseline holds no failures."""
        if self.failed:
            return [verdict for verdict in self.verdicts() if verdict.case in self.failed]
        return [GateVerdict(name, "case", "PASS", how) for name, how in self.accept().items()]

    @property
    def _timed(self) -> tuple[Phase, ...]:
        return self.metrics if "time" in self.kinds else ()
