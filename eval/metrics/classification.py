"""Classification metrics: accuracy, balanced accuracy, ROC and precision-recall areas, F1; most under item weights too.

The weighted forms take one row of weights per bootstrap resample (how often each item was drawn) and give one value per
row, so that a thousand resamples are a few matrix products. Equal scores are one step of every curve: no credit and no
loss comes from the order in which ties happen to stand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def accuracy(is_correct: np.ndarray) -> float:
    """Share of True among (Q,) bool."""
    if len(is_correct) == 0:
        raise ValueError("accuracy of 0 items is undefined; give at least one item.")
    return float(np.mean(is_correct))


def balanced_accuracy(is_correct: np.ndarray, classes: np.ndarray) -> float:
    """Unweighted mean over the true classes present of the share of (Q,) items that are correct."""
    if len(is_correct) == 0:
        raise ValueError("balanced accuracy of 0 items is undefined; give at least one item.")
    _, index = np.unique(classes, return_inverse=True)
    counts = np.bincount(index)
    return float((np.bincount(index, weights=is_correct.astype(np.float64)) / counts).mean())


def auroc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Probability that a random positive outscores a random negative, ties half; (N,) float scores, (N,) bool truth."""
    if is_positive.all() or not is_positive.any():
        raise ValueError(f"AUROC needs both classes; got {int(is_positive.sum())} positives of {len(is_positive)}.")
    return float(weighted_auroc(scores, is_positive, np.ones((1, len(scores))))[0])


def weighted_auroc(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(b,) float64: the AUROC under each row of item weights (b, N); NaN where a row leaves only one class.

    Sum over positives p and negatives n of w_p w_n ([s_p > s_n] + [s_p = s_n] / 2), over the product of class weights.
    """
    positive, negative = _group_weights(scores, is_positive, weights)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    won = (positive * below).sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Mean over the positives of the precision among the items that score at least as much; (N,) scores, (N,) bool.

    The step-wise area under the precision-recall curve, without interpolation. Chance is the share of positives, and
    more where they are few: `ranking.chance_of_precision`.
    """
    if not is_positive.any():
        raise ValueError(f"average precision needs a positive; got none among {len(is_positive)} items.")
    return float(weighted_average_precision(scores, is_positive, np.ones((1, len(scores))))[0])


def weighted_average_precision(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(b,) float64: the average precision under each row of item weights (b, N); NaN where a row has no positive."""
    positive, negative = _group_weights(scores, is_positive, weights)
    true = np.cumsum(positive[:, ::-1], axis=1)  # (b, groups), from the highest score down
    shown = true + np.cumsum(negative[:, ::-1], axis=1)
    precision = np.divide(true, shown, out=np.zeros_like(true), where=shown > 0)
    totals = true[:, -1]
    gained = (precision * positive[:, ::-1]).sum(axis=1)
    return np.divide(gained, totals, out=np.full(len(weights), np.nan), where=totals > 0)


def f1_at(scores: np.ndarray, is_positive: np.ndarray, threshold: float) -> float:
    """F1 of calling (N,) scores >= threshold positive: 2 TP / (2 TP + FP + FN); 0 where nothing is called or true."""
    if len(scores) == 0:
        raise ValueError("F1 of 0 items is undefined; give at least one item.")
    return float(np.nan_to_num(weighted_f1_at(scores, is_positive, threshold, np.ones((1, len(scores)))))[0])


def weighted_f1_at(scores: np.ndarray, is_positive: np.ndarray, threshold: float, weights: np.ndarray) -> np.ndarray:
    """(b,) float64: the F1 at the threshold under each row of item weights (b, N); NaN where nothing is called or true.

    Called and true are counted together, 2 TP + FP + FN = called + true, which one matrix product gives.
    """
    is_called = np.asarray(scores) >= threshold
    hits = weights @ (is_called & is_positive).astype(np.float64)
    called_or_true = weights @ (is_called.astype(np.float64) + is_positive)
    return np.divide(2 * hits, called_or_true, out=np.full(len(weights), np.nan), where=called_or_true > 0)


def best_f1_threshold(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """The score at which calling `scores >= threshold` positive has the highest F1; the highest of several such.

    Choose it on a split other than the one that is reported.
    """
    if not is_positive.any():
        raise ValueError(
            f"a threshold for F1 needs a positive; got none among {len(is_positive)} items. Choose it on more items."
        )
    thresholds = np.unique(scores)
    positive, negative = _group_weights(scores, is_positive, np.ones((1, len(scores))))
    hits, false = np.cumsum(positive[0, ::-1]), np.cumsum(negative[0, ::-1])  # (groups,), from the highest score down
    f1 = 2 * hits / (hits + false + hits[-1])
    return float(thresholds[::-1][f1.argmax()])


def macro_auroc(scores: np.ndarray, is_positive: np.ndarray, is_known: np.ndarray | None = None) -> float:
    """Unweighted mean over the classes of each one's AUROC.

    Args:
        scores: (N, C) float; is_positive: (N, C) bool.
        is_known: (N, C) bool; False leaves an item out of that class's figure (nobody stated its truth); None: all in.

    Raises:
        ValueError: a class has no positive or no negative among its known items; leave it out, and say so.
    """
    return _macro(auroc, scores, is_positive, is_known, needs_negatives=True)


def micro_auroc(scores: np.ndarray, is_positive: np.ndarray, is_known: np.ndarray | None = None) -> float:
    """The AUROC of all (item, class) pairs as one list: scores of different classes must be comparable."""
    return auroc(*_pairs(scores, is_positive, is_known))


def macro_average_precision(scores: np.ndarray, is_positive: np.ndarray, is_known: np.ndarray | None = None) -> float:
    """Unweighted mean over the classes of each one's average precision; arguments as for `macro_auroc`."""
    return _macro(average_precision, scores, is_positive, is_known, needs_negatives=False)


def micro_average_precision(scores: np.ndarray, is_positive: np.ndarray, is_known: np.ndarray | None = None) -> float:
    """The average precision of all (item, class) pairs as one list; arguments as for `macro_auroc`."""
    return average_precision(*_pairs(scores, is_positive, is_known))


def _macro(
    metric: Callable[[np.ndarray, np.ndarray], float],
    scores: np.ndarray,
    is_positive: np.ndarray,
    is_known: np.ndarray | None,
    *,
    needs_negatives: bool,
) -> float:
    """The mean of the metric over the classes (columns), each on its known items."""
    is_known = np.ones(scores.shape, dtype=bool) if is_known is None else is_known
    num_positives, num_known = (is_positive & is_known).sum(axis=0), is_known.sum(axis=0)
    is_undefined = (num_positives == 0) | (needs_negatives & (num_positives == num_known))
    if is_undefined.any() or scores.shape[1] == 0:
        raise ValueError(
            f"classes {np.flatnonzero(is_undefined).tolist()} of {scores.shape[1]} have "
            f"{num_positives[is_undefined].tolist()} positives of {num_known[is_undefined].tolist()} items; each "
            f"needs a positive{' and a negative' if needs_negatives else ''}. Leave those classes out, and say so."
        )
    return float(np.mean([metric(s[k], p[k]) for s, p, k in zip(scores.T, is_positive.T, is_known.T, strict=True)]))


def _pairs(scores: np.ndarray, is_positive: np.ndarray, is_known: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """((P,) scores, (P,) bool truths) of the known (item, class) pairs."""
    is_known = np.ones(scores.shape, dtype=bool) if is_known is None else is_known
    return scores[is_known], is_positive[is_known]


def _group_weights(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at each distinct score, ascending: two (b, groups) float64."""
    if np.isnan(scores).any():
        raise ValueError(
            f"score {int(np.isnan(scores).argmax())} is not a number; a curve needs numbers. Look at the model."
        )
    _, group = np.unique(scores, return_inverse=True)  # equal scores share a group
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    is_positive = np.asarray(is_positive, dtype=bool)[order]
    ordered = weights[:, order]
    return np.add.reduceat(ordered * is_positive, starts, axis=1), np.add.reduceat(
        ordered * ~is_positive, starts, axis=1
    )
