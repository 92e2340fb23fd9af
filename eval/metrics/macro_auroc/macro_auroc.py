"""`evaluate.load("eval/metrics/macro_auroc")`: macro and micro, classes that nobody stated left out."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.classification import macro_auroc, micro_auroc
from regionmed_clip.eval.metrics.metric_info import NUMBERS, WHOLES, metric_info

INPUTS = """
Args:
    predictions: per item its score of every class.
    references: per item and class 1 (there), 0 (not there) or -1 (nobody said: left out of that class's figure).
Returns:
    macro_auroc, micro_auroc: in [0, 1], chance 0.5. A class without both outcomes is an error: leave it out.
"""


class MacroAuroc(evaluate.Metric):
    """Area under the ROC curve: unweighted mean over the classes (macro), and of all pairs as one list (micro)."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=NUMBERS, references=WHOLES)

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        scores, truth = np.array(predictions), np.array(references)
        columns = scores, truth == 1, truth >= 0
        return {"macro_auroc": macro_auroc(*columns), "micro_auroc": micro_auroc(*columns)}
