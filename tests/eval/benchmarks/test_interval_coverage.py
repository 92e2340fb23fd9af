"""Intervals hold the truth about as often as they say: the short form of the benchmark."""

import numpy as np
import pytest

from regionmed_clip.eval.benchmarks.interval_coverage import (
    Study,
    clustered,
    coverage,
    independent,
    populations,
    retrieval,
)

NUM_SIMULATIONS = 100  # 95 % of 100 spreads by 2.2 points; seeds are fixed


@pytest.mark.parametrize(
    "population", [independent(0.8, 0.8, 200), independent(0.9, 0.99, 200), clustered(0.9, 100), retrieval(1, 0.8)]
)
def test_intervals_hold_the_truth_about_95_times_in_100(population):
    assert 90 <= coverage(population, NUM_SIMULATIONS)["coverage"] <= 100


def test_the_bootstrap_alone_would_fall_short_where_nearly_all_are_hits():
    found = coverage(independent(0.99, 0.99, 200), NUM_SIMULATIONS)
    assert found["bootstrap_coverage"] < 90 < found["coverage"]


def test_coverage_counts_the_intervals_that_hold_the_truth():
    hits = np.arange(200) < 100
    for truth, expected in ((0.5, 100), (0.9, 0), (float("nan"), 100)):  # NaN: the mean of the studies, 0.5
        assert coverage(lambda generator, truth=truth: Study(hits, None, truth), 3)["coverage"] == expected


@pytest.mark.parametrize(
    "name", ["accuracy 0.9, 4 regions each of 100 patients, alike", "recall@1, 200 images, 300 texts"]
)
def test_a_population_has_the_truth_that_it_states(name):
    draw, generator = populations()[name], np.random.default_rng(1)
    studies = [draw(generator) for _ in range(200)]
    hits = np.concatenate([study.hits for study in studies])
    assert hits.mean() == pytest.approx(studies[0].truth, abs=0.01)  # 20,000 patients and more
