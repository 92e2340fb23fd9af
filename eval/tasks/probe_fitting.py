"""Logistic regression on frozen embeddings: fitted within each group, its penalty chosen on the tuning split."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from regionmed_clip.eval.metrics.classification import balanced_accuracy
from regionmed_clip.eval.tasks.probe_items import ProbeItems

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # sklearn's C: the larger, the less is held back
MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class Standard:
    """Moves features to mean 0 and scales all of them by one number, to a mean square of 1 per dimension.

    No direction is stretched against another, and one list of penalties suits every model.
    """

    mean: np.ndarray
    scale: float

    @classmethod
    def of(cls, features: np.ndarray) -> Standard:
        """That of training features (M, D)."""
        mean = features.mean(axis=0, dtype=np.float64)
        return cls(mean, float(np.sqrt(np.square(features - mean).mean())) or 1.0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(M, D) float64."""
        return (features - self.mean) / self.scale


@dataclass(frozen=True)
class Answered:
    """Answers of a probe under the penalty that was best on the tuning split.

    Attributes:
        is_correct: (Q,) float64, the share of the draws in which an item was answered right.
        penalty: sklearn's C. draw_values: the balanced accuracy of each draw.
    """

    is_correct: np.ndarray
    penalty: float
    draw_values: tuple[float, ...]


def answer(draws: Sequence[ProbeItems], tuning: ProbeItems, test: ProbeItems) -> Answered:
    """The answers to `test` of probes taught each of `draws`; all share the penalty that answers `tuning` best.

    The best has the highest balanced accuracy on average over the draws, and of equal ones is the strongest penalty.
    """
    standards = [Standard.of(taught.features) for taught in draws]
    found = []
    for penalty in PENALTIES:
        pairs = [
            _hits(taught, standard, penalty, (tuning, test)) for taught, standard in zip(draws, standards, strict=True)
        ]
        of_tuning, of_test = (np.array(hits, dtype=np.float64) for hits in zip(*pairs, strict=True))  # (draws, Q)
        found.append((balanced_accuracy(of_tuning.mean(axis=0), tuning.classes()), of_test))
    best = int(np.argmax([score for score, _ in found]))
    hits, classes = found[best][1], test.classes()
    return Answered(hits.mean(axis=0), PENALTIES[best], tuple(balanced_accuracy(row, classes) for row in hits))


def _hits(taught: ProbeItems, standard: Standard, penalty: float, asked: Sequence[ProbeItems]) -> list[np.ndarray]:
    """For each of `asked` (Q,) bool, answered right by probes of every group; wrong where its group was not taught."""
    inputs, hits = standard(taught.features), [np.zeros(len(items), dtype=bool) for items in asked]
    for group in np.unique(taught.groups):
        rows = taught.groups == group
        predict = _fit(inputs[rows], taught.labels[rows], penalty)
        for items, out in zip(asked, hits, strict=True):
            if (is_asked := items.groups == group).any():
                out[is_asked] = predict(standard(items.features[is_asked])) == items.labels[is_asked]
    return hits


def _fit(inputs: np.ndarray, labels: np.ndarray, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
    """What gives (Q,) str labels of queries (Q, D); the only label taught, where there is one."""
    if len(np.unique(labels)) == 1:
        return lambda queries: np.full(len(queries), labels[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # one shot of each is no mistake
        return make_classifier(penalty).fit(inputs, labels).predict


def make_classifier(penalty: float) -> LogisticRegression:
    """Multinomial logistic regression in which every class weighs the same, however often it is taught."""
    return LogisticRegression(C=penalty, class_weight="balanced", max_iter=MAX_ITERATIONS)
