"""The picture of an example as a person and the model see it: the one place where an example's window is applied."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

from regionmed_clip.processing.image_errors import DECODE_ERRORS
from regionmed_clip.processing.medical_image import apply_window, decode_image


def shown_image(example: Mapping[str, Any]) -> Image.Image:
    """The image of `example` as an 8-bit PIL image of mode "L" or "RGB", upright, its window applied.

    Args:
        example: `image` is a PIL image, {"bytes", "path"}, bytes or a path; `window`, where it is there and not None,
            is (low, high) in stored pixel values. Boxes of the example are in pixels of what is returned.

    Raises:
        ValueError: the image cannot be decoded, or has colours and a window.
    """
    name, value = example.get("image_id", "image"), example["image"]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    window = example.get("window")
    if window is None:
        return decode_image(value, name)
    return apply_window(_stored_image(value, name), (window[0], window[1]))


def _stored_image(value: Any, name: str) -> Image.Image:
    """The image with the values in which it is stored, upright."""
    source = BytesIO(value) if isinstance(value, bytes) else value
    try:
        return ImageOps.exif_transpose(source if isinstance(source, Image.Image) else Image.open(source))
    except DECODE_ERRORS as error:
        raise ValueError(
            f"{name} cannot be decoded ({error}); it must be a complete image file. Replace or re-export it."
        ) from error
