"""Any picture a user may hold -> an 8-bit PIL image, in the orientation in which it is displayed.

The rule for brightness. 8-bit pictures are kept as they are, embedded colour profiles and gamma unapplied; of 16-bit
colour the high byte is read. A DICOM image is shown as `dicom_image.py` says, a slice of a NIfTI volume as
`nifti_slice.py` says. Everything else (16-bit, integers, floats) is mapped by its values, the whole image at once,
through the window asked for (`intensity_windows.py`). Without one, floats in [0, 1] (an overshoot of 0.05 from
resampling is clipped) are multiplied by 255; values in [0, 255] whose maximum exceeds 2 are 8-bit levels already; any
other range is shown from the image's minimum to its maximum, with no percentiles, so nothing is clipped and one bright
pixel darkens the rest. A constant image outside [0, 255] becomes black. Where a TIFF says that 0 is white, it is shown
white.

Transparency is composited over black. The EXIF orientation is applied first: boxes are meant in the displayed image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .dicom_header import DICOM_SUFFIXES, HEAD_LENGTH, has_dicom_head, is_dicom_dataset
from .dicom_image import dicom_picture
from .encoded_pictures import check_encoded, upright
from .image_errors import DECODE_ERRORS, chosen_index, too_many_pixels
from .intensity_windows import (
    IntensityWindow,
    linear_levels,
    list_windows,
    picture_of,
    range_levels,
    refuse_presets,
    show_through,
    unit_levels,
)
from .nifti_slice import is_nifti_image, is_nifti_path, nifti_picture

NUMERIC_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
UNIT_OVERSHOOT = 0.05
PHOTOMETRIC_TAG = 0x0106  # TIFF; 0 = zero is white
_NO_WINDOW = (
    "a window needs one measured number a pixel, of 16 bits or floats. Give no window for this image; where it was "
    "saved with the processor, say window=None in the call."
)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What the caller chose: windows, a frame of several, a slice of a volume."""

    windows: tuple[IntensityWindow, ...] = ()
    frame_index: int | None = None
    slice_axis: str | int = "axial"
    slice_index: int | None = None


def read_image(source: Any, name: str = "image", **choice: Any) -> Image.Image:
    """The picture as an 8-bit RGB PIL image, in displayed orientation; see `decode_image`."""
    return decode_image(source, name, **choice).convert("RGB")


def decode_image(
    source: Any,
    name: str = "image",
    *,
    window: Any = None,
    frame_index: int | None = None,
    slice_axis: str | int = "axial",
    slice_index: int | None = None,
) -> Image.Image:
    """The picture as an 8-bit PIL image of mode "L" (grey) or "RGB", in displayed orientation.

    Args:
        source: a PIL image of any mode; a numpy array or torch tensor (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4
            (where both readings fit, an array is (H, W, C) and a tensor (C, H, W)); the path of a picture, a DICOM or a
            NIfTI file; the bytes of a picture or a DICOM file; a pydicom Dataset; an image loaded by nibabel.
        name: what messages call it, for instance "image 3".
        window: which measured values are shown as black to white: a preset of CT, (center, width) in the image's own
            units, or three of these for red, green and blue; see `intensity_windows`. Refused for 8-bit pictures.
        frame_index: which frame, from 0, of a file with several; of a NIfTI file which volume.
        slice_axis: of a NIfTI file "axial" (2), "coronal" (1) or "sagittal" (0); see `nifti_slice`.
        slice_index: of a NIfTI file which slice, from 0; refused elsewhere.

    Raises:
        ValueError: for a file that is missing, truncated, too large or no picture, several frames or slices and no
            choice, an impossible shape, values that are not finite, a window that does not fit the image.
        ImportError: for a DICOM or NIfTI file without pydicom or nibabel.
    """
    choice = _Choice(list_windows(window), frame_index, slice_axis, slice_index)
    if isinstance(source, (str, Path)):
        return _from_file(Path(source), name, choice)
    if is_nifti_image(source):
        return _from_nifti(source, name, choice)
    if slice_index is not None:
        raise ValueError(f"{name} is no NIfTI volume, and slice_index is {slice_index}; leave it out.")
    if isinstance(source, (bytes, bytearray)):
        item = f"{name} ({len(source)} bytes)"
        if has_dicom_head(source[:HEAD_LENGTH]):
            return dicom_picture(source, item, choice.windows, frame_index)
        return _from_stream(BytesIO(source), item, choice)
    if is_dicom_dataset(source):
        return dicom_picture(source, f"{name} (a DICOM dataset)", choice.windows, frame_index)
    if isinstance(source, Image.Image):
        if source.format in ("TIFF", "JPEG", "MPO") and getattr(source, "fp", None):  # not decoded yet
            check_encoded(source.fp, name)
        return _from_pil(source, name, choice)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        chosen_index(frame_index, 1, name, things="frames", option="frame_index")
        return _from_array(source, name, choice.windows)
    raise ValueError(
        f"{name} is a {type(source).__name__}; it must be a PIL image, a numpy array, a torch tensor, a path, encoded "
        "bytes, a pydicom Dataset or a nibabel image."
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
    return picture_of(linear_levels(values, low, high))


def _from_file(path: Path, name: str, choice: _Choice) -> Image.Image:
    """The picture in a file, every failure naming the path."""
    item = f"{name} ({path})"
    if not path.is_file():
        raise ValueError(f"{item} is not a file; a path must name one picture on this machine. Download a URL first.")
    if is_nifti_path(path):
        return _from_nifti(path, name, choice)
    if choice.slice_index is not None:
        raise ValueError(f"{item} is no NIfTI volume, and slice_index is {choice.slice_index}; leave it out.")
    with path.open("rb") as file:
        if has_dicom_head(file.read(HEAD_LENGTH)) or path.suffix.lower() in DICOM_SUFFIXES:
            return dicom_picture(path, item, choice.windows, choice.frame_index)
        file.seek(0)
        return _from_stream(file, item, choice)


def _from_nifti(source: Any, name: str, choice: _Choice) -> Image.Image:
    """The chosen slice of a volume."""
    return nifti_picture(
        source,
        name,
        choice.windows,
        slice_index=choice.slice_index,
        slice_axis=choice.slice_axis,
        frame_index=choice.frame_index,
    )


def _from_stream(stream: Any, item: str, choice: _Choice) -> Image.Image:
    """The picture in an open binary stream."""
    check_encoded(stream, item)
    with _decoding(item, "cannot be read as a picture"):
        image = Image.open(stream)
    return _from_pil(image, item, choice)


@contextmanager
def _decoding(item: str, verdict: str) -> Iterator[None]:
    """Inside, what Pillow raises for a broken picture is a ValueError with the verdict; so is what it deems a bomb."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise too_many_pixels(f"{item} is too large ({error})") from error
    except DECODE_ERRORS as error:
        raise ValueError(
            f"{item} {verdict} ({error}); it must be a complete image file. Replace or re-export it."
        ) from error


def _from_pil(image: Image.Image, name: str, choice: _Choice) -> Image.Image:
    """A PIL image of any mode, also one that Pillow has opened but not decoded yet."""
    filename = getattr(image, "filename", "")
    item = f"{name} ({filename})" if filename and str(filename) not in name else name
    with _decoding(item, "is truncated or corrupt"):
        is_one_photograph = image.format == "MPO"  # of a phone: behind the photograph are only its previews
        num_frames = 1 if is_one_photograph else getattr(image, "n_frames", 1)
    index = chosen_index(choice.frame_index, num_frames, item, things="frames", option="frame_index")
    with _decoding(item, "is truncated or corrupt"):
        frame, is_white_zero = _decoded_frame(image, index if num_frames > 1 else None)
    return _to_8_bit(frame, item, choice.windows, is_white_zero)


def _decoded_frame(image: Image.Image, index: int | None) -> tuple[Image.Image, bool]:
    """The frame (None: the current one) upright, and whether its zero means white; `image` stays at its own frame."""
    current = image.tell()
    is_moved = index is not None and index != current
    if is_moved:
        image.seek(index)
    try:
        limit, (width, height) = Image.MAX_IMAGE_PIXELS, image.size  # Pillow looks at the first frame's alone
        if is_moved and limit is not None and width * height > limit:
            raise Image.DecompressionBombError(f"frame {index} has {width} x {height} pixels")
        image.load()
        is_numeric = image.mode in NUMERIC_MODES  # Pillow inverts the 8-bit modes itself
        is_white_zero = is_numeric and getattr(image, "tag_v2", {}).get(PHOTOMETRIC_TAG) == 0
        frame = upright(image)
        return (frame.copy() if is_moved else frame), is_white_zero
    finally:
        if is_moved:
            image.seek(current)


def _to_8_bit(
    image: Image.Image, item: str, windows: Sequence[IntensityWindow] = (), is_white_zero: bool = False
) -> Image.Image:
    """The upright image in mode "L" or "RGB"."""
    if 0 in image.size:
        raise ValueError(f"{item} has size {image.size}; width and height must be at least 1 pixel.")
    if image.mode in NUMERIC_MODES:
        levels = _numeric_levels(np.asarray(image), item, windows)
        return picture_of(255 - levels if is_white_zero else levels)
    if windows:
        raise ValueError(f"{item} is an 8-bit picture of mode {image.mode!r}; {_NO_WINDOW}")
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, rgba).convert("RGB")


def _numeric_levels(values: np.ndarray, item: str, windows: Sequence[IntensityWindow]) -> np.ndarray:
    """uint8 levels (H, W), or (H, W, 3) of three windows, of numbers that are more than 8-bit levels."""
    if not windows:
        return _to_levels(values, item)
    refuse_presets(windows, item, "its format does not say that its values are in these units")
    return show_through(_finite(values, item), windows)


def _from_array(source: np.ndarray | torch.Tensor, name: str, windows: Sequence[IntensityWindow]) -> Image.Image:
    """An array or tensor of numbers as a picture."""
    is_channels_first = isinstance(source, torch.Tensor)
    if isinstance(source, torch.Tensor):
        tensor = source.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    else:
        array = source
    if array.ndim == 3:
        array = _channels_last(array, name, is_channels_first)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}; it must be (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4 and no "
            "empty side. Give a batch as a list of images, a volume as one slice."
        )
    if windows and (array.ndim == 3 or array.dtype in (np.uint8, bool)):
        raise ValueError(f"{name} has shape {array.shape} of {array.dtype}; {_NO_WINDOW}")
    has_alpha = array.ndim == 3 and array.shape[2] == 4
    if has_alpha and array.dtype != np.uint8 and not _is_unit_range(array):
        raise ValueError(
            f"{name} has 4 channels of {array.dtype}; transparency must be 8-bit, or floats in [0, 1]. Drop the "
            "fourth channel."
        )
    return _to_8_bit(picture_of(_numeric_levels(array, name, windows)), name)


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
    values = _finite(array, item)
    if _is_unit_range(values) and array.dtype.kind == "f":
        return unit_levels(values)
    if values.min() < 0 or values.max() > 255 or values.max() <= 2:
        return range_levels(values)
    return np.rint(values).astype(np.uint8)


def _finite(array: np.ndarray, item: str) -> np.ndarray:
    """The values as float64, all of them finite."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{item} holds {array.dtype} values; it must hold bool, integer or floating values.")
    values = array.astype(np.float64)
    num_broken = values.size - int(np.isfinite(values).sum())
    if num_broken:
        raise ValueError(
            f"{item} holds {num_broken} values that are NaN or infinite; all must be finite. Replace them, for "
            "instance by np.nan_to_num."
        )
    return values
