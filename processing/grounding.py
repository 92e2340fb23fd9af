"""Boxes of phrases in original pixels: the proposals that fit a phrase, or the hot patches of its heat map.

Boxes follow the convention at the head of `region_boxes.py`. Letters: K proposals, T phrases, h x w patches.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from .box_inputs import MIN_SIDE_FRACTION, MIN_SIDE_PX
from .region_boxes import FrameGeometry, box_coverage

GROUNDING_SOURCES = ("proposals", "heat")
MIN_COVERED_SHARE = 1e-6  # of a patch; less is the rounding of float32 fractions

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels (n,) int64, scores (n,) float32, boxes (n, 4) fractions


def boxes_in_image(boxes_fraction_xyxy: np.ndarray, geometry: FrameGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32 in original pixels, clipped to the image, and (n,) bool: False where none of it is inside.

    Args:
        boxes_fraction_xyxy: (n, 4) fractions of the model frame.
        geometry: how the image lies in the frame.
    """
    boxes = geometry.frame_fractions_to_boxes(boxes_fraction_xyxy).astype(np.float32)
    min_side_px = max(MIN_SIDE_FRACTION * max(geometry.original), MIN_SIDE_PX)  # what a box given to a call must have
    return boxes, (boxes[:, 2:] - boxes[:, :2] >= min_side_px).all(axis=1)


def fitting_proposals(
    similarity: np.ndarray,
    boxes_fraction_xyxy: np.ndarray,
    is_proposed: np.ndarray,
    threshold: float,
) -> Found:
    """Every pair of a phrase and a proposal that fits it; a proposal may fit several phrases, a phrase several.

    Args:
        similarity: (K, T) float; cosine of proposal and phrase.
        boxes_fraction_xyxy: (K, 4) fractions of the model frame.
        is_proposed: (K,) bool; False proposals are left out.
        threshold: least cosine.
    """
    rows, labels = np.nonzero((similarity >= threshold) & is_proposed[:, None])
    return labels, similarity[rows, labels], boxes_fraction_xyxy[rows]


def hot_boxes(heat: np.ndarray, geometry: FrameGeometry, threshold: float, heat_share: float) -> Found:
    """Of every phrase the box of each connected group of hot patches, with the highest cosine in it.

    A patch is hot if its cosine reaches both `threshold` and `heat_share` of the way from the median of the phrase's
    map to its peak. Patches that touch, at an edge or at a corner, belong together. Patches wholly in the padding take
    no part.

    Args:
        heat: (T, h, w) float; cosine of patch and phrase.
        geometry: how the image lies in the frame.
        threshold: least cosine.
        heat_share: in [0, 1]; 0 leaves the threshold alone, 1 takes the peak alone.
    """
    height, width = heat.shape[1:]
    is_image = patches_in_image(geometry, (height, width))
    middle, peak = np.median(heat[:, is_image], axis=1), heat[:, is_image].max(axis=1)  # (T,)
    level = np.maximum(threshold, np.minimum(middle + heat_share * (peak - middle), peak))  # rounding may pass the peak
    is_hot = (heat >= level[:, None, None]) & is_image
    groups = connected_groups(is_hot)
    labels, scores, boxes = [], [], []
    for label, group in np.unique(np.stack([np.nonzero(is_hot)[0], groups[is_hot]], axis=1), axis=0).tolist():
        is_member = groups[label] == group
        rows, columns = np.nonzero(is_member)
        labels.append(label)
        scores.append(heat[label][is_member].max())
        boxes.append(
            (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
        )
    return np.array(labels, dtype=np.int64), np.array(scores, dtype=np.float32), np.array(boxes).reshape(-1, 4)


def patches_in_image(geometry: FrameGeometry, grid: tuple[int, int]) -> np.ndarray:
    """(h, w) bool; False marks the patches that lie wholly in the padding."""
    width, height = geometry.original
    whole = np.clip(geometry.boxes_to_frame_fractions([[0, 0, width, height]]), 0.0, 1.0)
    return box_coverage(whole, grid)[0] > MIN_COVERED_SHARE


def connected_groups(is_member: np.ndarray) -> np.ndarray:
    """(T, h, w) int64: equal positive numbers mark the cells of a map that hang together, also over corners; else 0.

    The number is 1 + the place, in row-major order, of the group's first cell.

    Args:
        is_member: (T, h, w) bool; the maps are independent of each other.
    """
    height, width = is_member.shape[1:]
    none = height * width + 1
    places = np.arange(1, none).reshape(1, height, width)
    groups = np.where(is_member, places, none)
    while True:  # the smallest number of a group spreads by one cell a round, until nothing changes
        padded = np.pad(groups, ((0, 0), (1, 1), (1, 1)), constant_values=none)
        along_y = np.minimum(np.minimum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])  # (T, h, w + 2)
        smallest = np.minimum(np.minimum(along_y[:, :, :-2], along_y[:, :, 1:-1]), along_y[:, :, 2:])
        spread = np.where(is_member, smallest, none)
        if np.array_equal(spread, groups):
            return np.where(is_member, groups, 0)
        groups = spread


def best_first(found: Found, geometry: FrameGeometry, max_boxes: int | None) -> Found:
    """The labels (n,), scores (n,) and boxes (n, 4) float32 in original pixels, highest score first.

    Boxes wholly in the padding are left out, and so is what comes after the `max_boxes` best of a phrase.
    """
    labels, scores, boxes_fraction = found
    boxes, is_inside = boxes_in_image(boxes_fraction, geometry)
    order = np.argsort(-scores, kind="stable")
    order = order[is_inside[order]]
    is_kept = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        is_kept[order[labels[order] == label][:max_boxes]] = True
    order = order[is_kept[order]]
    return labels[order], scores[order].astype(np.float32), boxes[order]


def check_grounding(
    outputs: Any, source: str, threshold: float, box_threshold: float, heat_share: float, max_boxes: int | None
) -> None:
    """None; a ValueError for a setting of `post_process_grounding` out of its range, or outputs of another call."""
    if source not in GROUNDING_SOURCES:
        raise ValueError(
            f"source is {source!r}; it must be 'proposals' (boxes that the model proposes) or 'heat' (hot patches)."
        )
    wanted = "heat" if source == "heat" else "phrase_similarity"
    if getattr(outputs, wanted, None) is None:
        raise ValueError(
            f"outputs is a {type(outputs).__name__} without {wanted}; give what model.ground_phrases(...) returns."
        )
    ranges = {"threshold": (threshold, -1), "box_threshold": (box_threshold, 0), "heat_share": (heat_share, 0)}
    for name, (value, low) in ranges.items():
        if not isinstance(value, Real) or not low <= value <= 1:
            raise ValueError(f"{name} is {value!r}; it must lie in [{low}, 1].")
    if max_boxes is not None and max_boxes < 1:
        raise ValueError(f"max_boxes is {max_boxes}; it must be at least 1, or None for all boxes of a phrase.")


def check_region_outputs(outputs: Any, region_boxes: Any, region_mask: Any) -> None:
    """None; a ValueError for outputs without region logits, or regions that are not those the logits are of."""
    logits = getattr(outputs, "logits_per_region", None)
    if logits is None:
        raise ValueError(
            f"outputs is a {type(outputs).__name__} without logits_per_region; give what the model answers to a call "
            "with regions and candidate texts: processor(images=..., boxes=..., region_text=[...])."
        )
    for name, values in (("region_boxes", region_boxes), ("region_mask", region_mask)):
        if values is not None and tuple(values.shape[:2]) != tuple(logits.shape[:2]):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)} and logits_per_region {tuple(logits.shape)}; both must begin "
                "with (images, regions). Give the regions of the same call."
            )
