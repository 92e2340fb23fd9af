"""Balanced accuracy as a figure: the mean over classes of the share answered right, with an interval for few items."""

from __future__ import annotations

from typing import Any

import numpy as np

from regionmed_clip.eval.intervals import (
    effective_sample_size,
    percentile_interval,
    resample_mean_of_class_ratios,
    wilson_interval,
)
from regionmed_clip.eval.metrics.classification import balanced_accuracy
from regionmed_clip.eval.tasks.measured import Measured, Stratum

INTERVAL_RULE = "bootstrap over patients; where items are few, the wider of it and of Wilson's intervals combined"
_FEW = 20  # patients of the smallest class, or right or wrong answers, below which the bootstrap is too narrow


def balanced_figure(
    task: str,
    metric: str,
    values: np.ndarray,
    classes: np.ndarray,
    clusters: np.ndarray,
    *,
    stratum: Stratum,
    seed: int,
    protocol: dict[str, Any],
) -> Measured:
    """The balanced accuracy of `values` (Q,), bool or the share of several answers that were right, in [0, 1].

    Args:
        classes: (Q,) true classes. clusters: (Q,) int64; patients, who are resampled whole.
    """
    resampled = resample_mean_of_class_ratios(values, classes, clusters, seed=seed)
    return Measured(
        task=task,
        metric=metric,
        value=balanced_accuracy(values, classes),
        **dict(zip(("low", "high"), class_interval(values, classes, clusters, resampled), strict=True)),
        n=len(values),
        source=stratum.source,
        stratum=stratum.name,
        protocol=protocol | {"interval": INTERVAL_RULE},
        resampled=resampled,
        clusters=clusters,
    )


def class_interval(
    values: np.ndarray, classes: np.ndarray, clusters: np.ndarray, resampled: np.ndarray
) -> tuple[float, float]:
    """95 % interval of the balanced accuracy from its resamples; arguments as for `balanced_figure`.

    Where the smallest class has few patients, or right or wrong answers are few, the bootstrap is too narrow: of all
    right it says [1, 1]. There it is widened to that of the classes' Wilson intervals, combined as variances are.
    Source: MOVER, Zou and Donner 2008, Stat. Med. 27:1693. Of 600 simulated samples each, of 2 to 10 classes with 3 to
    50 items, it held the truth in 97 % or more; the bootstrap alone in 23 % (nearly all right) to 96 %.
    """
    low, high = percentile_interval(resampled)
    names = np.unique(classes)
    fewest = min(len(np.unique(clusters[classes == name])) for name in names)
    right = float(np.sum(values))
    if min(fewest, right, len(values) - right) >= _FEW:
        return low, high
    spans = []
    for name in names:
        own = values[classes == name].astype(np.float64)
        size = effective_sample_size(own, clusters[classes == name])
        share = float(own.mean())
        below, above = wilson_interval(share * size, size)
        spans.append((share, share - below, above - share))
    shares, downs, ups = np.array(spans).T
    value = float(shares.mean())
    down, up = (float(np.sqrt(np.square(sides).sum())) / len(names) for sides in (downs, ups))
    return max(0.0, min(low, value - down)), min(1.0, max(high, value + up))
