"""Classification metrics against hand sums and scikit-learn, ties and repeated items included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from regionmed_clip.eval.metrics.classification import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    best_f1_threshold,
    f1_at,
    macro_auroc,
    macro_average_precision,
    micro_auroc,
    micro_average_precision,
    weighted_auroc,
    weighted_average_precision,
    weighted_f1_at,
)

ATOL = 1e-9  # float64, against scikit-learn


def draw_items(seed, num_items=12, num_scores=5):
    """(scores with many ties, truths of which at least one is positive and one negative)."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, num_scores, num_items) / num_scores
    truth = generator.random(num_items) < 0.4
    truth[:2] = True, False
    return scores, truth


def test_accuracy_is_the_share_of_hits():
    assert accuracy(np.array([True, False, True, True])) == 0.75


def test_balanced_accuracy_weighs_every_class_alike():
    # class a: 3 of 4 right, class b: 0 of 1 right -> (0.75 + 0) / 2
    hits = np.array([True, True, True, False, False])
    assert balanced_accuracy(hits, np.array(["a", "a", "a", "a", "b"])) == 0.375


def test_balanced_accuracy_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    truth, answer = generator.integers(0, 4, 200), generator.integers(0, 4, 200)
    assert balanced_accuracy(truth == answer, truth) == pytest.approx(balanced_accuracy_score(truth, answer), abs=ATOL)


def test_auroc_counts_won_pairs_and_half_of_the_ties():
    # positives 0.8 and 0.4, negatives 0.4 and 0.1: pairs 1 + 1 + 0.5 + 1 of 4
    assert auroc(np.array([0.8, 0.4, 0.4, 0.1]), np.array([True, True, False, False])) == 0.875


def test_average_precision_takes_equal_scores_as_one_step():
    # at 0.8: precision 1/1, recall 1/2; at 0.4, both items at once: precision 2/3, recall 2/2
    found = average_precision(np.array([0.8, 0.4, 0.4, 0.1]), np.array([True, True, False, False]))
    assert found == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)


@settings(max_examples=20)  # scikit-learn takes milliseconds
@given(st.integers(0, 2**31))
def test_the_areas_are_those_of_scikit_learn(seed):
    scores, truth = draw_items(seed)
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=ATOL)
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=ATOL)


@given(st.integers(0, 2**31))
def test_metrics_under_weights_equal_those_of_the_repeated_items(seed):
    scores, truth = draw_items(seed)
    weights = np.random.default_rng(seed).integers(0, 3, len(scores))
    repeated, labels = np.repeat(scores, weights), np.repeat(truth, weights)
    assume(labels.any() and not labels.all())
    rows = np.stack([weights, np.zeros_like(weights)]).astype(float)
    for weighted, plain in (
        (weighted_auroc, auroc),
        (weighted_average_precision, average_precision),
        (lambda s, t, w: weighted_f1_at(s, t, 0.4, w), lambda s, t: f1_at(s, t, 0.4)),
    ):
        value, of_nothing = weighted(scores, truth, rows)
        assert value == pytest.approx(plain(repeated, labels), abs=ATOL)
        assert np.isnan(of_nothing)


def test_areas_of_a_resample_without_both_classes_are_undefined():
    scores, truth = np.array([0.9, 0.8, 0.1]), np.array([True, False, False])
    rows = np.array([[0.0, 1.0, 1.0], [2.0, 0.0, 0.0]])  # negatives only, then positives only
    assert np.isnan(weighted_auroc(scores, truth, rows)).all()
    np.testing.assert_array_equal(weighted_average_precision(scores, truth, rows), [np.nan, 1.0])


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_f1_is_that_of_scikit_learn(seed):
    scores, truth = draw_items(seed)
    for threshold in (0.0, 0.4, 0.5, 2.0):
        expected = f1_score(truth, scores >= threshold, zero_division=0)
        assert f1_at(scores, truth, threshold) == pytest.approx(expected, abs=ATOL)


def test_f1_where_nothing_is_true_or_called_is_zero():
    assert f1_at(np.array([0.1, 0.2]), np.array([False, False]), 0.5) == 0.0


@given(st.integers(0, 2**31))
def test_no_threshold_has_a_higher_f1_than_the_best(seed):
    scores, truth = draw_items(seed)
    best = best_f1_threshold(scores, truth)
    others = np.concatenate([np.unique(scores), [-1.0, 2.0]])
    values = [f1_at(scores, truth, one) for one in others]
    assert f1_at(scores, truth, best) == pytest.approx(max(values), abs=1e-15)
    assert best == pytest.approx(max(t for t, v in zip(others, values, strict=True) if v > max(values) - 1e-12))


def test_macro_and_micro_areas_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    scores, truth = generator.integers(0, 9, (60, 4)) / 9, generator.random((60, 4)) < 0.3
    for ours, theirs in ((macro_auroc, roc_auc_score), (macro_average_precision, average_precision_score)):
        assert ours(scores, truth) == pytest.approx(theirs(truth, scores, average="macro"), abs=ATOL)
    for ours, theirs in ((micro_auroc, roc_auc_score), (micro_average_precision, average_precision_score)):
        assert ours(scores, truth) == pytest.approx(theirs(truth, scores, average="micro"), abs=ATOL)


def test_an_item_whose_truth_nobody_stated_is_left_out_of_its_class():
    scores = np.array([[0.9, 0.2], [0.5, 0.8], [0.7, 0.1]])
    truth = np.array([[True, False], [False, True], [False, False]])
    is_known = np.array([[True, True], [False, True], [True, True]])
    assert macro_auroc(scores, truth, is_known) == 1.0
    assert micro_auroc(scores, truth, is_known) == auroc(scores[is_known], truth[is_known])
    wrong = np.array([[0.6, 0.2], [0.9, 0.8], [0.5, 0.1]])  # only the unknown item outscores the positive
    assert macro_auroc(wrong, truth, is_known) == 1.0
    assert macro_auroc(wrong, truth) == 0.75


def test_a_class_without_both_outcomes_is_an_error_that_names_it():
    scores, truth = np.zeros((3, 2)), np.array([[True, True], [False, True], [False, True]])
    with pytest.raises(ValueError, match=r"classes \[1\] of 2 have \[3\] positives of \[3\] items"):
        macro_auroc(scores, truth)
    assert macro_average_precision(scores, truth) == pytest.approx((1 / 3 + 1) / 2)  # needs no negative


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (auroc, "AUROC needs both classes; got 0 positives of 2"),
        (average_precision, "needs a positive; got none among 2"),
        (best_f1_threshold, "needs a positive; got none among 2"),
    ],
)
def test_a_curve_without_a_positive_is_an_error(metric, message):
    with pytest.raises(ValueError, match=message):
        metric(np.array([0.1, 0.2]), np.array([False, False]))


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="score 1 is not a number"):
        auroc(np.array([0.1, np.nan]), np.array([True, False]))


@pytest.mark.parametrize("metric", [accuracy, lambda x: balanced_accuracy(x, x), lambda x: f1_at(x, x, 0.5)])
def test_a_metric_of_no_items_is_an_error(metric):
    with pytest.raises(ValueError, match="0 items is undefined"):
        metric(np.zeros(0))
