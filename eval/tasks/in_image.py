"""Choice inside one image: which of its texts belongs to a region, which of its regions to a text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regionmed_clip.eval.metrics.ranking import TIE_RULE
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.measured import Measured, hash_texts, iter_strata

_PAIRS_AT_ONCE = 262_144
NO_CHOICE = "no image whose regions bear two different texts"


def measure_in_image(embedded: EmbeddedSplit, *, seed: int = 0) -> Iterator[Measured]:
    """`region_to_text_accuracy_in_image` and `text_to_region_accuracy_in_image` of the whole split and of sources.

    Images whose regions bear at least two texts of different meaning take part. The first: a region's text beats all
    others of its image. The second: a text's best region beats all regions of the image that do not bear it. Ties are
    misses.
    """
    texts = image_texts(embedded)
    for metric, (is_correct, images, chances) in (
        ("region_to_text_accuracy_in_image", _region_outcomes(embedded, texts)),
        ("text_to_region_accuracy_in_image", _text_outcomes(embedded, texts)),
    ):
        for stratum in (one for one in iter_strata(embedded) if one.name is None):
            is_asked = stratum.is_member[images]
            if stratum.source is not None and not is_asked.any():
                continue
            chosen = texts[stratum.is_member[texts[:, 0]], 1]
            yield mean_figure(
                "region",
                metric,
                is_correct[is_asked],
                embedded.image_clusters[images[is_asked]],
                stratum=stratum,
                seed=seed,
                protocol={
                    "gallery": "the texts of the image" if metric.startswith("region") else "the regions of the image",
                    "unique_texts": len(np.unique(chosen)),
                    "prompts_sha256": hash_texts(embedded.region_texts[row] for row in np.unique(chosen)),
                    "chance": float(chances[is_asked].mean()) if is_asked.any() else None,
                    "ties": TIE_RULE,
                },
                nothing=NO_CHOICE,
            )


def image_texts(embedded: EmbeddedSplit) -> np.ndarray:
    """(K, 2) int64: (image, row of a region text) of each meaning in images with at least two, in the images' order.

    Of several wordings of one meaning in an image the first stands for all.
    """
    meanings, first = np.unique(
        np.stack([embedded.region_image, embedded.region_keys], axis=1), axis=0, return_index=True
    )
    images = meanings[:, 0].astype(np.int64)
    counts = np.bincount(images, minlength=embedded.num_images)
    texts = np.stack([images, embedded.region_text[first]], axis=1)
    return texts[counts[images] > 1]


def _region_outcomes(embedded: EmbeddedSplit, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every region with a choice: (Q,) bool whether its text wins, (Q,) int64 its image, (Q,) chance of guessing."""
    regions = np.flatnonzero(np.isin(embedded.region_image, texts[:, 0]))
    images = embedded.region_image[regions]
    query, candidate = pairs_within(images, texts[:, 0])
    rows = texts[candidate, 1]
    is_positive = embedded.region_keys[regions[query]] == embedded.region_text_keys[rows]
    scores = _cosines(embedded.region_embeds, regions[query], embedded.region_text_embeds, rows)
    return *_best_positive_wins(query, is_positive, scores, len(regions), images), _chances(
        query, is_positive, len(regions)
    )


def _text_outcomes(embedded: EmbeddedSplit, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every text with a choice: (Q,) bool whether a region of its own wins, (Q,) its image, (Q,) chance."""
    regions = np.flatnonzero(np.isin(embedded.region_image, texts[:, 0]))
    query, candidate = pairs_within(texts[:, 0], embedded.region_image[regions])
    rows = regions[candidate]
    is_positive = embedded.region_text_keys[texts[query, 1]] == embedded.region_keys[rows]
    scores = _cosines(embedded.region_text_embeds, texts[query, 1], embedded.region_embeds, rows)
    wins = _best_positive_wins(query, is_positive, scores, len(texts), texts[:, 0])
    return *wins, _chances(query, is_positive, len(texts))


def pairs_within(queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((P,), (P,)) int64 rows of every query and candidate of one group, sorted by query.

    Args:
        queries, candidates: (Q,), (C,) int64 group of each; the candidates sorted by it.
    """
    starts = np.searchsorted(candidates, queries, side="left")
    counts = np.searchsorted(candidates, queries, side="right") - starts  # (Q,)
    query = np.repeat(np.arange(len(queries)), counts)
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)  # of the pair within its query
    return query, starts[query] + place


def _cosines(embeds: np.ndarray, rows: np.ndarray, others: np.ndarray, other_rows: np.ndarray) -> np.ndarray:
    """(P,) float64 inner products of paired rows, a block at a time."""
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        scores[part] = np.einsum("pd,pd->p", embeds[rows[part]].astype(np.float64), others[other_rows[part]])
    return scores


def _best_positive_wins(
    query: np.ndarray, is_positive: np.ndarray, scores: np.ndarray, num_queries: int, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((Q,) bool: the best positive pair of the query scores above all its negative ones, (Q,) int64 images)."""
    best = np.full((2, num_queries), -np.inf)
    for kind, is_kind in enumerate((is_positive, ~is_positive)):
        np.maximum.at(best[kind], query[is_kind], scores[is_kind])
    return best[0] > best[1], images


def _chances(query: np.ndarray, is_positive: np.ndarray, num_queries: int) -> np.ndarray:
    """(Q,) float64 share of each query's candidates that are positive."""
    return np.bincount(query, weights=is_positive, minlength=num_queries) / np.bincount(query, minlength=num_queries)
