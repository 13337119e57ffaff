"""One metric of one cell on its way to a verdict, and the words for what happens to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from profiler.case import Case
from profiler.gate.block import clock_of
from profiler.gate.calibration import Noise
from profiler.gate.pairs import Evidence, Rule, decide, detectable, supportable, supports
from profiler.gate.verdict import Verdict, Word
from profiler.results.measurement import Phase
from profiler.units import printable


@dataclass(slots=True)
class State:
    """Open until it has a word."""

    rule: Rule
    noise: Noise | None = None
    word: Word | None = None
    reason: str = ""
    advice: str | None = None
    evidence: Evidence | None = None
    slower: bool = False  # by its pairs: to be confirmed
    confirmation: Evidence | None = None

    def close(self, word: Word, reason: str, advice: str | None = None) -> None:
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

    def verdict(self, case: Case, metric: Phase) -> Verdict:
        """As it stands."""
        found, sd = self.evidence, self.noise.sd if self.noise else None
        ends = [math.exp(v) for v in (found.mean, found.low, found.high)] if found else [None] * 3
        return Verdict(
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
