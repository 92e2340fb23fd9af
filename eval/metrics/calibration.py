"""Calibration metrics: expected calibration error, reliability bins, Brier score, and temperature scaling.

A temperature T divides logits. It moves no decision and no ranking, only how sure the model says it is; it is fitted on
a split other than the one that is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

NUM_BINS = 15
TEMPERATURE_RANGE = (1e-4, 1e4)
_HALVINGS = 80  # of the range of the logarithm of the temperature: to the last bit of float64


def expected_calibration_error(probabilities: np.ndarray, is_correct: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Mean over the items of |accuracy - mean confidence| of the bin that each falls into; 0 is best, 1 worst.

    Args:
        probabilities: (N,) float in [0, 1], what the model says: of its answer, or of the finding.
        is_correct: (N,) bool, whether the answer is right, or the finding there.
        num_bins: bins of equal width, closed above; the first holds 0 as well.

    Source: arXiv:1706.04599, sec. 2.
    """
    weights = np.ones((1, len(np.atleast_1d(probabilities))))
    return float(weighted_expected_calibration_error(probabilities, is_correct, weights, num_bins)[0])


def weighted_expected_calibration_error(
    probabilities: np.ndarray, is_correct: np.ndarray, weights: np.ndarray, num_bins: int = NUM_BINS
) -> np.ndarray:
    """(b,) float64: the expected calibration error under each row of item weights (b, N); NaN where a row is all 0.

    Resampling adds noise to every bin, so an interval made of these leans upwards where bins hold few items.
    """
    bins = _bins_of(probabilities, num_bins)
    gaps = np.zeros((len(probabilities), num_bins))
    gaps[np.arange(len(bins)), bins] = np.asarray(is_correct, dtype=np.float64) - probabilities
    total = weights.sum(axis=1)
    return np.divide(np.abs(weights @ gaps).sum(axis=1), total, out=np.full(len(weights), np.nan), where=total > 0)


def reliability_bins(
    probabilities: np.ndarray, is_correct: np.ndarray, num_bins: int = NUM_BINS
) -> list[dict[str, Any]]:
    """The bins of a reliability diagram, ascending: {"low", "high", "n", "confidence", "accuracy"}; arguments as above.

    `confidence` and `accuracy` are the means of the bin's items, None in an empty bin.
    """
    bins = _bins_of(probabilities, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    said = np.bincount(bins, weights=probabilities, minlength=num_bins)
    right = np.bincount(bins, weights=np.asarray(is_correct, dtype=np.float64), minlength=num_bins)
    return [
        {
            "low": index / num_bins,
            "high": (index + 1) / num_bins,
            "n": int(count),
            "confidence": float(said[index] / count) if count else None,
            "accuracy": float(right[index] / count) if count else None,
        }
        for index, count in enumerate(counts)
    ]


def brier_score(probabilities: np.ndarray, outcomes: np.ndarray) -> float:
    """Mean of `brier_losses`; 0 is best."""
    return float(brier_losses(probabilities, outcomes).mean())


def brier_losses(probabilities: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """(N,) float64: the squared error of what was said, per item.

    Args:
        probabilities: (N,) of a finding that is there or not, loss in [0, 1]; or (N, C) over classes that exclude each
            other, loss in [0, 2], the sum over the classes.
        outcomes: (N,) bool with the former; (N,) int64, the true class, with the latter.
    """
    _check_probabilities(probabilities)
    if probabilities.ndim == 1:
        return (probabilities - np.asarray(outcomes, dtype=np.float64)) ** 2
    return ((probabilities - np.eye(probabilities.shape[1])[outcomes]) ** 2).sum(axis=1)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N, C) float64 probabilities of logits (N, C) / temperature; every row sums to 1."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N,) float64 probabilities of logits (N,) / temperature."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64) / temperature))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of `softmax` under which labels (N,) int64 are likeliest, given logits (N, C).

    Held within TEMPERATURE_RANGE: its low end where every item is right and surer is always better, its high end where
    the logits point the wrong way. Source: arXiv:1706.04599, sec. 4.2.
    """
    _check_items(logits)
    true = logits[np.arange(len(logits)), labels].astype(np.float64)
    return _fit(lambda temperature: float(((softmax(logits, temperature) * logits).sum(axis=1) - true).mean()))


def fit_binary_temperature(logits: np.ndarray, is_positive: np.ndarray) -> float:
    """The temperature of `sigmoid` under which outcomes (N,) bool are likeliest, given logits (N,); range as above."""
    _check_items(logits)
    outcomes = np.asarray(is_positive, dtype=np.float64)
    return _fit(lambda temperature: float(((sigmoid(logits, temperature) - outcomes) * logits).mean()))


def _fit(slope: Callable[[float], float]) -> float:
    """The temperature where the slope of the loss in 1 / temperature, in which it is convex, is 0: by bisection."""
    low, high = np.log(TEMPERATURE_RANGE[0]), np.log(TEMPERATURE_RANGE[1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(float(np.exp(middle))) > 0:  # too sure: a higher temperature
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def _bins_of(probabilities: np.ndarray, num_bins: int) -> np.ndarray:
    """(N,) int64 bin of every probability; bin i is (i / num_bins, (i + 1) / num_bins], the first holds 0 too."""
    _check_probabilities(probabilities)
    edges = np.arange(1, num_bins) / num_bins  # the very numbers that `reliability_bins` states
    return np.searchsorted(edges, probabilities, side="left")


def _check_items(values: np.ndarray) -> None:
    """None; ValueError where there is no item or one is not finite."""
    if len(values) == 0:
        raise ValueError("the calibration of 0 items is undefined; give at least one item.")
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).argmax())
        raise ValueError(f"item {row} holds NaN or infinity; calibration needs finite numbers. Look at the model.")


def _check_probabilities(probabilities: np.ndarray) -> None:
    """None; ValueError where there is none, or one lies outside of [0, 1]."""
    _check_items(probabilities)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            f"probabilities span {float(probabilities.min())} to {float(probabilities.max())}; they lie in [0, 1]. "
            "Pass logits through `softmax` or `sigmoid` first."
        )
