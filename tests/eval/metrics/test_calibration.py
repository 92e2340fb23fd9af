"""Calibration metrics against hand sums, scikit-learn, and what a temperature must do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from regionmed_clip.eval.metrics.calibration import (
    TEMPERATURE_RANGE,
    brier_losses,
    brier_score,
    expected_calibration_error,
    fit_binary_temperature,
    fit_temperature,
    reliability_bins,
    sigmoid,
    softmax,
    weighted_expected_calibration_error,
)


def test_the_calibration_error_by_hand():
    # bin (0.5, 0.75]: 0.6 and 0.7, one right: |0.5 - 0.65| x 2/4; bin (0.75, 1]: 0.8 and 1.0, both right: 0.1 x 2/4
    probabilities, is_correct = np.array([0.6, 0.7, 0.8, 1.0]), np.array([True, False, True, True])
    assert expected_calibration_error(probabilities, is_correct, 4) == pytest.approx(0.125, abs=1e-15)


def test_the_bins_are_closed_above_and_the_first_holds_zero():
    bins = reliability_bins(np.array([0.0, 0.5, 0.5 + 1e-9, 1.0]), np.array([False, True, True, True]), 2)
    assert [b["n"] for b in bins] == [2, 2]
    assert bins[0] == {"low": 0.0, "high": 0.5, "n": 2, "confidence": 0.25, "accuracy": 0.5}


def test_an_empty_bin_states_no_means():
    bins = reliability_bins(np.array([0.9]), np.array([True]), 2)
    assert bins[0] == {"low": 0.0, "high": 0.5, "n": 0, "confidence": None, "accuracy": None}


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_the_calibration_error_is_that_of_its_bins(seed, num_bins):
    generator = np.random.default_rng(seed)
    probabilities, is_correct = generator.random(30), generator.random(30) < 0.5
    bins = [b for b in reliability_bins(probabilities, is_correct, num_bins) if b["n"]]
    expected = sum(b["n"] / 30 * abs(b["accuracy"] - b["confidence"]) for b in bins)
    assert expected_calibration_error(probabilities, is_correct, num_bins) == pytest.approx(expected, abs=1e-12)


def test_the_bins_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    probabilities = generator.random(400)
    is_correct = generator.random(400) < probabilities**2
    accuracies, confidences = calibration_curve(is_correct, probabilities, n_bins=15)
    bins = [b for b in reliability_bins(probabilities, is_correct) if b["n"]]
    np.testing.assert_allclose([b["accuracy"] for b in bins], accuracies, atol=1e-9)  # float64
    np.testing.assert_allclose([b["confidence"] for b in bins], confidences, atol=1e-9)


def test_the_calibration_error_under_weights_is_that_of_the_repeated_items():
    generator = np.random.default_rng(0)
    probabilities, is_correct, weights = generator.random(50), generator.random(50) < 0.5, generator.integers(0, 3, 50)
    rows = np.stack([weights, np.zeros(50)])
    value, of_nothing = weighted_expected_calibration_error(probabilities, is_correct, rows)
    repeated = expected_calibration_error(np.repeat(probabilities, weights), np.repeat(is_correct, weights))
    assert value == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(of_nothing)


def test_brier_scores_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    probabilities, outcomes = generator.random(100), generator.random(100) < 0.3
    assert brier_score(probabilities, outcomes) == pytest.approx(brier_score_loss(outcomes, probabilities), abs=1e-9)
    table, labels = generator.dirichlet(np.ones(4), 100), generator.integers(0, 4, 100)
    expected = brier_score_loss(labels, table, labels=range(4), scale_by_half=False)
    assert brier_score(table, labels) == pytest.approx(expected, abs=1e-9)


def test_brier_losses_by_hand():
    assert brier_losses(np.array([0.8, 0.3]), np.array([True, True])).tolist() == pytest.approx([0.04, 0.49], abs=1e-15)
    # class 0 is true: (1 - 0.5)^2 + 0.3^2 + 0.2^2
    assert brier_losses(np.array([[0.5, 0.3, 0.2]]), np.array([0])).tolist() == pytest.approx([0.38], abs=1e-15)


def draw_logits(seed, temperature, num_items=4000, num_classes=3):
    """Logits whose labels were drawn from their softmax at the given temperature."""
    generator = np.random.default_rng(seed)
    logits = 3 * generator.normal(size=(num_items, num_classes))
    draws = softmax(logits, temperature).cumsum(axis=1) > generator.random((num_items, 1))
    return logits, draws.argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_drew_the_labels_is_found(temperature):
    logits, labels = draw_logits(0, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.1)  # 4,000 draws


def test_no_other_temperature_makes_the_labels_likelier():
    logits, labels = draw_logits(1, 2.0, num_items=60)
    best = fit_temperature(logits, labels)
    losses = [log_loss(labels, softmax(logits, best * factor), labels=range(3)) for factor in (1, 0.97, 1.03)]
    assert losses[0] < min(losses[1:])


def test_the_binary_form_is_the_form_of_two_classes():
    logits, labels = draw_logits(2, 1.7, num_items=100, num_classes=2)
    difference = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(sigmoid(difference, 1.7), softmax(logits, 1.7)[:, 1], atol=1e-12)  # float64
    found = fit_binary_temperature(difference, labels == 1)
    assert found == pytest.approx(fit_temperature(logits, labels), rel=1e-9)


def test_scaling_by_the_fitted_temperature_mends_overconfidence():
    logits, labels = draw_logits(3, 5.0)
    answers = logits.argmax(axis=1)
    before, after = (
        expected_calibration_error(softmax(logits, t).max(axis=1), answers == labels)
        for t in (1.0, fit_temperature(logits, labels))
    )
    assert before > 0.2
    assert after < 0.03


def test_the_temperature_of_separable_items_stays_in_range():
    logits = np.array([[3.0, 1.0], [1.0, 2.0]])
    right, wrong = np.array([0, 1]), np.array([1, 0])
    assert fit_temperature(logits, right) == pytest.approx(TEMPERATURE_RANGE[0])
    assert fit_temperature(logits, wrong) == pytest.approx(TEMPERATURE_RANGE[1])


def test_softmax_and_sigmoid_bear_large_logits():
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0]])), [[1.0, 0.0]])
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_logits_in_place_of_probabilities_are_an_error_that_names_the_way_out():
    with pytest.raises(ValueError, match=r"span -1\.0 to 3\.0; .* `softmax` or `sigmoid`"):
        expected_calibration_error(np.array([-1.0, 3.0]), np.array([True, False]))


@pytest.mark.parametrize("call", [brier_score, expected_calibration_error, fit_binary_temperature])
def test_the_calibration_of_nothing_or_of_no_numbers_is_an_error(call):
    with pytest.raises(ValueError, match="0 items is undefined"):
        call(np.zeros(0), np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match="item 1 holds NaN or infinity"):
        call(np.array([0.5, np.nan]), np.zeros(2, dtype=bool))
