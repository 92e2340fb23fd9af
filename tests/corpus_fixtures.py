"""Miniature corpora for the tests: images in which every box is painted in a grey of its own, and reading helpers."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIRST_GREY, GREY_STEP = 100, 10  # box k is painted in grey 100 + 10 k on black; lossless files only


def painted(size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """(H, W) uint8 black image of `size` (width, height); box k (x0, y0, x1, y1), half-open pixels, is filled."""
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1] = FIRST_GREY + GREY_STEP * index
    return pixels


def paint(path: Path, size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]] = ()) -> Path:
    """The path of a new lossless image file of `size` (width, height) with the boxes painted in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(painted(size, boxes)).save(path)
    return path


def painted_box(image: str | bytes | np.ndarray, index: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), half-open, of the pixels in which box `index` is painted; boxes must not overlap."""
    if isinstance(image, np.ndarray):
        pixels = image
    else:
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as file:
            pixels = np.asarray(file.convert("L"))
    ys, xs = np.nonzero(pixels == FIRST_GREY + GREY_STEP * index)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def read_all(source: Any) -> list[Any]:
    """Every record of the source, split by split; fails at a bad item."""
    return [record for split in source.splits() for record in source.records(split)]


def bad_items(source: Any) -> dict[str, str]:
    """Key of every bad item of the source -> the reason, whether found at opening or at reading."""
    found = {item.key: item.reason for item in source.bad_items()}
    for split in source.splits():
        found |= {item.key: item.reason for item in source.read(split) if hasattr(item, "reason")}
    return found
