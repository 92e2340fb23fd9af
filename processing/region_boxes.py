"""A region box is (x0, y0, x1, y1): x runs right and y runs down from the top-left corner of the image, and a box is
half-open, so it covers x0 <= x < x1 and y0 <= y < y1 and its width is x1 - x0. In original pixels the unit is one pixel
of the image as displayed (after its EXIF orientation was applied), pixel column k being the interval [k, k + 1). In the
model frame, the square that the model sees after resizing and padding, the unit is the whole frame: `region_boxes` are
fractions in [0, 1] of the frame's width and height. This paragraph is the only place that states the convention.

Every conversion lives here too: box formats to checked pixel boxes, original pixels to frame fractions and back
(`FrameGeometry`), and regions of any kind to coverage, the share of each patch that a region covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

BOX_FORMATS = ("xyxy", "xywh", "cxcywh_fraction")
OUTSIDE_TOLERANCE_PX = 0.5  # annotation files round; a box may pass the border by this much and is then clipped to it
MIN_SIDE_FRACTION = 1e-6  # a side thinner than this share of the image cannot be told from zero in float32


@dataclass(frozen=True, slots=True)
class FrameGeometry:
    """How one image lies in the model frame: it was resized to `resized` and put with its corner at `offset`.

    All sizes are (width, height) in pixels. `offset` is (x, y) in frame pixels: positive where the image was padded,
    negative where it was cropped.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    frame: tuple[int, int]

    @classmethod
    def centred(cls, original: tuple[int, int], resized: tuple[int, int], frame: tuple[int, int]) -> FrameGeometry:
        """The resized image in the middle of the frame; an odd rest goes to the right and to the bottom of a crop."""
        offset = (-((resized[0] - frame[0]) // 2), -((resized[1] - frame[1]) // 2))
        return cls(tuple(original), tuple(resized), offset, tuple(frame))

    @classmethod
    def padded(cls, original: tuple[int, int], frame: tuple[int, int]) -> FrameGeometry:
        """The whole image, aspect ratio kept, as large as it fits, in the middle of the frame; no side is ever 0."""
        width, height = original
        scale = min(frame[0] / width, frame[1] / height)
        resized = (max(1, min(frame[0], round(width * scale))), max(1, min(frame[1], round(height * scale))))
        return cls.centred(original, resized, frame)

    @property
    def scale_x(self) -> float:
        """Frame pixels per original pixel along x."""
        return self.resized[0] / self.original[0]

    @property
    def scale_y(self) -> float:
        """Frame pixels per original pixel along y."""
        return self.resized[1] / self.original[1]

    @property
    def offset_x(self) -> int:
        """Frame x of the image's left edge."""
        return self.offset[0]

    @property
    def offset_y(self) -> int:
        """Frame y of the image's top edge."""
        return self.offset[1]

    def along_axis(self, axis: int) -> tuple[int, float, int, int]:
        """(original pixels, frame pixels per original pixel, offset, frame pixels) along x (axis 0) or y (axis 1)."""
        return self.original[axis], self.resized[axis] / self.original[axis], self.offset[axis], self.frame[axis]

    def _affine(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scale, offset and frame size, each (4,) float64, for boxes (x0, y0, x1, y1)."""
        scale = np.array([self.scale_x, self.scale_y] * 2)
        return scale, np.array(self.offset * 2, dtype=np.float64), np.array(self.frame * 2, dtype=np.float64)

    def boxes_to_frame_fractions(self, boxes_pixel_xyxy: Any) -> np.ndarray:
        """(R, 4) float32 fractions of the model frame; beyond [0, 1] only where the geometry crops (`clip_to_frame`).

        Args:
            boxes_pixel_xyxy: (R, 4) boxes in original pixels, already checked (`pixel_boxes`).
        """
        scale, offset, frame = self._affine()
        boxes = np.asarray(boxes_pixel_xyxy, dtype=np.float64).reshape(-1, 4)
        return ((boxes * scale + offset) / frame).astype(np.float32)

    def frame_fractions_to_boxes(self, boxes_fraction_xyxy: Any) -> np.ndarray:
        """(R, 4) float64 boxes in original pixels, clipped to the image: what lay in the padding is cut away.

        Args:
            boxes_fraction_xyxy: (R, 4) fractions of the model frame.
        """
        scale, offset, frame = self._affine()
        boxes = (np.asarray(boxes_fraction_xyxy, dtype=np.float64).reshape(-1, 4) * frame - offset) / scale
        return np.clip(boxes, 0.0, np.array(self.original * 2, dtype=np.float64))

    def visible_pixels(self) -> tuple[slice, slice]:
        """(rows, columns) of the original image of which at least a part lies inside the frame."""
        slices = []
        for axis in (1, 0):
            num_pixels, scale, offset, frame_px = self.along_axis(axis)
            first = max(0, int(np.floor(-offset / scale + 1e-9)))
            slices.append(slice(first, min(num_pixels, int(np.ceil((frame_px - offset) / scale - 1e-9)))))
        return slices[0], slices[1]


def clip_to_frame(boxes_fraction_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (R, 4) clipped to the frame [0, 1], and (R,) bool: False where nothing of the box is left in it."""
    clipped = np.clip(boxes_fraction_xyxy, 0.0, 1.0)
    is_visible = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped, is_visible


# ---- checked user input -> original pixels


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
    converted = _to_xyxy(rows, box_format, image_size)
    width, height = image_size
    low, high = -OUTSIDE_TOLERANCE_PX, np.array([width, height]) + OUTSIDE_TOLERANCE_PX
    for j, (row, box) in enumerate(zip(rows, converted, strict=True)):
        item = f"image {image_index}, region {j}: box {_show(row)} ({box_format})"
        if not np.isfinite(row).all():
            raise ValueError(f"{item} is not finite; all four numbers must be. Drop the region, or repair its source.")
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
    clipped = np.clip(converted, 0.0, np.array([width, height, width, height], dtype=np.float64))
    is_thin = ((clipped[:, 2:] - clipped[:, :2]) < MIN_SIDE_FRACTION * max(width, height)).any(axis=1)
    if is_thin.any():
        j = int(np.flatnonzero(is_thin)[0])
        raise ValueError(
            f"image {image_index}, region {j}: box {_show(rows[j])} ({box_format}) has no area inside the image of "
            f"{width} x {height} pixels; each side must be at least {MIN_SIDE_FRACTION:g} of it. Use `points` for a "
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


def check_masks(masks: Any, image_size: tuple[int, int], image_index: int = 0) -> np.ndarray:
    """(R, H, W) bool masks of one image, checked to have the size of the image and at least one pixel each.

    Args:
        masks: (R, H, W) array, tensor, or list of (H, W); bool, or numbers that are all 0 or 1, or all 0 or 255.
        image_size: (width, height) of the original image in pixels.
        image_index: place of the image in the batch, for messages.
    """
    width, height = image_size
    item = f"image {image_index}: masks"
    arrays = [_to_numpy(mask) for mask in masks] if isinstance(masks, (list, tuple)) else _to_numpy(masks)
    shapes = {array.shape for array in arrays} if isinstance(arrays, list) else set()
    if len(shapes) > 1:
        raise ValueError(f"{item} have different shapes {sorted(shapes)}; all must be (height, width) of the image.")
    array = np.asarray(arrays)
    if array.size == 0:
        return np.zeros((0, height, width), dtype=bool)
    if array.ndim != 3 or array.shape[1:] != (height, width):
        raise ValueError(
            f"{item} have shape {array.shape}; it must be (regions, height, width) = (R, {height}, {width}), the size "
            "of the original image. Give one mask as mask[None]; resize a mask of another size to the image first."
        )
    if array.dtype != bool:
        array = _binary(array, item)
    is_empty = ~array.any(axis=(1, 2))
    if is_empty.any():
        j = int(np.flatnonzero(is_empty)[0])
        raise ValueError(f"image {image_index}, region {j}: the mask has no pixel set; drop the region, it is nowhere.")
    return array


def _binary(array: np.ndarray, item: str) -> np.ndarray:
    """The masks as bool, if their numbers are only 0 and 1, or only 0 and 255."""
    top = array.max()
    if top not in (0, 1, 255) or not ((array == 0) | (array == top)).all():
        raise ValueError(
            f"{item} are {array.dtype} with values up to {top}; they must be bool, or only 0 and 1, or only 0 and 255. "
            "Split a label map into one mask per region: np.stack([label_map == k for k in np.unique(label_map)[1:]])."
        )
    return array != 0


def _to_numpy(values: Any) -> np.ndarray:
    """The values as a numpy array, also from a tensor on any device and of any floating type."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def _number_rows(values: Any, num_columns: int, what: str, image_index: int) -> np.ndarray:
    """(R, num_columns) float64; the first row of another shape, or not made of numbers, is named in a ValueError."""
    rows = values if isinstance(values, Sequence) and not isinstance(values, str) else _to_numpy(values)
    plural = what + ("es" if what == "box" else "s")
    if isinstance(rows, np.ndarray) and rows.ndim != 2 and rows.size:
        raise ValueError(f"image {image_index}: {plural} have shape {rows.shape}; it must be (regions, {num_columns}).")
    checked = []
    for j, row in enumerate(rows):
        try:
            numbers = np.asarray(_to_numpy(row), dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if numbers.shape != (num_columns,):
            raise ValueError(
                f"image {image_index}, region {j}: {what} {row!r} must be {num_columns} numbers. Give one list of "
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


# ---- coverage


def box_coverage(boxes_fraction_xyxy: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Share of each patch that each box covers: the product of the overlaps along x and y, exact for any box.

    Args:
        boxes_fraction_xyxy: (R, 4) fractions of the model frame.
        grid: (h, w) patches of the frame.

    Returns:
        (R, h, w) float32 in [0, 1].
    """
    boxes = np.asarray(boxes_fraction_xyxy, dtype=np.float64).reshape(-1, 4)
    height, width = grid
    along_x = _overlap(boxes[:, 0], boxes[:, 2], width)
    along_y = _overlap(boxes[:, 1], boxes[:, 3], height)
    return (along_y[:, :, None] * along_x[:, None, :]).astype(np.float32)  # (R, h, w): a box is separable


def _overlap(starts: np.ndarray, ends: np.ndarray, num_cells: int) -> np.ndarray:
    """(R, num_cells) share of each of the equal cells of [0, 1] that [start, end) covers."""
    cells = np.arange(num_cells)
    low = np.maximum(starts[:, None] * num_cells, cells)
    high = np.minimum(ends[:, None] * num_cells, cells + 1)
    return np.clip(high - low, 0.0, 1.0)


def mask_coverage(masks: np.ndarray, geometry: FrameGeometry, grid: tuple[int, int]) -> np.ndarray:
    """Share of each patch that each mask covers, by area, without resizing the mask: Wy @ mask @ Wx^T.

    Args:
        masks: (R, H, W) bool in original pixels (`check_masks`).
        geometry: how the image lies in the frame.
        grid: (h, w) patches of the frame.

    Returns:
        (R, h, w) float32 in [0, 1]; all zero for a mask that the geometry crops away.
    """
    along_x = _pixel_weights(*geometry.along_axis(0), grid[1])
    along_y = _pixel_weights(*geometry.along_axis(1), grid[0])
    coverage = np.zeros((len(masks), *grid), dtype=np.float32)
    for j, (mask, (x0, y0, x1, y1)) in enumerate(zip(masks, mask_boxes(masks).astype(int), strict=True)):
        part = mask[y0:y1, x0:x1].astype(np.float32)  # lesions are small: only their own pixels are multiplied
        coverage[j] = along_y[:, y0:y1] @ part @ along_x[:, x0:x1].T
    return np.clip(coverage, 0.0, 1.0)


def _pixel_weights(num_pixels: int, scale: float, offset: float, frame_px: int, num_patches: int) -> np.ndarray:
    """(num_patches, num_pixels) float32 share of each patch, along one axis, that each original pixel covers."""
    starts = np.arange(num_pixels) * scale + offset
    return _overlap(starts / frame_px, (starts + scale) / frame_px, num_patches).T.astype(np.float32)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """(R, 4) float64 tight boxes, in original pixels, of masks (R, H, W) bool; (0, 0, 0, 0) for an empty mask."""
    boxes = np.zeros((len(masks), 4))
    for j, mask in enumerate(masks):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if len(columns):
            boxes[j] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def point_boxes(points_px: np.ndarray, geometry: FrameGeometry, patch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Square of one patch centred on each point, as fractions (R, 4) float32 clipped to the frame, and its visibility.

    Args:
        points_px: (R, 2) points (x, y) in original pixels (`pixel_points`).
        geometry: how the image lies in the frame.
        patch_size: side of a patch in frame pixels.

    Returns:
        boxes (R, 4) float32, and (R,) bool: False where the point itself is cropped away.
    """
    points = np.asarray(points_px, dtype=np.float64).reshape(-1, 2)
    centres = geometry.boxes_to_frame_fractions(np.concatenate([points, points], axis=1))
    half = np.tile(patch_size / 2 / np.array(geometry.frame, dtype=np.float64), 2) * [-1, -1, 1, 1]
    boxes, _ = clip_to_frame((centres + half).astype(np.float32))
    return boxes, ((centres[:, :2] >= 0) & (centres[:, :2] < 1)).all(axis=1)


# ---- back to pixels


def heat_to_pixels(heat: np.ndarray, geometry: FrameGeometry) -> np.ndarray:
    """A patch map (h, w) read at the centre of every original pixel by bilinear interpolation.

    Returns:
        (H, W) float32 in original pixels, padding removed; NaN where the geometry cropped the image away.
    """
    along_x = _bilinear_weights(*geometry.along_axis(0), heat.shape[1])
    along_y = _bilinear_weights(*geometry.along_axis(1), heat.shape[0])
    return along_y @ np.asarray(heat, dtype=np.float32) @ along_x.T


def _bilinear_weights(num_pixels: int, scale: float, offset: float, frame_px: int, num_cells: int) -> np.ndarray:
    """(num_pixels, num_cells) float32 weights of the two nearest cell centres; NaN rows outside the frame."""
    centres = ((np.arange(num_pixels) + 0.5) * scale + offset) / frame_px  # fractions of the frame
    position = np.clip(centres * num_cells - 0.5, 0, num_cells - 1)
    weights = np.clip(1 - np.abs(position[:, None] - np.arange(num_cells)), 0, 1).astype(np.float32)
    weights[(centres < 0) | (centres > 1)] = np.nan
    return weights
