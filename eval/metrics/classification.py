"""Classification metrics: accuracy, balanced accuracy, area under the ROC curve, each also under image weights."""

from __future__ import annotations

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
    _, group = np.unique(scores, return_inverse=True)  # equal scores share a group: ties count half
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    negative = np.add.reduceat(weights[:, order] * ~is_positive[order], starts, axis=1)  # (b, groups)
    positive = np.add.reduceat(weights[:, order] * is_positive[order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    won = (positive * below).sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
