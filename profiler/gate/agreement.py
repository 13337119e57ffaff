"""Whether base and candidate compute the same: greedy tokens after the same prompts, and how likely each was.

The same kernels give the same probabilities to the last bit. Kernels that round differently give other ones, and so
other tokens where two have similar probabilities. From there on the texts are different, and nothing is compared.

    FAIL   the tokens differ where one was clearly more likely, or the mean KL divergence is above ``KL_LIMIT``
    PASS   the tokens are the same, or differ where both were likely

Both limits lie above what correct kernels differ by (``benchmarks/gate_builds.md``), so a broken kernel fails, but an
error of a few percent in one layer of a 4-bit model does not: rounding its activations to 8 bits has the same effect.

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

# Correct kernels (flash attention on or off, with or without vector instructions) changed tokens that were up to 0.53
# nats apart, and had a mean divergence of up to 0.003, in 4-bit models of 135M and 270M parameters.
CLOSE = 1.0  # nats between two tokens: neither is more than e times as likely as the other
KL_LIMIT = 1e-2  # nats, mean
FAULT = "check the build: kernels that only round differently do not differ as much"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place at which two completions differ."""

    prompt: int  # from 1
    place: int  # token, from 1
    texts: tuple[str, str]  # of the base's token and the candidate's
    apart: float | None  # nats between the two tokens, the larger of both sides; None if not known

    @property
    def is_close(self) -> bool:
        """Whether rounding may have decided."""
        return self.apart is not None and self.apart <= CLOSE

    def __str__(self) -> str:
        base, candidate = (printable(repr(text[:20]), 40) for text in self.texts)
        apart = "" if self.apart is None else f", which are {significant(self.apart, 2)} nats apart"
        return f"token {self.place} after prompt {self.prompt}: {base} → {candidate}{apart}"


def agreement(case: str, base: Sequence[Completion], candidate: Sequence[Completion]) -> list[GateVerdict]:
    """The verdicts on tokens and, if probabilities are known, on their KL divergence."""
    found = [_difference(number, *both) for number, both in enumerate(zip(base, candidate, strict=True), start=1)]
    different = [each for each in found if each is not None]
    total = sum(len(each.tokens) for each in base)
    same = sum(len(each.tokens) if at is None else at.place - 1 for each, at in zip(base, found, strict=True))
    real = [each for each in different if not each.is_close]
    if real:
        verdict = GateVerdict(case, "tokens", "FAIL", str(real[0]), FAULT, before=total, now=same)
    elif different:
        reason = f"other tokens, but only where both were likely, as by rounding: {'; '.join(map(str, different))}"
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
