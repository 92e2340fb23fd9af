"""`evaluate.load("eval/metrics/accuracy")`: the share of right answers."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.classification import accuracy
from regionmed_clip.eval.metrics.metric_info import WHOLE, metric_info

INPUTS = """
Args:
    predictions, references: per item the class that was said and the true one, whole numbers.
Returns:
    accuracy: share of items on which they agree, in [0, 1].
"""


class Accuracy(evaluate.Metric):
    """Share of right answers."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=WHOLE, references=WHOLE)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": accuracy(np.array(predictions) == np.array(references))}
