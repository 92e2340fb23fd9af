"""Crops and flips of the model frame that carry its regions with them.

They act on what the processor has brought into the frame: uint8 frames, boxes and points as fractions of it (the
convention stands at the head of `region_boxes.py`), masks and coverage as shares of its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from .region_boxes import ROUNDING_FRACTION, clip_to_frame, to_numpy

MIN_CROP_SIDE = 1e-6  # of the frame: the boxes of narrower crops are lost in float32
WHOLE = (0.0, 0.0, 1.0, 1.0)
Values = TypeVar("Values", np.ndarray, torch.Tensor)


@dataclass(frozen=True, slots=True)
class FrameAugmentation:
    """The part `crop` of the frame fills the new frame, then it may be mirrored.

    Maps compose (`then`) and have an `inverse`: a crop's inverse shows a window larger than the frame, where all that
    lies outside is black and no region. Everything is exact in float64 but for the resampling of frames and masks.

    A flip makes texts false. `flip_x` swaps left and right: with `swaps_sides` either refuse the augmentation for
    images whose texts name a side or a place, or swap these words in the texts. `flip_y` does the same to upper and
    lower. One flip without the other also shows the mirror image of the anatomy, the heart or the liver on the wrong
    side. A crop moves places that are meant in the image frame ("upper left"), and may cut off what an image-level text
    speaks of.

    Args:
        crop: (x0, y0, x1, y1) in fractions of the frame; may exceed it.
        flip_x: mirror left and right after cropping.
        flip_y: mirror top and bottom after cropping.

    Raises:
        ValueError: for a crop that is not four finite numbers with x1 > x0 and y1 > y0.
    """

    crop: tuple[float, float, float, float] = WHOLE
    flip_x: bool = False
    flip_y: bool = False

    def __post_init__(self) -> None:
        crop = np.asarray(self.crop)
        is_numbers = crop.shape == (4,) and crop.dtype.kind in "iuf" and np.isfinite(crop).all()
        if not is_numbers or (crop[2:] - crop[:2] < MIN_CROP_SIDE).any():
            raise ValueError(
                f"crop is {self.crop}; it must be finite (x0, y0, x1, y1) in fractions of the frame, each side at "
                f"least {MIN_CROP_SIDE} long. Divide pixels by the width and height of the frame."
            )
        object.__setattr__(self, "crop", tuple(map(float, crop)))

    @property
    def swaps_sides(self) -> bool:
        """Whether what lay on the left of the frame lies on its right afterwards, so that texts on sides turn false."""
        return self.flip_x

    def inverse(self) -> FrameAugmentation:
        """The augmentation that undoes this one."""
        scale, shift = self._affine()
        return _from_affine(1 / scale, -shift / scale)

    def then(self, after: FrameAugmentation) -> FrameAugmentation:
        """This augmentation followed by `after`, as one."""
        (scale, shift), (scale_after, shift_after) = self._affine(), after._affine()
        return _from_affine(scale_after * scale, scale_after * shift + shift_after)

    def boxes(self, boxes_fraction_xyxy: Any) -> tuple[np.ndarray, np.ndarray]:
        """The boxes (R, 4) float32 clipped to the new frame, and (R,) bool: False, and zeros, where nothing is left.

        Args:
            boxes_fraction_xyxy: (R, 4) fractions of the frame.
        """
        scale, shift = self._affine()
        corners = to_numpy(boxes_fraction_xyxy).astype(np.float64).reshape(-1, 2, 2) * scale + shift
        moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)  # a flip swaps the corners
        clipped, is_visible = clip_to_frame(moved.astype(np.float32))
        clipped[~is_visible] = 0
        return clipped, is_visible

    def points(self, points_fraction: Any) -> tuple[np.ndarray, np.ndarray]:
        """The points (R, 2) float64 in the new frame, and (R,) bool: False, and zeros, where one is cropped away.

        Args:
            points_fraction: (R, 2) fractions (x, y) of the frame.
        """
        points = to_numpy(points_fraction).astype(np.float64).reshape(-1, 2)
        low, high = np.array(self.crop[:2]) - ROUNDING_FRACTION, np.array(self.crop[2:]) + ROUNDING_FRACTION
        is_visible = ((points >= low) & (points < high)).all(axis=1)
        scale, shift = self._affine()
        moved = np.clip(points * scale + shift, 0.0, np.nextafter(1.0, 0.0))
        moved[~is_visible] = 0
        return moved, is_visible

    def masks(self, masks: Values) -> Values:
        """The masks or coverage in the new frame, same shape: by area, so that what they cover is exact.

        Shares come back as float32 shares, bool as bool: a cell belongs to the mask if at least half of it does. Each
        cell is taken as covered evenly: that costs little on frame pixels (`FrameGeometry.masks_to_frame`, afterwards
        `frame_mask_coverage`), but a coverage over patches is smeared by up to a patch, except by mere flips.

        Args:
            masks: (R, height, width) bool or floating shares, array or tensor.
        """
        tensor = _as_tensor(masks)
        if tensor.ndim != 3 or not (tensor.dtype == torch.bool or tensor.is_floating_point()):
            raise ValueError(
                f"masks have shape {tuple(tensor.shape)} and type {tensor.dtype}; they must be (regions, height, "
                "width), bool or floating shares. Divide 0 and 255 by 255."
            )
        shares = self._resample(tensor, _area_weights).clamp(0, 1)
        return _like(shares >= 0.5 if tensor.dtype == torch.bool else shares, masks)

    def frames(self, frames: Values) -> Values:
        """The new frames, uint8 in the same shape: bilinear, smoothed where they shrink, black outside the frame.

        Args:
            frames: (..., height, width) uint8, array or tensor, for instance (3, H, W).
        """
        tensor = _as_tensor(frames)
        if tensor.dtype != torch.uint8 or tensor.ndim < 2:
            raise ValueError(
                f"frames have shape {tuple(tensor.shape)} and type {tensor.dtype}; they must be (..., height, width) "
                "uint8, as `RegionMedClipImageProcessor.frame` gives them. Augment before normalize_frames."
            )
        if self.crop == WHOLE:
            return _like(self._flipped(tensor), frames)
        return _like(self._resample(tensor, _bilinear_weights).round().clamp(0, 255).to(torch.uint8), frames)

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift, each (2,) float64 for x and y: a position u of the frame goes to scale * u + shift."""
        start, end = np.array(self.crop[:2]), np.array(self.crop[2:])
        is_flipped = np.array([self.flip_x, self.flip_y])
        return np.where(is_flipped, -1, 1) / (end - start), np.where(is_flipped, end, -start) / (end - start)

    def _resample(self, cells: torch.Tensor, weights_of: Any) -> torch.Tensor:
        """(..., height, width) float32: the cells of the new frame, each a weighted sum along y and x of old ones."""
        values = cells.float()
        if self.crop != WHOLE:
            height, width = cells.shape[-2:]
            along_x = weights_of(width, self.crop[0], self.crop[2]).to(cells.device)
            along_y = weights_of(height, self.crop[1], self.crop[3]).to(cells.device)
            values = along_y @ values @ along_x.T
        return self._flipped(values)

    def _flipped(self, cells: torch.Tensor) -> torch.Tensor:
        return cells.flip([axis for axis, is_flipped in ((-1, self.flip_x), (-2, self.flip_y)) if is_flipped])


def draw_augmentation(
    seed: int | Sequence[int], *, flip_x: float = 0.0, flip_y: float = 0.0, min_side: float = 0.8, kept_boxes: Any = ()
) -> FrameAugmentation:
    """An augmentation that depends on nothing but these arguments; by default it only crops.

    Args:
        seed: a number at least 0, or several such as (seed, epoch, position).
        flip_x: probability of mirroring left and right.
        flip_y: probability of mirroring top and bottom.
        min_side: the shortest side of the crop in fractions of the frame; its length is uniform up to 1, the same along
            both axes so that shapes are kept, and its place is uniform.
    """
    for name, value in (("flip_x", flip_x), ("flip_y", flip_y), ("min_side", min_side)):
        if not 0 <= value <= 1 or (name == "min_side" and value < MIN_CROP_SIDE):
            raise ValueError(f"{name} is {value}; it must lie between 0 and 1, min_side not below {MIN_CROP_SIDE}.")
    draws = np.random.default_rng(seed).random(5)
    boxes = to_numpy(kept_boxes).astype(np.float64).reshape(-1, 4)
    low, high = (boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)) if len(boxes) else (np.ones(2), np.zeros(2))
    side = min(1.0, max(1 - (1 - min_side) * draws[2], *(high - low)))
    first, last = np.clip(high - side, 0, 1 - side), np.clip(low, 0, 1 - side)  # of what the crop may begin at
    x0, y0 = first + draws[3:] * np.maximum(last - first, 0)
    return FrameAugmentation((x0, y0, x0 + side, y0 + side), bool(draws[0] < flip_x), bool(draws[1] < flip_y))


def _from_affine(scale: np.ndarray, shift: np.ndarray) -> FrameAugmentation:
    """The augmentation that moves a position u to scale * u + shift, each (2,) for x and y."""
    start, end = -shift / scale, (1 - shift) / scale  # what goes to 0 and to 1; with a flip the other way round
    crop = (*np.minimum(start, end).tolist(), *np.maximum(start, end).tolist())
    return FrameAugmentation(crop, bool(scale[0] < 0), bool(scale[1] < 0))


def _area_weights(num_cells: int, start: float, end: float) -> torch.Tensor:
    """(num_cells, num_cells) float32: the share of each cell of [start, end) that each cell of [0, 1) covers."""
    step = end - start  # old cells per new cell
    starts = (start * num_cells + np.arange(num_cells) * step)[:, None]
    cells = np.arange(num_cells)
    overlaps = np.minimum(starts + step, cells + 1) - np.maximum(starts, cells)
    return torch.from_numpy((np.clip(overlaps, 0, None) / step).astype(np.float32))


def _bilinear_weights(num_cells: int, start: float, end: float) -> torch.Tensor:
    """(num_cells, num_cells) float32: what each cell of [0, 1) gives to each cell of [start, end), 0 outside [0, 1)."""
    step = end - start
    centres = (start * num_cells + (np.arange(num_cells) + 0.5) * step)[:, None]
    reach = max(1.0, step)  # a cell that shrinks is the mean of several
    weights = np.clip(1 - np.abs(centres - (np.arange(num_cells) + 0.5)) / reach, 0, None)
    weights /= weights.sum(axis=1, keepdims=True).clip(1e-12)
    return torch.from_numpy((weights * ((centres >= 0) & (centres <= num_cells))).astype(np.float32))


def _as_tensor(values: Any) -> torch.Tensor:
    """The values as a tensor; an array is copied, since one may be read-only or run backwards."""
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values, order="C"))


def _like(values: torch.Tensor, given: Any) -> Any:
    """The values as an array if an array was given."""
    return values if isinstance(given, torch.Tensor) else values.numpy()
