"""A gate over declared cases, with two variants measured in turns: calibrate, decide, confirm (see ``rule``).

    for the cells that share a loaded model   A/A pairs → noise → can a slowdown of 2 δ be told at all?
                                              pairs up to 6, 10, 16, until each metric is decided
    then, for every FAIL                      fresh processes, sides swapped, ten pairs that must fail again

A FAIL that is not confirmed is inconclusive, never a PASS, and both intervals are in its verdict. Nothing is measured
again until it suits.

**Noise** is how much two equal variants differ here: the standard deviation s of an A/A pair. Six pairs of the base
against itself. The figure is kept for a week for the same cell on the same machine and software.
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
from profiler.gate.bench import METRICS, RESTART, Bench, Broken, KeptBlocks, Series, Stage, clock_of
from profiler.gate.rule import (
    CONFIRM_PAIRS,
    Evidence,
    Family,
    GateVerdict,
    GateWord,
    RegressionRule,
    decide,
    detectable,
    evidence,
    holm,
    supportable,
    supports,
)
from profiler.gate.variants import Variant
from profiler.results.measurement import Phase
from profiler.units import printable

PAIRS = 6
KEPT_S = 7 * 24 * 3600.0  # a week: kernels, drivers and neighbours change without a fingerprint showing it

MOST_CELLS = 8  # Holm makes each of many tests blind: declare what matters, and compare the rest
Name = tuple[str, Phase]  # key of the case, metric


@dataclass(frozen=True, slots=True)
class Noise:
    """Of one metric of one cell."""

    sd: float  # of ln(B ÷ A) between equal sides
    pairs: int
    measured_at: float  # Unix time


def noise(logs: Sequence[float], now: float) -> Noise:
    """Of at least two A/A pairs. The mean is known to be 0, but a wrong one would hide there: it is estimated too."""
    return Noise(statistics.stdev(logs), len(logs), now)


class Calibrations:
    """Kept noise, a small file for each cell; a file that cannot be read or written is as good as none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, key: str, now: float | None = None) -> dict[Phase, Noise] | None:
        """What was measured within the last week under ``key``."""
        path = self._path(key)
        if path is None:
            return None
        now = time.time() if now is None else now
        try:
            content = read_json(path)
            found: dict[Phase, Noise] = {name: Noise(**values) for name, values in content.items()}
            good = all(
                name in ("prefill", "decode")
                and math.isfinite(each.sd)
                and each.sd >= 0
                and 0 <= now - each.measured_at < KEPT_S
                for name, each in found.items()
            )
        except (ProfileError, ValueError, TypeError, AttributeError):
            return None
        return found if good and found else None

    def keep(self, key: str, found: Mapping[Phase, Noise]) -> None:
        """For the next gate."""
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
    """Under what noise is kept: another case, machine, base or way of measuring has another."""
    return digest([case_key, environment_key, dict(base), dict(effort), RESTART, PAIRS])


def default_folder() -> Path:
    """In the user's cache folder, which may be deleted at any time."""
    return folders.cache("gate")


@dataclass(slots=True)
class State:
    """Open until it has a word."""

    rule: RegressionRule
    noise: Noise | None = None
    word: GateWord | None = None
    reason: str = ""
    advice: str | None = None
    evidence: Evidence | None = None
    slower: bool = False  # by its pairs: to be confirmed
    confirmation: Evidence | None = None

    def close(self, word: GateWord, reason: str, advice: str | None = None) -> None:
        """Its word, in place of an earlier one."""
        self.word, self.reason, self.advice = word, printable(reason, 400), advice

    def calibrated(self, noise: Noise) -> None:
        """Too much noise for δ is a word already."""
        self.noise = noise
        if not supports(noise.sd, self.rule):
            delta, least = percent(self.rule.delta), _up(supportable(noise.sd, self.rule))
            reason = f"equal sides differ by s = {noise.sd:.1%} from pair to pair: too much for δ = {delta}"
            self.close("INCONCLUSIVE", reason, f"free the machine, take a larger -n or -r; as it is, --delta {least}")

    def looked(self, significant: bool) -> None:
        """Decide on its evidence, if that decides anything."""
        assert self.evidence is not None
        found, decision = self.evidence, decide(self.evidence, self.rule, significant)
        if decision == "fail":
            self.slower = True
            self.close("FAIL", f"slower in {found.n} pairs")
        elif decision == "pass":
            faster = found.mean < -math.log1p(2 * self.rule.delta)
            advice = "much faster: check that it still does the same work" if faster else None
            self.close("PASS", f"not slower by {percent(self.rule.delta)}", advice)

    def undecided(self, pairs: int) -> None:
        """The last look has been."""
        if self.word is None:
            delta = percent(self.rule.delta)
            reason = f"{pairs} pairs neither show a slowdown of {delta} nor exclude it"
            self.close("INCONCLUSIVE", reason, "free the machine, take a larger -n or -r, or a larger --delta")

    def confirmed(self, again: Evidence | None, significant: bool) -> None:
        """The end of a FAIL: it failed again, or it is inconclusive."""
        self.confirmation = again
        if again is None:
            reason = f"{self.reason}, but the pairs to confirm it could not be had"
            self.close("INCONCLUSIVE", reason, "run it once more on a quieter machine")
        elif decide(again, self.rule, significant) == "fail":
            reason = f"{self.reason}, and again in {again.n} of fresh processes"
            self.close("FAIL", reason, "find the change that did it: git bisect, with this gate at each step")
        else:
            reason = f"{self.reason}, but {again.n} pairs of fresh processes do not confirm it"
            self.close("INCONCLUSIVE", reason, "not proven either way: a larger -n or -r makes a gate sharper")

    def verdict(self, case: Case, metric: Phase) -> GateVerdict:
        """As it stands."""
        found, sd = self.evidence, self.noise.sd if self.noise else None
        ends = [math.exp(v) for v in (found.mean, found.low, found.high)] if found else [None] * 3
        return GateVerdict(
            cell=case.label,
            metric=f"{metric}_{clock_of(case.device)}_s",
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
    """Rounded up to a tenth of a percent."""
    return f"{math.ceil(delta * 1000) / 10:g}%"


FindNoise = Callable[[Task], Mapping[Phase, Noise] | None]

KeepNoise = Callable[[Task, Mapping[Phase, Noise]], None]


@dataclass(frozen=True, slots=True)
class GatePlan:
    """What is gated, and how."""

    tasks: tuple[Task, ...]
    rule: RegressionRule
    seed: int = 0
    metrics: tuple[Phase, ...] = METRICS
    find_noise: FindNoise = lambda task: None
    keep_noise: KeepNoise = lambda task, found: None


@dataclass(slots=True)
class GateTrial:
    """Runs a plan on a bench. ``kept`` holds every block that ran, those that do not count too."""

    plan: GatePlan
    bench: Bench
    base: Variant
    candidate: Variant
    say: Callable[[str], None] = lambda text: None
    kept: KeptBlocks = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _states: dict[Name, State] = field(default_factory=dict)
    _exact: dict[str, list[GateVerdict]] = field(default_factory=dict)
    _family: Family[Name] = field(init=False)

    def run(self) -> list[GateVerdict]:
        """A verdict for each metric of each cell, and for what must not vary at all."""
        plan = self.plan
        for task in plan.tasks:
            for metric in self._metrics(task):
                self._states[task.case.key, metric] = State(plan.rule)
        self._family = Family(self._states, plan.rule.level)
        for tasks in _by_model(plan.tasks):
            self._calibrate(tasks)
            self._decide(tasks)
        self._look_back()
        self._confirm()
        return [verdict for task in plan.tasks for verdict in self._verdicts(task)]

    def _metrics(self, task: Task) -> tuple[Phase, ...]:
        filled = task.case.fill == "synthetic"  # then there is no prefill
        return tuple(metric for metric in self.plan.metrics if not (filled and metric == "prefill"))

    def _open(self, task: Task) -> list[tuple[Phase, State]]:
        """The metrics of a cell that have no word yet."""
        mine = ((metric, self._states[task.case.key, metric]) for metric in self._metrics(task))
        return [(metric, state) for metric, state in mine if state.word is None]

    def _series(self, tasks: Iterable[Task], pairs: int) -> list[Series]:
        return [
            Series(task, [metric for metric, _ in open_ones], clock_of(task.case.device), pairs)
            for task in tasks
            if (open_ones := self._open(task))
        ]

    def _calibrate(self, tasks: Sequence[Task]) -> None:
        """Noise for every cell; metrics whose noise hides a slowdown of 2 δ get their word here."""
        found = {task.case.key: dict(self.plan.find_noise(task) or {}) for task in tasks}
        fresh = [task for task in tasks if not found[task.case.key].keys() >= set(self._metrics(task))]
        series = self._series(fresh, PAIRS)
        if series:
            self.say(f"noise of the base against itself: {PAIRS} pairs of {_cells(len(series))}")
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
                    state.calibrated(found[task.case.key][metric])

    def _decide(self, tasks: Sequence[Task]) -> None:
        """Pairs until every metric has a word, or the last look has been."""
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
        """All p values first, since Holm weighs them against each other; then each decision."""
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
            self.say(f"{printable(each.task.case.label)} {name[1]}: {look} pairs: {state.word or 'go on'}")

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
        for tasks in _by_model(
            task for task in self.plan.tasks if any((task.case.key, m) in failed for m in METRICS)
        ):
            self.say(f"confirming {_cells(len(tasks))}: {CONFIRM_PAIRS} pairs in fresh processes, sides swapped")
            series = [
                Series(task, mine, clock_of(task.case.device), CONFIRM_PAIRS)
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
        """The cell gave no pairs: words for what is open, and never a PASS."""
        for _, state in self._open(series.task):
            if not isinstance(error, Broken):
                state.close("INCONCLUSIVE", str(error), "free the machine, or take longer repetitions (-n)")
            elif error.by_base:
                state.close("INCOMPARABLE", f"the base did not run it: {error}", "choose a base that runs this case")
            else:
                state.close("FAIL", f"the candidate did not run it: {error}")

    def _compare_exactly(self, series: Series) -> None:
        """What must not vary, from the first pair; and that both sides computed with as many threads, by one step."""
        case = series.task.case
        if series.first is None:
            return
        base, candidate = (block.row for block in series.first)
        if series.other_step or case.key not in self._exact:
            self._exact[case.key] = gate_rule.verdicts(
                case.label,
                gate_rule.facts(base),
                gate_rule.facts(candidate),
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
        """The decode times of such a cell are those of two different programs."""
        state = self._states.get((series.task.case.key, "decode"))
        if state is not None and series.other_step:
            state.evidence = None  # a ratio would be taken for one
            state.close(word, series.other_step, gate_rule.ADVICE)

    def _verdicts(self, task: Task) -> Iterator[GateVerdict]:
        for metric in self._metrics(task):
            yield self._states[task.case.key, metric].verdict(task.case, metric)
        yield from self._exact.get(task.case.key, ())


def _by_model(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Those that can share a loaded model together."""
    for _, group in groupby(sorted(tasks, key=lambda task: task.case.load_key), lambda task: task.case.load_key):
        yield list(group)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
