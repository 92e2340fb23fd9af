"""Bootstrap intervals: clustering, seeds, and agreement with formulas."""

from __future__ import annotations

import numpy as np
import pytest

from regionmed_clip.eval import intervals
from regionmed_clip.eval.intervals import (
    iter_resample_weights,
    mean_interval,
    percentile_interval,
    resample_mean,
    resample_mean_of_class_ratios,
    resample_median,
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
