"""Pictures that an endpoint must refuse, as bytes: bombs, broken files and files that are something else."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from regionmed_clip.processing.mask_inputs import decode_masks
from regionmed_clip.processing.medical_image import decode_image


def saved(image: Image.Image, kind: str, **settings) -> bytes:
    """The bytes of the picture's file."""
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def png_of_zeros(width: int, height: int) -> bytes:
    """A whole, valid PNG of black pixels, about a thousandth of their number long."""
    packer, row = zlib.compressobj(9), bytes(width + 1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return _png(width, height, packed)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header is sound and whose pixels are missing."""
    return _png(width, height, zlib.compress(b""))


def _png(width: int, height: int, packed: bytes) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    sealed = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def tiff_with_a_large_tile(side: int = 8192) -> bytes:
    """A TIFF of 16 x 16 pixels whose one tile has `side` squared, packed a thousandfold."""
    tile = zlib.compress(bytes(side * side), 9)
    entries = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    offset = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries += [(324, offset), (325, len(tile))]
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", 0) + tile


def tiff_of_directories(following: list[int | None], sizes: dict[int, tuple[int, int]] | None = None) -> bytes:
    """A TIFF with a page of 1 x 1 pixels, or of the `sizes` it claims, a directory; None follows the last directory."""
    content, num_bytes = b"II*\0" + struct.pack("<I", 16) + bytes(8), 2 + 12 * 8 + 4
    for page, then in enumerate(following):
        width, height = (sizes or {}).get(page, (1, 1))
        entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height), (279, 1)]
        content += struct.pack("<H", 8) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        content += struct.pack("<I", 0 if then is None else 16 + num_bytes * then)
    return content


def tiff_that_names_gigabytes() -> bytes:
    """A TIFF of 340 kB whose directory names the same 100 kB again and again, as the data of 20,000 tags."""
    entries = b"".join(struct.pack("<HHII", 40_000 - i, 1, 100_000, 8) for i in range(20_000))
    return b"II*\0" + struct.pack("<I", 100_008) + bytes(100_000) + struct.pack("<H", 20_000) + entries + bytes(4)


def png_whose_exif_names_gigabytes() -> bytes:
    """A sound PNG but for EXIF data that name 2 GB."""
    return saved(Image.new("L", (64, 64)), "PNG", exif=b"Exif\0\0" + tiff_that_names_gigabytes())


def jpeg_whose_exif_names_gigabytes() -> bytes:
    """The same as a JPEG, whose EXIF data are spread over six segments; Pillow reads them when it opens the file."""
    whole, exif = saved(Image.new("L", (64, 64)), "JPEG"), tiff_that_names_gigabytes()
    parts = [b"Exif\0\0" + exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    return whole[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in parts) + whole[2:]


def jpeg_whose_previews_name_300_mb() -> bytes:
    """A sound JPEG but for the directory of its previews (MPF), which names 60 kB 5,000 times over in 60 kB."""
    entries = b"".join(struct.pack("<HHII", 40_000 - i, 7, 60_000, 8) for i in range(5_000))
    part = b"MPF\0II*\0" + struct.pack("<IH", 8, 5_000) + entries + bytes(4)
    whole = saved(Image.new("L", (64, 64)), "JPEG")
    return whole[:2] + b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part + whole[2:]


def tiff_whose_exif_names_gigabytes() -> bytes:
    """A TIFF of 1 x 1 pixels whose directory is sound and names one of EXIF data, 180 kB 10,000 times over."""
    entries = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1), (279, 1), (34665, 122)]
    content = b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in entries)
    exif = b"".join(struct.pack("<HHII", 40_000 - i, 7, 180_000, 8) for i in range(10_000))
    return content + bytes(4) + struct.pack("<H", 10_000) + exif + bytes(4) + bytes(60_000)


def bigtiff_of_many_tags(num_tags: int = 800_000) -> bytes:
    """A BigTIFF of 16 MB with all its tags in one directory."""
    entry = struct.pack("<HHQQ", 40_000, 1, 1, 0)
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, num_tags) + entry * num_tags + bytes(8)


def gif_of_a_huge_screen() -> bytes:
    """A GIF that claims 65535 x 65535 pixels and holds none."""
    screen = struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\0;"


def jpeg_of_many_scans(num_more: int = 200) -> bytes:
    """A progressive JPEG whose last scan is there 200 times over."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * num_more + whole[-2:]


def animated_gif() -> bytes:
    """A GIF of three frames."""
    frames = [Image.new("L", (20, 20), level) for level in (0, 100, 200)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def postscript() -> bytes:
    """A sound EPS file, which Pillow would give to Ghostscript."""
    return saved(Image.new("L", (20, 20)), "EPS")


def deflated_dicom() -> bytes:
    """The head of a DICOM file that is deflated as a whole, and 4 GB of zeros if it were unpacked far enough."""
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax
    length = b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(meta))
    return bytes(128) + b"DICM" + length + meta + zlib.compress(bytes(2**20), 9)


def assert_refused_unread(content: bytes, words: str, path: Path, reader: tuple[Any, str]) -> None:
    """None; as bytes and as a file, as a picture and as a mask it is refused by name, and `reader` is never called."""
    path.write_bytes(content)
    with patch.object(*reader, side_effect=AssertionError("it was read before it was looked at")):
        for source in (content, path):
            with pytest.raises(ValueError, match=rf"image 3 \(.*{words}"):
                decode_image(source, "image 3")
            with pytest.raises(ValueError, match=rf"image 0, region 0: the mask .*{words}"):
                decode_masks([source], (64, 64))
