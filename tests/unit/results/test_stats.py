from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.results import stats
from profiler.results.cautions import NOISY
from profiler.results.measurement import Sample
from profiler.results.stats import summarize

positive = st.floats(min_value=1e-6, max_value=1e9)


def zigzag(values):
    """From both ends in turn: each value is unlike the one before."""
    ordered = sorted(values)
    half = len(ordered) // 2
    turns = [each for pair in zip(ordered, reversed(ordered), strict=True) for each in pair]
    return [*turns[: 2 * half], *ordered[half : len(ordered) - half]]


def chain(generator, n, correlation, spread):
    """Values around 1, each correlated with the one before: a first-order autoregressive chain in logarithms."""
    state = generator.gauss(0, 1)
    for _ in range(n):
        yield math.exp(spread * state)
        state = correlation * state + math.sqrt(1 - correlation**2) * generator.gauss(0, 1)


def test_nothing_measured_has_no_summary():
    assert summarize([]) is None


def test_one_repetition_has_a_median_and_no_spread():
    summary = summarize([42.0])
    assert summary.median == 42.0
    assert (summary.low, summary.high, summary.stdev, summary.relative_half) == (None,) * 4


@pytest.mark.parametrize(
    ("n", "k", "coverage"),
    [(6, 1, 0.96875), (8, 1, 0.9921875), (9, 2, 0.9609375), (10, 2, 0.978515625), (20, 6, 0.958610534667969)],
)
def test_from_six_values_on_the_interval_is_the_published_pair_of_order_statistics(n, k, coverage):
    summary = summarize(zigzag([float(i) for i in range(1, n + 1)]))
    assert (summary.low, summary.high) == (k, n + 1 - k)
    assert summary.rule == "order"
    assert summary.coverage == pytest.approx(coverage, abs=1e-12)


def test_below_six_values_the_interval_is_students_t_on_logarithms():
    values = [90.0, 100.0, 110.0]
    logs = [math.log(value) for value in values]
    half = 4.302653 * statistics.stdev(logs) / math.sqrt(3)
    summary = summarize(values)
    assert summary.rule == "log-t"
    assert summary.low == pytest.approx(math.exp(statistics.fmean(logs) - half), rel=1e-4)
    assert summary.high == pytest.approx(math.exp(statistics.fmean(logs) + half), rel=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10])
def test_interval_covers_the_true_median_of_multiplicative_noise_as_often_as_it_says(n):
    generator = random.Random(n)
    trials = 2000
    hits = 0
    for _ in range(trials):
        summary = summarize([100 * math.exp(generator.gauss(0, 0.1)) for _ in range(n)])
        hits += summary.low <= 100 <= summary.high
    assert hits / trials > 0.935  # 0.95 less three standard errors


def test_correlated_repetitions_widen_the_interval():
    values = [float(i) for i in range(1, 11)]
    apart, alike = summarize(zigzag(values)), summarize(values)
    assert alike.median == apart.median
    factor = stats.widening(values)
    assert math.log(alike.high / alike.median) == pytest.approx(factor * math.log(apart.high / apart.median))
    assert math.log(alike.median / alike.low) == pytest.approx(factor * math.log(apart.median / apart.low))
    plain = sum((a - 5.5) * (b - 5.5) for a, b in itertools.pairwise(values)) / 82.5
    r = min(0.9, plain + (1 + 4 * plain) / 10)
    assert factor == pytest.approx(math.sqrt((1 + r) / (1 - r))) == pytest.approx(math.sqrt(1.9 / 0.1))


def test_four_repetitions_cannot_show_a_correlation():
    assert stats.widening([1.0, 2.0, 3.0, 4.0]) == 1
    assert stats.widening([2.0] * 9) == 1


@pytest.mark.parametrize(("n", "least", "without"), [(5, 0.76, 0.78), (10, 0.85, 0.82), (20, 0.88, 0.82)])
def test_an_interval_of_correlated_repetitions_covers_what_one_of_independent_ones_would_not(n, least, without):
    generator, trials = random.Random(5), 1500
    wider = plain = 0
    for _ in range(trials):
        values = list(chain(generator, n, 0.6, 0.02))
        found, taken_as_independent = summarize(values), summarize(zigzag(values))
        wider += found.low <= 1 <= found.high
        plain += taken_as_independent.low <= 1 <= taken_as_independent.high
    assert plain / trials < without
    assert wider / trials > least
    assert wider > plain


def test_process_to_process_variation_is_added_in_quadrature():
    values = [100.0, 98.0, 102.0, 99.0, 101.0, 100.0, 98.5, 101.5]
    alone, among = summarize(values), summarize(values, between=0.03)
    assert (alone.between, among.between) == (None, 0.03)
    assert alone.within == among.within == pytest.approx(alone.relative_half)
    half = math.hypot(math.log(alone.high / alone.median), 1.96 * 0.03)
    assert math.log(among.high / among.median) == pytest.approx(half)
    assert summarize([5.0], between=0.03).low is None
    assert summarize([5.0] * 6, between=0.03).high == pytest.approx(5 * math.exp(1.96 * 0.03))


def test_repetitions_that_agree_are_comparable_whatever_the_process_to_process_variation():
    agreeing = summarize([100.0, 100.1, 99.9, 100.0, 100.1], between=0.3)
    assert agreeing.relative_half > stats.WIDE
    assert not agreeing.wide
    assert summarize([100.0, 300.0], between=None).wide


def test_a_row_has_the_process_to_process_variation_that_was_stored_with_it(make):
    known = make(expected={"between": {"prefill": 0.05, "decode": 0.01, "basis": "prior"}})
    assert (stats.between(known, "prefill"), stats.between(known, "decode")) == (0.05, 0.01)
    assert stats.rate(known, "prefill").between == 0.05
    assert stats.between(make(), "prefill") is None


def test_order_interval_covers_the_median_of_one_sided_noise_too():
    generator = random.Random(1)
    trials, median = 2000, 10 + math.log(2)
    hits = 0
    for _ in range(trials):
        summary = summarize([10 + generator.expovariate(1) for _ in range(8)])
        hits += summary.low <= median <= summary.high
    assert hits / trials > 0.95


@given(st.lists(positive, min_size=2, max_size=30))
def test_interval_always_holds_the_median(values):
    summary = summarize(values)
    assert summary.low <= summary.median <= summary.high


def test_equal_values_have_an_interval_without_width():
    summary = summarize([0.3] * 3)
    assert (summary.low, summary.median, summary.high, summary.relative_half) == (0.3, 0.3, 0.3, 0)


def test_stdev_is_of_the_sample_not_of_the_population():
    assert summarize([1.0, 2.0, 3.0, 4.0]).stdev == pytest.approx(math.sqrt(5 / 3))


@given(st.lists(positive, min_size=2, max_size=40))
def test_percentiles_are_the_inclusive_quantiles(values):
    ordered = sorted(values)
    expected = statistics.quantiles(ordered, n=4, method="inclusive")
    assert [stats.percentile(ordered, q) for q in (0.25, 0.5, 0.75)] == pytest.approx(expected, rel=1e-9)


def test_rates_count_the_tokens_of_all_sequences(make):
    measurement = make(samples=(Sample("prefill", 2.0, 4 * 128), Sample("decode", 0.5, 4 * 8)))
    assert stats.rates(measurement, "prefill") == [256.0]
    assert stats.rates(measurement, "decode") == [64.0]


def test_a_sample_without_time_is_an_error_not_an_infinite_rate(make):
    with pytest.raises(ValueError, match="took no time"):
        stats.rates(make(samples=(Sample("decode", 0.0, 8),)), "decode")


def test_ttft_is_the_seconds_of_the_prefill(make):
    assert stats.ttft(make()).median == pytest.approx(0.11)


def test_tail_latency_is_unknown_until_enough_steps_were_seen(make):
    def steps_of(count):
        return stats.steps(
            make(samples=(Sample("decode", 1.0, count, tuple(i / 1000 for i in range(1, count + 1))),))
        )

    assert steps_of(0) is None
    assert (steps_of(19).p50_s, steps_of(19).p95_s, steps_of(19).p99_s) == (0.010, None, None)
    assert steps_of(20).p95_s == pytest.approx(0.01905)
    assert steps_of(99).p99_s is None
    assert steps_of(100).p99_s == pytest.approx(0.09901)


SPREADS = st.sampled_from([1.0001, 1.003, 1.02, 1.05, 1.1, 1.3, 2.0])


@given(st.data(), st.integers(1, 12), SPREADS)
def test_the_quick_bound_is_never_narrower_than_the_interval(data, n, spread):
    values = data.draw(st.lists(st.floats(1.0, spread), min_size=n, max_size=n))
    between = data.draw(st.sampled_from([None, 0.01, 0.2]))
    summary, median_range = summarize(values, between), stats.median_range(sorted(values))
    assert median_range.median == summary.median
    assert not (median_range.near and summary.wide)
    for end in (summary.low, summary.high):
        if end is not None:
            assert abs(math.log(end / median_range.median)) <= median_range.reach(between) + 1e-12


def test_the_quick_bound_is_tight_enough_to_be_useful():
    near, far = stats.median_range([10.0, 10.2, 10.4]), stats.median_range([10.0, 20.0, 30.0])
    assert near.near and not far.near
    assert near.reach(None) < math.log(1.11)


@given(st.lists(st.floats(0.1, 0.2), min_size=4, max_size=12))
def test_repetitions_that_pass_the_quick_bound_have_no_caution_about_their_spread(seconds):
    median_range = stats.median_range([1 / second for second in seconds])
    if median_range.near and median_range.spread <= 1 + NOISY:
        assert stats.spread(seconds) <= NOISY + 1e-12
