"""Pixels and a few harmless words of a DICOM file; nothing else of its header is even parsed.

Stored values are kept without loss: 8 bits or fewer in an 8-bit PNG, more in a 16-bit PNG, colour in an 8-bit RGB PNG.
High is always bright: MONOCHROME1 is inverted, and so is a negative RescaleSlope. Signed values are shifted so that the
lowest one that the type can hold becomes 0. The VOI window is carried along in the same units. What a window, a rescale
or a colour space means is said in `processing/dicom_image.py`, which the processor shows a DICOM file by.

Source of the identifying elements: Table E.1-1 of
https://dicom.nema.org/medical/dicom/current/output/chtml/part15/chapter_E.html.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regionmed_clip.processing.corpus.sources.source_files import ImageFile
from regionmed_clip.processing.dicom_header import (
    MODALITIES,
    PIXEL_KEYWORDS,
    dicom_count,
    dicom_number,
    dicom_term,
    read_header,
    reading_dicom,
)
from regionmed_clip.processing.dicom_image import (
    colour_levels,
    decode_frame,
    photometric_of,
    rescale_of,
    stored_range,
    voi_window_of,
)

# The header elements that are parsed. Beside them pydicom reads the file meta group (for TransferSyntaxUID, which says
# how the pixels are packed) and SpecificCharacterSet; neither is handed on.
ALLOWED_KEYWORDS = (
    *PIXEL_KEYWORDS,
    "ViewPosition",  # a defined term, see VIEWS
    "BodyPartExamined",  # a defined term, see BODY_PARTS
    "Laterality",  # a defined term, see LATERALITIES
    "ImageLaterality",  # the same, of the image
    "BurnedInAnnotation",  # whether the pixels themselves may name the patient
)
# A word is handed on only where it is one of these terms of the standard: a name typed into the wrong field is not.
VIEWS = ("AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO")
BODY_PARTS = ("ABDOMEN", "ANKLE", "ARM", "BRAIN", "BREAST", "CHEST", "CLAVICLE", "CSPINE", "ELBOW", "EXTREMITY", "EYE")
BODY_PARTS += ("FOOT", "HAND", "HEAD", "HEART", "HIP", "KNEE", "LEG", "LIVER", "LSPINE", "NECK", "PELVIS", "SHOULDER")
BODY_PARTS += ("SKULL", "SPINE", "THORAX", "TSPINE", "WHOLEBODY", "WRIST")
LATERALITIES = ("L", "R", "B", "U")

# Elements that the Basic Profile of PS3.15 Table E.1-1 removes or replaces and that name or describe a person, a place
# or a day. Left out: UIDs, which every file has, and age and sex, which its option for patient characteristics keeps.
IDENTIFYING_KEYWORDS = (
    "PatientName PatientID IssuerOfPatientID OtherPatientIDs OtherPatientNames PatientBirthName PatientMotherBirthName "
    "PatientBirthDate PatientBirthTime PatientAddress PatientTelephoneNumbers PatientReligiousPreference MilitaryRank "
    "BranchOfService EthnicGroup Occupation CountryOfResidence RegionOfResidence MedicalRecordLocator PatientComments "
    "AdditionalPatientHistory ResponsiblePerson ResponsibleOrganization InstitutionName InstitutionAddress "
    "InstitutionalDepartmentName ReferringPhysicianName ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers "
    "PhysiciansOfRecord PerformingPhysicianName NameOfPhysiciansReadingStudy RequestingPhysician OperatorsName "
    "VerifyingObserverName ContentCreatorName PersonName AdmissionID AccessionNumber StudyID StudyDate SeriesDate "
    "AcquisitionDate AcquisitionDateTime ContentDate AdmittingDate StudyTime SeriesTime AcquisitionTime ContentTime "
    "StationName DeviceSerialNumber StudyDescription SeriesDescription ProtocolName ImageComments "
    "AcquisitionComments DerivationDescription RequestedProcedureDescription OverlayData OverlayComments"
).split()
_IDENTIFYING_KINDS = ("PN", "DA", "DT")  # a person's name, a date, a date with time: whatever the element is called
PRIVATE_ELEMENTS = "private elements"  # reported beside the keywords: their meaning is the vendor's secret

_MAX_BITS = 16  # of a PNG
_WAY_OUT = "Fetch it again or drop its rows."


@dataclass(frozen=True, slots=True)
class DicomImage:
    """The image of a DICOM file as PNG bytes, and the words of the header that the corpus may use.

    Attributes:
        image: PNG bytes, size, sha256 of the PNG bytes, and the window in the PNG's own values.
        modality, view, body_part, laterality: DICOM's defined terms ("CR", "PA", "CHEST", "L"); None where absent or
            not one of the terms.
        burned_in_annotation: "YES" or "NO"; None where the header does not say.
    """

    image: ImageFile
    modality: str | None
    view: str | None
    body_part: str | None
    laterality: str | None
    burned_in_annotation: str | None


def read_dicom(path: Path, *, allow_burned_in: bool = False) -> DicomImage:
    """The picture and the allow-listed words of the DICOM file at `path`.

    Args:
        path: a DICOM file with one frame.
        allow_burned_in: also take an image whose header says that text is burned into its pixels.

    Raises:
        ValueError: the file is missing, broken, has no pixels, several frames, burned-in text or a kind of pixels that
            is not supported. The message quotes no text of the header.
        ImportError: pydicom is not installed.
    """
    header = _read_header(path, specific_tags=list(ALLOWED_KEYWORDS))
    burned_in = dicom_term(header, "BurnedInAnnotation", ("YES", "NO"), str(path))
    if burned_in == "YES" and not allow_burned_in:
        raise ValueError(
            f"{path}: BurnedInAnnotation is YES; such pixels may name the patient and stay out of the corpus. "
            "Clean the pixels and set it to NO."
        )
    levels, window = _levels(_decode_pixels(header, path), header, str(path))
    return DicomImage(
        image=_png_of(levels, window),
        modality=dicom_term(header, "Modality", MODALITIES, str(path)),
        view=dicom_term(header, "ViewPosition", VIEWS, str(path)),
        body_part=dicom_term(header, "BodyPartExamined", BODY_PARTS, str(path)),
        laterality=dicom_term(header, "ImageLaterality", LATERALITIES, str(path))
        or dicom_term(header, "Laterality", LATERALITIES, str(path)),
        burned_in_annotation=burned_in,
    )


def identifying_tags(path: Path) -> list[str]:
    """The names, never the values, of identifying elements of a DICOM header that hold a value, sorted.

    They are those of IDENTIFYING_KEYWORDS, nested ones too, and PRIVATE_ELEMENTS where any private one holds a value.

    Raises:
        ValueError: the file is missing or no DICOM file.
        ImportError: pydicom is not installed.
    """
    header = _read_header(path, stop_before_pixels=True)
    rule = f"it must be a whole DICOM file with preamble. {_WAY_OUT}"
    with reading_dicom(f"{_sized(path)} cannot be read as DICOM", rule):
        return sorted(set(_identifying_names(header)))


def stored_window(window: tuple[float, float] | None, slope: float, intercept: float) -> tuple[float, float] | None:
    """The window (low, high) in modality units as (low, high) in stored values, low below high also for slope < 0."""
    if window is None:
        return None
    first, second = ((value - intercept) / slope for value in window)
    return min(first, second), max(first, second)


def _read_header(path: Path, **options: Any) -> Any:
    """The pydicom dataset of the file; a missing or broken file is a ValueError."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; every annotated image needs its file. Restore it or drop its rows.")
    return read_header(path, _sized(path), _WAY_OUT, **options)


def _sized(path: Path) -> str:
    """What messages call a file that may be cut short."""
    return f"{path} ({path.stat().st_size} bytes)"


def _decode_pixels(header: Any, path: Path) -> np.ndarray:
    """(H, W) or (H, W, 3) stored values of the only frame, as int32; colour as RGB."""
    photometric_of(header, str(path))
    num_frames = dicom_number(header, "NumberOfFrames", str(path))
    if num_frames is not None and num_frames != 1:
        raise ValueError(
            f"{path}: NumberOfFrames is {num_frames:g}; an image of the corpus has one. Export the frame that the "
            "annotation means as a file of its own."
        )
    num_bits = dicom_count(header, "BitsAllocated", str(path))
    if num_bits > _MAX_BITS:
        raise ValueError(f"{path}: BitsAllocated is {num_bits}; a PNG holds {_MAX_BITS}. Convert the file to 16 bits.")
    return decode_frame(header, str(path)).astype(np.int32)


def _levels(pixels: np.ndarray, header: Any, item: str) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The pixels as levels in which high is bright, uint8 or uint16, and the window in these levels."""
    if pixels.ndim == 3:
        return colour_levels(pixels, header, item), None
    if pixels.ndim != 2:
        raise ValueError(f"{item}: its pixels have shape {pixels.shape}; they must be (H, W). Export one frame.")
    num_bits = dicom_count(header, "BitsStored", item)
    lowest, highest = stored_range(header, item)
    if pixels.min() < lowest or pixels.max() > highest:
        raise ValueError(
            f"{item} holds values from {pixels.min()} to {pixels.max()}; with BitsStored {num_bits} they must lie in "
            f"{lowest} to {highest}. Correct BitsStored."
        )
    slope, intercept = rescale_of(header, item)
    voi = voi_window_of(header, item)
    window = stored_window(None if voi is None else voi.limits, slope, intercept)
    if (photometric_of(header, item) == "MONOCHROME1") != (slope < 0):
        mirror = lowest + highest  # v -> mirror - v swaps the two ends of the range
        pixels = mirror - pixels
        window = None if window is None else (mirror - window[1], mirror - window[0])
    dtype, shift = (np.uint8, 128) if num_bits <= 8 else (np.uint16, 32768)
    shift = shift if lowest < 0 else 0
    levels = (pixels + shift).astype(dtype)
    if window is not None:
        window = (window[0] + shift, window[1] + shift)
    elif num_bits != 8 and levels.min() < levels.max():  # the whole range of 16 bits would show 12 bits as black
        window = (float(levels.min()), float(levels.max()))
    return levels, None if dtype == np.uint8 and window == (0.0, 255.0) else window


def _png_of(levels: np.ndarray, window: tuple[float, float] | None) -> ImageFile:
    """The levels, (H, W) uint8 or uint16 or (H, W, 3) uint8, as a PNG file in memory, without any text chunk."""
    buffer = BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG", compress_level=1)  # 7 x faster than 6, 7 % larger
    content = buffer.getvalue()
    height, width = levels.shape[:2]
    return ImageFile(content, width, height, hashlib.sha256(content).hexdigest(), window)


def _identifying_names(dataset: Any) -> Iterator[str]:
    """Names of the identifying elements of a dataset, and of the items of its sequences, that hold a value."""
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    for tag in list(dataset.keys()):
        element = dataset.get_item(tag)  # as read, not converted: a malformed value cannot raise
        keyword = "" if tag.is_private else keyword_for_tag(tag)
        kind = element.VR or (dictionary_VR(tag) if keyword else "")
        if kind == "SQ":
            for item in dataset[tag].value:
                yield from _identifying_names(item)
        elif not _holds_value(element.value):
            continue
        elif tag.is_private:
            yield PRIVATE_ELEMENTS
        elif keyword in IDENTIFYING_KEYWORDS or kind in _IDENTIFYING_KINDS:
            yield keyword or str(tag)


def _holds_value(value: Any) -> bool:
    """Whether an element's value is more than padding."""
    return bool(value.strip(b" \0") if isinstance(value, bytes) else value is not None and str(value).strip(" \0"))
