"""DICOM -> the picture that a person is shown, an 8-bit PIL image; and the rules by which the corpus reads DICOM too.

In this order (PS3.3): stored value; RescaleSlope and RescaleIntercept (C.11.1), which give the modality's unit, of CT
Hounsfield units; the window (C.11.2); MONOCHROME1 inverted (C.7.6.3.1.2). The window is the caller's, else the first
item of the VOILUTSequence, else the first WindowCenter and WindowWidth with their VOILUTFunction, else the whole range:
of 8 stored bits, which are display levels already, all that they can hold; of others the frame's minimum to maximum.

Boxes are in columns and rows of the stored pixel matrix: nothing is turned, cropped or resampled here.

Sources: https://dicom.nema.org/medical/dicom/2024a/output/chtml/part03/sect_C.11.2.html#sect_C.11.2.1.2; of enhanced
multi-frame files, whose every frame has its own values, section C.7.6.16 (functional groups).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .dicom_header import (
    MODALITIES,
    PIXEL_KEYWORDS,
    dicom_count,
    dicom_number,
    dicom_term,
    dicom_value,
    import_pydicom,
    is_dicom_dataset,
    read_header,
    reading_dicom,
)
from .encoded_pictures import check_frame, check_rle_frame
from .image_errors import check_num_pixels, chosen_index
from .intensity_windows import (
    IntensityWindow,
    linear_levels,
    picture_of,
    refuse_presets,
    show_through,
    unit_levels,
)

GREY_INTERPRETATIONS = ("MONOCHROME1", "MONOCHROME2")
COLOUR_INTERPRETATIONS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

_PICTURE_KEYWORDS = (
    *PIXEL_KEYWORDS,
    "VOILUTSequence",  # what is shown as black and white, by a table
    "RescaleType",  # the unit
    "SharedFunctionalGroupsSequence",  # of enhanced files: rescale and window of all frames
    "PerFrameFunctionalGroupsSequence",  # and of each
    "ExtendedOffsetTable",  # where the frames of a large compressed file begin
    "ExtendedOffsetTableLengths",
)
_FRAME_MACROS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_HOUNSFIELD_TYPES = ("HU", "HU_MOD")
_TABLE_BITS = (8, *range(10, 17))  # PS3.3 C.11.2.1.1
_ENCAPSULATED = b"\xfe\xff\x00\xe0"  # the first bytes of compressed PixelData
_TABLE_SPAN = 1 << 16  # integer pixels spanning less are mapped by a table of all their values: 2 to 4 times faster


@dataclass(frozen=True, slots=True)
class VoiWindow:
    """A window of a DICOM file, in modality units; `function` is LINEAR, LINEAR_EXACT or SIGMOID."""

    center: float
    width: float
    function: str

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high): the values shown as black and white.

        LINEAR by PS3.3 C.11.2.1.2.1, LINEAR_EXACT by C.11.2.1.3.2; of a SIGMOID those of the straight line that touches
        it at the centre, which reaches black and white where LINEAR_EXACT does.
        """
        if self.function == "LINEAR":
            return self.center - 0.5 - (self.width - 1) / 2, self.center - 0.5 + (self.width - 1) / 2
        return self.center - self.width / 2, self.center + self.width / 2

    def shares(self, values: np.ndarray) -> np.ndarray:
        """Brightness of float64 modality values, of their shape; below 0 black, above 1 white."""
        if self.function == "SIGMOID":  # C.11.2.1.3.1; beyond 500 it is 0 or 1, and exp would overflow
            return 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -500, 500)))
        low, high = self.limits
        return (values - low) / (high - low)


@dataclass(frozen=True, slots=True)
class VoiTable:
    """A VOI look-up table of a DICOM file: `entries` (n,) of `num_bits` for the modality values from `first` on."""

    first: int
    entries: np.ndarray
    num_bits: int

    def shares(self, values: np.ndarray) -> np.ndarray:
        """Brightness in [0, 1] of float64 modality values, of their shape; beyond the table its first or last entry."""
        rows = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        return self.entries[rows] / (2.0**self.num_bits - 1)


def dicom_picture(
    source: Any, item: str, windows: Sequence[IntensityWindow] = (), frame_index: int | None = None
) -> Image.Image:
    """The picture of a DICOM image as a person is shown it: 8-bit, mode "L" if grey, "RGB" if colour or three windows.

    Args:
        source: the path or the bytes of a DICOM file, or a pydicom Dataset, which is not changed.
        item: what messages call it.
        windows: none for the file's own, or one or three (red, green, blue) in modality units.
        frame_index: which frame of several, from 0; None where the file has one.

    Raises:
        ValueError: a broken file, no pixels, several frames and no choice, a kind of pixels that is not supported, a
            window for a colour image, a CT preset for values that are no Hounsfield units.
        ImportError: pydicom is not installed.
    """
    if is_dicom_dataset(source):
        header = source
    else:
        header = read_header(source, item, "Fetch it again.", specific_tags=list(_PICTURE_KEYWORDS))
    _check_pixels(header, item)
    frame = _chosen_frame(header, item, frame_index)
    photometric = photometric_of(header, item)
    check_num_pixels(dicom_count(header, "Columns", item), dicom_count(header, "Rows", item), item)
    if photometric in COLOUR_INTERPRETATIONS:
        if windows:
            raise ValueError(
                f"{item} is a colour image; a window needs one number a pixel. Give no window; where it was saved with "
                "the processor, say window=None in the call."
            )
        return picture_of(colour_levels(decode_frame(header, item, frame), header, item))
    levels = _grey_levels(header, item, windows, frame)
    return picture_of(255 - levels if photometric == "MONOCHROME1" else levels)


def _grey_levels(header: Any, item: str, windows: Sequence[IntensityWindow], frame_index: int) -> np.ndarray:
    """uint8 (H, W) of one frame, or (H, W, 3) of three windows, before the inversion of MONOCHROME1."""
    settings = [*_frame_settings(header, frame_index, item), header]
    slope, intercept = rescale_of(_holder(settings, "RescaleSlope", "RescaleIntercept"), item)
    if windows:
        _check_hounsfield(windows, header, settings, item)
    voi = None if windows else _voi_of(settings, item)
    ends = stored_range(header, item) if dicom_count(header, "BitsStored", item) == 8 else None
    pixels = decode_frame(header, item, frame_index)
    if pixels.ndim != 2:
        raise ValueError(f"{item}: its pixels have shape {pixels.shape}; they must be (H, W). Export one frame.")

    def to_levels(stored: np.ndarray, low: int, high: int) -> np.ndarray:
        values = stored * slope + intercept
        if windows:
            return show_through(values, windows)
        if voi is not None:
            return unit_levels(voi.shares(values))
        black, white = sorted(end * slope + intercept for end in ends or (low, high))
        return linear_levels(values, black, white)

    return _map_pixels(pixels, to_levels)


def _map_pixels(pixels: np.ndarray, to_levels: Callable[[np.ndarray, int, int], np.ndarray]) -> np.ndarray:
    """`to_levels` of integer pixels (H, W) and their ends; of few different values by a table of them all."""
    low, high = int(pixels.min()), int(pixels.max())
    if high - low >= min(_TABLE_SPAN, pixels.size):
        return to_levels(pixels.astype(np.float64), low, high)
    table = to_levels(np.arange(low, high + 1, dtype=np.float64), low, high)
    return table[pixels.astype(np.int64) - low]


# ---- the rules that the corpus shares


def photometric_of(header: Any, item: str) -> str:
    """The photometric interpretation, one of GREY_INTERPRETATIONS or COLOUR_INTERPRETATIONS."""
    known = GREY_INTERPRETATIONS + COLOUR_INTERPRETATIONS
    found = dicom_term(header, "PhotometricInterpretation", known, item)
    if found is None:
        raise ValueError(
            f"{item}: PhotometricInterpretation is none of {', '.join(known)}; other kinds are not supported. Convert "
            "the file to one of these."
        )
    return found


def decode_frame(header: Any, item: str, frame_index: int = 0) -> np.ndarray:
    """The stored integers (H, W) of one frame, in colour its RGB values (H, W, 3)."""
    _check_pixels(header, item)
    pydicom = import_pydicom()
    what = f"{item}: its pixels cannot be decoded; transfer syntax {_syntax_name(header)}"
    rule = "they must be whole, and of a kind that pydicom can decode here. Fetch the file again, or install a "
    rule += "decoder: pip install python-gdcm"
    with reading_dicom(what, rule):
        frame = _compressed_frame(header, frame_index)
    width, height = (dicom_count(header, keyword, item) for keyword in ("Columns", "Rows"))
    if _syntax_name(header) == pydicom.uid.RLELossless.name:
        check_rle_frame(frame, width * height, item)
    elif frame:
        check_frame(frame, width, height, item)
    with reading_dicom(what, rule):
        return pydicom.pixels.pixel_array(_with_syntax(header), index=frame_index)


def colour_levels(pixels: np.ndarray, header: Any, item: str) -> np.ndarray:
    """Decoded RGB values as uint8 (H, W, 3); colour of other than 8 bits is refused."""
    num_bits = dicom_count(header, "BitsStored", item)
    if num_bits != 8:
        raise ValueError(f"{item}: BitsStored is {num_bits}; colour must have 8 bits. Convert the file to 8 bits.")
    return pixels.astype(np.uint8)


def stored_range(header: Any, item: str) -> tuple[int, int]:
    """(lowest, highest) integer that the stored bits can hold."""
    num_bits = dicom_count(header, "BitsStored", item)
    is_signed = dicom_count(header, "PixelRepresentation", item) == 1
    lowest = -(2 ** (num_bits - 1)) if is_signed else 0
    return lowest, lowest + 2**num_bits - 1


def rescale_of(header: Any, item: str) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept; 1 and 0 where absent."""
    if dicom_value(header, "ModalityLUTSequence", item) is not None:
        raise ValueError(
            f"{item} has a ModalityLUTSequence; only RescaleSlope and RescaleIntercept are supported. Apply the table "
            "and write the file without it."
        )
    slope = dicom_number(header, "RescaleSlope", item)
    intercept = dicom_number(header, "RescaleIntercept", item)
    if slope == 0:
        raise ValueError(f"{item}: RescaleSlope is 0; it must not be. Correct it, or remove it for a slope of 1.")
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def voi_window_of(header: Any, item: str) -> VoiWindow | None:
    """The first window of the header; None without one."""
    center, width = dicom_number(header, "WindowCenter", item), dicom_number(header, "WindowWidth", item)
    if center is None and width is None:
        return None
    function = str(dicom_value(header, "VOILUTFunction", item) or "LINEAR").strip().upper()
    if center is None or width is None or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(
            f"{item} has a window that lacks its centre, its width or a VOILUTFunction of LINEAR, LINEAR_EXACT or "
            "SIGMOID; it must have all or none. Complete or remove the window."
        )
    least = 1 if function == "LINEAR" else 0
    if width <= least:
        raise ValueError(
            f"{item}: WindowWidth is {width:g}; it must exceed {least} for {function}. Correct or remove the window."
        )
    return VoiWindow(center, width, function)


# ---- frames, tables, units


def _check_pixels(header: Any, item: str) -> None:
    """Nothing, or a ValueError for a file without integer pixels."""
    if "PixelData" not in header:
        raise ValueError(f"{item} has no PixelData; an image needs its pixels. Fetch the file again.")


def _chosen_frame(header: Any, item: str, frame_index: int | None) -> int:
    """The index of the frame to show; a file of several needs a choice."""
    stated = dicom_number(header, "NumberOfFrames", item)
    count = 1 if stated is None else int(stated)
    return chosen_index(frame_index, count, item, things="frames", option="frame_index")


def _frame_settings(header: Any, frame_index: int, item: str) -> list[Any]:
    """The items that hold rescale and window of one frame of an enhanced file, its own before the shared ones."""
    found = []
    for keyword, index in (("PerFrameFunctionalGroupsSequence", frame_index), ("SharedFunctionalGroupsSequence", 0)):
        with reading_dicom(f"{item}: {keyword} cannot be read", "it must have an item a frame. Fetch the file again."):
            groups = header.get(keyword)
            macros = [groups[index].get(macro) for macro in _FRAME_MACROS] if groups else []
            found += [macro[0] for macro in macros if macro]
    return found


def _holder(settings: Sequence[Any], *keywords: str) -> Any:
    """The first of the datasets that has one of the elements, else the last."""
    return next((one for one in settings if any(keyword in one for keyword in keywords)), settings[-1])


def _voi_of(settings: Sequence[Any], item: str) -> VoiTable | VoiWindow | None:
    """How the file itself says its modality values are shown; a table goes before a window."""
    table = _voi_table_of(settings[-1], item)
    return voi_window_of(_holder(settings, "WindowCenter", "WindowWidth"), item) if table is None else table


def _voi_table_of(header: Any, item: str) -> VoiTable | None:
    """The first table of the VOILUTSequence; None without one."""
    table = dicom_value(header, "VOILUTSequence", item)
    if table is None:
        return None
    rule = "it must hold its LUTDescriptor and as many entries as that says. Correct or remove it."
    with reading_dicom(f"{item}: its VOILUTSequence cannot be read", rule):
        stated, first, num_bits = (int(number) for number in table.LUTDescriptor)
        count = stated & 0xFFFF or 1 << 16  # an unsigned number, even where the whole descriptor is read as signed
        data = table.LUTData
        if isinstance(data, bytes):
            is_big = _syntax_name(header) == "Explicit VR Big Endian"
            data = np.frombuffer(data, np.uint8 if len(data) < 2 * count else ">u2" if is_big else "<u2")
        entries = np.asarray(data, dtype=np.float64).reshape(-1)[:count]
    if len(entries) != count or num_bits not in _TABLE_BITS:
        raise ValueError(
            f"{item} has a VOILUTSequence of {count} entries of {num_bits} bits, {len(entries)} of them there; all "
            "must be there and have 8 or 10 to 16 bits. Correct or remove it."
        )
    return VoiTable(first, entries, num_bits)


def _check_hounsfield(windows: Sequence[IntensityWindow], header: Any, settings: Sequence[Any], item: str) -> None:
    """Nothing, or a ValueError where a preset of CT is asked for and the values are no Hounsfield units."""
    modality = dicom_term(header, "Modality", MODALITIES, item)
    slope, intercept = rescale_of(_holder(settings, "RescaleSlope", "RescaleIntercept"), item)
    unit = dicom_value(_holder(settings, "RescaleType"), "RescaleType", item)
    if modality != "CT":
        refuse_presets(windows, item, f"its Modality is {modality or 'not stated, or not a term of the standard'}")
    elif unit is not None and str(unit).strip().upper() not in _HOUNSFIELD_TYPES:
        refuse_presets(windows, item, "its RescaleType is not HU")
    elif min(end * slope + intercept for end in stored_range(header, item)) >= 0:
        refuse_presets(windows, item, "its values cannot be negative, as those of air are")


def _syntax_name(header: Any) -> str:
    """The standard's name of the file's transfer syntax; a text that is none of the standard's is not quoted."""
    uid = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    return uid.name if uid in import_pydicom().uid.AllTransferSyntaxes else "unknown"


def _compressed_frame(header: Any, frame_index: int) -> bytes:
    """One frame of compressed pixels, as pydicom gives it to a decoder; empty where they are not compressed."""
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    if not syntax or not syntax.is_encapsulated:
        return b""
    tables = [header.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    return import_pydicom().encaps.get_frame(
        header.PixelData,
        frame_index,
        number_of_frames=int(header.get("NumberOfFrames") or 1),
        extended_offsets=tuple(tables) if all(tables) else None,
    )


def _with_syntax(header: Any) -> Any:
    """The dataset to decode: itself, or where it states no transfer syntax, as one built in memory, a plain copy."""
    if getattr(header, "file_meta", {}).get("TransferSyntaxUID"):
        return header
    pydicom = import_pydicom()
    plain = pydicom.Dataset()
    for keyword in PIXEL_KEYWORDS:
        if keyword in header and not keyword.endswith("Sequence"):
            plain.add(header[keyword])
    if bytes(plain.PixelData[: len(_ENCAPSULATED)]) == _ENCAPSULATED:
        raise TypeError("compressed pixels without a transfer syntax")  # named by decode_frame
    plain.file_meta = pydicom.dataset.FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return plain
