"""Figures from outcomes: value, interval, n and protocol."""

from __future__ import annotations

import numpy as np
import pytest

from regionmed_clip.eval.intervals import percentile_interval, resample_mean, wilson_interval
from regionmed_clip.eval.tasks.figures import mean_figure, ratio_figure, resample_ratio, share_figure
from regionmed_clip.eval.tasks.measured import Stratum

WHOLE = Stratum(None, None, np.ones(1, dtype=bool))
OPTIONS = {"stratum": WHOLE, "seed": 3}


def test_a_mean_of_numbers_has_the_bootstrap_interval_of_its_clusters():
    values, clusters = np.array([0.5, 1.5, 4.0, 2.0]), np.array([7, 7, 2, 5])
    figure = mean_figure("task", "metric", values, clusters, protocol={"gallery": 3}, **OPTIONS)
    assert (figure.value, figure.n, figure.protocol) == (2.0, 4, {"gallery": 3})
    np.testing.assert_allclose(figure.resampled, resample_mean(values, clusters, seed=3), rtol=1e-12)
    assert (figure.low, figure.high) == pytest.approx(percentile_interval(figure.resampled))
    assert figure.outcomes.tolist() == values.tolist()


def test_hits_alone_do_not_give_an_interval_without_width():
    figure = mean_figure("task", "metric", np.ones(30, dtype=bool), np.arange(30), **OPTIONS)
    assert (figure.value, figure.high) == (1.0, 1.0)
    assert (figure.low, figure.high) == pytest.approx(wilson_interval(30, 30))  # 30 patients of one query each
    assert "Wilson" in figure.protocol["interval"]


def test_one_patient_alone_is_said_to_tell_nothing_of_others():
    figure = mean_figure("task", "metric", np.array([1.0, 2.0]), np.zeros(2, int), **OPTIONS)
    assert (figure.low, figure.high) == (1.5, 1.5)
    assert figure.protocol["interval"].startswith("of one patient")


def test_a_ratio_is_of_sums_and_counts_what_it_divides_by():
    right, given = np.array([1, 0, 2]), np.array([1, 3, 4])
    figure = ratio_figure("task", "metric", right, given, np.arange(3), **OPTIONS)
    assert (figure.value, figure.n) == (3 / 8, 8)
    assert ratio_figure("task", "metric", right, given, np.arange(3), n=3, **OPTIONS).n == 3


def test_a_share_is_the_mean_of_all_its_single_outcomes():
    generator = np.random.default_rng(0)
    totals = generator.integers(0, 5, 200)
    hits = generator.binomial(totals, 0.7)
    share = share_figure("task", "metric", hits, totals, np.arange(200), **OPTIONS)
    outcomes = np.concatenate([[True] * h + [False] * (t - h) for h, t in zip(hits, totals, strict=True)]).astype(bool)
    mean = mean_figure("task", "metric", outcomes, np.repeat(np.arange(200), totals), **OPTIONS)
    assert (share.value, share.n) == (pytest.approx(mean.value, abs=1e-12), mean.n)
    assert (share.low, share.high) == pytest.approx((mean.low, mean.high), abs=0.02)  # other draws of one distribution
    assert share.clusters.tolist() == list(range(200))  # of the queries: equal for every model


def test_nothing_to_divide_by_gives_the_reason_instead_of_a_number():
    for figure in (
        mean_figure("task", "metric", np.zeros(0), np.zeros(0, int), nothing="no images", **OPTIONS),
        share_figure(
            "task", "metric", np.zeros(2, int), np.zeros(2, int), np.arange(2), nothing="no images", **OPTIONS
        ),
    ):
        assert (figure.value, figure.n, figure.protocol["skipped"]) == (None, 0, "no images")


def test_draws_without_anything_are_undefined_and_left_out():
    resampled = resample_ratio(np.array([1, 0]), np.array([2, 0]), np.array([0, 1]), seed=0)
    assert set(resampled[np.isfinite(resampled)]) == {0.5}
    assert np.isnan(resampled).mean() == pytest.approx(0.25, abs=0.05)  # both draws are the empty cluster
