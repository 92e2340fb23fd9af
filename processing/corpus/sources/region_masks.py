"""Masks of regions: from mask files, polygons and COCO run lengths; their tight boxes and connected parts.

The compressed run lengths of COCO are decoded after the encoder's own source, `rleToString` and `rleFrString` in
https://github.com/cocodataset/cocoapi/blob/28dffd92a2f38db538cc1bcccdc2b76f03f8ee99/common/maskApi.c
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from regionmed_clip.processing.corpus.records import MaskRle
from regionmed_clip.processing.corpus.sources.source_files import ROUNDING_PIXELS, Box

LOSSY_THRESHOLD = 128  # JPEG leaves grey around a white mask; half of the range parts it from the black
_FIRST_CHARACTER, _VALUE_BITS, _SIGN_BIT, _MORE_BIT = 48, 0x1F, 0x10, 0x20  # of a character of compressed counts
_MAX_CHARACTERS = 7  # 35 bits: no run of a readable image needs more


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The (H, W) bool mask in an image file: its non-black pixels; of a JPEG those above half of the range.

    Args:
        path: the mask; colours count by their brightest channel, transparency is left out.
        size: (width, height) of the image it belongs to.

    Raises:
        ValueError: the file is missing, broken or of another size.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; every region needs its mask. Restore it or drop the image.")
    try:
        with Image.open(path) as image:
            is_lossy = image.format == "JPEG"
            if image.mode in ("P", "PA", "LA", "RGBA"):
                image = image.convert("L" if image.mode == "LA" else "RGB")
            values = np.asarray(image)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded ({error}); a mask is a whole image. Fetch it again.") from error
    if values.ndim == 3:
        values = values.max(axis=2)
    if values.shape != (size[1], size[0]):
        raise ValueError(
            f"{path} is {values.shape[1]}x{values.shape[0]} pixels and its image {size[0]}x{size[1]}; they must agree, "
            "or the region is off. Make the mask again, or resize it by nearest neighbour."
        )
    return values >= LOSSY_THRESHOLD if is_lossy else values > 0


def tight_box(mask: np.ndarray) -> Box | None:
    """(x0, y0, x1, y1), half-open, around the true pixels of an (H, W) mask; None where it has none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def connected_parts(mask: np.ndarray, min_area: int = 1) -> Iterator[np.ndarray]:
    """The 8-connected parts of an (H, W) bool mask that have at least `min_area` pixels, each as such a mask.

    They come in the order of their first pixels, row by row. Runs of pixels of neighbouring rows that touch, corners
    included, are joined: the work is that of the runs, not of the pixels.
    """
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]  # both row by row: run k is pixels [starts[k], stops[k]) of rows[k]
    stride = width + 2  # a run touches those of the row before from one pixel left of it to one right of it
    first = np.searchsorted((rows + 1) * stride + stops, rows * stride + starts, side="left")
    last = np.searchsorted((rows + 1) * stride + starts, rows * stride + stops, side="right")
    parents = list(range(len(rows)))
    for run, (begin, end) in enumerate(zip(first.tolist(), last.tolist())):
        for other in range(begin, end):
            low, high = sorted((_root(parents, run), _root(parents, other)))
            parents[high] = low
    roots = np.array([_root(parents, run) for run in range(len(rows))], dtype=np.int64)
    areas = np.bincount(roots, weights=stops - starts, minlength=len(rows))
    for root in np.flatnonzero(areas >= max(min_area, 1)):
        part = np.zeros((height, width), dtype=bool)
        for run in np.flatnonzero(roots == root):
            part[rows[run], starts[run] : stops[run]] = True
        yield part


def fill_polygons(polygons: Iterable[Sequence[float]], width: int, height: int, where: str) -> np.ndarray:
    """The (height, width) bool mask of all pixels whose centre lies within one of the polygons.

    Coordinates are continuous, 0 at the outer edge of the first pixel, so that the corners of a half-open box give its
    pixels exactly; holes follow the even-odd rule within one polygon.

    Args:
        polygons: flat lists x, y, x, y, ... in pixels.
        width, height: of the image.
        where: names the annotation in messages.

    Raises:
        ValueError: a polygon has fewer than three points, a value that is no finite number, or leaves the image.
    """
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        is_flat = isinstance(polygon, Sequence) and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in polygon
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


def mask_of_counts(counts: object, size: object, where: str) -> np.ndarray:
    """The (H, W) bool mask of a COCO run-length encoding, uncompressed (a list) or compressed (a text).

    Raises:
        ValueError: `size` is no (height, width), or the runs are not whole numbers that fill it.
    """
    sides = list(size) if isinstance(size, list | tuple) else []
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{where} has run lengths of size {size!r}; it must be [height, width]. Correct or drop it.")
    runs = decode_counts(counts, where) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and not isinstance(run, bool) for run in runs):
        raise ValueError(
            f"{where} has counts {str(counts)[:60]}; they must be a list of whole numbers or a compressed text. "
            "Correct or drop it."
        )
    try:
        return MaskRle((sides[0], sides[1]), tuple(runs)).to_array()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def decode_counts(text: str, where: str) -> list[int]:
    """The run lengths of a compressed COCO text.

    A character holds 5 bits of a number, low ones first, and a flag that more follow; the top value bit of the last
    one is the sign. From the fourth number on it is the difference from the run two places before.
    """
    codes = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
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


def _root(parents: list[int], run: int) -> int:
    """The first run of the part that `run` belongs to; the path to it is halved on the way."""
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run
