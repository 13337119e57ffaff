"""The definition on a toy model with a vocabulary of 50, whose divergence is known in closed form."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from profiler.quality.definition import (
    ERRORS,
    Divergence,
    divergence,
    exact,
    is_same_top,
    keep,
    log_softmax,
)

VOCABULARY = 50
RATE, OTHER = 0.9, 0.8


def geometric(rate: float) -> list[float]:
    """Log-probabilities in proportion to rate^token."""
    total = math.log((1 - rate**VOCABULARY) / (1 - rate))
    return [token * math.log(rate) - total for token in range(VOCABULARY)]


def closed_form(p: float, q: float) -> float:
    """KL of two such distributions: Σ p log(p/q) = E_p[token] log(p/q) − log(total of p ÷ total of q)."""
    n = VOCABULARY
    mean = p / (1 - p) - n * p**n / (1 - p**n)
    return mean * math.log(p / q) - math.log((1 - p**n) / (1 - p)) + math.log((1 - q**n) / (1 - q))


def test_all_probabilities_give_the_closed_form() -> None:
    expected = closed_form(RATE, OTHER)
    assert exact(geometric(RATE), geometric(OTHER)) == pytest.approx(expected, rel=1e-12)
    whole = divergence(keep(geometric(RATE), top=VOCABULARY), geometric(OTHER))
    assert whole == Divergence(
        pytest.approx(expected, rel=1e-9), 0.0, pytest.approx(expected), pytest.approx(expected)
    )


@pytest.mark.parametrize("top, samples", [(1, 8), (10, 4), (10, 64), (40, 16)])
def test_what_is_kept_gives_the_closed_form_on_average(top: int, samples: int) -> None:
    log_p, log_q = geometric(RATE), geometric(OTHER)
    found = [divergence(keep(log_p, top, samples, seed), log_q) for seed in range(2000)]
    values = [each.value for each in found]
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert abs(statistics.fmean(values) - closed_form(RATE, OTHER)) < ERRORS * error + 1e-9


def test_the_stated_variance_is_at_least_the_true_one() -> None:
    """Stratified samples vary less than independent ones, whose variance is stated."""
    found = [divergence(keep(geometric(RATE), 10, 16, seed), geometric(OTHER)) for seed in range(2000)]
    assert statistics.variance(each.value for each in found) < statistics.fmean(each.variance for each in found)


def test_the_bound_holds_for_means_over_many_positions() -> None:
    """Random distributions, quantized by noise: the mean over 200 positions is within ``ERRORS`` standard errors."""
    chance = random.Random(5)
    missed = 0
    for _ in range(30):
        truth, value, variance = 0.0, 0.0, 0.0
        for seed in range(200):
            logits = [chance.gauss(0, 2) for _ in range(VOCABULARY)]
            log_p = log_softmax(logits)
            log_q = log_softmax([each + chance.gauss(0, 0.3) for each in logits])
            found = divergence(keep(log_p, 8, 8, seed), log_q)
            truth += exact(log_p, log_q)
            value, variance = value + found.value, variance + found.variance
        missed += abs(value - truth) > ERRORS * math.sqrt(variance)
    assert missed == 0


@pytest.mark.parametrize("seed", range(20))
def test_mass_and_entropy_of_the_rest_bound_the_divergence_for_certain(seed: int) -> None:
    chance = random.Random(seed)
    log_p = log_softmax([chance.gauss(0, 2) for _ in range(VOCABULARY)])
    log_q = log_softmax([chance.gauss(0, 2) for _ in range(VOCABULARY)])  # another model altogether
    found = divergence(keep(log_p, 10, 8, seed), log_q)
    assert 0 <= found.low <= exact(log_p, log_q) <= found.high
    assert found.low <= found.value


@pytest.mark.parametrize("top", [1, 10, 49, 50])
def test_a_reference_against_itself_has_a_divergence_of_exactly_nothing(top: int) -> None:
    log_p = geometric(RATE)
    found = divergence(keep(log_p, top), log_p)
    assert (found.value, found.variance, found.low) == (0.0, 0.0, 0.0)


def test_equal_logits_at_the_top_count_as_agreement() -> None:
    kept = keep(log_softmax([2.0, 1.0, 0.0]))
    assert is_same_top(kept, log_softmax([3.0, 3.0, 0.0]))
    assert not is_same_top(kept, log_softmax([3.0, 3.1, 0.0]))
