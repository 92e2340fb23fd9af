"""Retrieval metrics: the rank of the first positive, recall at k, mean reciprocal rank, mean average precision.

Positives are decided by equal keys, never by position: of an image, every gallery text with its key; of a text, every
gallery image with its key. Tie rule, everywhere: a negative that scores exactly like the best positive ranks before it
(pessimistic), so a model that gives everything the same score gets no credit. Of inner products, those that differ by
less than their own rounding count as equal: a product of matrices gives equal vectors unequal last bits by where they
stand in the matrix.

Queries and gallery both go block by block, so the working memory does not grow with either, and embeddings may be
memory-mapped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

TIE_RULE = "pessimistic: an equal negative ranks first"
_BLOCK_ROWS, _BLOCK_COLUMNS = 2048, 4096  # scores held at once: 32 MB of float32, whatever the gallery
_BLOCK_QUERIES_OF_BEST = 256  # few: a block computes the positives of its first query up to those of its last
_ROUNDING = 8  # units in the last place of (length x length) within which inner products are equal; 5 were seen


def ranks_of_first_positive(
    query_embeds: np.ndarray, gallery_embeds: np.ndarray, query_keys: np.ndarray, gallery_keys: np.ndarray
) -> np.ndarray:
    """(Q,) int64: 1 + the number of gallery negatives that score at least as much as the query's best positive.

    Args:
        query_embeds: (Q, D) float; gallery_embeds: (G, D) float; the score is their inner product.
        query_keys: (Q,) int64; gallery_keys: (G,) int64; equal keys are positives.

    Raises:
        ValueError: a query has no positive in the gallery, its recall would be undefined; or an embedding is not
            finite, it would outscore nothing and be outscored by nothing.
    """
    # In the order of the keys the positives of a query are one run of columns, and most blocks hold none.
    query_order, gallery_order = np.argsort(query_keys, kind="stable"), np.argsort(gallery_keys, kind="stable")
    sorted_keys, wanted_keys = gallery_keys[gallery_order], query_keys[query_order]
    first, last = (np.searchsorted(sorted_keys, wanted_keys, side) for side in ("left", "right"))
    del sorted_keys, wanted_keys  # what grows with the gallery is kept small: 44 bytes an item
    _check_positives(first, last, query_order, query_keys, len(gallery_keys))
    _longest(query_embeds, "query")  # for its error where one is not finite
    longest = _longest(gallery_embeds, "gallery")
    dtype = np.result_type(query_embeds.dtype, gallery_embeds.dtype, np.float32)
    queries = _Rows(query_embeds, query_order, dtype, _BLOCK_ROWS)
    gallery = _Rows(gallery_embeds, gallery_order, dtype, _BLOCK_COLUMNS)
    least = _least_tied_scores(queries, gallery, first, last, _ROUNDING * np.finfo(dtype).eps * longest, dtype)
    ahead = np.zeros(len(query_order), dtype=np.int64)
    size = min(_BLOCK_ROWS, len(query_order)) * min(_BLOCK_COLUMNS, len(gallery_order))
    score_buffer, flag_buffer = np.empty(size, dtype), np.empty(size, dtype=bool)  # taken once: blocks differ in size
    for columns in _iter_slices(0, len(gallery_order), _BLOCK_COLUMNS):
        candidates = gallery[columns]
        for rows in _iter_slices(0, len(query_order), _BLOCK_ROWS):
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            scores, is_ahead = (one[: math.prod(shape)].reshape(shape) for one in (score_buffer, flag_buffer))
            np.matmul(queries[rows], candidates.T, out=scores)
            if first[rows.start] < columns.stop and last[rows.stop - 1] > columns.start:
                scores[_is_positive(first[rows], last[rows], columns)] = -np.inf
            ahead[rows] += np.count_nonzero(np.greater_equal(scores, least[rows, None], out=is_ahead), axis=1)
    ranks = np.empty_like(ahead)
    ranks[query_order] = ahead + 1
    return ranks


def ranks_of_scores(scores: np.ndarray, is_positive: np.ndarray, is_candidate: np.ndarray | None = None) -> np.ndarray:
    """(Q,) int64: the rank of the first positive as above, from scores themselves; only equal scores are ties.

    Args:
        scores: (Q, G) float; is_positive: (Q, G) bool.
        is_candidate: (Q, G) bool; False leaves an item out of a query's ranking (its own image); None: all are in.

    Raises:
        ValueError: a query has no positive candidate, or a score is not a number.
    """
    is_positive, is_negative = _split_candidates(scores, is_positive, is_candidate)
    best = np.where(is_positive, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + np.count_nonzero((scores >= best) & is_negative, axis=1)


def ranks_of_lists(predictions: Sequence[Any], references: Sequence[Sequence[int]] | None) -> np.ndarray:
    """(Q,) int64 ranks from what an `evaluate.Metric` holds: rows of scores and of positives, or the ranks themselves.

    Args:
        predictions: Q lists of G scores; without references Q ranks, from 1.
        references: per query the gallery rows that are right; None where predictions are ranks.

    Raises:
        ValueError: a rank below 1, a row that the gallery does not have, or a query without a right one.
    """
    if references is None:
        ranks = np.array(predictions, dtype=np.int64)
        if ranks.min(initial=1) < 1:
            raise ValueError(f"rank {ranks.min()} of query {ranks.argmin()}; ranks count from 1. Add 1 to all of them.")
        return ranks
    scores = np.array(predictions, dtype=np.float64)
    is_positive = np.zeros(scores.shape, dtype=bool)
    for query, (row, positives) in enumerate(zip(is_positive, references, strict=True)):
        outside = [place for place in positives if not 0 <= place < len(row)]
        if outside:
            raise ValueError(
                f"query {query} names gallery row {outside[0]}; {len(row)} items have the rows 0 to {len(row) - 1}. "
                "Count rows from 0."
            )
        row[list(positives)] = True
    return ranks_of_scores(scores, is_positive)


def average_precisions(
    scores: np.ndarray, is_positive: np.ndarray, is_candidate: np.ndarray | None = None
) -> np.ndarray:
    """(Q,) float64: per query the mean over its positives of the precision at each one's rank; arguments as above.

    The mean over queries is the mean average precision. A negative that scores like a positive ranks before it.
    """
    is_positive, is_negative = _split_candidates(scores, is_positive, is_candidate)
    means = np.empty(len(scores))
    for row, (values, hits, misses) in enumerate(zip(scores, is_positive, is_negative, strict=True)):
        positives, negatives = np.sort(values[hits])[::-1], np.sort(values[misses])
        ahead = len(negatives) - np.searchsorted(negatives, positives, side="left")  # negatives >= each positive
        found = np.arange(1, len(positives) + 1)
        means[row] = (found / (found + ahead)).mean()
    return means


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share of the queries (Q,) whose first positive is among the first k."""
    if len(ranks) == 0:
        raise ValueError("recall of 0 queries is undefined; give at least one query.")
    return float((ranks <= k).mean())


def reciprocal_ranks(ranks: np.ndarray) -> np.ndarray:
    """(Q,) float64: 1 / rank of the first positive, in (0, 1]."""
    return 1.0 / ranks


def mean_reciprocal_rank(ranks: np.ndarray) -> float:
    """Mean of 1 / rank over the queries (Q,)."""
    if len(ranks) == 0:
        raise ValueError("mean reciprocal rank of 0 queries is undefined; give at least one query.")
    return float(reciprocal_ranks(ranks).mean())


def count_positives(query_keys: np.ndarray, gallery_keys: np.ndarray) -> np.ndarray:
    """(Q,) int64: how many of the gallery (G,) int64 keys are equal to each query's (Q,) key."""
    ordered = np.sort(gallery_keys)
    return np.searchsorted(ordered, query_keys, side="right") - np.searchsorted(ordered, query_keys, side="left")


def chance_of_hit(num_positives: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    """(Q,) float64: probability that k of a gallery drawn at random hold one of its positives; (Q,) int64 each."""
    missed = np.ones(len(num_positives))
    for drawn in range(k):
        rest = np.maximum(gallery - drawn, 1)
        missed *= np.clip((gallery - num_positives - drawn) / rest, 0.0, 1.0)
    return 1.0 - missed


def chance_of_precision(num_positives: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(Q,) float64: the mean average precision of galleries in random order; (Q,) int64 each, at least 1 positive.

    Item k of N is one of P positives with probability P / N, and so is an earlier one with (P - 1) / (N - 1). So it is
    (H_N + (P - 1) / (N - 1) (N - H_N)) / N with the harmonic number H_N: of 1 among 100 that is 0.05, not 0.01.
    """
    num_positives, gallery = np.asarray(num_positives, dtype=np.float64), np.asarray(gallery, dtype=np.int64)
    harmonic = np.cumsum(1 / np.arange(1, gallery.max(initial=1) + 1))[gallery - 1]
    return (harmonic + (num_positives - 1) / np.maximum(gallery - 1, 1) * (gallery - harmonic)) / gallery


def even_products(query_embeds: np.ndarray, gallery_embeds: np.ndarray) -> np.ndarray:
    """(Q, G) float32 inner products of (Q, D) and (G, D), equal for equal vectors wherever they stand.

    Computed in float64, whose own unequal last bits are rounded away, so that `ranks_of_scores` sees ties.
    """
    return (query_embeds.astype(np.float64) @ gallery_embeds.astype(np.float64).T).astype(np.float32)


def nearest(query_embeds: np.ndarray, gallery_embeds: np.ndarray) -> np.ndarray:
    """(Q,) int64: the gallery row of the highest inner product for every query; the first of equals.

    To show what a model answers. To count what it has right take `ranks_of_first_positive`, for which a tie is a miss.

    Raises:
        ValueError: the gallery is empty, or an embedding is not finite.
    """
    if len(gallery_embeds) == 0:
        raise ValueError("nothing is nearest in a gallery of 0 items; give at least one.")
    _longest(query_embeds, "query")  # both for the error where one is not finite
    _longest(gallery_embeds, "gallery")
    best = np.zeros(len(query_embeds), dtype=np.int64)
    best_scores = np.full(len(query_embeds), -np.inf)
    for columns in _iter_slices(0, len(gallery_embeds), _BLOCK_COLUMNS):
        for rows in _iter_slices(0, len(query_embeds), _BLOCK_ROWS):
            scores = query_embeds[rows] @ gallery_embeds[columns].T  # (q, g)
            place = scores.argmax(axis=1)
            score = scores[np.arange(len(scores)), place]
            is_better = score > best_scores[rows]
            best[rows] = np.where(is_better, columns.start + place, best[rows])
            best_scores[rows] = np.where(is_better, score, best_scores[rows])
    return best


class _Rows:
    """Embeddings (N, D) in a given order (N,) and dtype, of which only `most` rows are copied, until the next are."""

    def __init__(self, embeds: np.ndarray, order: np.ndarray, dtype: np.dtype, most: int):
        self._embeds, self._order = embeds, order
        self._buffer = np.empty((min(most, len(order)), embeds.shape[1]), dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        copied = self._buffer[: rows.stop - rows.start]
        if self._embeds.dtype == copied.dtype:
            return np.take(self._embeds, self._order[rows], axis=0, out=copied, mode="clip")  # "raise" would copy twice
        copied[...] = self._embeds[self._order[rows]]
        return copied


def _least_tied_scores(
    queries: _Rows, gallery: _Rows, first: np.ndarray, last: np.ndarray, margin: float, dtype: np.dtype
) -> np.ndarray:
    """(Q,) the score from which an item ties with each query's best positive: less by `margin` times the query's norm.

    The positives are the gallery rows first..last (Q,), both ascending.
    """
    least = np.full(len(first), -np.inf, dtype=dtype)
    for rows in _iter_slices(0, len(first), _BLOCK_QUERIES_OF_BEST):
        block = queries[rows]
        for columns in _iter_slices(first[rows.start], last[rows.stop - 1], _BLOCK_COLUMNS):
            scores = block @ gallery[columns].T
            scores[~_is_positive(first[rows], last[rows], columns)] = -np.inf
            least[rows] = np.maximum(least[rows], scores.max(axis=1))
        least[rows] -= (margin * _norms(block)).astype(dtype)
    return least


def _is_positive(first: np.ndarray, last: np.ndarray, columns: slice) -> np.ndarray:
    """(q, g) bool: which of the columns lie in each query's run of positives first..last (q,)."""
    places = np.arange(columns.start, columns.stop)
    return (places >= first[:, None]) & (places < last[:, None])


def _iter_slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Slices of `step` items that cover start..stop, none of them empty."""
    for low in range(start, stop, step):
        yield slice(low, min(low + step, stop))


def _norms(embeds: np.ndarray) -> np.ndarray:
    """(N,) float64: the Euclidean norm of every row."""
    return np.linalg.norm(embeds.astype(np.float64), axis=1)


def _longest(embeds: np.ndarray, side: str) -> float:
    """The largest norm of a row, 0 of none; ValueError naming the first row that is not finite."""
    longest = 0.0
    for rows in _iter_slices(0, len(embeds), _BLOCK_ROWS):
        norms = _norms(embeds[rows])
        if not np.isfinite(norms).all():
            raise ValueError(
                f"{side} embedding {rows.start + int((~np.isfinite(norms)).argmax())} holds NaN or infinity; every "
                "entry must be finite, or its rank means nothing. Look at the model's output for that item."
            )
        longest = max(longest, float(norms.max()))
    return longest


def _check_positives(
    first: np.ndarray, last: np.ndarray, query_order: np.ndarray, query_keys: np.ndarray, gallery: int
) -> None:
    """None; ValueError naming the first query, as given, whose run of positives first..last is empty."""
    lonely = query_order[first == last]
    if lonely.size:
        index = int(lonely.min())
        raise ValueError(
            f"query {index} (key {query_keys[index]}) has no positive among {gallery} gallery items; every query "
            "needs one. Build queries and gallery from the same split."
        )


def _split_candidates(
    scores: np.ndarray, is_positive: np.ndarray, is_candidate: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """((Q, G) bool positives, (Q, G) bool negatives) among the candidates; ValueError where a ranking is undefined."""
    is_candidate = np.ones(scores.shape, dtype=bool) if is_candidate is None else is_candidate
    is_positive, is_negative = is_positive & is_candidate, ~is_positive & is_candidate
    lonely = ~is_positive.any(axis=1)
    if lonely.any():
        raise ValueError(
            f"query {int(lonely.argmax())} has no positive among its candidates; every query needs one. "
            "Leave out queries without one, and say how many."
        )
    is_nan = np.isnan(scores) & is_candidate
    if is_nan.any():
        row = int(is_nan.any(axis=1).argmax())
        raise ValueError(f"query {row} has a score that is not a number; a ranking needs numbers. Look at the model.")
    return is_positive, is_negative
