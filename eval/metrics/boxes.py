"""Box metrics: intersection over union."""

from __future__ import annotations

import numpy as np


def pairwise_iou(boxes: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """(R, S) float64 intersection over union of boxes (R, 4) and others (S, 4), None: with themselves.

    Boxes are (x0, y0, x1, y1), half-open, any one unit.
    """
    boxes = boxes.astype(np.float64)
    others = boxes if others is None else others.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.clip(high - low, 0.0, None).prod(axis=-1)  # (R, S)
    area, other_area = ((one[:, 2:] - one[:, :2]).prod(axis=-1) for one in (boxes, others))
    union = area[:, None] + other_area[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def best_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(R,) float64 largest intersection over union of each of boxes (R, 4) with any of others (S, 4); 0 without any."""
    return pairwise_iou(boxes, others).max(axis=1, initial=0.0)
