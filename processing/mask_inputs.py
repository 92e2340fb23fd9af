"""Masks in every form that users hold -> (R, H, W) bool arrays in original pixels, every mistake named by its region.

One mask is one region. It may be an array or tensor (H, W); a PIL image, a path or the bytes of a picture, best a PNG;
COCO run lengths, {"size": [height, width], "counts": plain or compressed}; or {"polygons": segmentation} with COCO's
polygons. Its values are 0 (outside) and one other. What has more values is no mask of one region and is refused: a map
of labels is split by `split_label_map`, grey values need a threshold that only its owner knows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .encoded_pictures import check_encoded, upright
from .image_errors import DECODE_ERRORS
from .mask_codes import fill_polygons, mask_of_counts, whole_numbers
from .region_boxes import to_numpy

PICTURE_TYPES = (Image.Image, str, Path, bytes, bytearray)
NUMERIC_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def is_coded_mask(mask: Any) -> bool:
    """Whether this is one mask in a form other than rows of numbers: a picture, run lengths or polygons."""
    return isinstance(mask, (*PICTURE_TYPES, Mapping)) or hasattr(mask, "counts")


def decode_masks(masks: Any, image_size: tuple[int, int], image_index: int = 0) -> np.ndarray:
    """(R, H, W) bool masks of one image, each of the size of the image and with at least one pixel.

    Args:
        masks: an array or tensor (R, H, W), or a list of R masks in any of the forms at the head of this file.
        image_size: (width, height) of the original image in pixels.
        image_index: place of the image in the batch, for messages.

    Raises:
        ValueError: for a mask of another size, of more than two values, empty, unreadable or of no known form.
    """
    width, height = image_size
    if is_coded_mask(masks):
        raise ValueError(
            f"image {image_index}: masks is a {type(masks).__name__}; it must be a list with one mask for each region. "
            "Give one mask as [mask]."
        )
    if not isinstance(masks, (list, tuple)):
        masks = to_numpy(masks)
        if masks.ndim != 3 and masks.size:
            raise ValueError(
                f"image {image_index}: masks have shape {masks.shape}; it must be (regions, height, width) = "
                f"(R, {height}, {width}). Give one mask as mask[None]."
            )
    decoded = [
        _decode_mask(mask, image_size, f"image {image_index}, region {j}: the mask") for j, mask in enumerate(masks)
    ]
    if isinstance(masks, np.ndarray) and masks.dtype == bool and decoded:
        return masks  # as it came, without a copy
    return np.stack(decoded) if decoded else np.zeros((0, height, width), dtype=bool)


def split_label_map(label_map: Any) -> tuple[np.ndarray, list[int]]:
    """The masks (R, H, W) bool of the labels of a picture, ascending, and the R labels; 0 is background.

    Args:
        label_map: (H, W) whole numbers as an array or tensor, or a picture (PIL image, path, bytes) of one number a
            pixel; of a picture with a palette, these are its indices.

    Raises:
        ValueError: the labels are not (H, W) whole numbers, or the file cannot be read.
    """
    is_picture = isinstance(label_map, PICTURE_TYPES)
    values = np.asarray(_open_picture(label_map, "the label map")) if is_picture else to_numpy(label_map)
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise ValueError(
            f"the label map has shape {values.shape} and type {values.dtype}; it must be (height, width) whole "
            "numbers. Map colours to numbers first, one for each label."
        )
    labels = [int(label) for label in np.unique(values) if label != 0]
    return np.stack([values == label for label in labels]) if labels else np.zeros((0, *values.shape), bool), labels


def _decode_mask(mask: Any, image_size: tuple[int, int], item: str) -> np.ndarray:
    """(H, W) bool: one mask of any form, not empty."""
    width, height = image_size
    if isinstance(mask, PICTURE_TYPES):
        values = _picture_values(mask, item)
    elif is_coded_mask(mask):
        values = _coded_values(mask, image_size, item)
    else:
        values = _array_values(mask, image_size, item)
    if values.shape != (height, width):
        raise ValueError(
            f"{item} has shape {values.shape}; it must be (height, width) = ({height}, {width}), the size of the "
            "original image as it is displayed. Resize it by nearest neighbour, or turn it with the image, first."
        )
    is_region = values if values.dtype == bool else _two_values(values, item)
    if not is_region.any():
        raise ValueError(f"{item} has no pixel set; drop the region, it is nowhere.")
    return is_region


def _array_values(mask: Any, image_size: tuple[int, int], item: str) -> np.ndarray:
    """Numbers of an array, a tensor or a list of rows; a list must have the shape of the image."""
    try:
        values = to_numpy(mask)
    except ValueError:  # rows of different lengths, as polygons have
        values = np.empty(0, dtype=object)
    is_list = isinstance(mask, (list, tuple))
    if values.dtype.kind not in "biuf" or (is_list and values.shape != (image_size[1], image_size[0])):
        shown = f"a {type(mask).__name__}" + (f", {str(mask)[:60]}...," if is_list else "")
        raise ValueError(
            f"{item} is {shown} and no mask; it must be an array (height, width) = {image_size[::-1]}, a picture or "
            'its path, run lengths {"size": ..., "counts": ...}, or {"polygons": [[x, y, x, y, ...], ...]}. Wrap '
            'polygons of a COCO segmentation as {"polygons": segmentation}.'
        )
    return values


def _two_values(values: np.ndarray, item: str) -> np.ndarray:
    """The numbers as bool, if they are 0 and one other value."""
    is_region = values != 0
    other = values[is_region][:1]
    if (values[is_region] != other).any():  # a NaN differs from itself
        several = np.unique(values)
        raise ValueError(
            f"{item} has {len(several)} values ({', '.join(map(str, several[:4]))}, ...); it must have "
            "0 and one other. Split a map of labels into one mask for each region (`split_label_map`, or label_map == "
            "k); put a threshold on grey values, for instance of a JPEG or of probabilities: values >= 0.5 * maximum."
        )
    return is_region


def _coded_values(mask: Any, image_size: tuple[int, int], item: str) -> np.ndarray:
    """(H, W) bool of COCO run lengths or polygons."""
    width, height = image_size
    fields = mask if isinstance(mask, Mapping) else {"size": getattr(mask, "size", None), "counts": mask.counts}
    if isinstance(fields.get("polygons"), (list, tuple)):
        return fill_polygons(fields["polygons"], width, height, item)
    if "counts" not in fields or "size" not in fields:
        raise ValueError(
            f'{item} has the entries {sorted(map(str, fields))}; run lengths have "size" and "counts", polygons are '
            '{"polygons": [[x, y, x, y, ...], ...]}. Of a COCO annotation, give its "segmentation": run lengths as '
            'they are, polygons as {"polygons": segmentation}.'
        )
    if whole_numbers(fields["size"]) != [height, width]:
        raise ValueError(
            f"{item} has run lengths of size {fields['size']!r}; it must be [height, width] = [{height}, {width}], the "
            "size of the original image. Check that it belongs to this image."
        )
    counts = fields["counts"]
    return mask_of_counts(to_numpy(counts) if isinstance(counts, torch.Tensor) else counts, fields["size"], item)


def _picture_values(source: Any, item: str) -> np.ndarray:
    """(H, W) numbers of a picture: its values, or of a coloured one its colours over black, a number for each."""
    picture = _open_picture(source, item)
    if picture.mode in NUMERIC_MODES and "transparency" not in picture.info:
        return np.asarray(picture)
    try:
        rgba = picture.convert("RGBA" if picture.has_transparency_data else "RGB").convert("RGBA")
    except ValueError as error:
        raise ValueError(
            f"{item} has mode {picture.mode!r} ({error}); a mask is black and one other colour. Save it as mode 'L'."
        ) from error
    colours = np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), rgba)).astype(np.int64)
    return (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]


def _open_picture(source: Any, item: str) -> Image.Image:
    """The one picture in a file, bytes or PIL image, decoded and in displayed orientation."""
    name = item
    if isinstance(source, (str, Path)):
        name = f"{item} ({str(source)[:200]})"
        if not os.path.isfile(source):  # False for a text that can be no path, such as run lengths
            raise ValueError(
                f"{name} is not a file; a path must name one picture on this machine. Of run lengths, give the whole "
                '{"size": ..., "counts": ...}.'
            )
    source = BytesIO(source) if isinstance(source, (bytes, bytearray)) else source
    try:
        if not isinstance(source, Image.Image):
            with nullcontext(source) if isinstance(source, BytesIO) else open(source, "rb") as stream:
                check_encoded(stream, item)
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as picture:
            num_frames = getattr(picture, "n_frames", 1)
            picture.load()
            shown = upright(picture).copy()
    except DECODE_ERRORS as error:
        raise ValueError(
            f"{name} cannot be read as a picture ({error}); it must be a complete image file. Replace or re-export it."
        ) from error
    if num_frames > 1:
        raise ValueError(f"{name} has {num_frames} frames; a mask has one. Give one mask for each region.")
    return shown
