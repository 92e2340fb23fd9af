"""95 % intervals and paired tests: the bootstrap over patients, Wilson's score interval, permutation of two models.

The bootstrap draws clusters: all queries of an image, and all images of a patient, are drawn together; seeds are fixed.
A resample is a vector of counts, how often each cluster was drawn; every statistic here is a function of such weights,
so a thousand resamples are a few matrix products and no query is ever copied. Equal seeds and clusters give equal
draws: the paired interval of two models on the same queries is that of the difference of their statistics.

All of them ask how the figure varies with the patients drawn; gallery and prompts stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

NUM_RESAMPLES = 1000
NUM_PERMUTATIONS = 9999
PROPORTION_RULE = "Wilson score at the effective number of queries, given their patients"
_NORMAL_QUANTILE = 1.959963984540054  # 97.5 % of the standard normal distribution
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


def proportion_interval(values: np.ndarray, clusters: np.ndarray | None = None) -> tuple[float, float]:
    """Interval of the share of hits among `values` (Q,) bool or 0/1: Wilson's, at the effective number of queries.

    Of queries that stand each for itself that is Wilson's interval of Q. Else the size is `effective_sample_size`, as
    uncertain as the spread between N clusters tells: times (1.96 / Student's 97.5 % quantile of N - 1 degrees)^2.

    Percentiles of the bootstrap are no match: of all hits they say [1, 1], of 99 % they held the truth in 86 of 100
    simulated studies of 200, and to choose between the two by the hits seen is worse than either, for the choice looks
    at the outcome (`eval/benchmarks/interval_coverage.py`). Paired differences do take the bootstrap.

    Args:
        clusters: (Q,) patient or image of each query; None: each its own.

    Source: Franco et al. 2019, PMC6690503, who compare such intervals under clustering.
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError("a proportion is of hits and misses, 0 or 1; these values are others. Use `mean_interval`.")
    size = effective_sample_size(values, clusters)
    num_clusters = len(values) if clusters is None else len(np.unique(clusters))
    if num_clusters < len(values):
        size *= (_NORMAL_QUANTILE / _student_quantile(max(num_clusters - 1, 1))) ** 2
    return wilson_interval(float(values.mean()) * size, size)


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of successes / n, within [0, 1] and never a point; n need not be whole (effective n).

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927) 209.
    """
    if not n > 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; there must be at least one trial, and 0 to n successes.")
    share, z2 = successes / n, _NORMAL_QUANTILE**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL_QUANTILE / (1 + z2 / n) * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)))
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))  # ends at 0 and 1 to the last bit


def effective_sample_size(values: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """How many independent queries would tell the share of hits among `values` (Q,) as well; at most Q.

    Q where each stands for itself. Else the variance of a share of Q independent hits over the variance that the spread
    between clusters tells (linearised, times N / (N - 1)), times Q. Where all values are equal the spread is unknown:
    then clusters count as alike within, Q^2 / sum of their squared sizes.
    """
    if len(values) == 0:
        raise ValueError("the interval of 0 queries is undefined; give at least one query.")
    sums, counts = _sums_and_counts(np.asarray(values, dtype=np.float64), clusters)
    if len(sums) == len(values):
        return float(len(values))
    total, share = counts.sum(), sums.sum() / counts.sum()
    spread = ((sums - share * counts) ** 2).sum() / total**2 * len(sums) / max(len(sums) - 1, 1)
    if share in (0.0, 1.0) or len(sums) == 1:
        return float(total**2 / (counts**2).sum())
    return float(min(total, share * (1 - share) / spread)) if spread > 0 else float(total)


def paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Interval of first - second from the resampled figures (num_resamples,) of both, drawn with one seed."""
    if first.shape != second.shape:
        raise ValueError(
            f"{len(first)} and {len(second)} resamples; a paired interval needs the same draws for both. Resample both "
            "with one seed and one number of resamples."
        )
    return percentile_interval(first - second)


def paired_permutation_p(
    first: np.ndarray,
    second: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    seed: int = 0,
    num_permutations: int = NUM_PERMUTATIONS,
) -> float:
    """Two-sided p of "both models are alike": how often swapping them at random sets their means as far apart.

    The outcomes of both models are swapped by cluster, all queries of a patient together. All swaps are tried where
    they are no more than `num_permutations`; else that many are drawn, and p is (1 + as far) / (1 + drawn), never 0.

    Args:
        first, second: (Q,) outcome of either model on the same queries: hits, reciprocal ranks, losses.
        clusters: (Q,) patient or image of each query; None: each its own.
    """
    if first.shape != second.shape or len(first) == 0:
        raise ValueError(
            f"{first.shape} and {second.shape} outcomes; a paired test needs the same queries for both, at least one."
        )
    sums, _ = _sums_and_counts(first.astype(np.float64) - second.astype(np.float64), clusters)
    sums = sums[sums != 0]  # a cluster on which both are alike stays so
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # equal but for rounding is as far
    if len(sums) <= np.log2(num_permutations):
        signs = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)  # (2^N, N)
        return float((np.abs(signs @ sums) >= least).mean())
    generator = np.random.default_rng(seed)
    as_far, step = 0, max(1, _BLOCK_ELEMENTS // len(sums))
    for start in range(0, num_permutations, step):
        rows = min(step, num_permutations - start)
        signs = 1.0 - 2.0 * generator.integers(0, 2, size=(rows, len(sums)), dtype=np.int8)
        as_far += int((np.abs(signs @ sums) >= least).sum())
    return (1 + as_far) / (1 + num_permutations)


def paired_bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of "no difference" from resampled differences (num_resamples,): twice the smaller tail, never 0.

    For figures that are no mean of outcomes (AUROC, medians), which `paired_permutation_p` cannot test; undefined
    (NaN) resamples are left out.
    """
    kept = differences[np.isfinite(differences)]
    if kept.size == 0:
        raise ValueError("no resample gave a defined difference; the split is too small for a test. Use more images.")
    tail = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (1 + kept.size))


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


def _student_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: exact for few degrees of freedom, else to 1e-4 by its expansion.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    exact = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)
    if degrees <= len(exact):
        return exact[degrees - 1]
    z, v = _NORMAL_QUANTILE, degrees
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + (z**3 + z) / (4 * v) + second / v**2 + third / v**3
