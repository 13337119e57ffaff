"""What is measured at one position of a text: the definition that every backend follows.

At each position the reference gives a distribution p over the next token, and the measured model a distribution q,
both after the same tokens of the text (teacher forcing). In nats:

    KL(p ‖ q) = Σ p log(p/q)          how much of the reference's knowledge is lost; 0 for the same distribution
    same top                          whether greedy decoding chooses the same token from p and from q
    −log q(next token of the text)    its mean over a text is the logarithm of the perplexity

**What is kept of the reference.** A vocabulary of 262,144 probabilities at 20,000 positions would be 20 GB. Kept are
the ``TOP`` most likely tokens with their probabilities; the mass R and the entropy of all others, the rest; and
``SAMPLES`` tokens drawn from the rest by p, with their probabilities. With S the mass that q gives the rest, and u =
p/R and v = q/S the distributions within the rest,

    KL(p ‖ q) = Σ_top p log(p/q) + R log(R/S)  +  R KL(u ‖ v)

The first two terms are exact: they are the divergence after merging the rest into one token. By the log-sum
inequality they never exceed the KL divergence. The third is estimated from the samples, with r = v/u at a sampled
token:

    KL(u ‖ v) = E_u[−log r] = E_u[r − 1 − log r],   because E_u[r] = Σ v = 1

The mean of r − 1 − log r over the samples is therefore unbiased. Each term is at least 0 and vanishes for q = p, so
the estimate is 0 for the reference against itself, and its variance is of fourth order in small differences (Schulman
2020, "Approximating KL divergence", estimator k3).

**Its error.** The samples are stratified: one from each ``SAMPLES``-th part of the rest's mass. That has at most the
variance of independent samples, R² Var(r − 1 − log r) / SAMPLES, which the samples estimate. Positions are sampled
independently, so the variance of a mean over N positions is the sum of theirs ÷ N², and ``ERRORS`` standard errors
bound it in practice, for a mean over thousands of positions. That variance is itself an estimate: for a model that is
damaged badly, whose r varies over many orders of magnitude, it can be too small. Without samples, the entropy H of
the rest bounds the third term for certain, but widely:

    0 ≤ R KL(u ‖ v) = −H − Σ_rest p log q − R log(R/S) ≤ −H − R log(min q) − R log(R/S)
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

DEFINITION = 2  # raise it with any change of this definition: figures of different ones are not compared
TOP, SAMPLES = 128, 64  # tokens; together 1.5 kB per position
ERRORS = 4  # standard errors that bound the error of what is kept
NO_REST = 1e-6  # mass of a rest that counts as none: what rounding the logarithms to float32 leaves of 1 − Σ p
MIN_REST = 1e-9  # smallest mass of the rest under q, whose logarithm must exist even if rounding leaves nothing


@dataclass(frozen=True, slots=True)
class Reference:
    """What is kept of the reference's distribution at one position."""

    ids: Sequence[int]  # of the ``TOP`` most likely tokens, the most likely first
    logs: Sequence[float]  # their log-probabilities
    rest_entropy: float  # −Σ p log p over all other tokens
    sampled: Sequence[int]  # tokens drawn from the rest by p
    sampled_logs: Sequence[float]

    @property
    def rest(self) -> float:
        """The probability of all tokens that are not among ``ids``."""
        return rest_mass(self.logs)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The KL divergence at one position, in nats."""

    value: float
    variance: float  # of ``value``, from the sampling of the rest
    low: float  # certain bounds, from the mass and the entropy of the rest
    high: float


def rest_mass(logs: Sequence[float]) -> float:
    """1 − Σ exp(logs), or 0 if that is rounding."""
    rest = 1 - math.fsum(map(math.exp, logs))
    return rest if rest > NO_REST else 0.0


def keep(log_p: Sequence[float], top: int = TOP, samples: int = SAMPLES, seed: int = 0) -> Reference:
    """What is kept of ``log_p``, the log-probabilities of all tokens; ``seed`` determines the samples."""
    order = sorted(range(len(log_p)), key=lambda token: (-log_p[token], token))
    ids, others = order[:top], sorted(order[top:])
    logs = [log_p[token] for token in ids]
    entropy = -math.fsum(math.exp(log_p[token]) * log_p[token] for token in others)
    if not rest_mass(logs):
        return Reference(ids, logs, entropy, (), ())
    sums = list(accumulate(math.exp(log_p[token]) for token in others))
    chance = random.Random(seed).random
    drawn = [(place + chance()) / samples * sums[-1] for place in range(samples)]
    sampled = [others[min(bisect_right(sums, value), len(others) - 1)] for value in drawn]
    return Reference(ids, logs, entropy, sampled, [log_p[token] for token in sampled])


def divergence(kept: Reference, log_q: Sequence[float]) -> Divergence:
    """KL(p ‖ q) by what is kept of p; ``log_q`` are the log-probabilities of all tokens."""
    top_q = [log_q[token] for token in kept.ids]
    certain = math.fsum(math.exp(p) * (p - q) for p, q in zip(kept.logs, top_q, strict=True))
    rest, left = kept.rest, max(1 - math.fsum(map(math.exp, top_q)), MIN_REST)
    if not rest:
        return Divergence(max(0.0, certain), 0.0, certain, certain)
    certain += rest * (math.log(rest) - math.log(left))
    terms = []
    for token, log_p in zip(kept.sampled, kept.sampled_logs, strict=True):
        log_r = log_q[token] - math.log(left) - (log_p - math.log(rest))
        terms.append(math.expm1(log_r) - log_r)
    mean = math.fsum(terms) / len(terms)
    variance = math.fsum((term - mean) ** 2 for term in terms) / (len(terms) - 1) / len(terms)
    most = -kept.rest_entropy - rest * min(log_q) - rest * (math.log(rest) - math.log(left))
    return Divergence(certain + rest * mean, rest**2 * variance, certain, certain + max(0.0, most))


def is_same_top(kept: Reference, log_q: Sequence[float]) -> bool:
    """Whether the reference's most likely token is that of q: of equal ones, which 16 bits make common, the first, as
    greedy decoding chooses."""
    return kept.ids[0] == max(range(len(log_q)), key=lambda token: log_q[token])


def exact(log_p: Sequence[float], log_q: Sequence[float]) -> float:
    """KL(p ‖ q) from all log-probabilities."""
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Log-probabilities of the tokens whose logits these are."""
    most = max(logits)
    total = math.log(math.fsum(math.exp(each - most) for each in logits))
    return [each - most - total for each in logits]
