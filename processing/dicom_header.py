"""Reading DICOM headers so that nothing personal gets out: pydicom where it is needed, its remarks silenced.

A header holds personal data, and pydicom's own messages, warnings and log lines quote it. So everything that may parse
an element runs inside `reading_dicom`, and the errors made here quote numbers and terms of the standard, never a text.
"""

from __future__ import annotations

import logging
import math
import struct
import sys
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

# The header elements from which a picture is made.
PIXEL_KEYWORDS = (
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
    "NumberOfFrames",  # several pictures in one file
    "RescaleSlope",  # stored value -> modality unit, in which the window is given
    "RescaleIntercept",  # the same
    "ModalityLUTSequence",  # the same by a table: only its presence is looked at, and refused
    "WindowCenter",  # what is shown as black and white
    "WindowWidth",  # the same
    "VOILUTFunction",  # how the two are meant
    "Modality",  # a defined term, see MODALITIES
)
MODALITIES = ("CR", "CT", "DX", "ES", "GM", "IO", "MG", "MR", "NM", "OP", "OPT", "OT", "PT", "PX", "RF", "SM", "US")
MODALITIES += ("XA", "XC")
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")
HEAD_LENGTH = 132  # bytes: the preamble of 128, then "DICM"

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


def has_dicom_head(head: bytes) -> bool:
    """Whether these first bytes of a file, HEAD_LENGTH of them, are those of DICOM."""
    return head[HEAD_LENGTH - 4 : HEAD_LENGTH] == b"DICM"


def is_dicom_dataset(source: Any) -> bool:
    """Whether this is a pydicom Dataset; never imports pydicom, for who holds one has."""
    pydicom = sys.modules.get("pydicom")
    return pydicom is not None and isinstance(source, pydicom.Dataset)


def import_pydicom() -> Any:
    """The module pydicom; ImportError with the command that installs it."""
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.errors
        import pydicom.pixels
    except ImportError as error:
        raise ImportError('DICOM files need pydicom 3. Run: pip install "pydicom>=3"') from error
    return pydicom


@contextmanager
def reading_dicom(what: str, rule: str) -> Iterator[None]:
    """Turns what pydicom raises for a broken file into the ValueError "`what` (kind of error); `rule`".

    pydicom's own messages, warnings and log lines quote the header; none of them may reach a terminal or a log.
    """
    errors = import_pydicom().errors
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


def read_header(source: str | Path | bytes, item: str, way_out: str, **options: Any) -> Any:
    """The pydicom dataset of a file, or of a file's bytes.

    Args:
        source: a path, or the bytes of a file.
        item: what messages call it.
        way_out: what the user can do about a broken file.
        options: of `pydicom.dcmread`; `specific_tags` keeps the rest of the header from being parsed.

    Raises:
        ValueError: the file is broken or no DICOM file.
        ImportError: pydicom is not installed.
    """
    pydicom = import_pydicom()
    stream = BytesIO(source) if isinstance(source, (bytes, bytearray)) else source
    rule = f"it must be a whole DICOM file with preamble. {way_out}"
    with reading_dicom(f"{item} cannot be read as DICOM", rule):
        return pydicom.dcmread(stream, **options)


def dicom_value(header: Any, keyword: str, item: str) -> Any:
    """The value of an element, of several values the first; None where it is absent or empty."""
    with reading_dicom(f"{item}: {keyword} cannot be read", "it must hold a value of its kind. Correct or remove it."):
        value = header.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        value = value[0] if len(value) else None
    return None if value == "" else value


def dicom_number(header: Any, keyword: str, item: str) -> float | None:
    """The first value of a numeric element; None where it is absent or empty."""
    value = dicom_value(header, keyword, item)
    try:
        number = None if value is None else float(value)
    except (ValueError, TypeError):
        raise ValueError(f"{item}: {keyword} is no number; it must be one. Correct or remove it.") from None
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{item}: {keyword} is {number}; it must be finite. Correct or remove it.")
    return number


def dicom_count(header: Any, keyword: str, item: str) -> int:
    """The whole number that every DICOM image states under `keyword`."""
    number = dicom_number(header, keyword, item)
    if number is None:
        raise ValueError(f"{item} has no {keyword}; every DICOM image states it. Fetch the file again.")
    return int(number)


def dicom_term(header: Any, keyword: str, terms: Collection[str], item: str) -> str | None:
    """The value of a text element where it is one of `terms`, else None."""
    value = str(dicom_value(header, keyword, item) or "").strip().upper()
    return value if value in terms else None
