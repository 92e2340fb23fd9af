"""Any picture a user may hold -> an 8-bit PIL image, in the orientation in which it is displayed.

The rule for brightness. 8-bit pictures are kept as they are. Everything else (16-bit, integers, floats) is mapped by
its values, the whole image at once: floats in [0, 1] (an overshoot of 0.05 from resampling is clipped) are multiplied
by 255; values in [0, 255] whose maximum exceeds 2 are 8-bit levels already; any other range is a linear window from
the image's minimum to its maximum, with no percentiles, so nothing is clipped and one bright pixel darkens the rest.
Who wants a clinical window (lung, bone) applies it before: `apply_window`. A constant image outside [0, 255] becomes
black.

Transparency is composited over black. The EXIF orientation is applied first: boxes are meant in the displayed image.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .image_errors import DECODE_ERRORS

NUMERIC_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
UNIT_OVERSHOOT = 0.05
ORIENTATION_TAG = 0x0112  # EXIF


def read_image(source: Any, name: str = "image") -> Image.Image:
    """The picture as an 8-bit RGB PIL image, in displayed orientation; see `decode_image`."""
    return decode_image(source, name).convert("RGB")


def decode_image(source: Any, name: str = "image") -> Image.Image:
    """The picture as an 8-bit PIL image of mode "L" (grey) or "RGB", in displayed orientation.

    Args:
        source: a PIL image of any mode; a numpy array or torch tensor (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4
            (where both readings fit, an array is (H, W, C) and a tensor (C, H, W)); a path; or encoded bytes.
        name: what messages call it, for instance "image 3".

    Raises:
        ValueError: for a file that is missing, truncated or no picture, several frames, a DICOM file, an impossible
            shape, or values that are not finite.
    """
    if isinstance(source, (str, Path)):
        return _from_file(Path(source), name)
    if isinstance(source, (bytes, bytearray)):
        return _from_stream(BytesIO(source), f"{name} ({len(source)} bytes)")
    if isinstance(source, Image.Image):
        return _from_pil(source, name)
    if isinstance(source, torch.Tensor):
        tensor = source.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return _from_array(array, name, is_channels_first=True)
    if isinstance(source, np.ndarray):
        return _from_array(source, name, is_channels_first=False)
    raise ValueError(
        f"{name} is a {type(source).__name__}; it must be a PIL image, a numpy array, a torch tensor, a path or "
        "encoded bytes. Of a DICOM dataset, give its windowed pixel array."
    )


def apply_window(image: Image.Image, window: tuple[float, float]) -> Image.Image:
    """The 8-bit grey image (mode "L") that shows the values from `low`, black, to `high`, white, and clips the others.

    Args:
        image: one number a pixel (mode "L", "I;16", "I" or "F").
        window: (low, high) in the image's own values, for instance after the offset by which CT is stored.

    Raises:
        ValueError: for an image of other modes or with values that are not finite; for a window that is not finite, or
            not low below high.
    """
    low, high = window
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"window is {(low, high)}; it must be finite, low below high. Correct it, or give none.")
    if image.mode not in ("L", *NUMERIC_MODES):
        raise ValueError(f"an image of mode {image.mode!r} has no window; it must hold one number a pixel. Give none.")
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("an image with a window holds values that are NaN or infinite; all must be finite.")
    shares = (values - low) / (high - low)
    return Image.fromarray(np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8))


def _from_file(path: Path, name: str) -> Image.Image:
    """The picture in a file, every failure naming the path."""
    item = f"{name} ({path})"
    if not path.is_file():
        raise ValueError(f"{item} is not a file; a path must name one picture on this machine. Download a URL first.")
    with path.open("rb") as file:
        is_dicom = file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")
        if is_dicom:
            raise ValueError(
                f"{item} is a DICOM file; this version reads ordinary pictures only. Convert it to PNG with the window "
                "you want (for instance `dcmj2pnm --write-png`, or pydicom's pixel_array), and give that file or array."
            )
        file.seek(0)
        return _from_stream(file, item)


def _from_stream(stream: Any, item: str) -> Image.Image:
    """The picture in an open binary stream; a broken one is a ValueError."""
    try:
        image = Image.open(stream)
    except DECODE_ERRORS as error:
        raise ValueError(
            f"{item} cannot be read as a picture ({error}); it must be a complete image file. Replace or re-export it."
        ) from error
    return _from_pil(image, item)


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    """A PIL image of any mode, also one that Pillow has opened but not decoded yet."""
    filename = getattr(image, "filename", "")
    item = f"{name} ({filename})" if filename and str(filename) not in name else name
    try:
        num_frames = getattr(image, "n_frames", 1)
        image.load()
        is_upright = image.getexif().get(ORIENTATION_TAG, 1) == 1
        upright = image if is_upright else ImageOps.exif_transpose(image)
    except DECODE_ERRORS as error:
        raise ValueError(
            f"{item} is truncated or corrupt ({error}); it must be a complete image file. Replace or re-export it."
        ) from error
    if num_frames > 1 and image.format != "MPO":  # a phone's MPO is one photograph with previews behind it
        raise ValueError(
            f"{item} has {num_frames} frames; one image must have one. Choose a frame: "
            "`image.seek(k); image = image.copy()`."
        )
    return _to_8_bit(upright, item)


def _to_8_bit(image: Image.Image, item: str) -> Image.Image:
    """The upright image in mode "L" or "RGB"."""
    if 0 in image.size:
        raise ValueError(f"{item} has size {image.size}; width and height must be at least 1 pixel.")
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in NUMERIC_MODES:
        return Image.fromarray(_to_levels(np.asarray(image), item))
    if image.mode == "1":
        return image.convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, rgba).convert("RGB")


def _from_array(array: np.ndarray, name: str, is_channels_first: bool) -> Image.Image:
    """An array of numbers as a picture."""
    if array.ndim == 3:
        array = _channels_last(array, name, is_channels_first)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}; it must be (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4 and no "
            "empty side. Give a batch as a list of images, a volume as one slice."
        )
    has_alpha = array.ndim == 3 and array.shape[2] == 4
    if has_alpha and array.dtype != np.uint8 and not _is_unit_range(array):
        raise ValueError(
            f"{name} has 4 channels of {array.dtype}; transparency must be 8-bit, or floats in [0, 1]. Drop the "
            "fourth channel."
        )
    levels = np.ascontiguousarray(_to_levels(array, name))
    return _to_8_bit(Image.fromarray(levels), name)


def _channels_last(array: np.ndarray, name: str, is_channels_first: bool) -> np.ndarray:
    """The array as (H, W, C), or as (H, W) when it has one channel."""
    fits_first, fits_last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
    if not fits_first and not fits_last:
        raise ValueError(
            f"{name} has shape {array.shape}; one side must be the 1, 3 or 4 channels. Give one slice of a volume, and "
            "a batch of grey images as a list."
        )
    if fits_first and (is_channels_first or not fits_last):
        array = np.moveaxis(array, 0, -1)
    return array[..., 0] if array.shape[2] == 1 else array


def _is_unit_range(array: np.ndarray) -> bool:
    """Whether these are floats in [0, 1], but for a small overshoot."""
    return bool(array.dtype.kind == "f" and array.min() >= -UNIT_OVERSHOOT and array.max() <= 1 + UNIT_OVERSHOOT)


def _to_levels(array: np.ndarray, item: str) -> np.ndarray:
    """The values as uint8 by the rule at the head of this file; same shape."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{item} holds {array.dtype} values; it must hold bool, integer or floating values.")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{item} holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite; all must be finite. "
            "Replace them, for instance by np.nan_to_num."
        )
    low, high = values.min(), values.max()
    if _is_unit_range(values) and array.dtype.kind == "f":
        values = np.clip(values, 0, 1) * 255
    elif low < 0 or high > 255 or high <= 2:
        values = (values - low) / (high - low) * 255 if high > low else np.zeros_like(values)
    return np.rint(values).astype(np.uint8)
