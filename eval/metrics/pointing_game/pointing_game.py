"""`evaluate.load("eval/metrics/pointing_game")`: how often the hottest pixel lies in the region."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.localization import pointing_game_hit
from regionmed_clip.eval.metrics.metric_info import MAP, MASK, metric_info

INPUTS = """
Args:
    predictions: per phrase its heat map, rows of numbers, NaN where the model saw nothing.
    references: per phrase its region, rows of true and false, of the same size.
    tolerance_px: how far outside still counts, in pixels, 0 by default.
Returns:
    pointing_game: share of phrases, in [0, 1]; of several hottest pixels all must lie in the region.
"""


class PointingGame(evaluate.Metric):
    """Share of phrases whose hottest pixel lies in the region."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=MAP, references=MASK)

    def _compute(self, predictions: list, references: list, tolerance_px: float = 0) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        hits = [pointing_game_hit(np.array(heat), np.array(region), tolerance_px) for heat, region in pairs]
        return {"pointing_game": float(np.mean(hits))}
