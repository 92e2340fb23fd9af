"""Metrics against hand sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.eval.metrics import ranking
from regionmed_clip.eval.metrics.boxes import pairwise_iou
from regionmed_clip.eval.metrics.classification import accuracy, auroc, balanced_accuracy, weighted_auroc
from regionmed_clip.eval.metrics.ranking import nearest, ranks_of_first_positive, recall_at_k


def ranks_of_scores(scores, query_keys, gallery_keys):
    """Ranks from a score matrix (Q, G) given directly: the gallery is the identity, so the queries are the scores."""
    scores = np.array(scores, dtype=np.float32)
    return ranks_of_first_positive(
        scores, np.eye(scores.shape[1], dtype=np.float32), np.array(query_keys), np.array(gallery_keys)
    )


def test_the_rank_counts_the_negatives_before_the_best_positive():
    ranks = ranks_of_scores([[0.9, 0.5, 0.7], [0.9, 0.5, 0.7], [0.9, 0.5, 0.7]], [0, 1, 2], [0, 1, 2])
    assert ranks.tolist() == [1, 3, 2]
    assert recall_at_k(ranks, 1) == pytest.approx(1 / 3)
    assert recall_at_k(ranks, 2) == pytest.approx(2 / 3)


def test_any_of_several_positives_counts_and_the_other_positives_are_no_competitors():
    # key 7 stands twice in the gallery, at scores 0.5 and 0.8: one negative (0.9) lies before the better of them
    assert ranks_of_scores([[0.5, 0.9, 0.8, 0.1]], [7], [7, 1, 7, 2]).tolist() == [2]


def test_a_tie_with_a_negative_counts_against_the_query():
    assert ranks_of_scores([[0.5, 0.5, 0.5]], [1], [0, 1, 2]).tolist() == [3]


def test_a_model_that_gives_equal_scores_gets_no_recall():
    embeds = np.ones((30, 4), dtype=np.float32)
    ranks = ranks_of_first_positive(embeds, embeds, np.arange(30), np.arange(30))
    assert recall_at_k(ranks, 10) == 0.0


def test_chunks_of_one_query_give_the_same_ranks(monkeypatch):
    generator = np.random.default_rng(0)
    queries, gallery = generator.normal(size=(20, 8)), generator.normal(size=(15, 8))
    query_keys, gallery_keys = generator.integers(0, 5, 20), np.arange(15) % 5
    whole = ranks_of_first_positive(queries, gallery, query_keys, gallery_keys)
    monkeypatch.setattr(ranking, "_CHUNK_ELEMENTS", 15)
    assert np.array_equal(ranks_of_first_positive(queries, gallery, query_keys, gallery_keys), whole)
    assert np.array_equal(nearest(queries, gallery), (queries @ gallery.T).argmax(axis=1))


def test_a_query_without_a_positive_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"query 1 \(key 9\) has no positive among 2 gallery items"):
        ranks_of_scores([[0.1, 0.2], [0.1, 0.2]], [0, 9], [0, 1])


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_the_rank_equals_the_place_in_the_sorted_list(num_queries, num_texts, seed):
    generator = np.random.default_rng(seed)
    scores = generator.permutation(num_queries * num_texts).reshape(num_queries, num_texts).astype(np.float32)
    keys = generator.integers(0, num_texts, num_queries)
    ranks = ranks_of_first_positive(scores, np.eye(num_texts, dtype=np.float32), keys, np.arange(num_texts))
    expected = [np.argsort(-row).tolist().index(key) + 1 for row, key in zip(scores, keys, strict=True)]
    assert ranks.tolist() == expected


def test_accuracy_is_the_share_of_hits():
    assert accuracy(np.array([True, False, True, True])) == 0.75


def test_balanced_accuracy_weighs_every_class_alike():
    # class a: 3 of 4 right, class b: 0 of 1 right -> (0.75 + 0) / 2
    hits = np.array([True, True, True, False, False])
    assert balanced_accuracy(hits, np.array(["a", "a", "a", "a", "b"])) == 0.375


def test_auroc_counts_won_pairs_and_half_of_the_ties():
    # positives 0.8 and 0.4, negatives 0.4 and 0.1: pairs 1 + 1 + 0.5 + 1 of 4
    assert auroc(np.array([0.8, 0.4, 0.4, 0.1]), np.array([True, True, False, False])) == 0.875


def test_auroc_of_one_class_is_an_error():
    with pytest.raises(ValueError, match="AUROC needs both classes; got 2 positives of 2"):
        auroc(np.array([0.1, 0.2]), np.array([True, True]))


@given(st.integers(0, 2**31))
def test_auroc_under_weights_equals_auroc_of_the_repeated_items(seed):
    generator = np.random.default_rng(seed)
    scores, truth = generator.integers(0, 4, 9).astype(float), np.arange(9) % 3 == 0
    weights = generator.integers(0, 3, 9)
    repeated, labels = np.repeat(scores, weights), np.repeat(truth, weights)
    value = weighted_auroc(scores, truth, weights[None].astype(float))[0]
    if labels.all() or not labels.any():
        assert np.isnan(value)
    else:
        pairs = [(p > n) + (p == n) / 2 for p in repeated[labels] for n in repeated[~labels]]
        assert value == pytest.approx(np.mean(pairs))


def test_iou_of_a_quarter_overlap():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]], dtype=np.float32)
    expected = [[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1]]  # overlap 1, union 4 + 4 - 1
    np.testing.assert_allclose(pairwise_iou(boxes), expected, atol=1e-12)


@pytest.mark.parametrize("metric", [accuracy, lambda x: recall_at_k(x, 1), lambda x: balanced_accuracy(x, x)])
def test_a_metric_of_nothing_is_an_error(metric):
    with pytest.raises(ValueError, match=r"0 (items|queries) is undefined"):
        metric(np.zeros(0))
