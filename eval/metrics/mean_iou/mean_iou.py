"""`evaluate.load("eval/metrics/mean_iou")`: overlap of thresholded heat maps, or of masks, with regions."""

from __future__ import annotations

from collections.abc import Sequence

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.localization import OVERLAP_THRESHOLDS, heat_ious
from regionmed_clip.eval.metrics.metric_info import MAP, MASK, metric_info

INPUTS = """
Args:
    predictions: per phrase its heat map, rows of numbers, NaN where the model saw nothing.
    references: per phrase its region, rows of true and false, of the same size.
    thresholds: heat from which a pixel is said to belong; 0.1 to 0.5 by default, BioViL's for cosine maps. (0.5,)
        for masks given as 0 and 1; a single one is chosen on other phrases than these.
Returns:
    mean_iou: mean over phrases and thresholds of intersection over union, in [0, 1].
"""


class MeanIou(evaluate.Metric):
    """Mean intersection over union of thresholded heat maps and regions."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=MAP, references=MASK)

    def _compute(
        self, predictions: list, references: list, thresholds: Sequence[float] = OVERLAP_THRESHOLDS
    ) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        overlaps = [heat_ious(np.array(heat), np.array(region), thresholds) for heat, region in pairs]
        return {"mean_iou": float(np.mean(overlaps))}
