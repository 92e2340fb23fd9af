"""Masks written as numbers, COCO run lengths and polygons -> (H, W) bool arrays.

Run lengths go down the columns, left to right, and the first one counts zeros (it may be 0 long). Their compressed text
is decoded after the encoder's own source, `rleToString` and `rleFrString` in
https://github.com/cocodataset/cocoapi/blob/28dffd92a2f38db538cc1bcccdc2b76f03f8ee99/common/maskApi.c
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

LARGEST_WHOLE = 2**53  # up to which float64 holds every whole number
ROUNDING_PIXELS = 1.0  # by so much annotation tools let an outline stick out of its image
_FIRST_CHARACTER, _VALUE_BITS, _SIGN_BIT, _MORE_BIT = 48, 0x1F, 0x10, 0x20  # of a character of compressed counts
_MAX_CHARACTERS = 7  # 35 bits: no run of a readable image needs more


def mask_of_counts(counts: Any, size: Any, where: str) -> np.ndarray:
    """The (H, W) bool mask of a COCO run-length encoding.

    Args:
        counts: run lengths, plain (whole numbers) or compressed (str or bytes).
        size: (height, width) in pixels.
        where: names the mask in messages.

    Raises:
        ValueError: `size` is no (height, width), or the runs are not whole numbers that fill it.
    """
    sides = whole_numbers(size)
    if sides is None or len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"{where} has run lengths of size {size!r}; it must be [height, width]. Correct or drop it.")
    height, width = sides
    runs = decode_counts(counts, where) if isinstance(counts, str | bytes) else whole_numbers(counts)
    if runs is None:
        raise ValueError(
            f"{where} has counts {str(counts)[:60]}; they must be a list of whole numbers or a compressed text. "
            "Correct or drop it."
        )
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(
            f"{where} has {len(runs)} run lengths that sum to {sum(runs)}; they must be at least 0 and sum to height * "
            f"width = {height} * {width} = {height * width}. Check that they belong to this size."
        )
    is_region = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_region, runs).reshape(height, width, order="F")


def whole_numbers(values: Any) -> list[int] | None:
    """The values as a list if they are a list, a tuple or an array of whole numbers; None if not."""
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(listed, list | tuple):
        return None
    if not all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in listed):
        return None
    return [int(value) for value in listed]


def decode_counts(text: str | bytes, where: str) -> list[int]:
    """The run lengths of a compressed COCO text.

    A character holds 5 bits of a number, low ones first, and a flag that more follow; the top value bit of the last
    one is the sign. From the fourth number on it is the difference from the run two places before.
    """
    encoded = text.encode("utf-8") if isinstance(text, str) else text
    codes = np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    is_last = (codes & _MORE_BIT) == 0
    lengths = np.diff(np.flatnonzero(is_last), prepend=-1)
    is_broken = not codes.size or not is_last[-1] or codes.min() < 0 or codes.max() > 2 * _MORE_BIT - 1
    if is_broken or lengths.max() > _MAX_CHARACTERS:
        raise ValueError(
            f"{where} has counts {text[:40]!r}, {len(text)} characters; that is no whole compressed run-length text "
            "(characters 48 to 111, the last one closing a number). Fetch the annotation again."
        )
    starts = np.concatenate(([0], np.flatnonzero(is_last)[:-1] + 1))
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & _VALUE_BITS) << shifts, starts)
    numbers -= np.where(codes[is_last] & _SIGN_BIT, np.int64(1) << 5 * lengths, 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers.tolist()


def fill_polygons(polygons: Iterable[Sequence[float]], width: int, height: int, where: str) -> np.ndarray:
    """The (height, width) bool mask of all pixels whose centre lies within one of the polygons.

    Coordinates are continuous, 0 at the outer edge of the first pixel, so that the corners of a half-open box give its
    pixels exactly; holes follow the even-odd rule within one polygon.

    Args:
        polygons: flat lists or arrays x, y, x, y, ... in pixels.
        width, height: of the image.
        where: names the annotation in messages.

    Raises:
        ValueError: a polygon has fewer than three points, a value that is no finite number, or leaves the image.
    """
    mask = np.zeros((height, width), dtype=bool)
    for given in polygons:
        polygon = given.tolist() if isinstance(given, np.ndarray) else given
        is_flat = isinstance(polygon, Sequence) and all(
            isinstance(value, float)
            or (isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE)
            for value in polygon
        )
        if not is_flat or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"{where} has a polygon {str(polygon)[:60]}; a polygon is a flat list x, y, x, y, ... of at least "
                "three points. Correct or drop it."
            )
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        slack = ROUNDING_PIXELS
        if not np.all((points >= -slack) & (points <= np.array([width, height]) + slack)):  # NaN fails too
            raise ValueError(
                f"{where} has a polygon from {points.min(axis=0)} to {points.max(axis=0)}; it must lie within the "
                f"image of {width}x{height} pixels. Check that it belongs to this image."
            )
        _fill(mask, points)
    return mask


def _fill(mask: np.ndarray, points: np.ndarray) -> None:
    """Nothing; sets the pixels of `mask` whose centres lie within the polygon of (N, 2) `points`."""
    height, width = mask.shape
    ends = np.roll(points, -1, axis=0)
    (x0, y0), (x1, y1) = points.T, ends.T
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(int)  # rows whose centre the edge crosses
    num_rows = last - first
    if not num_rows.any():
        return
    edge = np.repeat(np.arange(len(points)), num_rows)
    row = np.arange(edge.size) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows) + first[edge]
    crossing = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)  # the first pixel whose centre is right of it
    top, left, bottom, right = first.min(), column.min(), last.max(), column.max()
    toggles = np.zeros((bottom - top, right - left + 1), dtype=np.int32)
    np.add.at(toggles, (row - top, column - left), 1)
    mask[top:bottom, left:right] |= np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1
