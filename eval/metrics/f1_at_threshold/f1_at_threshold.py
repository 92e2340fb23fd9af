"""`evaluate.load("eval/metrics/f1_at_threshold")`: F1 of calling scores at or above a threshold positive."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.classification import f1_at
from regionmed_clip.eval.metrics.metric_info import NUMBER, TRUTH, metric_info

INPUTS = """
Args:
    predictions: per item its score; references: whether the finding is there.
    threshold: chosen on other items than these, with `best_f1_threshold`.
Returns:
    f1: in [0, 1]; 0 where nothing is there and nothing called.
"""


class F1AtThreshold(evaluate.Metric):
    """2 TP / (2 TP + FP + FN) of calling scores >= threshold positive."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=NUMBER, references=TRUTH)

    def _compute(self, predictions: list[float], references: list[bool], threshold: float) -> dict[str, float]:
        return {"f1": f1_at(np.array(predictions), np.array(references), threshold)}
