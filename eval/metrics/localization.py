"""Localization metrics of a heat map against the region that a phrase names: contrast, pointing, overlap.

Heat maps are (H, W) float, any scale, larger = more of the phrase; NaN marks pixels that the model never saw (outside
of its crop), which count as neither inside nor outside and are never pointed at. Regions are (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regionmed_clip.eval.metrics.boxes import box_recall

__all__ = [
    "OVERLAP_THRESHOLDS",
    "absolute_contrast_to_noise_ratio",
    "box_recall",
    "contrast_to_noise_ratio",
    "heat_ious",
    "mask_iou",
    "pointing_game_hit",
]

OVERLAP_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)  # of a cosine map; BioViL's mIoU is the mean over them


def contrast_to_noise_ratio(heat: np.ndarray, is_inside: np.ndarray) -> float:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside); negative where the heat lies outside.

    0 of a map that is constant; infinite of a map that is exactly the region. `absolute_contrast_to_noise_ratio` is
    the form that was published first, which rewards a map lit everywhere but on the region.
    """
    inside, outside = _split_heat(heat, is_inside)
    difference = float(inside.mean() - outside.mean())
    noise = float(np.sqrt(inside.var() + outside.var()))
    if noise == 0.0:
        return 0.0 if difference == 0.0 else float(np.copysign(np.inf, difference))
    return difference / noise


def absolute_contrast_to_noise_ratio(heat: np.ndarray, is_inside: np.ndarray) -> float:
    """|`contrast_to_noise_ratio`|, the form of BioViL. Source: arXiv:2204.09817."""
    return abs(contrast_to_noise_ratio(heat, is_inside))


def pointing_game_hit(heat: np.ndarray, is_inside: np.ndarray, tolerance_px: float = 0) -> bool:
    """Whether the hottest pixel lies in the region or within `tolerance_px` (between pixel centres) of it.

    Of several hottest pixels all must, so a constant map gets no credit. Source: arXiv:1608.00507
    (with 15 pixels of tolerance on photographs).
    """
    _split_heat(heat, is_inside)
    is_hottest = heat == np.nanmax(heat)
    return bool(_grown(is_inside, tolerance_px)[is_hottest].all())


def mask_iou(mask: np.ndarray, other: np.ndarray) -> float:
    """Pixels in both over pixels in either of two (H, W) bool masks; 1 where both are empty: none there, none said."""
    _check_shapes(mask, other)
    union = int(np.count_nonzero(mask | other))
    return int(np.count_nonzero(mask & other)) / union if union else 1.0


def heat_ious(
    heat: np.ndarray, is_inside: np.ndarray, thresholds: Sequence[float] | np.ndarray = OVERLAP_THRESHOLDS
) -> np.ndarray:
    """(T,) float64: `mask_iou` of the pixels with heat >= threshold and the region, for every threshold (T,)."""
    inside, outside = (np.sort(part) for part in _split_heat(heat, is_inside))
    hits, false = (len(part) - np.searchsorted(part, thresholds, side="left") for part in (inside, outside))
    return hits / (len(inside) + false)


def _split_heat(heat: np.ndarray, is_inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((I,), (O,)) float64 heat of the seen pixels inside and outside; ValueError where either is empty."""
    _check_shapes(heat, is_inside)
    is_seen = ~np.isnan(heat)
    inside, outside = (heat[is_seen & part].astype(np.float64) for part in (is_inside, ~is_inside))
    if len(inside) == 0 or len(outside) == 0:
        raise ValueError(
            f"the region holds {len(inside)} of {int(is_seen.sum())} pixels with heat; at least one must lie inside "
            "and one outside. Leave this phrase out, and say so."
        )
    return inside, outside


def _grown(is_inside: np.ndarray, tolerance_px: float) -> np.ndarray:
    """(H, W) bool: pixels within the distance of a region's pixel; row by row, as a disc is a stack of runs."""
    grown = is_inside.copy()
    height, width = is_inside.shape
    sums = np.concatenate([np.zeros((height, 1), np.int64), np.cumsum(is_inside, axis=1)], axis=1)
    most = min(int(tolerance_px), height - 1)  # rows
    for dy in range(-most, most + 1):
        reach = int(np.sqrt(tolerance_px**2 - dy**2))
        low = np.clip(np.arange(width) - reach, 0, width)
        high = np.clip(np.arange(width) + reach + 1, 0, width)
        has_any = sums[:, high] > sums[:, low]  # (H, W): a region's pixel within reach in this row
        if dy >= 0:
            grown[dy:] |= has_any[: height - dy]
        else:
            grown[:dy] |= has_any[-dy:]
    return grown


def _check_shapes(first: np.ndarray, second: np.ndarray) -> None:
    """None; ValueError where two maps differ in shape, or the second is not bool."""
    if first.shape != second.shape or second.dtype != bool:
        raise ValueError(
            f"maps are {first.shape} and {second.shape} {second.dtype}; they need one (H, W) shape, the region bool. "
            "Resize the heat map to the image first."
        )
