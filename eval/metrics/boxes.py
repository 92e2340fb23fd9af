"""Box metrics: intersection over union, recall of boxes, and matching of boxes one to one.

Boxes are (x0, y0, x1, y1), half-open, any one unit.
"""

from __future__ import annotations

import numpy as np


def pairwise_iou(boxes: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """(R, S) float64 intersection over union of boxes (R, 4) and others (S, 4), None: with themselves."""
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


def box_recall(boxes: np.ndarray, truths: np.ndarray, iou: float = 0.5) -> float:
    """Share of the true boxes (S, 4) that any of boxes (R, 4) overlaps by at least `iou`; one box may find several.

    It does not fall with superfluous boxes: state their number beside it, or match one to one with `match_boxes`.
    """
    if len(truths) == 0:
        raise ValueError("box recall of 0 true boxes is undefined; give at least one, or count false boxes instead.")
    return float((best_iou(truths, boxes) >= iou).mean())


def match_boxes(boxes: np.ndarray, truths: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """(K, 2) int64: pairs (box, truth) that overlap by at least `iou`, each used once, the largest overlap first.

    Precision is K / R, recall K / S, F1 2 K / (R + S). Of equal overlaps the first box, then the first truth.
    """
    overlaps = pairwise_iou(boxes, truths)
    pairs: list[tuple[int, int]] = []
    for place in np.argsort(-overlaps, axis=None, kind="stable").tolist():
        box, truth = divmod(place, len(truths))
        if overlaps[box, truth] < max(iou, 1e-12):
            break
        if all(box != b and truth != t for b, t in pairs):
            pairs.append((box, truth))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
