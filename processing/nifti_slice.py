"""One slice of a NIfTI volume, in the orientation in which radiologists look at it.

`slice_axis` and `slice_index` count in the RAS+ orientation nearest to the file's own, whatever order the file stores:
axis 0 is "sagittal", index 0 the patient's leftmost slice; axis 1 "coronal", 0 the rearmost; axis 2 "axial", 0 the
lowest. The slice is shown by the radiological convention: axial with anterior on top, coronal with superior on top,
both with the patient's right on the left of the picture; sagittal with superior on top and anterior on the left.

Boxes, masks and points are in pixels of the slice as shown, one pixel a voxel, nothing resampled: voxels that are not
square stay as they are counted. `nifti_slice` of a label volume, with the same options, gives the masks of a slice.

Source of the orientation: the affine, by nibabel's `io_orientation`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .image_errors import DECODE_ERRORS, check_num_pixels, chosen_index
from .intensity_windows import IntensityWindow, picture_of, range_levels, refuse_presets, show_through

SLICE_AXES = ("sagittal", "coronal", "axial")  # by the RAS axis along which the slices are counted
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_FAT_HU = -100  # a slice of a body in HU reaches down to fat at least, most to air at -1000


def is_nifti_path(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def is_nifti_image(source: Any) -> bool:
    """Whether this is an image that nibabel has loaded; never imports nibabel, for who holds one has."""
    nibabel = sys.modules.get("nibabel")
    return nibabel is not None and isinstance(source, nibabel.spatialimages.SpatialImage)


def slice_axis_number(slice_axis: str | int) -> int:
    """0 sagittal, 1 coronal, 2 axial.

    Raises:
        ValueError: for anything else.
    """
    if slice_axis in SLICE_AXES:
        return SLICE_AXES.index(slice_axis)
    if isinstance(slice_axis, Integral) and not isinstance(slice_axis, bool) and 0 <= slice_axis < len(SLICE_AXES):
        return int(slice_axis)
    raise ValueError(
        f'slice_axis {slice_axis!r} is not known; it must be "sagittal" or 0, "coronal" or 1, "axial" or 2.'
    )


def nifti_slice(
    source: Any,
    slice_index: int | None = None,
    slice_axis: str | int = "axial",
    frame_index: int | None = None,
    name: str = "image",
) -> np.ndarray:
    """(H, W) values of one slice as the head of this file says, scaled by the header's slope and intercept.

    Args:
        source: the path of a .nii or .nii.gz file, or an image of nibabel. Every slice of a .gz is unpacked anew; for
            many of them, unpack once: nibabel.Nifti1Image(np.asanyarray(loaded.dataobj), loaded.affine).
        slice_index: which slice, from 0; None where there is one.
        slice_axis: "axial" (2), "coronal" (1) or "sagittal" (0).
        frame_index: which volume of a file of four dimensions, from 0; None where there is one.
        name: what messages call it.

    Raises:
        ValueError: a broken file, not three or four dimensions, no choice of a slice or a volume, one that is not
            there, values that are no real numbers.
        ImportError: nibabel is not installed.
    """
    item = _item(source, name)
    volume, shape, orientation = _open_volume(source, item)
    ras_axis = slice_axis_number(slice_axis)
    axis = int(np.flatnonzero(orientation[:, 0] == ras_axis)[0])
    where = f"{item} of {' x '.join(str(side) for side in shape)} voxels"
    index = chosen_index(slice_index, shape[axis], where, things=f"{SLICE_AXES[ras_axis]} slices", option="slice_index")
    num_volumes = shape[3] if len(shape) == 4 else 1
    volume_index = chosen_index(frame_index, num_volumes, where, things="volumes", option="frame_index")
    first, second = (side for side in range(3) if side != axis)
    check_num_pixels(shape[first], shape[second], item)
    place: list[Any] = [slice(None)] * 3 + [volume_index] * (len(shape) - 3)
    place[axis] = index if orientation[axis, 1] > 0 else shape[axis] - 1 - index
    plane = _read_plane(volume, tuple(place), item)
    plane = plane[:: int(orientation[first, 1]), :: int(orientation[second, 1])]
    ordered = plane.T if orientation[first, 0] > orientation[second, 0] else plane  # the lower RAS axis first
    return np.ascontiguousarray(ordered[::-1, ::-1].T)


def nifti_picture(
    source: Any,
    name: str,
    windows: Sequence[IntensityWindow] = (),
    *,
    slice_index: int | None = None,
    slice_axis: str | int = "axial",
    frame_index: int | None = None,
) -> Image.Image:
    """The slice as an 8-bit picture, mode "L", or "RGB" through three windows; arguments and errors of `nifti_slice`.

    Without a window 8-bit values are kept, others are shown from the slice's minimum to its maximum. A CT preset is
    refused where no value is below -100, as fat and air are in Hounsfield units: the file does not name its modality.
    """
    values = nifti_slice(source, slice_index, slice_axis, frame_index, name)
    item = _item(source, name)
    num_broken = values.size - int(np.isfinite(values).sum())
    if num_broken:
        raise ValueError(
            f"{item}: {num_broken} voxels of the slice are NaN or infinite; all must be finite. Give the slice as an "
            "array without them: np.nan_to_num(nifti_slice(...))."
        )
    if windows:
        if values.min() >= _FAT_HU:
            refuse_presets(windows, item, f"the slice has no value below {_FAT_HU}, as fat and air are")
        return picture_of(show_through(values, windows))
    return picture_of(values if values.dtype == np.uint8 else range_levels(values))


def _item(source: Any, name: str) -> str:
    """What messages call the volume."""
    return name if is_nifti_image(source) else f"{name} ({source})"


def _open_volume(source: Any, item: str) -> tuple[Any, tuple[int, ...], np.ndarray]:
    """The nibabel image, its shape, and for each of its three axes the RAS axis it runs along and its sign (3, 2)."""
    nibabel = _nibabel()
    try:
        volume = source if is_nifti_image(source) else nibabel.load(source)
        if not is_nifti_image(volume):  # CIFTI: brain surfaces in a .nii file
            raise TypeError("no volume of voxels")
        shape, orientation = tuple(volume.shape), nibabel.io_orientation(volume.affine)
    except _read_errors(nibabel) as error:
        raise _unreadable(item, error) from None
    if len(shape) not in (3, 4) or 0 in shape or np.isnan(orientation).any():
        raise ValueError(
            f"{item} has shape {shape}; it must have three or four dimensions, none empty, and an affine that says how "
            "they lie in space. Give one slice as an array."
        )
    return volume, shape, orientation


def _read_plane(volume: Any, place: tuple[Any, ...], item: str) -> np.ndarray:
    """The values of one plane as they are stored, scaled; real numbers only."""
    nibabel = _nibabel()
    try:
        plane = np.asarray(volume.dataobj[place])
    except _read_errors(nibabel) as error:
        raise _unreadable(item, error) from None
    if plane.dtype.kind not in "biuf":
        raise ValueError(f"{item} holds {plane.dtype} values; they must be real numbers. Convert the file.")
    return plane


def _read_errors(nibabel: Any) -> tuple[type[Exception], ...]:
    """What nibabel raises for broken files, found by damaging some; its own kinds are no ValueErrors."""
    own = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)
    return (*own, nibabel.wrapstruct.WrapStructError, *DECODE_ERRORS)


def _unreadable(item: str, error: BaseException) -> ValueError:
    """The error for a broken file; its own message may quote the header."""
    return ValueError(
        f"{item} cannot be read as NIfTI ({type(error).__name__}); it must be a whole .nii or .nii.gz file. Fetch it "
        "again or export it anew."
    )


def _nibabel() -> Any:
    """The module nibabel; ImportError with the command that installs it."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError('NIfTI files need nibabel 5. Run: pip install "nibabel>=5"') from error
    return nibabel
