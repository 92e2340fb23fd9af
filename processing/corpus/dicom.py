"""Pixels and a few harmless words of a DICOM file; nothing else of its header is even parsed.

Stored values are kept without loss: 8 bits or fewer in an 8-bit PNG, more in a 16-bit PNG, colour in an 8-bit RGB PNG.
High is always bright: MONOCHROME1 is inverted, and so is a negative RescaleSlope. Signed values are shifted so that the
lowest one that the type can hold becomes 0. The VOI window is carried along in the same units.

Sources: window, https://dicom.nema.org/medical/dicom/2024a/output/chtml/part03/sect_C.11.2.html#sect_C.11.2.1.2;
identifying elements, https://dicom.nema.org/medical/dicom/current/output/chtml/part15/chapter_E.html (Table E.1-1).
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regionmed_clip.processing.corpus.sources.source_files import ImageFile

# The header elements that are parsed. Beside them pydicom reads the file meta group (for TransferSyntaxUID, which says
# how the pixels are packed) and SpecificCharacterSet; neither is handed on.
ALLOWED_KEYWORDS = (
    "Rows",  # height
    "Columns",  # width
    "SamplesPerPixel",  # 1 grey, 3 colour
    "PhotometricInterpretation",  # whether low or high is bright; the colour space
    "PlanarConfiguration",  # the order of colour values
    "BitsAllocated",  # bits that a value takes up
    "BitsStored",  # bits of them that hold the value
    "HighBit",  # where these lie
    "PixelRepresentation",  # signed or not
    "PixelData",  # the pixels
    "NumberOfFrames",  # more than one is refused
    "RescaleSlope",  # stored value -> modality unit, in which the window is given
    "RescaleIntercept",  # the same
    "ModalityLUTSequence",  # the same by a table: only its presence is looked at, and refused
    "WindowCenter",  # what is shown as black and white
    "WindowWidth",  # the same
    "VOILUTFunction",  # how the two are meant
    "Modality",  # a defined term, see MODALITIES
    "ViewPosition",  # a defined term, see VIEWS
    "BodyPartExamined",  # a defined term, see BODY_PARTS
    "Laterality",  # a defined term, see LATERALITIES
    "ImageLaterality",  # the same, of the image
    "BurnedInAnnotation",  # whether the pixels themselves may name the patient
)
# A word is handed on only where it is one of these terms of the standard: a name typed into the wrong field is not.
MODALITIES = ("CR", "CT", "DX", "ES", "GM", "IO", "MG", "MR", "NM", "OP", "OPT", "OT", "PT", "PX", "RF", "SM", "US")
MODALITIES += ("XA", "XC")
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

_COLOUR_INTERPRETATIONS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREY_INTERPRETATIONS = ("MONOCHROME1", "MONOCHROME2")
_MAX_BITS = 16  # of a PNG
_READ_ERRORS = (  # what pydicom raises for broken files, found by truncating and corrupting some
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


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
    burned_in = _term(header, "BurnedInAnnotation", ("YES", "NO"), path)
    if burned_in == "YES" and not allow_burned_in:
        raise ValueError(
            f"{path}: BurnedInAnnotation is YES; such pixels may name the patient and stay out of the corpus. "
            "Clean the pixels and set it to NO."
        )
    levels, window = _levels(_decode_pixels(header, path), header, path)
    return DicomImage(
        image=_png_of(levels, window),
        modality=_term(header, "Modality", MODALITIES, path),
        view=_term(header, "ViewPosition", VIEWS, path),
        body_part=_term(header, "BodyPartExamined", BODY_PARTS, path),
        laterality=_term(header, "ImageLaterality", LATERALITIES, path)
        or _term(header, "Laterality", LATERALITIES, path),
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
    with _reading(*_unreadable(path)):
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
    pydicom = _pydicom()
    with _reading(*_unreadable(path)):
        return pydicom.dcmread(path, **options)


def _pydicom() -> Any:
    """The module pydicom; ImportError with the command that installs it."""
    try:
        import pydicom
        import pydicom.errors
    except ImportError as error:
        raise ImportError('DICOM files need pydicom 3. Run: pip install "regionmed-clip[dicom]"') from error
    return pydicom


def _unreadable(path: Path) -> tuple[str, str]:
    """What is wrong with a broken file, and the rule with the way out."""
    rule = "it must be a whole DICOM file with preamble. Fetch it again or drop its rows."
    return f"{path} ({path.stat().st_size} bytes) cannot be read as DICOM", rule


@contextmanager
def _reading(what: str, rule: str) -> Iterator[None]:
    """Turns what pydicom raises for a broken file into the ValueError "`what` (kind of error); `rule`".

    pydicom's own messages, warnings and log lines quote the header; none of them may reach a terminal or a log.
    """
    errors = _pydicom().errors
    logger = logging.getLogger("pydicom")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (errors.InvalidDicomError, errors.BytesLengthException, *_READ_ERRORS) as error:
        raise ValueError(f"{what} ({type(error).__name__}); {rule}") from None
    finally:
        logger.disabled = was_disabled


def _decode_pixels(header: Any, path: Path) -> np.ndarray:
    """(H, W) or (H, W, 3) stored values of the only frame, as int32; colour as RGB."""
    if _term(header, "PhotometricInterpretation", _GREY_INTERPRETATIONS + _COLOUR_INTERPRETATIONS, path) is None:
        raise ValueError(
            f"{path}: PhotometricInterpretation is none of {', '.join(_GREY_INTERPRETATIONS + _COLOUR_INTERPRETATIONS)}"
            "; other kinds are not supported. Convert the file to one of these."
        )
    num_frames = _number(header, "NumberOfFrames", path)
    if num_frames is not None and num_frames != 1:
        raise ValueError(
            f"{path}: NumberOfFrames is {num_frames:g}; an image of the corpus has one. Export the frame that the "
            "annotation means as a file of its own."
        )
    num_bits = _count(header, "BitsAllocated", path)
    if num_bits > _MAX_BITS:
        raise ValueError(f"{path}: BitsAllocated is {num_bits}; a PNG holds {_MAX_BITS}. Convert the file to 16 bits.")
    if "PixelData" not in header:
        raise ValueError(
            f"{path} has no PixelData; an image of the corpus needs pixels. Fetch the file again or drop its rows."
        )
    with _reading(
        f"{path}: its pixels cannot be decoded; transfer syntax {_syntax_name(header)}",
        "they must be whole, and of a kind that pydicom can decode here. Fetch the file again, or install a decoder: "
        "pip install python-gdcm",
    ):
        pixels = header.pixel_array
    return pixels.astype(np.int32)


def _syntax_name(header: Any) -> str:
    """The standard's name of the file's transfer syntax; a text that is none of the standard's is not quoted."""
    uid = header.file_meta.get("TransferSyntaxUID")
    return uid.name if uid in _pydicom().uid.AllTransferSyntaxes else "unknown"


def _levels(pixels: np.ndarray, header: Any, path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The pixels as levels in which high is bright, uint8 or uint16, and the window in these levels."""
    num_bits = _count(header, "BitsStored", path)
    if pixels.ndim == 3:
        if num_bits != 8:
            raise ValueError(f"{path}: BitsStored is {num_bits}; colour must have 8 bits. Convert the file to 8 bits.")
        return pixels.astype(np.uint8), None
    if pixels.ndim != 2:
        raise ValueError(f"{path}: its pixels have shape {pixels.shape}; they must be (H, W). Export one frame.")
    is_signed = _count(header, "PixelRepresentation", path) == 1
    lowest = -(2 ** (num_bits - 1)) if is_signed else 0
    highest = lowest + 2**num_bits - 1
    if pixels.min() < lowest or pixels.max() > highest:
        raise ValueError(
            f"{path} holds values from {pixels.min()} to {pixels.max()}; with BitsStored {num_bits} they must lie in "
            f"{lowest} to {highest}. Correct BitsStored."
        )
    slope, intercept = _rescale(header, path)
    window = stored_window(_modality_window(header, path), slope, intercept)
    if (_term(header, "PhotometricInterpretation", ("MONOCHROME1",), path) is not None) != (slope < 0):
        mirror = lowest + highest  # v -> mirror - v swaps the two ends of the range
        pixels = mirror - pixels
        window = None if window is None else (mirror - window[1], mirror - window[0])
    dtype, shift = (np.uint8, 128) if num_bits <= 8 else (np.uint16, 32768)
    shift = shift if is_signed else 0
    levels = (pixels + shift).astype(dtype)
    if window is not None:
        window = (window[0] + shift, window[1] + shift)
    elif num_bits != 8 and levels.min() < levels.max():  # the whole range of 16 bits would show 12 bits as black
        window = (float(levels.min()), float(levels.max()))
    return levels, None if dtype == np.uint8 and window == (0.0, 255.0) else window


def _rescale(header: Any, path: Path) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept; 1 and 0 where absent."""
    if _get(header, "ModalityLUTSequence", path) is not None:
        raise ValueError(
            f"{path} has a ModalityLUTSequence; only RescaleSlope and RescaleIntercept are supported. Apply the table "
            "and write the file without it."
        )
    slope = _number(header, "RescaleSlope", path)
    intercept = _number(header, "RescaleIntercept", path)
    if slope == 0:
        raise ValueError(f"{path}: RescaleSlope is 0; it must not be. Correct it, or remove it for a slope of 1.")
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _modality_window(header: Any, path: Path) -> tuple[float, float] | None:
    """The first VOI window as (low, high) in modality units; None without one.

    LINEAR by PS3.3 C.11.2.1.2.1, LINEAR_EXACT by C.11.2.1.3.2; of a SIGMOID the straight line that touches it at the
    centre, which reaches black and white where LINEAR_EXACT does.
    """
    center, width = _number(header, "WindowCenter", path), _number(header, "WindowWidth", path)
    if center is None and width is None:
        return None
    function = str(_get(header, "VOILUTFunction", path) or "LINEAR").strip().upper()
    if center is None or width is None or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(
            f"{path} has a window that lacks its centre, its width or a VOILUTFunction of LINEAR, LINEAR_EXACT or "
            "SIGMOID; it must have all or none. Complete or remove the window."
        )
    least = 1 if function == "LINEAR" else 0
    if width <= least:
        raise ValueError(
            f"{path}: WindowWidth is {width:g}; it must exceed {least} for {function}. Correct or remove the window."
        )
    if function == "LINEAR":
        return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return center - width / 2, center + width / 2


def _png_of(levels: np.ndarray, window: tuple[float, float] | None) -> ImageFile:
    """The levels, (H, W) uint8 or uint16 or (H, W, 3) uint8, as a PNG file in memory, without any text chunk."""
    buffer = BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG", compress_level=1)  # 7 x faster than 6, 7 % larger
    content = buffer.getvalue()
    height, width = levels.shape[:2]
    return ImageFile(content, width, height, hashlib.sha256(content).hexdigest(), window)


def _get(header: Any, keyword: str, path: Path) -> Any:
    """The value of an element, of several values the first; None where it is absent or empty."""
    with _reading(f"{path}: {keyword} cannot be read", "it must hold a value of its kind. Correct or remove it."):
        value = header.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        value = value[0] if len(value) else None
    return None if value == "" else value


def _number(header: Any, keyword: str, path: Path) -> float | None:
    """The first value of a numeric element; None where it is absent or empty."""
    value = _get(header, keyword, path)
    try:
        number = None if value is None else float(value)
    except (ValueError, TypeError):
        raise ValueError(f"{path}: {keyword} is no number; it must be one. Correct or remove it.") from None
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{path}: {keyword} is {number}; it must be finite. Correct or remove it.")
    return number


def _count(header: Any, keyword: str, path: Path) -> int:
    """The whole number that every DICOM image states under `keyword`."""
    number = _number(header, keyword, path)
    if number is None:
        raise ValueError(f"{path} has no {keyword}; every DICOM image states it. Fetch the file again.")
    return int(number)


def _term(header: Any, keyword: str, terms: Collection[str], path: Path) -> str | None:
    """The value of a text element where it is one of `terms`, else None."""
    value = str(_get(header, keyword, path) or "").strip().upper()
    return value if value in terms else None


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
