"""A gate that measures two variants in turns on given cases: it measures the noise, decides, and confirms (``rule``).

    for the cases that share a loaded model   A/A pairs → noise → is a slowdown of 2 δ detectable?
                                              yes: 6, 10, 16 pairs, until each metric is decided
                                              no: 6 pairs, which may show a slowdown far beyond the noise
    then, for every FAIL                      ten pairs in new processes with swapped slots, which must fail again

A FAIL that is not confirmed is inconclusive, never a PASS, and the verdict shows both intervals. There is no other
second attempt, so repeating a measurement until it gives the wanted result is impossible.

**Noise** is how much two identical versions differ here: the standard deviation s of A/A pairs, from six pairs of the
base against itself. It is kept for a week for the same case on the same machine and software.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from profiler import files, folders
from profiler.case import Case, Task, digest
from profiler.errors import ProfileError
from profiler.foreign import read_json
from profiler.gate import rule as gate_rule
from profiler.gate.bench import METRICS, RESTART, Bench, CaseFailed, KeptBlocks, Series, Stage, clock_of
from profiler.gate.rule import (
    CONFIRM_PAIRS,
    Evidence,
    GateVerdict,
    GateWord,
    HypothesisFamily,
    RegressionRule,
    decide,
    detectable,
    evidence,
    holm,
    supportable,
    supports,
)
from profiler.gate.variants import Variant
from profiler.results.measurement import PHASES, Phase
from profiler.units import printable

PAIRS = 6
KEPT_S = 7 * 24 * 3600.0  # a week: the environment's fingerprint does not show every change of kernel, driver or load

MAX_CASES = 8  # Holm's correction makes each of many tests weaker
Name = tuple[str, Phase]  # key of the case, metric


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one metric of one case."""

    sd: float  # of ln(B ÷ A) between identical versions
    pairs: int
    measured_at: float  # Unix time


def noise(logs: Sequence[float], now: float) -> Noise:
    """The noise of at least two A/A pairs. The mean should be 0 but is estimated, so that a bias is not taken for
    noise."""
    return Noise(statistics.stdev(logs), len(logs), now)


class NoiseCache:
    """Stored noise, one small file per case. A file that cannot be read or written is treated as absent."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, key: str, now: float | None = None) -> dict[Phase, Noise] | None:
        """The noise stored under ``key`` within the last week."""
        path = self._path(key)
        if path is None:
            return None
        now = time.time() if now is None else now
        try:
            content = read_json(path)
            found: dict[Phase, Noise] = {name: Noise(**values) for name, values in content.items()}
            good = all(
                name in PHASES and math.isfinite(each.sd) and each.sd >= 0 and 0 <= now - each.measured_at < KEPT_S
                for name, each in found.items()
            )
        except (ProfileError, ValueError, TypeError, AttributeError):
            return None
        return found if good and found else None

    def keep(self, key: str, found: Mapping[Phase, Noise]) -> None:
        """Store noise for the next gate."""
        path = self._path(key)
        if path is None:
            return
        content = {name: {"sd": n.sd, "pairs": n.pairs, "measured_at": n.measured_at} for name, n in found.items()}
        with suppress(OSError, ProfileError):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, json.dumps(content))

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{key}.json"


def key_of(case_key: str, environment_key: str, base: Mapping[str, Any], effort: Mapping[str, Any]) -> str:
    """The key of stored noise: it changes with the case, the machine, the base and the effort."""
    return digest([case_key, environment_key, dict(base), dict(effort), RESTART, PAIRS])


def default_folder() -> Path:
    """In the user's cache folder, which may be deleted at any time."""
    return folders.cache("gate")


@dataclass(slots=True)
class State:
    """The progress of one metric of one case. It is undecided while ``word`` is None."""

    rule: RegressionRule
    noise: Noise | None = None
    word: GateWord | None = None
    reason: str = ""
    advice: str | None = None
    evidence: Evidence | None = None
    slower: bool = False  # the pairs say FAIL, which has to be confirmed
    too_noisy: tuple[str, str] | None = None  # why nothing but a FAIL can be decided, and what to do
    confirmation: Evidence | None = None

    def close(self, word: GateWord, reason: str, advice: str | None = None) -> None:
        """Set the verdict, replacing an earlier one."""
        self.word, self.reason, self.advice = word, printable(reason, 400), advice

    def set_noise(self, noise: Noise) -> None:
        """Record the noise. If it is too large for δ, one look decides whether a slowdown is far larger than both."""
        self.noise = noise
        if not supports(noise.sd, self.rule):
            delta, least = percent(self.rule.delta), _up(supportable(noise.sd, self.rule))
            reason = f"identical versions differ by s = {noise.sd:.1%} between pairs, too much for δ = {delta}"
            self.too_noisy = reason, f"quiet the machine, raise -n or -r, or accept --delta {least}"

    def looked(self, significant: bool) -> None:
        """Decide from the evidence of a look, if it suffices."""
        assert self.evidence is not None
        found, decision = self.evidence, decide(self.evidence, self.rule, significant)
        if decision == "fail":
            self.slower = True
            self.close("FAIL", f"slower in {found.n} pairs")
        elif self.too_noisy is not None:
            self.close("INCONCLUSIVE", *self.too_noisy)
        elif decision == "pass":
            faster = found.mean < -math.log1p(2 * self.rule.delta)
            advice = "much faster: check that it still does the same work" if faster else None
            self.close("PASS", f"not slower by {percent(self.rule.delta)}", advice)

    def undecided(self, pairs: int) -> None:
        """Called after the last look."""
        if self.word is None:
            delta = percent(self.rule.delta)
            reason = f"{pairs} pairs neither show nor rule out a slowdown of {delta}"
            self.close("INCONCLUSIVE", reason, "quiet the machine, or raise -n, -r or --delta")

    def confirmed(self, again: Evidence | None, significant: bool) -> None:
        """Settle a FAIL by its confirming pairs: FAIL if they fail too, otherwise inconclusive."""
        self.confirmation = again
        if again is None:
            reason = f"{self.reason}, but the pairs to confirm it could not be measured"
            self.close("INCONCLUSIVE", reason, "run it once more on a quieter machine")
        elif decide(again, self.rule, significant) == "fail":
            reason = f"{self.reason}, and again in {again.n} pairs of new processes"
            self.close("FAIL", reason, "find the change with git bisect, running this gate at each step")
        else:
            reason = f"{self.reason}, but {again.n} pairs of new processes do not confirm it"
            self.close("INCONCLUSIVE", reason, "not proven either way: raise -n or -r for a more sensitive gate")

    def verdict(self, case: Case, metric: Phase) -> GateVerdict:
        """The verdict as it stands."""
        found, sd = self.evidence, self.noise.sd if self.noise else None
        ends = [math.exp(v) for v in (found.mean, found.low, found.high)] if found else [None] * 3
        return GateVerdict(
            case=case.label,
            metric=f"{metric}_{clock_of(case)}_s",
            word=self.word or "INCONCLUSIVE",
            reason=self.reason,
            advice=self.advice,
            ratio=ends[0],
            low=ends[1],
            high=ends[2],
            pairs=found.n if found else None,
            delta=self.rule.delta,
            noise=sd,
            detectable=None if sd is None else detectable(sd, self.rule),
            evidence=found,
            confirmation=self.confirmation,
        )


def percent(value: float) -> str:
    """``5%``, ``2.5%``."""
    return f"{100 * value:.3g}%"


def _up(delta: float) -> str:
    """Round up to a tenth of a percent."""
    return f"{math.ceil(delta * 1000) / 10:g}%"


FindNoise = Callable[[Task], Mapping[Phase, Noise] | None]

KeepNoise = Callable[[Task, Mapping[Phase, Noise]], None]


@dataclass(frozen=True, slots=True)
class GatePlan:
    """The cases to gate, and the rule."""

    tasks: tuple[Task, ...]
    rule: RegressionRule
    seed: int = 0
    metrics: tuple[Phase, ...] = METRICS
    find_noise: FindNoise = lambda task: None
    keep_noise: KeepNoise = lambda task, found: None


@dataclass(slots=True)
class GateTrial:
    """Runs a plan on a bench. ``kept`` gets every block that ran, including those that do not count."""

    plan: GatePlan
    bench: Bench
    base: Variant
    candidate: Variant
    say: Callable[[str], None] = lambda text: None
    kept: KeptBlocks = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _states: dict[Name, State] = field(default_factory=dict)
    _exact: dict[str, list[GateVerdict]] = field(default_factory=dict)
    _family: HypothesisFamily[Name] = field(init=False)

    def run(self) -> list[GateVerdict]:
        """A verdict for each metric of each case, and for each exact figure."""
        plan = self.plan
        for task in plan.tasks:
            for metric in self._metrics(task):
                self._states[task.case.key, metric] = State(plan.rule)
        self._family = HypothesisFamily(self._states, plan.rule.level)
        for tasks in _by_model(plan.tasks):
            self._measure_noise(tasks)
            self._decide(tasks)
        self._look_back()
        self._confirm()
        return [verdict for task in plan.tasks for verdict in self._verdicts(task)]

    def _metrics(self, task: Task) -> tuple[Phase, ...]:
        filled = task.case.fill == "synthetic"  # such a case has no prefill
        return tuple(metric for metric in self.plan.metrics if not (filled and metric == "prefill"))

    def _open(self, task: Task) -> list[tuple[Phase, State]]:
        """The metrics of a case that are still undecided."""
        mine = ((metric, self._states[task.case.key, metric]) for metric in self._metrics(task))
        return [(metric, state) for metric, state in mine if state.word is None]

    def _series(self, tasks: Iterable[Task], pairs: int) -> list[Series]:
        return [
            Series(task, [metric for metric, _ in open_ones], clock_of(task.case), pairs)
            for task in tasks
            if (open_ones := self._open(task))
        ]

    def _measure_noise(self, tasks: Sequence[Task]) -> None:
        """Measure the noise of every case."""
        found = {task.case.key: dict(self.plan.find_noise(task) or {}) for task in tasks}
        fresh = [task for task in tasks if not found[task.case.key].keys() >= set(self._metrics(task))]
        series = self._series(fresh, PAIRS)
        if series:
            self.say(f"noise of the base against itself: {PAIRS} pairs of {_count(len(series))}")
            stage = Stage("noise", self.bench, (self.base, self.base), 0, self.plan.seed, self.kept)
            stage.advance(series, PAIRS, self._ended)
        for each in series:
            if each.other_step:
                self._unlike_steps(each, "INCONCLUSIVE")
            elif each.pairs >= PAIRS:
                found[each.task.case.key] = {m: noise(logs, time.time()) for m, logs in each.logs.items()}
                self.plan.keep_noise(each.task, found[each.task.case.key])
        for task in tasks:
            for metric, state in self._open(task):
                if metric in found[task.case.key]:
                    state.set_noise(found[task.case.key][metric])

    def _decide(self, tasks: Sequence[Task]) -> None:
        """Measure pairs until every metric is decided or the last look is over."""
        looks = self.plan.rule.looks
        series = self._series(tasks, looks[-1])
        stage = Stage("gate", self.bench, (self.base, self.candidate), 0, self.plan.seed, self.kept)
        for look in looks:
            stage.advance([each for each in series if self._open(each.task)], look, self._ended)
            for each in series:
                self._compare_exactly(each)
            self._look([each for each in series if each.pairs >= look], look)
        for each in series:
            for _, state in self._open(each.task):
                state.undecided(each.pairs)

    def _look(self, series: Sequence[Series], look: int) -> None:
        """Collect all p values first, since Holm's procedure ranks them; then decide each metric."""
        ready = [
            ((each.task.case.key, metric), state, each) for each in series for metric, state in self._open(each.task)
        ]
        for name, state, each in ready:
            state.evidence = evidence(each.logs[name[1]][:look], self.plan.rule.level)
            self._family.note(name, state.evidence.p_slower)
        rejected = self._family.rejected()
        for name, state, each in ready:
            state.looked(name in rejected)
            if state.word == "FAIL":
                self._family.failed(name)
            self.say(f"{printable(each.task.case.label)} {name[1]}: {look} pairs: {state.word or 'continue'}")

    def _look_back(self) -> None:
        """Decide once more, since later rejections have passed on their share of the level."""
        rejected = self._family.rejected()
        for name, state in self._states.items():
            if state.word == "INCONCLUSIVE" and state.evidence is not None and name in rejected:
                state.looked(significant=True)

    def _confirm(self) -> None:
        """Every FAIL must fail again in new processes, with the variants in swapped slots."""
        failed = {name for name, state in self._states.items() if state.slower and state.word == "FAIL"}
        again: dict[Name, Evidence] = {}
        level = self.plan.rule.level
        for tasks in _by_model(
            task for task in self.plan.tasks if any((task.case.key, m) in failed for m in METRICS)
        ):
            self.say(f"confirming {_count(len(tasks))}: {CONFIRM_PAIRS} pairs in new processes, slots swapped")
            series = [
                Series(task, mine, clock_of(task.case), CONFIRM_PAIRS)
                for task in tasks
                if (mine := [metric for metric in METRICS if (task.case.key, metric) in failed])
            ]
            stage = Stage("confirmation", self.bench, (self.candidate, self.base), 1, self.plan.seed, self.kept)
            stage.advance(series, CONFIRM_PAIRS, lambda each, error: None)
            for each in series:
                if each.other_step and "decode" in each.metrics:
                    self._unlike_steps(each, "INCOMPARABLE")
                    failed.discard((each.task.case.key, "decode"))
                if each.pairs >= CONFIRM_PAIRS:
                    again |= {(each.task.case.key, m): evidence(logs, level) for m, logs in each.logs.items()}
        rejected = holm({name: found.p_slower for name, found in again.items()}, level)
        for name in failed:
            self._states[name].confirmed(again.get(name), name in rejected)

    def _ended(self, series: Series, error: Exception) -> None:
        """Close the undecided metrics of a case that cannot give more pairs; never as a PASS."""
        for _, state in self._open(series.task):
            if not isinstance(error, CaseFailed):
                state.close("INCONCLUSIVE", str(error), "quiet the machine, or take longer repetitions (-n)")
            elif error.by_base:
                state.close("INCOMPARABLE", f"the base failed: {error}", "choose a base that can run this case")
            else:
                state.close("FAIL", f"the candidate failed: {error}")

    def _compare_exactly(self, series: Series) -> None:
        """Compare the exact figures of the first pair, and check that threads and decode steps are the same."""
        case = series.task.case
        if series.first is None:
            return
        base, candidate = (block.row for block in series.first)
        if series.other_step or case.key not in self._exact:
            self._exact[case.key] = gate_rule.verdicts(
                case.label,
                gate_rule.exact_figures(base),
                gate_rule.exact_figures(candidate),
                "the base",
                other_step=series.other_step,
            )
        if series.other_step:
            self._unlike_steps(series, "INCOMPARABLE")
        elif (text := gate_rule.fallback(candidate)) and text not in self.notes:
            self.notes.append(text)
        if base.threads != candidate.threads:
            for _, state in self._open(series.task):
                reason = f"the base computes with {base.threads} threads, the candidate with {candidate.threads}"
                state.close("INCOMPARABLE", reason, "set --threads")

    def _unlike_steps(self, series: Series, word: GateWord) -> None:
        """Close the decode metric of a case whose variants ran different decode steps."""
        state = self._states.get((series.task.case.key, "decode"))
        if state is not None and series.other_step:
            state.evidence = None  # the ratio would look like a result
            state.close(word, series.other_step, gate_rule.ADVICE)

    def _verdicts(self, task: Task) -> Iterator[GateVerdict]:
        for metric in self._metrics(task):
            yield self._states[task.case.key, metric].verdict(task.case, metric)
        yield from self._exact.get(task.case.key, ())


def _by_model(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Groups of tasks that can share a loaded model."""
    for _, group in groupby(sorted(tasks, key=lambda task: task.case.load_key), lambda task: task.case.load_key):
        yield list(group)


def _count(cases: int) -> str:
    return "1 case" if cases == 1 else f"{cases} cases"
