"""Whether base and candidate compute the same: greedy tokens after the same prompts, and how likely each was.

The same kernels give the same probabilities to the last bit. Kernels that round differently give other ones, and so
other tokens here and there: in a 4-bit model, whose activations are rounded to 8 bits, even where one token was six
times as likely as the other. From there on the texts are different, and nothing is compared. So the tokens alone
prove no fault, and the divergence of the probabilities decides:

    FAIL   the mean KL divergence is above the limit, or is not known and the tokens differ
    PASS   otherwise; tokens that differ are named

The limits lie above what correct kernels differ by (``benchmarks/gate_builds.md``). They find an error of two percent
in one layer of an f32 model, but in a 4-bit model only a broken kernel.

**KL divergence** of the candidate's next-token distribution from the base's, in nats, averaged over the places before
the tokens differ. Only the likeliest tokens are known; the others count as one, so this is a lower bound (merging
outcomes never increases a divergence: the log sum inequality, Cover & Thomas, Elements of Information Theory, 2.7).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from profiler.backends.base import Completion
from profiler.gate.rule import GateVerdict
from profiler.units import printable, significant

# Correct kernels (flash attention on or off, with or without vector instructions), and a factor that the next norm
# cancels, gave a mean divergence of up to 0.0063 nats in 4-bit models of 135M and 270M, and of up to 1.5e-6 in f32.
KL_LIMIT, KL_LIMIT_F32 = 1e-2, 1e-5  # nats, mean
ADVICE = "check the build: kernels that only round differently do not differ as much"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place at which two completions differ."""

    prompt: int  # from 1
    place: int  # token, from 1
    texts: tuple[str, str]  # of the base's token and the candidate's
    apart: float | None  # nats between both tokens, by the variant in which it is more; None if not known

    def __str__(self) -> str:
        base, candidate = (printable(repr(text[:20]), 40) for text in self.texts)
        apart = "" if self.apart is None else f", which are {significant(self.apart, 2)} nats apart"
        return f"token {self.place} after prompt {self.prompt}: {base} → {candidate}{apart}"


def agreement(
    case: str, base: Sequence[Completion], candidate: Sequence[Completion], limit: float = KL_LIMIT
) -> list[GateVerdict]:
    """The verdicts on tokens and, if probabilities are known, on their KL divergence (``limit``: nats)."""
    found = [_difference(number, *both) for number, both in enumerate(zip(base, candidate, strict=True), start=1)]
    different = [each for each in found if each is not None]
    total = sum(len(each.tokens) for each in base)
    same = sum(len(each.tokens) if at is None else at.place - 1 for each, at in zip(base, found, strict=True))
    kl = _divergence(case, base, candidate, found, limit)
    if not different:
        tokens = GateVerdict(case, "tokens", "PASS", f"the same {total} tokens after {len(base)} prompts")
    elif kl and kl[0].word == "PASS":
        reason = f"other tokens, as kernels that round differently may give: {'; '.join(map(str, different))}"
        tokens = GateVerdict(case, "tokens", "PASS", reason)
    else:
        tokens = GateVerdict(case, "tokens", "FAIL", "; ".join(map(str, different)), ADVICE)
    return [replace(tokens, before=total, now=same), *kl]


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
    """By how many nats a variant prefers its own token, the larger of both."""
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
    limit: float,
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
    if mean > limit:
        return [GateVerdict(case, "kl", "FAIL", f"{reason}: more than {significant(limit, 1)}", ADVICE)]
    return [GateVerdict(case, "kl", "PASS", reason)]


def divergence(p: Mapping[int, float], q: Mapping[int, float]) -> float:
    """A lower bound of Σ p ln(p ÷ q) in nats, from the log-probabilities of the likeliest tokens of each.

    Three kinds of tokens are told apart: those that both have, those that only ``p`` has, as one, and all others, as
    one. A token that ``q`` does not have is no likelier there than the least likely one that it has.
    """
    shared = p.keys() & q.keys()
    parts = [(math.exp(p[token]), math.exp(q[token])) for token in shared]
    rest_p, rest_q = (max(0.0, 1 - math.fsum(side)) for side in (zip(*parts, strict=True) if parts else ((), ())))
    alone = min(rest_p, math.fsum(math.exp(p[token]) for token in p.keys() - shared))
    if alone > 0 and q:
        most = len(p.keys() - shared) * math.exp(min(q.values()))
        there = min(most, rest_q * alone / rest_p)  # the divergence is smallest at the latter
        parts.append((alone, there))
        rest_p, rest_q = rest_p - alone, rest_q - there
    parts.append((rest_p, rest_q))
    return max(0.0, math.fsum(a * math.log(a / b) for a, b in parts if a > 0 and b > 0))
