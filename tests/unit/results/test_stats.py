from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.results import stats
from profiler.results.measurement import Sample
from profiler.results.stats import summarize

positive = st.floats(min_value=1e-6, max_value=1e9)


def test_nothing_measured_has_no_summary():
    assert summarize([]) is None


def test_one_repetition_has_a_median_and_no_spread():
    summary = summarize([42.0])
    assert summary.median == 42.0
    assert (summary.low, summary.high, summary.stdev, summary.iqr, summary.relative_half) == (None,) * 5


@pytest.mark.parametrize(
    ("n", "k", "coverage"),
    [(6, 1, 0.96875), (8, 1, 0.9921875), (9, 2, 0.9609375), (10, 2, 0.978515625), (20, 6, 0.958610534667969)],
)
def test_from_six_values_on_the_interval_is_the_published_pair_of_order_statistics(n, k, coverage):
    values = [float(i) for i in range(1, n + 1)]
    random.Random(n).shuffle(values)
    summary = summarize(values)
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
    with pytest.raises(ValueError, match="did not take any time"):
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
