"""Ranks, recall, reciprocal ranks and average precision against hand sums, sorting and scikit-learn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

from regionmed_clip.eval.metrics import ranking
from regionmed_clip.eval.metrics.ranking import (
    average_precisions,
    chance_of_hit,
    chance_of_precision,
    count_positives,
    even_products,
    mean_reciprocal_rank,
    nearest,
    ranks_of_first_positive,
    ranks_of_scores,
    recall_at_k,
    reciprocal_ranks,
)


def ranks_through_identity(scores, query_keys, gallery_keys):
    """Ranks from a score matrix (Q, G) given directly: the gallery is the identity, so the queries are the scores."""
    scores = np.array(scores, dtype=np.float32)
    return ranks_of_first_positive(
        scores, np.eye(scores.shape[1], dtype=np.float32), np.array(query_keys), np.array(gallery_keys)
    )


def test_the_rank_counts_the_negatives_before_the_best_positive():
    ranks = ranks_through_identity([[0.9, 0.5, 0.7], [0.9, 0.5, 0.7], [0.9, 0.5, 0.7]], [0, 1, 2], [0, 1, 2])
    assert ranks.tolist() == [1, 3, 2]
    assert recall_at_k(ranks, 1) == pytest.approx(1 / 3)
    assert recall_at_k(ranks, 2) == pytest.approx(2 / 3)
    assert reciprocal_ranks(ranks).tolist() == [1, 1 / 3, 1 / 2]
    assert mean_reciprocal_rank(ranks) == pytest.approx(11 / 18, abs=1e-15)


def test_any_of_several_positives_counts_and_the_other_positives_are_no_competitors():
    # key 7 stands twice in the gallery, at scores 0.5 and 0.8: one negative (0.9) lies before the better of them
    assert ranks_through_identity([[0.5, 0.9, 0.8, 0.1]], [7], [7, 1, 7, 2]).tolist() == [2]


def test_a_planted_duplicate_caption_does_not_lower_the_recall():
    generator = np.random.default_rng(0)
    texts = generator.normal(size=(40, 16)).astype(np.float32)
    images = texts + 0.8 * generator.normal(size=texts.shape).astype(np.float32)
    keys = np.arange(40)
    alone = ranks_of_first_positive(images, texts, keys, keys)
    twice = ranks_of_first_positive(images, np.concatenate([texts, texts]), keys, np.concatenate([keys, keys]))
    assert 0.2 < recall_at_k(alone, 1) < 1
    assert recall_at_k(twice, 1) == recall_at_k(alone, 1)  # counted by position the second copy would tie or win
    assert (twice >= alone).all()  # beyond rank 1 a negative's copy is one more negative


def test_a_tie_with_a_negative_counts_against_the_query():
    assert ranks_through_identity([[0.5, 0.5, 0.5]], [1], [0, 1, 2]).tolist() == [3]


@pytest.mark.parametrize("shape", [(1, 30, 64), (7, 33, 128), (30, 30, 512), (7, 33, 512)])
def test_equal_vectors_tie_wherever_they_stand_in_the_matrix(shape):
    num_queries, num_texts, width = shape
    generator = np.random.default_rng(0)
    queries = generator.normal(size=(num_queries, width)).astype(np.float32)
    text = generator.normal(size=width).astype(np.float32)
    ranks = ranks_of_first_positive(
        queries, np.tile(text, (num_texts, 1)), np.arange(num_queries) % num_texts, np.arange(num_texts)
    )
    assert (ranks == num_texts).all()  # BLAS gives the columns at the edge other last bits: the margin covers them


def test_scores_further_apart_than_rounding_are_no_tie():
    close = [[0.5, 0.5 - 1e-5], [0.5, 0.5 + 1e-5]]  # float32, scores near 1: their rounding is below 1e-6
    assert ranks_through_identity(close, [0, 0], [0, 1]).tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_small_blocks_give_the_same_ranks(monkeypatch, dtype):
    generator = np.random.default_rng(0)
    queries, gallery = generator.normal(size=(20, 8)).astype(dtype), generator.normal(size=(15, 8)).astype(dtype)
    query_keys, gallery_keys = generator.integers(0, 5, 20), np.arange(15) % 5
    whole = ranks_of_first_positive(queries, gallery, query_keys, gallery_keys)
    wide = queries.astype(np.float64) @ gallery.astype(np.float64).T
    assert np.array_equal(whole, ranks_of_scores(wide, query_keys[:, None] == gallery_keys))
    assert np.array_equal(nearest(queries, gallery), wide.argmax(axis=1))
    for name, size in (("_BLOCK_ROWS", 3), ("_BLOCK_COLUMNS", 4), ("_BLOCK_QUERIES_OF_BEST", 2)):
        monkeypatch.setattr(ranking, name, size)
    assert np.array_equal(ranks_of_first_positive(queries, gallery, query_keys, gallery_keys), whole)
    assert np.array_equal(nearest(queries, gallery), wide.argmax(axis=1))


def test_memory_mapped_embeddings_rank_like_arrays(tmp_path):
    generator = np.random.default_rng(0)
    embeds, keys = generator.normal(size=(50, 8)).astype(np.float32), generator.integers(0, 20, 50)
    np.save(tmp_path / "embeds.npy", embeds)
    mapped = np.load(tmp_path / "embeds.npy", mmap_mode="r")
    queries = embeds[::-1]
    assert np.array_equal(
        ranks_of_first_positive(queries, mapped, keys[::-1], keys),
        ranks_of_first_positive(queries, embeds, keys[::-1], keys),
    )


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_the_rank_equals_the_place_in_the_sorted_list(num_queries, num_texts, seed):
    generator = np.random.default_rng(seed)
    scores = generator.permutation(num_queries * num_texts).reshape(num_queries, num_texts).astype(np.float32)
    keys = generator.integers(0, num_texts, num_queries)
    ranks = ranks_of_first_positive(scores, np.eye(num_texts, dtype=np.float32), keys, np.arange(num_texts))
    expected = [np.argsort(-row).tolist().index(key) + 1 for row, key in zip(scores, keys, strict=True)]
    assert ranks.tolist() == expected


@given(st.integers(0, 2**31))
def test_ranks_with_ties_and_several_positives_equal_a_count_in_plain_python(seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, size=(5, 8)).astype(np.float32)  # few values: many ties
    query_keys, gallery_keys = generator.integers(0, 3, 5), np.arange(8) % 3
    expected = []
    for row, key in zip(scores.tolist(), query_keys.tolist(), strict=True):
        best = max(s for s, k in zip(row, gallery_keys, strict=True) if k == key)
        expected.append(1 + sum(s >= best and k != key for s, k in zip(row, gallery_keys, strict=True)))
    assert ranks_through_identity(scores, query_keys, gallery_keys).tolist() == expected
    assert ranks_of_scores(scores, query_keys[:, None] == gallery_keys).tolist() == expected


def test_a_query_without_a_positive_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"query 1 \(key 9\) has no positive among 2 gallery items"):
        ranks_through_identity([[0.1, 0.2], [0.1, 0.2]], [0, 9], [0, 1])
    with pytest.raises(ValueError, match="query 1 has no positive among its candidates"):
        ranks_of_scores(np.ones((2, 2)), np.eye(2, dtype=bool), np.array([[True, True], [True, False]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_gives_no_numbers_gets_no_rank(bad):
    embeds = np.eye(3)
    broken = np.where(np.arange(9).reshape(3, 3) == 4, bad, embeds)
    with pytest.raises(ValueError, match="query embedding 1 holds NaN or infinity"):
        ranks_of_first_positive(broken, embeds, np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match="gallery embedding 1 holds NaN or infinity"):
        nearest(embeds, broken)


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="query 1 has a score that is not a number"):
        ranks_of_scores(np.array([[1.0, 0.5], [np.nan, 1.0]]), np.eye(2, dtype=bool))


def test_an_item_that_is_no_candidate_is_left_out_of_the_ranking():
    scores = np.array([[0.9, 0.5, 0.7, 0.6]])
    is_positive = np.array([[True, True, False, False]])
    is_candidate = np.array([[False, True, True, True]])  # the query's own image may not find itself
    assert ranks_of_scores(scores, is_positive).tolist() == [1]
    assert ranks_of_scores(scores, is_positive, is_candidate).tolist() == [3]
    assert average_precisions(scores, is_positive, is_candidate).tolist() == [1 / 3]


def test_average_precision_of_a_ranking_by_hand():
    # sorted: + 0.9, - 0.8, + 0.7, - 0.6 -> (1/1 + 2/3) / 2; with the first - at 0.9 as well: (1/2 + 2/3) / 2
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.9, 0.7, 0.6]])
    is_positive = np.array([[True, False, True, False]] * 2)
    assert average_precisions(scores, is_positive).tolist() == pytest.approx([5 / 6, 7 / 12], abs=1e-15)


def test_average_precision_of_rankings_without_ties_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    scores, is_positive = generator.random((30, 25)), generator.random((30, 25)) < 0.3
    expected = [average_precision_score(truth, row) for truth, row in zip(is_positive, scores, strict=True)]
    np.testing.assert_allclose(average_precisions(scores, is_positive), expected, atol=1e-9)  # float64


def test_the_mean_reciprocal_rank_of_single_positives_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    scores, is_positive = (
        generator.random((30, 25)),
        np.eye(30, 25, dtype=bool) | (np.arange(25) == 3) & (np.arange(30)[:, None] >= 25),
    )
    found = mean_reciprocal_rank(ranks_of_scores(scores, is_positive))
    assert found == pytest.approx(label_ranking_average_precision_score(is_positive, scores), abs=1e-9)  # float64


def test_the_nearest_of_equals_is_the_first_over_block_borders(monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK_COLUMNS", 2)
    gallery = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest(np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]), gallery).tolist() == [1, 0, 0]


def test_nothing_is_nearest_in_an_empty_gallery():
    with pytest.raises(ValueError, match="gallery of 0 items"):
        nearest(np.ones((2, 3)), np.ones((0, 3)))


@pytest.mark.parametrize("metric", [lambda ranks: recall_at_k(ranks, 1), mean_reciprocal_rank])
def test_a_metric_of_no_queries_is_an_error(metric):
    with pytest.raises(ValueError, match="0 queries is undefined"):
        metric(np.zeros(0))


def test_chance_is_the_share_of_all_draws_that_hold_a_positive():
    draws = list(combinations(range(7), 3))
    expected = np.mean([any(item < 2 for item in draw) for draw in draws])  # items 0 and 1 are positive
    assert chance_of_hit(np.array([2]), np.array([7]), 3)[0] == pytest.approx(expected, abs=1e-12)
    assert chance_of_hit(np.array([1, 5]), np.array([4, 5]), 5).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("num_positives", "size"), [(1, 1), (1, 6), (2, 6), (5, 6), (6, 6)])
def test_chance_of_average_precision_is_its_mean_over_all_orders(num_positives, size):
    orders = [[place in chosen for place in range(size)] for chosen in combinations(range(size), num_positives)]
    scores = -np.arange(size)
    expected = np.mean([average_precision_score(order, scores) for order in orders])
    found = chance_of_precision(np.array([num_positives]), np.array([size]))
    assert found[0] == pytest.approx(expected, abs=1e-12)  # float64


def test_positives_are_counted_by_key():
    assert count_positives(np.array([7, 1, 9]), np.array([1, 7, 7, 2])).tolist() == [2, 1, 0]


@pytest.mark.parametrize("shape", [(1, 30, 64), (7, 33, 128), (30, 30, 512), (7, 33, 512)])
def test_even_products_of_equal_vectors_are_equal_and_those_of_others_what_they_are(shape):
    num_queries, num_texts, width = shape
    generator = np.random.default_rng(0)
    queries, texts = (generator.normal(size=(num, width)).astype(np.float32) for num in (num_queries, num_texts))
    same = even_products(queries, np.tile(texts[:1], (num_texts, 1)))
    assert (same == same[:, :1]).all()
    np.testing.assert_allclose(even_products(queries, texts), queries @ texts.T, atol=1e-3)  # float32, norms of 512
