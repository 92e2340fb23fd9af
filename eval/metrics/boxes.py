"""Box metrics: intersection over union."""

from __future__ import annotations

import numpy as np


def pairwise_iou(boxes: np.ndarray) -> np.ndarray:
    """(R, R) float64 intersection over union of boxes (R, 4), (x0, y0, x1, y1), half-open, any one unit."""
    boxes = boxes.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.clip(high - low, 0.0, None).prod(axis=-1)  # (R, R)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    union = area[:, None] + area[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
