"""`evaluate.load("eval/metrics/brier_score")`: the mean squared error of probabilities."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.calibration import brier_score
from regionmed_clip.eval.metrics.metric_info import NUMBER, NUMBERS, TRUTH, WHOLE, metric_info

INPUTS = """
Args:
    predictions: per item the probability of the finding; with the configuration "classes" those of all classes.
    references: whether the finding is there; with "classes" the true class, a whole number.
Returns:
    brier_score: 0 is best; at most 1, with "classes" at most 2 (the sum over the classes).
"""


class BrierScore(evaluate.Metric):
    """Mean squared difference of probabilities and outcomes."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "classes":
            return metric_info(self.__doc__, INPUTS, predictions=NUMBERS, references=WHOLE)
        return metric_info(self.__doc__, INPUTS, predictions=NUMBER, references=TRUTH)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"brier_score": brier_score(np.array(predictions), np.array(references))}
