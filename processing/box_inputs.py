"""Boxes and points as users give them -> checked boxes and points in original pixels.

Boxes follow the convention at the head of `region_boxes.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .region_boxes import to_numpy

BOX_FORMATS = ("xyxy", "xywh", "cxcywh_fraction")
OUTSIDE_TOLERANCE_PX = 0.5  # annotation files round; a box may pass the border by this much and is then clipped to it
MIN_SIDE_FRACTION, MIN_SIDE_PX = 1e-6, 1e-3  # thinner sides cannot be told from zero in float32 fractions
MIN_PICTURE_SIDE = 8  # pixels; smaller than that, boxes of less than a pixel may be meant


def pixel_boxes(boxes: Any, box_format: str, image_size: tuple[int, int], image_index: int = 0) -> np.ndarray:
    """(R, 4) float64 boxes (x0, y0, x1, y1) in original pixels, checked, and clipped to the image.

    Args:
        boxes: R boxes of one image as a list, an array or a tensor; empty for an image without regions.
        box_format: "xyxy" or "xywh" in original pixels, or "cxcywh_fraction" (YOLO) in fractions of the original image.
        image_size: (width, height) of the original image in pixels.
        image_index: place of the image in the batch, for messages.

    Raises:
        ValueError: for a box of the wrong shape, not finite, inverted or empty, or outside the image.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format {box_format!r} is not known; it must be one of {', '.join(BOX_FORMATS)}.")
    rows = _number_rows(boxes, 4, "box", image_index)
    for j in np.flatnonzero(~np.isfinite(rows).all(axis=1)):
        raise ValueError(
            f"image {image_index}, region {j}: box {_show(rows[j])} ({box_format}) is not finite; all four numbers "
            "must be. Drop the region, or repair its source."
        )
    converted = _to_xyxy(rows, box_format, image_size)
    width, height = image_size
    low, high = -OUTSIDE_TOLERANCE_PX, np.array([width, height]) + OUTSIDE_TOLERANCE_PX
    for j, (row, box) in enumerate(zip(rows, converted, strict=True)):
        item = f"image {image_index}, region {j}: box {_show(row)} ({box_format})"
        if not (box[2:] > box[:2]).all():
            raise ValueError(
                f"{item} is inverted or empty; x1 must exceed x0 and y1 must exceed y0 (as xyxy it is {_show(box)}). "
                f"If these numbers mean something else, name it: box_format is one of {', '.join(BOX_FORMATS)}."
            )
        if (box[:2] < low).any() or (box[2:] > high).any():
            raise ValueError(
                f"{item} lies outside the image of {width} x {height} pixels (as xyxy it is {_show(box)}); a box must "
                "lie inside it. Clip the box, or give it in pixels of this original image, before any resizing."
            )
    _warn_of_fractions(rows, converted, box_format, image_size, image_index)
    clipped = np.clip(converted, 0.0, np.array([width, height, width, height], dtype=np.float64))
    min_side_px = max(MIN_SIDE_FRACTION * max(width, height), MIN_SIDE_PX)
    for j in np.flatnonzero(((clipped[:, 2:] - clipped[:, :2]) < min_side_px).any(axis=1)):
        raise ValueError(
            f"image {image_index}, region {j}: box {_show(rows[j])} ({box_format}) has no area inside the image of "
            f"{width} x {height} pixels; each side must be at least {min_side_px:g} pixels. Use `points` for a "
            "position without extent."
        )
    return clipped


def pixel_points(points: Any, image_size: tuple[int, int], image_index: int = 0) -> np.ndarray:
    """(R, 2) float64 points (x, y) in original pixels of one image, checked to lie inside it.

    Raises:
        ValueError: for a point of the wrong shape, not finite, or outside the image.
    """
    rows = _number_rows(points, 2, "point", image_index)
    for j, row in enumerate(rows):
        item = f"image {image_index}, region {j}: point {_show(row)}"
        if not np.isfinite(row).all():
            raise ValueError(f"{item} is not finite; x and y must be. Drop the point, or repair its source.")
        if (row < 0).any() or (row >= np.array(image_size)).any():
            raise ValueError(
                f"{item} lies outside the image of {image_size[0]} x {image_size[1]} pixels; 0 <= x < width and 0 <= y "
                "< height must hold. Give points as (x, y) in pixels of the original image."
            )
    return rows


def _warn_of_fractions(
    rows: np.ndarray, converted: np.ndarray, box_format: str, image_size: tuple[int, int], image_index: int
) -> None:
    """Nothing; a warning where boxes in pixels all lie within the first pixel of a picture, as fractions would."""
    if box_format == "cxcywh_fraction" or not len(rows) or min(image_size) < MIN_PICTURE_SIDE:
        return
    is_within_a_pixel = converted.min() >= 0 and converted.max() <= 1
    if is_within_a_pixel and (converted[:, 2:] - converted[:, :2]).min() < 0.99:
        warnings.warn(
            f"image {image_index}: all boxes lie within its first pixel, for instance {_show(rows[0])} ({box_format}); "
            "they were taken as pixels. If they are fractions, multiply them by the width and height of the image.",
            stacklevel=6,
        )


def _number_rows(values: Any, num_columns: int, what: str, image_index: int) -> np.ndarray:
    """(R, num_columns) float64; the first row of another shape, or not made of numbers, is named in a ValueError."""
    rows = values if isinstance(values, Sequence) and not isinstance(values, str) else to_numpy(values)
    plural = what + ("es" if what == "box" else "s")
    if isinstance(rows, np.ndarray) and rows.ndim != 2 and rows.size:
        raise ValueError(f"image {image_index}: {plural} have shape {rows.shape}; it must be (regions, {num_columns}).")
    checked = []
    for j, row in enumerate(rows):
        try:
            numbers = to_numpy(row)
            has_truth = isinstance(row, Sequence) and any(isinstance(one, (bool, np.bool_)) for one in row)
            is_numeric = numbers.dtype.kind in "iufO" and not has_truth
            numbers = numbers.astype(np.float64) if is_numeric else np.empty(0)
        except (TypeError, ValueError, OverflowError):  # the last of a whole number that no float64 can hold
            numbers = np.empty(0)
        if numbers.shape != (num_columns,):
            raise ValueError(
                f"image {image_index}, region {j}: {what} {row!r:.200} must be {num_columns} numbers. Give one list of "
                f"{num_columns}-number {plural} per image."
            )
        checked.append(numbers)
    return np.stack(checked) if checked else np.zeros((0, num_columns))


def _to_xyxy(rows: np.ndarray, box_format: str, image_size: tuple[int, int]) -> np.ndarray:
    """The rows (R, 4) in original pixels as (x0, y0, x1, y1)."""
    if box_format == "xyxy":
        return rows
    if box_format == "xywh":
        return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1)
    size = np.array(image_size, dtype=np.float64)
    centres, halves = rows[:, :2] * size, rows[:, 2:] * size / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def _show(numbers: np.ndarray) -> str:
    """The numbers as a short tuple for a message."""
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"
