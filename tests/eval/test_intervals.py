"""Intervals and paired tests: clustering, seeds, and agreement with formulas and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from regionmed_clip.eval import intervals
from regionmed_clip.eval.intervals import (
    effective_sample_size,
    iter_resample_weights,
    mean_interval,
    paired_bootstrap_p,
    paired_interval,
    paired_permutation_p,
    percentile_interval,
    proportion_interval,
    resample_mean,
    resample_mean_of_class_ratios,
    resample_median,
    wilson_interval,
)


def test_every_resample_draws_as_many_images_as_there_are():
    weights = np.concatenate(list(iter_resample_weights(7, 50, seed=1)))
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()


def test_blocks_do_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(0).random(40)
    whole = mean_interval(values, seed=3)
    monkeypatch.setattr(intervals, "_BLOCK_ELEMENTS", 41)
    assert mean_interval(values, seed=3) == pytest.approx(whole)


def test_the_interval_of_independent_items_is_the_normal_one():
    hits = np.arange(400) < 300  # mean 0.75, standard error sqrt(0.75 * 0.25 / 400) = 0.02165
    low, high = mean_interval(hits, seed=0)
    assert low == pytest.approx(0.75 - 1.96 * 0.02165, abs=0.006)
    assert high == pytest.approx(0.75 + 1.96 * 0.02165, abs=0.006)


def test_regions_of_one_image_count_as_one_observation():
    hits = np.repeat(np.arange(40) < 20, 25)  # 40 images, 25 regions each, all alike within an image
    alone = mean_interval(hits, seed=0)
    clustered = mean_interval(hits, np.repeat(np.arange(40), 25), seed=0)
    assert clustered[1] - clustered[0] == pytest.approx(5 * (alone[1] - alone[0]), rel=0.15)


def test_an_image_without_a_query_does_not_widen_the_interval():
    hits, clusters = np.array([True, False, True]), np.array([0, 5, 9])
    assert mean_interval(hits, clusters, seed=0) == mean_interval(hits, np.array([0, 1, 2]), seed=0)


def test_a_paired_interval_is_narrower_than_the_difference_of_two():
    generator = np.random.default_rng(0)
    first = generator.random(500) < 0.6
    second = first & (generator.random(500) < 0.9)  # the same images are hard for both
    low, high = percentile_interval(resample_mean(first, seed=0) - resample_mean(second, seed=0))
    assert (low, high) == pytest.approx(mean_interval(first.astype(float) - second, seed=0))
    assert 0 < low < first.mean() - second.mean() < high
    apart = mean_interval(first, seed=0), mean_interval(second, seed=0)
    assert high - low < sum(b - a for a, b in apart) / 2


def test_balanced_accuracy_interval_surrounds_the_value_and_skips_absent_classes():
    classes = np.array(["a"] * 50 + ["b"])  # the one image of class b is absent from about a third of the resamples
    hits = np.array([True] * 25 + [False] * 25 + [True])
    low, high = percentile_interval(resample_mean_of_class_ratios(hits, classes, np.arange(51), seed=0))
    assert low < 0.75 < high  # (0.5 + 1) / 2
    assert low < 0.5  # a resample without class b has the mean of class a alone


def test_the_median_interval_of_a_constant_is_that_constant():
    assert (resample_median(np.full(9, 0.25), np.arange(9), seed=0) == 0.25).all()


def test_the_median_interval_contains_the_median():
    values = np.random.default_rng(0).normal(size=301)
    low, high = percentile_interval(resample_median(values, np.arange(301) // 3, seed=0))
    assert low < np.median(values) < high


def test_no_defined_resample_is_an_error():
    with pytest.raises(ValueError, match="too small for an interval"):
        percentile_interval(np.array([np.nan, np.nan]))


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (1, 7), (5, 10), (37, 200), (200, 200)])
def test_the_wilson_interval_is_that_of_scipy(successes, n):
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_all_hits_have_an_interval_that_is_no_point():
    hits = np.ones(300, dtype=bool)
    assert mean_interval(hits) == (1.0, 1.0)  # what the bootstrap says
    low, high = proportion_interval(hits)
    assert high == 1.0
    assert low == pytest.approx(1 / (1 + 1.96**2 / 300), abs=1e-3)  # Wilson's lower bound at all hits


@pytest.mark.parametrize("misses", [0, 1, 9, 19, 100])
def test_queries_that_stand_for_themselves_take_wilsons_interval(misses):
    hits = np.arange(200) >= misses
    assert proportion_interval(hits) == wilson_interval(200 - misses, 200)
    assert proportion_interval(hits, np.arange(200)[::-1] + 7) == wilson_interval(200 - misses, 200)


def test_in_the_middle_of_many_patients_the_interval_is_that_of_the_bootstrap():
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(400), generator.integers(1, 6, 400))
    hits = generator.random(len(clusters)) < generator.beta(2, 2, 400)[clusters]
    assert proportion_interval(hits, clusters) == pytest.approx(mean_interval(hits, clusters), abs=0.004)


def test_few_patients_widen_the_interval_however_many_their_regions():
    hits = np.arange(900) % 3 == 0
    few, many = proportion_interval(hits, np.arange(900) // 90), proportion_interval(hits)
    assert few[1] - few[0] >= (many[1] - many[0]) * t.ppf(0.975, 9) / 1.96 * 0.95  # 10 patients, all alike


def test_regions_of_a_patient_that_are_alike_count_once():
    hits = np.repeat(np.arange(80) % 2 == 0, 10)
    clusters = np.repeat(np.arange(80), 10)
    assert effective_sample_size(hits, clusters) == pytest.approx(79)  # (N - 1) / N of 80
    assert effective_sample_size(np.ones(800), clusters) == 80
    assert effective_sample_size(np.ones(6), np.array([0, 0, 0, 1, 1, 2])) == pytest.approx(36 / 14)


def test_regions_that_differ_within_every_patient_count_no_more_than_all():
    assert effective_sample_size(np.tile([0, 1], 40), np.repeat(np.arange(40), 2)) == 80


def test_one_patient_says_next_to_nothing():
    low, high = proportion_interval(np.ones(50), np.zeros(50))
    assert low < 0.01
    assert high == 1.0


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**31))
def test_a_proportion_interval_holds_its_share_and_stays_within_0_and_1(num_clusters, size, seed):
    generator = np.random.default_rng(seed)
    hits = generator.random(num_clusters * size) < generator.random()
    low, high = proportion_interval(hits, np.arange(num_clusters * size) // size)
    assert 0 <= low <= hits.mean() <= high <= 1
    assert low < high


@pytest.mark.parametrize("degrees", [*range(1, 12), 30, 200])
def test_students_quantile_is_that_of_scipy(degrees):
    assert intervals._student_quantile(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=2e-3)


def test_values_that_are_no_hits_have_no_proportion():
    with pytest.raises(ValueError, match="hits and misses, 0 or 1"):
        proportion_interval(np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="0 queries is undefined"):
        proportion_interval(np.zeros(0))
    with pytest.raises(ValueError, match=r"3 successes of 2"):
        wilson_interval(3, 2)


def test_the_paired_interval_is_that_of_the_differences():
    first, second = np.random.default_rng(0).random((2, 1000))
    assert paired_interval(first, second) == percentile_interval(first - second)
    with pytest.raises(ValueError, match="1000 and 500 resamples"):
        paired_interval(first, second[:500])


@pytest.mark.parametrize(("only_first", "only_second"), [(5, 1), (8, 3), (4, 4), (0, 0), (30, 12)])
def test_the_permutation_test_of_hits_is_mcnemars_exact_test(only_first, only_second):
    both = np.ones(50)
    first = np.concatenate([both, np.ones(only_first), np.zeros(only_second)])
    second = np.concatenate([both, np.zeros(only_first), np.ones(only_second)])
    discordant = only_first + only_second
    expected = binomtest(only_first, discordant).pvalue if discordant else 1.0
    found = paired_permutation_p(first, second, seed=0)
    exact = 2**discordant <= intervals.NUM_PERMUTATIONS
    assert found == pytest.approx(expected, abs=1e-12 if exact else 0.005)  # 9,999 draws: 0.001 at p = 0.008


def test_regions_of_one_patient_are_swapped_together():
    first, second = np.ones(60), np.zeros(60)
    assert paired_permutation_p(first, second) == 1e-4  # 60 votes: none of 9,999 swaps is as far
    assert paired_permutation_p(first, second, np.repeat([0, 1, 2], 20)) == 0.25  # 3 votes: 2 of 8 are


def test_the_permutation_test_of_thousands_of_patients_draws_its_swaps():
    first = np.ones(2000)  # more patients than a float has powers of two
    assert paired_permutation_p(first, np.zeros(2000)) == 1e-4
    alternating = np.arange(2000) % 2
    assert paired_permutation_p(alternating, 1 - alternating) == 1.0


def test_the_permutation_test_ignores_the_order_of_the_models_and_of_the_queries():
    generator = np.random.default_rng(0)
    first, second, clusters = generator.random(12), generator.random(12), np.arange(12) // 2
    expected = paired_permutation_p(first, second, clusters)
    order = generator.permutation(12)
    assert paired_permutation_p(second, first, clusters) == expected
    assert paired_permutation_p(first[order], second[order], clusters[order]) == expected


def test_blocks_do_not_change_the_permutation_test(monkeypatch):
    first, second = np.random.default_rng(0).random((2, 40))
    whole = paired_permutation_p(first, second, seed=3)
    monkeypatch.setattr(intervals, "_BLOCK_ELEMENTS", 40 * 1000)
    assert paired_permutation_p(first, second, seed=3) == whole


def test_a_permutation_test_of_unequal_queries_is_an_error():
    with pytest.raises(ValueError, match="the same queries for both"):
        paired_permutation_p(np.ones(3), np.ones(2))


def test_the_bootstrap_p_is_twice_the_smaller_tail():
    differences = np.concatenate([np.full(29, -1.0), np.full(970, 1.0), [np.nan]])
    assert paired_bootstrap_p(differences) == pytest.approx(2 * 30 / 1000)
    assert paired_bootstrap_p(np.zeros(10)) == 1.0
