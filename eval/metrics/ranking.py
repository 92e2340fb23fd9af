"""Retrieval metrics: the rank of the first positive, and recall at k.

Positives are decided by equal keys, never by position: of an image, every gallery text with its key; of a text, every
gallery image with its key. Tie rule, everywhere: a negative that scores exactly like the best positive ranks before it
(pessimistic), so a model that gives everything the same score gets no credit.
"""

from __future__ import annotations

import numpy as np

TIE_RULE = "pessimistic: an equal negative ranks first"
_CHUNK_ELEMENTS = 8_000_000  # scores held at once: 32 MB of float32, whatever the gallery


def ranks_of_first_positive(
    query_embeds: np.ndarray, gallery_embeds: np.ndarray, query_keys: np.ndarray, gallery_keys: np.ndarray
) -> np.ndarray:
    """(Q,) int64: 1 + the number of gallery negatives that score at least as much as the query's best positive.

    Args:
        query_embeds: (Q, D) float; gallery_embeds: (G, D) float; the score is their inner product.
        query_keys: (Q,) int64; gallery_keys: (G,) int64; equal keys are positives.

    Raises:
        ValueError: a query has no positive in the gallery; its recall would be undefined.
    """
    num_queries, gallery = len(query_embeds), len(gallery_embeds)
    ranks = np.empty(num_queries, dtype=np.int64)
    step = max(1, _CHUNK_ELEMENTS // max(gallery, 1))
    for start in range(0, num_queries, step):
        rows = slice(start, start + step)
        scores = query_embeds[rows] @ gallery_embeds.T  # (q, G)
        is_positive = query_keys[rows, None] == gallery_keys[None, :]
        lonely = ~is_positive.any(axis=1)
        if lonely.any():
            index = start + int(lonely.argmax())
            raise ValueError(
                f"query {index} (key {query_keys[index]}) has no positive among {gallery} gallery items; every query "
                "needs one. Build queries and gallery from the same split."
            )
        best = np.where(is_positive, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + ((scores >= best) & ~is_positive).sum(axis=1)
    return ranks


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share of the queries (Q,) whose first positive is among the first k."""
    if len(ranks) == 0:
        raise ValueError("recall of 0 queries is undefined; give at least one query.")
    return float((ranks <= k).mean())


def nearest(query_embeds: np.ndarray, gallery_embeds: np.ndarray) -> np.ndarray:
    """(Q,) int64: the gallery row of the highest inner product for every query; the first of equals."""
    best = np.empty(len(query_embeds), dtype=np.int64)
    step = max(1, _CHUNK_ELEMENTS // max(len(gallery_embeds), 1))
    for start in range(0, len(query_embeds), step):
        best[start : start + step] = (query_embeds[start : start + step] @ gallery_embeds.T).argmax(axis=1)
    return best
