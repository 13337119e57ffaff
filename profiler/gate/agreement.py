"""Whether base and candidate compute the same: greedy tokens after the same prompts, and how likely each was.

Two builds that round differently give almost the same probabilities, so their tokens differ only where two are
almost equally likely. After such a near tie the texts are different texts, and nothing more is compared.

    FAIL   a token differs although it is no near tie, or the mean KL divergence is above ``KL_LIMIT``
    PASS   the tokens are the same, or differ only at near ties

**KL divergence** of the candidate's next-token distribution from the base's, in nats, averaged over the places before
the tokens differ. Only the most likely tokens are known; the others count as one, so this is a lower bound (merging
outcomes never increases a divergence; Cover & Thomas, Elements of Information Theory, section 2.8).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiler.backends.base import Completion
from profiler.gate.rule import GateVerdict
from profiler.units import printable, significant

NEAR_TIE = 0.1  # nats between two tokens, about 10% in probability
KL_LIMIT = 1e-2  # nats, mean
FAULT = "check the build: rounding alone does not do this. Its release notes may name an intended change"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place at which two completions differ."""

    prompt: int  # from 1
    place: int  # token, from 1
    texts: tuple[str, str]  # of the base's token and the candidate's
    apart: float | None  # nats between the two tokens, the larger of both sides; None if not known

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding may have decided."""
        return self.apart is not None and self.apart <= NEAR_TIE

    def __str__(self) -> str:
        base, candidate = (repr(printable(text, 20)) for text in self.texts)
        apart = "" if self.apart is None else f", which are {significant(self.apart, 2)} nats apart"
        return f"token {self.place} after prompt {self.prompt}: {base} → {candidate}{apart}"


def agreement(case: str, base: Sequence[Completion], candidate: Sequence[Completion]) -> list[GateVerdict]:
    """The verdicts on tokens and, if probabilities are known, on their KL divergence."""
    found = [_difference(number, *both) for number, both in enumerate(zip(base, candidate, strict=True), start=1)]
    different = [each for each in found if each is not None]
    total = sum(len(each.tokens) for each in base)
    same = sum(len(each.tokens) if at is None else at.place - 1 for each, at in zip(base, found, strict=True))
    real = [each for each in different if not each.is_near_tie]
    if real:
        verdict = GateVerdict(case, "tokens", "FAIL", str(real[0]), FAULT, before=total, now=same)
    elif different:
        reason = f"they differ only at near ties, which rounding decides: {'; '.join(map(str, different))}"
        verdict = GateVerdict(case, "tokens", "PASS", reason, before=total, now=same)
    else:
        reason = f"the same {total} tokens after {len(base)} prompts"
        verdict = GateVerdict(case, "tokens", "PASS", reason, before=total, now=same)
    return [verdict, *_divergence(case, base, candidate, found)]


def _difference(number: int, base: Completion, candidate: Completion) -> Difference | None:
    for place, (a, b) in enumerate(zip(base.tokens, candidate.tokens, strict=False)):
        if a != b:
            texts = (_at(base.texts, place), _at(candidate.texts, place))
            return Difference(number, place + 1, texts, _apart(base, candidate, place))
    if len(base.tokens) != len(candidate.tokens):
        place = min(len(base.tokens), len(candidate.tokens))
        return Difference(number, place + 1, (_at(base.texts, place), _at(candidate.texts, place)), None)
    return None


def _at(texts: Sequence[str], place: int) -> str:
    return texts[place] if place < len(texts) else ""


def _apart(base: Completion, candidate: Completion, place: int) -> float | None:
    """By how much each side prefers its own token, the larger of the two."""
    if place >= min(len(base.logprobs), len(candidate.logprobs)):
        return None
    a, b = base.tokens[place], candidate.tokens[place]
    sides = (base.logprobs[place], candidate.logprobs[place])
    if not all(token in side for token in (a, b) for side in sides):
        return None
    return max(abs(side[a] - side[b]) for side in sides)


def _divergence(
    case: str,
    base: Sequence[Completion],
    candidate: Sequence[Completion],
    differences: Sequence[Difference | None],
) -> list[GateVerdict]:
    """The verdict on the mean KL divergence; none if no place has the probabilities of both."""
    found: list[float] = []
    for a, b, at in zip(base, candidate, differences, strict=True):
        shared = len(a.tokens) if at is None else at.place  # the distributions at the difference still compare
        found += [divergence(p, q) for p, q in zip(a.logprobs[:shared], b.logprobs[:shared], strict=False)]
    if not found:
        return []
    mean = statistics.fmean(found)
    reason = f"{significant(mean, 2)} nats on average over {len(found)} places, at most {significant(max(found), 2)}"
    if mean > KL_LIMIT:
        return [GateVerdict(case, "kl", "FAIL", f"{reason}: more than {KL_LIMIT:g}", FAULT)]
    return [GateVerdict(case, "kl", "PASS", reason)]


def divergence(p: Mapping[int, float], q: Mapping[int, float]) -> float:
    """A lower bound of Σ p ln(p ÷ q) in nats, from the log-probabilities of some tokens of each: those that both
    have, and all others as one.
    """
    shared = p.keys() & q.keys()
    parts = [(math.exp(p[token]), math.exp(q[token])) for token in shared]
    rest = tuple(max(0.0, 1 - math.fsum(side)) for side in (zip(*parts, strict=True) if parts else ((), ())))
    found = math.fsum(a * math.log(a / b) for a, b in parts)
    if rest[0] > 0 and rest[1] > 0:
        found += rest[0] * math.log(rest[0] / rest[1])
    return max(0.0, found)
