"""`evaluate.load("eval/metrics/contrast_to_noise_ratio")`: how far heat inside of a region stands out."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.localization import contrast_to_noise_ratio
from regionmed_clip.eval.metrics.metric_info import MAP, MASK, metric_info

INPUTS = """
Args:
    predictions: per phrase its heat map, rows of numbers, NaN where the model saw nothing.
    references: per phrase its region, rows of true and false, of the same size.
Returns:
    contrast_to_noise_ratio: mean over the phrases, negative where heat lies outside;
    absolute_contrast_to_noise_ratio: mean of the absolute values, BioViL's form, which hides that.
"""


class ContrastToNoiseRatio(evaluate.Metric):
    """(mean inside - mean outside) / sqrt(variance inside + variance outside) of heat maps, mean over the phrases."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=MAP, references=MASK)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        ratios = np.array(
            [contrast_to_noise_ratio(np.array(h), np.array(r)) for h, r in zip(predictions, references, strict=True)]
        )
        return {
            "contrast_to_noise_ratio": float(ratios.mean()),
            "absolute_contrast_to_noise_ratio": float(np.abs(ratios).mean()),
        }
