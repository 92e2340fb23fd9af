"""A figure from the outcomes of its queries: the value, its interval over resampled patients, and the protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from regionmed_clip.eval.intervals import (
    PROPORTION_RULE,
    cluster_sums,
    iter_resample_weights,
    percentile_interval,
    proportion_interval,
)
from regionmed_clip.eval.tasks.measured import Measured, Stratum, skipped

ONE_CLUSTER = "of one patient: nothing is known of the spread between patients"


def mean_figure(
    task: str,
    metric: str,
    values: np.ndarray,
    clusters: np.ndarray | None,
    *,
    stratum: Stratum,
    seed: int,
    protocol: dict[str, Any] | None = None,
    nothing: str = "no such queries",
) -> Measured:
    """The mean of `values` (Q,) with its interval; skipped, with the reason `nothing`, where there are none.

    Args:
        values: float, or bool for hits and misses, whose interval is that of a proportion.
        clusters: (Q,) int64; queries of equal clusters, patients as a rule, are resampled together. None: each alone.
    """
    ones, outcomes = np.ones(len(values)), values.astype(np.float64)
    clusters = np.arange(len(values)) if clusters is None else clusters
    figure = ratio_figure(
        task, metric, outcomes, ones, clusters, stratum=stratum, seed=seed, protocol=protocol, nothing=nothing
    )
    if figure.resampled is None:
        return figure
    figure = replace(figure, outcomes=outcomes)
    return _as_proportion(figure, outcomes, clusters) if values.dtype == bool else figure


def ratio_figure(
    task: str,
    metric: str,
    parts: np.ndarray,
    wholes: np.ndarray,
    clusters: np.ndarray,
    *,
    stratum: Stratum,
    seed: int,
    protocol: dict[str, Any] | None = None,
    nothing: str = "no such queries",
    n: int | None = None,
) -> Measured:
    """sum(parts) / sum(wholes) with its interval; skipped, with the reason `nothing`, where all `wholes` are 0.

    Args:
        parts, wholes: (Q,) of each query: boxes that are right and boxes that are given.
        clusters: (Q,) int64; queries of equal clusters, patients as a rule, are resampled together.
        n: number of queries to state; None: the sum of the wholes.
    """
    protocol = dict(protocol or {})
    total = float(np.sum(wholes))
    if not total:
        return skipped(task, metric, nothing, n=0, stratum=stratum, **protocol)
    if len(np.unique(clusters)) == 1:
        protocol["interval"] = ONE_CLUSTER
    resampled = resample_ratio(parts, wholes, clusters, seed=seed)
    low, high = percentile_interval(resampled)
    return Measured(
        task=task,
        metric=metric,
        value=float(np.sum(parts, dtype=np.float64) / total),
        low=low,
        high=high,
        n=int(total) if n is None else n,
        source=stratum.source,
        stratum=stratum.name,
        protocol=protocol,
        resampled=resampled,
        clusters=clusters,
    )


def share_figure(
    task: str,
    metric: str,
    hits: np.ndarray,
    totals: np.ndarray,
    clusters: np.ndarray,
    *,
    stratum: Stratum,
    seed: int,
    protocol: dict[str, Any] | None = None,
    nothing: str = "no such queries",
    n: int | None = None,
) -> Measured:
    """The share of hits, sum(hits) / sum(totals), with the interval of a proportion; see `ratio_figure`.

    Args:
        hits, totals: (Q,) int64 of each query: right boxes of so many; clusters: (Q,) int64.
    """
    figure = ratio_figure(
        task, metric, hits, totals, clusters, stratum=stratum, seed=seed, protocol=protocol, nothing=nothing, n=n
    )
    if figure.resampled is None:
        return figure
    outcomes = np.repeat(np.tile([True, False], len(hits)), np.stack([hits, totals - hits], axis=1).ravel())
    return _as_proportion(figure, outcomes, np.repeat(clusters, totals))


def _as_proportion(figure: Measured, outcomes: np.ndarray, clusters: np.ndarray) -> Measured:
    """The figure, a share of `outcomes` (Q,) 0/1 of clusters (Q,), with the interval of a proportion."""
    low, high = proportion_interval(outcomes, clusters)
    return replace(figure, low=low, high=high, protocol={**figure.protocol, "interval": PROPORTION_RULE})


def resample_ratio(parts: np.ndarray, wholes: np.ndarray, clusters: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(NUM_RESAMPLES,) float64: sum(parts) / sum(wholes) in each resample of the clusters; NaN where nothing is drawn.

    Args:
        parts, wholes, clusters: (Q,) each, Q at least 1.
    """
    _, clusters = np.unique(clusters, return_inverse=True)
    num_clusters = int(clusters.max()) + 1
    tops, bottoms = cluster_sums(parts, clusters, num_clusters), cluster_sums(wholes, clusters, num_clusters)
    ratios = []
    for weights in iter_resample_weights(num_clusters, seed=seed):
        drawn = weights @ bottoms  # (b,)
        ratios.append(np.divide(weights @ tops, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0))
    return np.concatenate(ratios)
