"""The regions and region texts of a batch as a user gives them -> padded arrays, every mistake named by its place.

Boxes follow the convention at the head of `region_boxes.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .box_inputs import pixel_boxes, pixel_points
from .mask_inputs import decode_masks, is_coded_mask
from .region_boxes import (
    FrameGeometry,
    box_coverage,
    clip_to_frame,
    mask_boxes,
    mask_coverage,
    point_boxes,
    to_numpy,
)

REGION_DIMS = {"boxes": 1, "masks": 2, "points": 1}  # kind of region -> dimensions of one region


def check_count(name: str, given: int, wanted: int, what: str) -> None:
    """Nothing, or a ValueError if `name` does not hold one entry for each `what`."""
    if given != wanted:
        raise ValueError(f"{name} has {given} entries for {wanted} {what}s; give one for each {what}, in order.")


def check_sizes(target_sizes: Any) -> list[tuple[int, int]]:
    """The (height, width) pairs as whole numbers; a ValueError if these are not sizes of images."""
    try:
        sizes = to_numpy(target_sizes)
    except ValueError:  # rows of different lengths
        sizes = np.empty(0)
    is_pairs = sizes.ndim == 2 and sizes.shape[1] == 2 and sizes.dtype.kind in "iuf"
    if not is_pairs or not (np.isfinite(sizes) & (sizes >= 1)).all():
        raise ValueError(
            f"target_sizes is {target_sizes!r:.80}; it must be one (height, width) for each image, in pixels, each at "
            "least 1. Give the sizes of the original images, for instance [(480, 640)] for one."
        )
    return [(int(height), int(width)) for height, width in sizes]


def region_tensors(
    given: dict[str, Any], geometries: Sequence[FrameGeometry], patch_size: int, box_format: str
) -> tuple[dict[str, np.ndarray], list[int]]:
    """The region arrays of a batch, and how many regions each image was given.

    Args:
        given: "boxes", "masks" and "points", those that were given, as documented at RegionMedClipProcessor.
        geometries: how each of the B images lies in the frame.
        patch_size: side of a patch in frame pixels.
        box_format: one of `region_boxes.BOX_FORMATS`.

    Returns:
        `region_boxes` (B, R, 4) float32, `region_mask` (B, R) bool and, if any image has masks or points,
        `region_coverage` (B, R, h, w) float32; R is at least 1. A region that the geometry cropped away entirely gets
        region_mask False, and a warning says so.
    """
    found = []
    for i, ((kind, value), geometry) in enumerate(zip(_kind_per_image(given, len(geometries)), geometries)):
        found.append(_find_regions(kind, value, geometry, patch_size, box_format, i))
    return _pad_regions(found, _grid(geometries[0], patch_size)), [len(regions.boxes) for regions in found]


def _grid(geometry: FrameGeometry, patch_size: int) -> tuple[int, int]:
    """(h, w) patches of the frame."""
    return geometry.frame[1] // patch_size, geometry.frame[0] // patch_size


def _nesting(value: Any, kind: str) -> int:
    """How many dimensions deep lists and arrays are nested; the deepest branch counts, and a coded mask as an array."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim
    if isinstance(value, (list, tuple)):
        return 1 + max((_nesting(item, kind) for item in value), default=0)
    return REGION_DIMS["masks"] if kind == "masks" and is_coded_mask(value) else 0


def listed(value: Any) -> Any:
    """The value with arrays of objects or texts, as pandas holds ragged columns, as lists; anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        value = value.tolist()
    if isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple, np.ndarray)) for item in value):
        return [listed(item) for item in value]
    return value


def _kind_per_image(given: dict[str, Any], num_images: int) -> list[tuple[str, Any]]:
    """For every image the one kind of its regions and their values; ("boxes", []) where it has none."""
    per_image = {kind: _per_image(kind, listed(value), num_images) for kind, value in given.items()}
    chosen = []
    for i in range(num_images):
        kinds = [kind for kind, values in per_image.items() if not _is_empty(values[i])]
        if len(kinds) > 1:
            raise ValueError(
                f"image {i} has {' and '.join(kinds)}; an image has one kind of region. Give None for it in all but "
                f"one of {', '.join(kinds)}."
            )
        chosen.append((kinds[0], per_image[kinds[0]][i]) if kinds else ("boxes", []))
    return chosen


def _is_empty(regions: Any) -> bool:
    """Whether an image has no regions of a kind: None, or a list or array without any."""
    return regions is None or (isinstance(regions, (list, tuple, np.ndarray, torch.Tensor)) and len(regions) == 0)


def _per_image(kind: str, value: Any, num_images: int) -> list[Any]:
    """The regions of each image; for one image the outer list may be missing."""
    if not isinstance(value, (list, tuple, np.ndarray, torch.Tensor)):
        raise ValueError(
            f"{kind} is a {type(value).__name__}; it must be one list of regions per image. Wrap it: {kind}=[[...]]."
        )
    is_nested = _nesting(value, kind) > REGION_DIMS[kind] + 1 or any(item is None for item in value)
    holds_only_empty = len(value) > 0 and all(_is_empty(item) for item in value)
    if not is_nested and not holds_only_empty and num_images == 1:
        return [value]
    if not is_nested and not holds_only_empty and len(value):
        raise ValueError(
            f"{kind} is one list of regions for {num_images} images; it must be one list per image. Nest it: "
            f"{kind}=[[...], [...]], with [] for an image that has none."
        )
    check_count(kind, len(value), num_images, "image")
    return list(value)


@dataclass(frozen=True)
class _ImageRegions:
    """Boxes (R, 4) in frame fractions, visibility (R,), and coverage (R, h, w) where boxes do not say it all."""

    boxes: np.ndarray
    is_visible: np.ndarray
    coverage: np.ndarray | None


def _find_regions(
    kind: str, value: Any, geometry: FrameGeometry, patch_size: int, box_format: str, image_index: int
) -> _ImageRegions:
    """The regions of one image in its frame; what is cropped away entirely is not visible, and a warning says so."""
    grid = _grid(geometry, patch_size)
    coverage = None
    if kind == "masks":
        seen = _visible_masks(decode_masks(value, geometry.original, image_index), geometry)
        boxes, has_box = clip_to_frame(geometry.boxes_to_frame_fractions(mask_boxes(seen)))
        coverage = mask_coverage(seen, geometry, grid)
        is_visible = coverage.any(axis=(1, 2)) & has_box
    elif kind == "points":
        points = pixel_points(value, geometry.original, image_index)
        boxes, is_visible = point_boxes(points, geometry, patch_size)
        coverage = box_coverage(boxes, grid)
    else:
        pixels = pixel_boxes(value, box_format, geometry.original, image_index)
        boxes, is_visible = clip_to_frame(geometry.boxes_to_frame_fractions(pixels))
    for j in np.flatnonzero(~is_visible):
        warnings.warn(
            f"image {image_index}, region {j}: the centre crop of this geometry cuts it away entirely; its "
            "region_mask is False. Use geometry='pad' to keep the whole image.",
            stacklevel=5,
        )
    boxes[~is_visible] = 0
    if coverage is not None:
        coverage[~is_visible] = 0
    return _ImageRegions(boxes, is_visible, coverage)


def _visible_masks(masks: np.ndarray, geometry: FrameGeometry) -> np.ndarray:
    """The masks without the pixels that the geometry crops away."""
    rows, columns = geometry.visible_pixels()
    if (rows.stop - rows.start, columns.stop - columns.start) == masks.shape[1:]:
        return masks
    seen = np.zeros_like(masks)
    seen[:, rows, columns] = masks[:, rows, columns]
    return seen


def _pad_regions(found: list[_ImageRegions], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """`region_boxes` (B, R, 4), `region_mask` (B, R) and, if any image needs it, `region_coverage` (B, R, h, w)."""
    size = (len(found), max(1, *(len(regions.boxes) for regions in found)))
    data = {"region_boxes": np.zeros((*size, 4), dtype=np.float32), "region_mask": np.zeros(size, dtype=bool)}
    for i, regions in enumerate(found):
        data["region_boxes"][i, : len(regions.boxes)] = regions.boxes
        data["region_mask"][i, : len(regions.boxes)] = regions.is_visible
    if any(regions.coverage is not None for regions in found):
        data["region_coverage"] = np.zeros((*size, *grid), dtype=np.float32)
        for i, regions in enumerate(found):
            own = box_coverage(regions.boxes, grid) if regions.coverage is None else regions.coverage
            data["region_coverage"][i, : len(own)] = own
    return data


# ---- texts


def check_texts(texts: Any, name: str) -> list[str]:
    """The texts as a list; one string is a list of one."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise ValueError(f"{name} is empty; it must hold at least one string. Leave it out instead.")
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            raise ValueError(f"{name} {i} is {text!r}; it must be a string. Give one list of strings.")
    return listed


def check_unicode(texts: Sequence[str]) -> None:
    """None; a ValueError for a text that holds half a surrogate pair, which no tokenizer reads."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text {text[:60]!a} is no Unicode text: it holds half a surrogate pair. Leave that out."
            ) from error


def match_texts(
    region_text: Sequence[Any], num_regions: list[int] | None, region_mask: np.ndarray | None
) -> tuple[list[str], np.ndarray]:
    """The distinct texts in order of first appearance, and for each region (B, R) int64 the row of its text or -1."""
    if num_regions is None or region_mask is None:
        raise ValueError(
            "region_text is one list of texts per image, but there are no regions; give boxes, masks or points. Or "
            "give one flat list of candidate texts."
        )
    check_count("region_text", len(region_text), len(num_regions), "image")
    rows: dict[str, int] = {}
    index = np.full(region_mask.shape, -1, dtype=np.int64)
    for i, (texts, count) in enumerate(zip(region_text, num_regions)):
        if texts is None:
            continue
        if isinstance(texts, str) or len(texts) != count:
            raise ValueError(
                f"image {i}: region_text {texts!r} does not match its {count} regions; give a list with one text, or "
                "None, for each region, in order."
            )
        for j, text in enumerate(texts):
            if text is not None:
                index[i, j] = rows.setdefault(check_texts([text], f"image {i}, region {j}: region_text")[0], len(rows))
    return list(rows), np.where(region_mask, index, -1)
