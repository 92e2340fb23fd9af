"""Balanced accuracy with its interval: by hand, for few items, for many, and for answers that are shares."""

from __future__ import annotations

import numpy as np
import pytest

from regionmed_clip.eval.intervals import resample_mean_of_class_ratios, wilson_interval
from regionmed_clip.eval.tasks.class_figures import balanced_figure, class_interval
from regionmed_clip.eval.tasks.measured import Stratum

WHOLE = Stratum(None, None, np.ones(4, dtype=bool))


def interval(values, classes, clusters):
    """The interval with resamples of seed 0."""
    return class_interval(values, classes, clusters, resample_mean_of_class_ratios(values, classes, clusters, seed=0))


def test_all_right_of_a_few_is_no_certainty():
    classes = np.array(["a"] * 5 + ["b"] * 5)
    low, high = interval(np.ones(10, dtype=bool), classes, np.arange(10))
    down = 1 - wilson_interval(5, 5)[0]  # of either class; combined over the two, each of weight 1/2
    assert (low, high) == pytest.approx((1 - np.sqrt(2 * down**2) / 2, 1.0), abs=1e-12)  # float64


def test_images_of_one_patient_count_as_one():
    classes = np.array(["a", "b"] * 8)
    alone = interval(np.ones(16, dtype=bool), classes, np.arange(16))
    of_patients = interval(np.ones(16, dtype=bool), classes, np.arange(16) // 8)
    assert of_patients[0] < alone[0]


def test_many_items_of_every_class_keep_the_bootstrap():
    generator = np.random.default_rng(0)
    classes = np.repeat(["a", "b"], 200)
    values = generator.random(400) < 0.7
    resampled = resample_mean_of_class_ratios(values, classes, np.arange(400), seed=0)
    assert class_interval(values, classes, np.arange(400), resampled) == pytest.approx(
        tuple(np.percentile(resampled, (2.5, 97.5)))
    )


def test_shares_of_right_answers_are_averaged_by_class():
    figure = balanced_figure(
        "probe",
        "probe_balanced_accuracy@1",
        np.array([1.0, 0.5, 0.5, 0.2]),
        np.array(["a", "a", "a", "b"]),
        np.arange(4),
        stratum=WHOLE,
        seed=0,
        protocol={"chance": 0.5},
    )
    assert figure.value == pytest.approx((2 / 3 + 0.2) / 2)
    assert 0 <= figure.low < figure.value < figure.high <= 1
    assert figure.protocol["chance"] == 0.5
