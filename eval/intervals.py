"""95 % intervals by the bootstrap over images: all queries of an image are drawn together, seeds are fixed.

A resample is a vector of counts, how often each image (cluster) was drawn; every statistic here is a function of such
weights, so a thousand resamples are a few matrix products and no query is ever copied. Equal seeds and clusters give
equal draws: the paired interval of two models on the same queries is that of the difference of their statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

NUM_RESAMPLES = 1000
_BLOCK_ELEMENTS = 4_000_000  # float64 numbers held at once by one block of resamples: 32 MB


def iter_resample_weights(
    num_clusters: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0, width: int = 1
) -> Iterator[np.ndarray]:
    """Blocks (b, N) float64 of draw counts that add up to `num_resamples` rows; each row sums to N.

    Args:
        num_clusters: N, number of images (or of texts, where a text is the query).
        width: elements that the caller will hold for one resample beside the N weights; only sizes the blocks.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, min(num_resamples, _BLOCK_ELEMENTS // max(num_clusters, width, 1)))
    done = 0
    while done < num_resamples:
        block = min(rows, num_resamples - done)
        drawn = generator.integers(0, num_clusters, size=(block, num_clusters))
        drawn += np.arange(block)[:, None] * num_clusters  # give each resample its own range, then count all at once
        yield np.bincount(drawn.ravel(), minlength=block * num_clusters).reshape(block, num_clusters).astype(np.float64)
        done += block


def percentile_interval(statistics: np.ndarray) -> tuple[float, float]:
    """(2.5 %, 97.5 %) percentiles of the resampled statistics, undefined (NaN) ones left out."""
    kept = statistics[np.isfinite(statistics)]
    if kept.size == 0:
        raise ValueError(
            "no resample gave a defined statistic; the split is too small for an interval. Use more images."
        )
    low, high = np.percentile(kept, (2.5, 97.5))
    return float(low), float(high)


def cluster_sums(values: np.ndarray, clusters: np.ndarray, num_clusters: int) -> np.ndarray:
    """(N,) float64: the sum of `values` (Q,) over the queries of each cluster; `clusters` (Q,) holds 0..N-1."""
    return np.bincount(clusters, weights=values.astype(np.float64), minlength=num_clusters)


def mean_interval(
    values: np.ndarray, clusters: np.ndarray | None = None, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Interval of the mean of `values` (Q,), resampling clusters (each value its own cluster when None)."""
    return percentile_interval(resample_mean(values, clusters, seed=seed, num_resamples=num_resamples))


def resample_mean(
    values: np.ndarray, clusters: np.ndarray | None = None, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> np.ndarray:
    """(num_resamples,) float64: the mean of `values` (Q,) in each resample of the clusters (None: each its own)."""
    sums, counts = _sums_and_counts(values, clusters)
    ratios = [
        (w @ sums) / np.maximum(w @ counts, 1e-300) for w in iter_resample_weights(len(sums), num_resamples, seed)
    ]
    return np.concatenate(ratios)


def resample_mean_of_class_ratios(
    values: np.ndarray,
    classes: np.ndarray,
    clusters: np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> np.ndarray:
    """(num_resamples,) float64: the unweighted mean over classes of the class means of `values` in each resample.

    Of 0/1 values that is the balanced accuracy.

    A class that a resample misses is left out of that resample's mean.
    """
    _, clusters = np.unique(clusters, return_inverse=True)
    names, classes = np.unique(classes, return_inverse=True)
    num_clusters, num_classes = int(clusters.max()) + 1, len(names)
    flat = clusters * num_classes + classes
    sums = cluster_sums(values, flat, num_clusters * num_classes).reshape(num_clusters, num_classes)
    counts = np.bincount(flat, minlength=num_clusters * num_classes).reshape(num_clusters, num_classes)
    means = []
    for weights in iter_resample_weights(num_clusters, num_resamples, seed, width=num_classes):
        numbers = weights @ counts  # (b, C)
        ratios = np.divide(weights @ sums, numbers, out=np.full_like(numbers, np.nan), where=numbers > 0)
        means.append(np.nanmean(ratios, axis=1))
    return np.concatenate(means)


def resample_median(
    values: np.ndarray, clusters: np.ndarray, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> np.ndarray:
    """(num_resamples,) float: the (lower) median of `values` (Q,) in each resample of the clusters."""
    _, clusters = np.unique(clusters, return_inverse=True)
    order = np.argsort(values, kind="stable")
    ordered, ordered_clusters = values[order], clusters[order]
    medians = []
    for weights in iter_resample_weights(int(clusters.max()) + 1, num_resamples, seed, width=len(values)):
        mass = np.cumsum(weights[:, ordered_clusters], axis=1)  # (b, Q)
        medians.append(ordered[(mass >= mass[:, -1:] / 2).argmax(axis=1)])
    return np.concatenate(medians)


def _sums_and_counts(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Per-cluster sums and counts (N,), clusters renumbered so that images without a query do not count."""
    if clusters is None:
        return values.astype(np.float64), np.ones(len(values))
    _, clusters = np.unique(clusters, return_inverse=True)
    num_clusters = int(clusters.max()) + 1
    return cluster_sums(values, clusters, num_clusters), np.bincount(clusters, minlength=num_clusters).astype(
        np.float64
    )
