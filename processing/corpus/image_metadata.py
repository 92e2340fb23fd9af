"""Text that an image file carries beside its pixels: EXIF, PNG text, comments, XMP, IPTC. Read, never altered.

The shards keep image files as they came, so what a camera or a program wrote into them would be published too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

_HARMLESS_EXIF = frozenset(  # texts that tell the kind of device or the format, of no person and no day
    {"Make", "Model", "Software", "LensMake", "LensModel", "ExifVersion", "FlashPixVersion", "InteropIndex"}
    | {"ComponentsConfiguration", "SceneType", "FileSource", "CFAPattern", "MakerNoteSafety", "ColorSpace"}
)
_IDENTIFYING_EXIF = frozenset(
    {"DateTime", "DateTimeOriginal", "DateTimeDigitized", "Artist", "Copyright", "CameraOwnerName", "HostComputer"}
    | {"BodySerialNumber", "LensSerialNumber", "CameraSerialNumber", "ImageUniqueID", "XPAuthor", "DocumentName"}
    | {"PreviewDateTime", "OriginalRawFileName", "RelatedSoundFile", "PageName"}
)
_IDENTIFYING_PNG = frozenset({"author", "creation time", "patient", "patient name", "date:create", "date:modify"})
_BLOCKS = {"comment": "comment", "xmp": "XMP block", "photoshop": "IPTC or Photoshop block"}  # info key -> name
_XMP_PNG = "XML:com.adobe.xmp"


@dataclass(frozen=True, slots=True)
class MetadataText:
    """A text in an image file: where it stands, what it says, and whether its place alone makes it identifying."""

    place: str
    text: str
    is_identifying: bool = False


def metadata_texts(image: Image.Image) -> list[MetadataText]:
    """The texts of an image that was opened and loaded (a PNG may hold texts behind its pixels), by place."""
    found = [*_exif_texts(image), *_png_texts(image)]
    for key, name in _BLOCKS.items():
        text = _as_text(image.info.get(key))
        if text:
            found.append(MetadataText(f"{image.format} {name}", text))
    return found


def _exif_texts(image: Image.Image) -> Iterator[MetadataText]:
    """Texts of the EXIF tags, without harmless ones; a GPS block counts whatever it says. TIFF tags are among them."""
    exif = image.getexif()
    tags: dict[int, Any] = dict(exif)
    tags |= exif.get_ifd(ExifTags.IFD.Exif)
    if exif.get_ifd(ExifTags.IFD.GPSInfo):
        yield MetadataText("EXIF GPSInfo", "", is_identifying=True)
    for number, value in tags.items():
        name = ExifTags.TAGS.get(number, f"tag {number:#06x}")
        text = _as_text(value)
        if text and name not in _HARMLESS_EXIF:
            yield MetadataText(f"EXIF {name}", text, is_identifying=name in _IDENTIFYING_EXIF)


def _png_texts(image: Image.Image) -> Iterator[MetadataText]:
    """The tEXt, zTXt and iTXt chunks of a PNG."""
    texts: dict[str, Any] = getattr(image, "text", None) or {}
    for key, value in texts.items():
        text = _as_text(value)
        if text and key.lower() != "software":
            place = "PNG XMP block" if key == _XMP_PNG else f"PNG text {key!r}"
            yield MetadataText(place, text, is_identifying=key.lower() in _IDENTIFYING_PNG)


def _as_text(value: Any) -> str:
    """`value` as a text where it is one, or bytes that read as one; "" for numbers and for bytes that do not."""
    if isinstance(value, dict):  # what Pillow makes of a Photoshop block
        return " ".join(filter(None, (_as_text(part) for part in value.values())))
    if isinstance(value, bytes):
        if value[:8] in (b"UNICODE\0", b"ASCII\0\0\0"):  # the head of an EXIF UserComment
            value = value[8:]
        is_utf16 = len(value) % 2 == 0 and value[1::2].count(0) * 2 > len(value) // 2  # the XP tags of Windows
        value = value.decode("utf-16-le" if is_utf16 else "utf-8", errors="replace")
    if not isinstance(value, str):
        return ""
    text = value.strip("\0 \t\r\n")
    num_printable = sum(character.isprintable() or character.isspace() for character in text if character != "�")
    return text if text and num_printable >= 0.8 * len(text) else ""
