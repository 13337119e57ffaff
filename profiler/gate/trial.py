"""A gate of declared cells, two sides measured in turns: calibrate, decide, confirm (``pairs`` has the rule).

    for the cells that share a loaded model   A/A pairs → noise → can a slowdown of 2 δ be told at all?
                                              pairs up to 6, 10, 16, until each metric is decided
    then, for every FAIL                      fresh processes, sides swapped, ten pairs that must fail again

A FAIL that is not confirmed is inconclusive, never a PASS, and both intervals are in its verdict. Nothing is measured
again until it suits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from profiler.gate import exact, step
from profiler.gate.bench import Bench
from profiler.gate.block import METRICS, clock_of
from profiler.gate.calibration import PAIRS, Noise, noise
from profiler.gate.holm import Family, holm
from profiler.gate.pairs import CONFIRM_PAIRS, Evidence, Rule, evidence
from profiler.gate.series import Broken, Kept, Series, Stage
from profiler.gate.side import Side
from profiler.gate.state import State
from profiler.gate.verdict import Verdict, Word
from profiler.measure.supervisor import Job
from profiler.results.measurement import Phase
from profiler.units import printable

MOST_CELLS = 8  # Holm makes each of many tests blind: declare what matters, and compare the rest

Name = tuple[str, Phase]  # key of the case, metric
FindNoise = Callable[[Job], Mapping[Phase, Noise] | None]
KeepNoise = Callable[[Job, Mapping[Phase, Noise]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is gated, and how."""

    jobs: tuple[Job, ...]
    rule: Rule
    seed: int = 0
    metrics: tuple[Phase, ...] = METRICS
    find_noise: FindNoise = lambda job: None
    keep_noise: KeepNoise = lambda job, found: None


@dataclass(slots=True)
class Trial:
    """Runs a plan on a bench. ``kept`` holds every block that ran, those that do not count too."""

    plan: Plan
    bench: Bench
    base: Side
    candidate: Side
    say: Callable[[str], None] = lambda text: None
    kept: Kept = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _states: dict[Name, State] = field(default_factory=dict)
    _exact: dict[str, list[Verdict]] = field(default_factory=dict)
    _family: Family[Name] = field(init=False)

    def run(self) -> list[Verdict]:
        """A verdict for each metric of each cell, and for what must not vary at all."""
        plan = self.plan
        for job in plan.jobs:
            for metric in self._metrics(job):
                self._states[job.case.key, metric] = State(plan.rule)
        self._family = Family(self._states, plan.rule.level)
        for jobs in _by_model(plan.jobs):
            self._calibrate(jobs)
            self._decide(jobs)
        self._look_back()
        self._confirm()
        return [verdict for job in plan.jobs for verdict in self._verdicts(job)]

    def _metrics(self, job: Job) -> tuple[Phase, ...]:
        filled = job.case.fill == "synthetic"  # then there is no prefill
        return tuple(metric for metric in self.plan.metrics if not (filled and metric == "prefill"))

    def _open(self, job: Job) -> list[tuple[Phase, State]]:
        """The metrics of a cell that have no word yet."""
        mine = ((metric, self._states[job.case.key, metric]) for metric in self._metrics(job))
        return [(metric, state) for metric, state in mine if state.word is None]

    def _series(self, jobs: Iterable[Job], pairs: int) -> list[Series]:
        return [
            Series(job, [metric for metric, _ in open_ones], clock_of(job.case.device), pairs)
            for job in jobs
            if (open_ones := self._open(job))
        ]

    def _calibrate(self, jobs: Sequence[Job]) -> None:
        """Noise for every cell; metrics whose noise hides a slowdown of 2 δ get their word here."""
        found = {job.case.key: dict(self.plan.find_noise(job) or {}) for job in jobs}
        fresh = [job for job in jobs if not found[job.case.key].keys() >= set(self._metrics(job))]
        series = self._series(fresh, PAIRS)
        if series:
            self.say(f"noise of the base against itself: {PAIRS} pairs of {_cells(len(series))}")
            stage = Stage("noise", self.bench, (self.base, self.base), 0, self.plan.seed, self.kept)
            stage.advance(series, PAIRS, self._ended)
        for each in series:
            if each.other_step:
                self._unlike_steps(each, "INCONCLUSIVE")
            elif each.pairs >= PAIRS:
                found[each.job.case.key] = {m: noise(logs, time.time()) for m, logs in each.logs.items()}
                self.plan.keep_noise(each.job, found[each.job.case.key])
        for job in jobs:
            for metric, state in self._open(job):
                if metric in found[job.case.key]:
                    state.calibrated(found[job.case.key][metric])

    def _decide(self, jobs: Sequence[Job]) -> None:
        """Pairs until every metric has a word, or the last look has been."""
        looks = self.plan.rule.looks
        series = self._series(jobs, looks[-1])
        stage = Stage("gate", self.bench, (self.base, self.candidate), 0, self.plan.seed, self.kept)
        for look in looks:
            stage.advance([each for each in series if self._open(each.job)], look, self._ended)
            for each in series:
                self._compare_exactly(each)
            self._look([each for each in series if each.pairs >= look], look)
        for each in series:
            for _, state in self._open(each.job):
                state.undecided(each.pairs)

    def _look(self, series: Sequence[Series], look: int) -> None:
        """All p values first, since Holm weighs them against each other; then each decision."""
        ready = [
            ((each.job.case.key, metric), state, each) for each in series for metric, state in self._open(each.job)
        ]
        for name, state, each in ready:
            state.evidence = evidence(each.logs[name[1]][:look], self.plan.rule.level)
            self._family.note(name, state.evidence.p_slower)
        rejected = self._family.rejected()
        for name, state, each in ready:
            state.looked(name in rejected)
            if state.word == "FAIL":
                self._family.failed(name)
            self.say(f"{printable(each.job.case.label)} {name[1]}: {look} pairs: {state.word or 'go on'}")

    def _look_back(self) -> None:
        """What was left open while others held a share of the level, once more with what they have passed on."""
        rejected = self._family.rejected()
        for name, state in self._states.items():
            if state.word == "INCONCLUSIVE" and state.evidence is not None and name in rejected:
                state.looked(significant=True)

    def _confirm(self) -> None:
        """Every FAIL of the pairs must fail again, in processes of its own, with the sides in each other's slots."""
        failed = {name for name, state in self._states.items() if state.slower and state.word == "FAIL"}
        again: dict[Name, Evidence] = {}
        level = self.plan.rule.level
        for jobs in _by_model(job for job in self.plan.jobs if any((job.case.key, m) in failed for m in METRICS)):
            self.say(f"confirming {_cells(len(jobs))}: {CONFIRM_PAIRS} pairs in fresh processes, sides swapped")
            series = [
                Series(job, mine, clock_of(job.case.device), CONFIRM_PAIRS)
                for job in jobs
                if (mine := [metric for metric in METRICS if (job.case.key, metric) in failed])
            ]
            stage = Stage("confirmation", self.bench, (self.candidate, self.base), 1, self.plan.seed, self.kept)
            stage.advance(series, CONFIRM_PAIRS, lambda each, error: None)
            for each in series:
                if each.other_step and "decode" in each.metrics:
                    self._unlike_steps(each, "INCOMPARABLE")
                    failed.discard((each.job.case.key, "decode"))
                if each.pairs >= CONFIRM_PAIRS:
                    again |= {(each.job.case.key, m): evidence(logs, level) for m, logs in each.logs.items()}
        rejected = holm({name: found.p_slower for name, found in again.items()}, level)
        for name in failed:
            self._states[name].confirmed(again.get(name), name in rejected)

    def _ended(self, series: Series, error: Exception) -> None:
        """The cell gave no pairs: words for what is open, and never a PASS."""
        for _, state in self._open(series.job):
            if not isinstance(error, Broken):
                state.close("INCONCLUSIVE", str(error), "free the machine, or take longer repetitions (-n)")
            elif error.by_base:
                state.close("INCOMPARABLE", f"the base did not run it: {error}", "choose a base that runs this case")
            else:
                state.close("FAIL", f"the candidate did not run it: {error}")

    def _compare_exactly(self, series: Series) -> None:
        """What must not vary, from the first pair; and that both sides computed with as many threads, by one step."""
        case = series.job.case
        if series.first is None:
            return
        base, candidate = (block.row for block in series.first)
        if series.other_step or case.key not in self._exact:
            self._exact[case.key] = exact.verdicts(
                case.label, exact.facts(base), exact.facts(candidate), "the base", other_step=series.other_step
            )
        if series.other_step:
            self._unlike_steps(series, "INCOMPARABLE")
        elif (text := step.fallback(candidate)) and text not in self.notes:
            self.notes.append(text)
        if base.threads != candidate.threads:
            for _, state in self._open(series.job):
                reason = f"the base computes with {base.threads} threads, the candidate with {candidate.threads}"
                state.close("INCOMPARABLE", reason, "set --threads")

    def _unlike_steps(self, series: Series, word: Word) -> None:
        """The decode times of such a cell are those of two different programs."""
        state = self._states.get((series.job.case.key, "decode"))
        if state is not None and series.other_step:
            state.evidence = None  # a ratio would be taken for one
            state.close(word, series.other_step, step.ADVICE)

    def _verdicts(self, job: Job) -> Iterator[Verdict]:
        for metric in self._metrics(job):
            yield self._states[job.case.key, metric].verdict(job.case, metric)
        yield from self._exact.get(job.case.key, ())


def _by_model(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Those that can share a loaded model together."""
    for _, group in groupby(sorted(jobs, key=lambda job: job.case.load_key), lambda job: job.case.load_key):
        yield list(group)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
