"""`evaluate.load("eval/metrics/balanced_accuracy")`: the mean over the true classes of the share of right answers."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.classification import balanced_accuracy
from regionmed_clip.eval.metrics.metric_info import WHOLE, metric_info

INPUTS = """
Args:
    predictions, references: per item the class that was said and the true one, whole numbers.
Returns:
    balanced_accuracy: in [0, 1]; chance is 1 / number of classes present, however unequal they are.
"""


class BalancedAccuracy(evaluate.Metric):
    """Unweighted mean over the true classes of the share of right answers."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=WHOLE, references=WHOLE)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        truth = np.array(references)
        return {"balanced_accuracy": balanced_accuracy(np.array(predictions) == truth, truth)}
