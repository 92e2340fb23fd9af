"""`evaluate.load("eval/metrics/expected_calibration_error")`: how far what is said lies from what comes true."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.calibration import NUM_BINS, expected_calibration_error
from regionmed_clip.eval.metrics.metric_info import NUMBER, TRUTH, metric_info

INPUTS = """
Args:
    predictions: per item the probability of the answer that was given, in [0, 1]; references: whether it was right.
    num_bins: bins of equal width, 15 by default.
Returns:
    expected_calibration_error: in [0, 1], 0 is best.
"""


class ExpectedCalibrationError(evaluate.Metric):
    """Mean over the items of |accuracy - mean confidence| of their bin of confidence."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=NUMBER, references=TRUTH)

    def _compute(self, predictions: list[float], references: list[bool], num_bins: int = NUM_BINS) -> dict[str, float]:
        error = expected_calibration_error(np.array(predictions), np.array(references), num_bins)
        return {"expected_calibration_error": error}
