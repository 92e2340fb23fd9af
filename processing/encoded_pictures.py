"""Encoded pictures looked at before a decoder takes them, whoever reads them; pictures turned as they are displayed.

What is refused makes a small file cost gigabytes or minutes: directories of TIFF and EXIF (`tiff_directories.py`),
scans of a JPEG, a compressed frame of DICOM that unpacks to more than its header says. Sources of the layouts: ITU-T
T.81, annex B (JPEG) and T.87, annex C (JPEG-LS), ISO/IEC 15444-1, A.5.1 (JPEG 2000), DICOM PS3.5, annex G (RLE).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

from PIL import Image

from .tiff_directories import check_exif, check_tiff

MAX_JPEG_SCANS = 100  # a progressive JPEG has about 10; each is a pass over all pixels
MAX_JPEG_SEGMENTS = 10_000  # a file has dozens
ORIENTATION_TAG = 0x0112  # EXIF
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_HEAD = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # behind FF; 00 and the restarts belong to a scan
_EOI, _SOS, _APP1, _APP2 = 0xD9, 0xDA, 0xE1, 0xE2
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)  # SOF and SOF55
_BARE = (0x01, 0xC8, 0xD8, _EOI, *range(0xF0, 0xFE))  # markers that Pillow takes to have no segment
_SIZ = re.compile(rb"\xff\x4f\xff\x51.{4}(.{16})", re.DOTALL)  # of JPEG 2000: width, height and their offsets
_IHDR = re.compile(rb"ihdr(.{8})", re.DOTALL)  # of its file format, which some put around it: height and width


def check_encoded(stream: BinaryIO, item: str) -> None:
    """Nothing, the stream as it was; also for what is no picture or breaks off, which its reader says better.

    Args:
        stream: binary, from whose beginning the picture is read; it can seek.
        item: what messages call the picture.

    Raises:
        ValueError: a TIFF that `check_tiff` refuses, a JPEG of too many scans or with such directories in its EXIF.
    """
    check_tiff(stream, item)
    place = stream.tell()
    stream.seek(0)
    if stream.read(len(_JPEG_HEAD)) == _JPEG_HEAD:
        stream.seek(0)
        _check_jpeg(stream.read(), item)
    stream.seek(place)


def _check_jpeg(content: bytes, item: str) -> None:
    num_scans, exif = 0, b""
    for i, (marker, body) in enumerate(_jpeg_segments(content)):
        if i == MAX_JPEG_SEGMENTS:
            raise ValueError(f"{item} is a JPEG of more than {MAX_JPEG_SEGMENTS:,} segments; save it again, plainly.")
        if marker == _EOI and num_scans:  # behind it are previews, or the film of a phone
            break
        num_scans += marker == _SOS
        if num_scans > MAX_JPEG_SCANS:
            raise ValueError(f"{item} is a JPEG of more than {MAX_JPEG_SCANS} scans; save it again, plainly.")
        if marker == _APP1 and body[:6] == b"Exif\0\0":  # Pillow joins them all
            exif += body[6:]
        if marker == _APP2 and body[:4] == b"MPF\0":  # what a phone says of its previews, in a directory too
            check_exif(body[4:], item)
    check_exif(exif, item)


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers behind FF in the order of the file, and what the segment of each holds."""
    place = 0
    while found := _MARKER.search(content, place):
        marker, place = content[found.end() - 1], found.end()
        length = int.from_bytes(content[place : place + 2], "big")
        yield marker, content[place + 2 : place + length]
        place += 0 if marker in _BARE else max(length, 2)


def check_frame(frame: bytes, width: int, height: int, item: str) -> None:
    """Nothing, or a ValueError for a frame of JPEG, JPEG-LS or JPEG 2000 that is larger than the header's size."""
    check_encoded(BytesIO(frame), f"{item}: its frame")
    sizes = []
    if frame.startswith(_JPEG_HEAD):
        sizes = [(body[3:5], body[1:3]) for marker, body in _jpeg_segments(frame) if marker in _FRAMES]
        sizes = [(int.from_bytes(across, "big"), int.from_bytes(down, "big")) for across, down in sizes]
    for siz in _SIZ.finditer(frame):
        right, bottom, left, top = struct.unpack(">4L", siz[1])
        sizes.append((right - left, bottom - top))
    sizes += [struct.unpack(">2L", ihdr[1])[::-1] for ihdr in _IHDR.finditer(frame)]
    for across, down in sizes:
        if across * down > width * height:
            raise ValueError(
                f"{item} states {width} x {height} pixels and its frame has {across} x {down}; both must be the same. "
                "Fetch the file again."
            )


def check_rle_frame(frame: bytes, num_pixels: int, item: str) -> None:
    """Nothing, or a ValueError for a frame of RLE whose segments unpack to far more than a byte for each pixel."""
    if len(frame) < 64:
        return
    most = 2 * num_pixels + 2**16
    num_segments, *starts = struct.unpack("<16L", frame[:64])
    starts = starts[:num_segments]
    for start, end in zip(starts, [*starts[1:], len(frame)]):
        if end - start > most or _unpacked_length(frame[start:end], most) > most:
            raise ValueError(
                f"{item} has {num_pixels:,} pixels and a segment of RLE that unpacks to more than {most:,}; a segment "
                "has a byte for each pixel. Fetch the file again."
            )


def _unpacked_length(segment: bytes, most: int) -> int:
    """How many bytes a segment of RLE unpacks to; counted no further than just beyond `most`."""
    length = place = 0
    if 64 * len(segment) <= most:  # two bytes unpack to 128 at most
        return 0
    while place < len(segment) and length <= most:
        control = segment[place]
        length += 257 - control if control > 128 else control + 1 if control < 128 else 0
        place += 2 if control > 128 else control + 2 if control < 128 else 1
    return length


def upright(image: Image.Image) -> Image.Image:
    """The decoded picture as it is displayed: itself, or turned as its EXIF says and then without that.

    Raises:
        ValueError: its EXIF data name far more than sound ones do.
    """
    exif, text = image.info.get("exif"), image.info.get("Raw profile type exif")
    if exif is None and text is not None:
        exif = bytes.fromhex("".join(text.split("\n")[3:]))  # as Pillow reads it
    if isinstance(exif, bytes):
        check_exif(exif, "it")
    turn = _TURNS.get(image.getexif().get(ORIENTATION_TAG))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in _ORIENTATION_KEYS:
        turned.info.pop(key, None)
    return turned
