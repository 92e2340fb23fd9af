"""Masks of regions from mask files; their tight boxes and connected parts. Polygons and run lengths: `mask_codes`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from regionmed_clip.processing.corpus.sources.source_files import Box

LOSSY_THRESHOLD = 128  # JPEG leaves grey around a white mask; half of the range parts it from the black


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


def _root(parents: list[int], run: int) -> int:
    """The first run of the part that `run` belongs to; the path to it is halved on the way."""
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run
