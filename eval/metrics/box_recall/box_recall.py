"""`evaluate.load("eval/metrics/box_recall")`: how many of the true boxes are found."""

from __future__ import annotations

import evaluate
import numpy as np

from regionmed_clip.eval.metrics.boxes import best_iou
from regionmed_clip.eval.metrics.metric_info import BOXES, metric_info

INPUTS = """
Args:
    predictions: per image the boxes that were proposed, references: the true ones; (x0, y0, x1, y1), any one unit.
    iou: least intersection over union that finds a box, 0.5 by default.
Returns:
    box_recall: share of all true boxes that any box of their image finds, in [0, 1];
    boxes_per_image: how many were proposed, without which the recall says little.
"""


class BoxRecall(evaluate.Metric):
    """Share of the true boxes that a proposed box overlaps enough; all images together."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, INPUTS, predictions=BOXES, references=BOXES)

    def _compute(self, predictions: list, references: list, iou: float = 0.5) -> dict[str, float]:
        boxes, truths = ([np.array(b, dtype=float).reshape(-1, 4) for b in side] for side in (predictions, references))
        overlaps = np.concatenate([best_iou(true, said) for said, true in zip(boxes, truths, strict=True)])
        if len(overlaps) == 0:
            raise ValueError("box recall of 0 true boxes is undefined; give at least one image with a box.")
        return {"box_recall": float((overlaps >= iou).mean()), "boxes_per_image": sum(map(len, boxes)) / len(boxes)}
