"""A region box is (x0, y0, x1, y1): x runs right and y runs down from the top-left corner of the image, and a box is
half-open, so it covers x0 <= x < x1 and y0 <= y < y1 and its width is x1 - x0. In original pixels the unit is one pixel
of the image as displayed (after its EXIF orientation was applied), pixel column k being the interval [k, k + 1). In the
model frame, the square that the model sees after resizing and padding, the unit is the whole frame: `region_boxes` are
fractions in [0, 1] of the frame's width and height. This paragraph is the only place that states the convention.

The conversions live here too: original pixels to frame fractions and back (`FrameGeometry`), and regions of any kind to
coverage, the share of each patch that a region covers. A mask travels as shares as well: in the frame it is the share
of every frame pixel that it covers, which keeps outlines that fall between frame pixels; on the way back a pixel
belongs to it where the share, read at the pixel's centre, is at least half. What users give is checked in
`box_inputs.py` and `mask_inputs.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

ROUNDING_FRACTION = 1e-9  # of the frame: what float64 may be off by


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
    def centred(
        cls,
        original: tuple[int, int],
        resized: tuple[int, int],
        frame: tuple[int, int],
        rounding: Callable[[float], int] = math.floor,
    ) -> FrameGeometry:
        """The resized image in the middle of the frame.

        Args:
            rounding: of half a pixel, where an odd number is cut off; down, the rest goes to the right and bottom.
        """
        offset = (-rounding((resized[0] - frame[0]) / 2), -rounding((resized[1] - frame[1]) / 2))
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
        boxes = to_numpy(boxes_pixel_xyxy).astype(np.float64).reshape(-1, 4)
        return ((boxes * scale + offset) / frame).astype(np.float32)

    def frame_fractions_to_boxes(self, boxes_fraction_xyxy: Any) -> np.ndarray:
        """(R, 4) float64 boxes in original pixels, clipped to the image: what lay in the padding is cut away.

        Args:
            boxes_fraction_xyxy: (R, 4) fractions of the model frame.
        """
        scale, offset, frame = self._affine()
        boxes = (to_numpy(boxes_fraction_xyxy).astype(np.float64).reshape(-1, 4) * frame - offset) / scale
        return np.clip(boxes, 0.0, np.array(self.original * 2, dtype=np.float64))

    def points_to_frame_fractions(self, points_px: Any) -> np.ndarray:
        """(R, 2) float64 fractions (x, y) of the model frame; outside [0, 1) only where the geometry crops.

        Args:
            points_px: (R, 2) points (x, y) in original pixels, already checked (`pixel_points`).
        """
        scale, offset, frame = (values[:2] for values in self._affine())
        return (to_numpy(points_px).astype(np.float64).reshape(-1, 2) * scale + offset) / frame

    def frame_fractions_to_points(self, points_fraction: Any) -> np.ndarray:
        """(R, 2) float64 points (x, y) in original pixels; one in the padding moves to the nearest edge of the image.

        Args:
            points_fraction: (R, 2) fractions of the model frame.
        """
        scale, offset, frame = (values[:2] for values in self._affine())
        points = (to_numpy(points_fraction).astype(np.float64).reshape(-1, 2) * frame - offset) / scale
        return np.clip(points, 0.0, np.nextafter(np.array(self.original, dtype=np.float64), 0.0))  # x < width holds

    def masks_to_frame(self, masks: Any) -> np.ndarray:
        """(R, frame height, frame width) float32: the share of each frame pixel that each mask covers.

        Args:
            masks: (R, H, W) bool in original pixels.
        """
        width, height = self.frame
        return mask_coverage(_stack_of(masks, self.original, "original image"), self, (height, width))

    def masks_from_frame(self, frame_masks: Any, threshold: float = 0.5) -> np.ndarray:
        """(R, H, W) bool masks in original pixels: where the bilinear share at a pixel's centre reaches `threshold`.

        Outlines come back to a tenth of a frame pixel if `frame_masks` holds shares (`masks_to_frame`), to half of one
        if it holds 0 and 1. Structures much thinner than a frame pixel are lost, and so is what was cropped away.

        Args:
            frame_masks: (R, frame height, frame width), bool or shares in [0, 1].
            threshold: above 0, at most 1.
        """
        shares = _stack_of(frame_masks, self.frame, "model frame")
        along_x = _bilinear_weights(*self.along_axis(0), self.frame[0])
        along_y = _bilinear_weights(*self.along_axis(1), self.frame[1])
        masks = np.zeros((len(shares), self.original[1], self.original[0]), dtype=bool)
        for j, (share, (x0, y0, x1, y1)) in enumerate(zip(shares, mask_boxes(shares > 0).astype(int), strict=True)):
            columns = self.pixels_between(0, x0 - 1, x1 + 1)  # a share reaches as far as the next frame pixel
            rows = self.pixels_between(1, y0 - 1, y1 + 1)
            part = share[y0:y1, x0:x1].astype(np.float32)
            masks[j, rows, columns] = along_y[rows, y0:y1] @ part @ along_x[columns, x0:x1].T >= threshold
        return masks

    def pixels_between(self, axis: int, low: float, high: float) -> slice:
        """The original pixels of which a part lies between two frame pixel positions along x (axis 0) or y (axis 1)."""
        num_pixels, scale, offset, _ = self.along_axis(axis)
        first = max(0, int(np.floor((low - offset) / scale + ROUNDING_FRACTION)))
        return slice(first, max(first, min(num_pixels, int(np.ceil((high - offset) / scale - ROUNDING_FRACTION)))))

    def visible_pixels(self) -> tuple[slice, slice]:
        """(rows, columns) of the original image of which at least a part lies inside the frame."""
        return self.pixels_between(1, 0, self.frame[1]), self.pixels_between(0, 0, self.frame[0])


def clip_to_frame(boxes_fraction_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (R, 4) clipped to the frame [0, 1], and (R,) bool: False where nothing of the box is left in it."""
    clipped = np.clip(boxes_fraction_xyxy, 0.0, 1.0)
    is_visible = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped, is_visible


def to_numpy(values: Any) -> np.ndarray:
    """The values as a numpy array, also from a tensor on any device and of any floating type."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


# ---- coverage


def _stack_of(masks: Any, size: tuple[int, int], of_what: str) -> np.ndarray:
    """The masks as an array (R, height, width); a ValueError where that is not the (width, height) they must have."""
    stack = to_numpy(masks)
    if stack.ndim != 3 or stack.shape[1:] != (size[1], size[0]) or stack.dtype.kind not in "bf":
        raise ValueError(
            f"masks have shape {stack.shape} and type {stack.dtype}; they must be bool, or floating shares in [0, 1], "
            f"of shape (regions, height, width) = (R, {size[1]}, {size[0]}), the size of the {of_what}. Give one mask "
            "as mask[None]; read other forms by `mask_inputs.decode_masks`."
        )
    return stack


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
        masks: (R, H, W) in original pixels: bool (`mask_inputs.decode_masks`), or the share of each pixel.
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


def frame_mask_coverage(frame_masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Share of each patch that each mask in the frame covers: the mean over the patch.

    Args:
        frame_masks: (R, frame height, frame width), bool or shares (`FrameGeometry.masks_to_frame`).
        grid: (h, w) patches of the frame; they must divide it.

    Returns:
        (R, h, w) float32 in [0, 1].
    """
    num_regions, height, width = frame_masks.shape
    blocks = frame_masks.reshape(num_regions, grid[0], height // grid[0], grid[1], width // grid[1])
    return blocks.mean(axis=(2, 4), dtype=np.float32)


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
    centres = geometry.points_to_frame_fractions(points_px)
    halves = patch_size / 2 / np.array(geometry.frame, dtype=np.float64)
    boxes, _ = clip_to_frame(np.concatenate([centres - halves, centres + halves], axis=1).astype(np.float32))
    is_inside = (centres > -ROUNDING_FRACTION) & (centres < 1 + ROUNDING_FRACTION)
    return boxes, is_inside.all(axis=1)


# ---- back to pixels


def heat_to_pixels(heat: np.ndarray, geometry: FrameGeometry) -> np.ndarray:
    """Patch maps (..., h, w) read at the centre of every original pixel by bilinear interpolation.

    Returns:
        (..., H, W) float32 in original pixels, padding removed; NaN where the geometry cropped the image away.
    """
    along_x = _bilinear_weights(*geometry.along_axis(0), heat.shape[-1])
    along_y = _bilinear_weights(*geometry.along_axis(1), heat.shape[-2])
    return along_y @ np.asarray(heat, dtype=np.float32) @ along_x.T


def _bilinear_weights(num_pixels: int, scale: float, offset: float, frame_px: int, num_cells: int) -> np.ndarray:
    """(num_pixels, num_cells) float32 weights of the two nearest cell centres; NaN rows outside the frame.

    Cells wholly in the padding have no weight: the image's border takes nothing from beyond it.
    """
    centres = ((np.arange(num_pixels) + 0.5) * scale + offset) / frame_px  # fractions of the frame
    first = max(0, int(np.floor(offset / frame_px * num_cells + ROUNDING_FRACTION)))
    end = min(num_cells, int(np.ceil((offset + num_pixels * scale) / frame_px * num_cells - ROUNDING_FRACTION)))
    position = np.clip(centres * num_cells - 0.5, first, end - 1)
    weights = np.clip(1 - np.abs(position[:, None] - np.arange(num_cells)), 0, 1).astype(np.float32)
    weights[(centres < 0) | (centres > 1)] = np.nan
    return weights
