"""`evaluate.load("eval/metrics/average_precision")`: macro and micro, classes that nobody stated left out."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.classification import macro_average_precision, micro_average_precision
from regionmed_clip.eval.metrics.metric_info import NUMBERS, WHOLES, metric_info

INPUTS = """
Args:
    predictions: per item its score of every class.
    references: per item and class 1 (there), 0 (not there) or -1 (nobody said: left out of that class's figure).
Returns:
    macro_ap, micro_ap: in [0, 1], chance is the share of positives. A class without positives is an error.
"""


class AveragePrecision(evaluate.Metric):
    """Average precision: unweighted mean over the classes (macro), and of all pairs as one list (micro)."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=NUMBERS, references=WHOLES)

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        scores, truth = np.array(predictions), np.array(references)
        columns = scores, truth == 1, truth >= 0
        return {"macro_ap": macro_average_precision(*columns), "micro_ap": micro_average_precision(*columns)}
