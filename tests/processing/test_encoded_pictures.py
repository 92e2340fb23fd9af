"""Pictures that cost far more to read than they hold are refused by every reader; sound ones are read as before."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from dicom_fixtures import dicom_dataset
from hostile_pictures import (
    assert_refused_unread,
    jpeg_of_many_scans,
    jpeg_whose_exif_names_gigabytes,
    jpeg_whose_previews_name_300_mb,
    png_whose_exif_names_gigabytes,
    saved,
    tiff_that_names_gigabytes,
)
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from regionmed_clip.processing.encoded_pictures import MAX_JPEG_SEGMENTS, check_encoded
from regionmed_clip.processing.medical_image import decode_image

LEVELS = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
BARE_JPEG = saved(Image.fromarray(LEVELS), "JPEG")


def raw_profile() -> bytes:
    """A PNG whose EXIF is written in letters, as ImageMagick does, and names 2 GB."""
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n340014\n" + tiff_that_names_gigabytes().hex())
    return saved(Image.new("L", (64, 64)), "PNG", pnginfo=text)


HOSTILE = {
    "EXIF of a PNG": (png_whose_exif_names_gigabytes(), "EXIF data of 340,014 bytes whose directories name at least"),
    "EXIF of a PNG in letters": (raw_profile(), "EXIF data of 340,014 bytes whose directories name at least"),
    "EXIF of a JPEG": (jpeg_whose_exif_names_gigabytes(), "EXIF data of 340,014 bytes whose directories name at least"),
    "previews of a JPEG": (jpeg_whose_previews_name_300_mb(), "whose directories name at least 300,"),
    "EXIF that begins 9 times": (saved(Image.new("L", (8, 8)), "PNG", exif=b"Exif\0\0" * 9), "begin again and again"),
    "scans of a JPEG": (jpeg_of_many_scans(), "JPEG of more than 100 scans"),
    "segments of a JPEG": (b"\xff\xd8" * (MAX_JPEG_SEGMENTS + 1) + BARE_JPEG, "JPEG of more than 10,000 segments"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_picture_that_asks_for_too_much_is_refused_in_any_form(content, words, tmp_path):
    assert_refused_unread(content, words, tmp_path / "odd.png", (Image.Image, "getexif"))


def test_an_opened_jpeg_is_looked_at_before_it_is_decoded():
    with Image.open(io.BytesIO(jpeg_of_many_scans())) as picture, pytest.raises(ValueError, match="100 scans"):
        decode_image(picture)


@pytest.mark.parametrize("turn", range(9))  # 0 is no orientation
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_turned_picture_is_shown_as_pillow_turns_it_once(turn, kind):
    exif = Image.Exif()
    exif[0x0112] = turn
    content = saved(Image.fromarray(LEVELS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("L"))
    shown = decode_image(content)
    assert np.array_equal(np.asarray(shown.convert("L")), wanted)
    assert np.array_equal(np.asarray(decode_image(shown).convert("L")), wanted)  # not turned again


def test_what_a_phone_appends_to_a_photograph_is_no_scan_of_it():
    film = b"\xff\xda\0\x02" * 500
    assert decode_image(BARE_JPEG + film).size == (6, 5)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xd8\xff", BARE_JPEG[:30], b"\xff\xd8\xff\xe1\0\0", b"II*\0"]
)
def test_what_breaks_off_is_left_to_the_reader_where_it_was(content):
    stream = io.BytesIO(content)
    stream.seek(1)
    check_encoded(stream, "a file")
    assert stream.tell() == 1


def dicom_of(frame: bytes, uid: str, shape: tuple[int, int] = (5, 6), **elements) -> bytes:
    """A DICOM file that states `shape` and whose one compressed frame is this."""
    from pydicom.encaps import encapsulate

    dataset = dicom_dataset(np.zeros(shape, np.uint8), **elements)
    dataset.file_meta.TransferSyntaxUID = uid
    dataset.PixelData = encapsulate([frame])
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


JPEG_8, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
RLE = "1.2.840.10008.1.2.5"
HUGE = Image.new("L", (3000, 2000))
RLE_HEAD = struct.pack("<16L", 1, 64, *[0] * 14)
JPEG_LS_HEAD = b"\xff\xd8\xff\xf7" + struct.pack(">HBHHB", 11, 8, 2000, 3000, 1) + b"\x01\x11\0" + b"\xff\xda"
SMALLER = "states 6 x 5 pixels and its frame has 3000 x 2000"
FRAMES = {
    "a large JPEG": (saved(HUGE, "JPEG"), JPEG_8, SMALLER),
    "a large JPEG 2000": (saved(HUGE, "JPEG2000"), JPEG_2000, SMALLER),
    "JPEG 2000 in a large box": (
        saved(Image.fromarray(LEVELS), "JPEG2000", no_jp2=False).replace(
            b"ihdr" + struct.pack(">2L", 5, 6), b"ihdr" + struct.pack(">2L", 2000, 3000)
        ),
        JPEG_2000,
        SMALLER,
    ),
    "a large JPEG-LS": (JPEG_LS_HEAD, JPEG_LS, SMALLER),
    "a JPEG of many scans": (jpeg_of_many_scans(), JPEG_8, "more than 100 scans"),
    "EXIF of a JPEG": (jpeg_whose_exif_names_gigabytes(), JPEG_8, "whose directories name at least"),
    "RLE of 128 MB": (RLE_HEAD + b"\x81\0" * 1_000_000, RLE, "RLE that unpacks to more than 65,596"),
    "RLE of nothing": (RLE_HEAD + b"\x80" * 2_000_000, RLE, "RLE that unpacks to more than 65,596"),
    "RLE of 70,000 bytes": (RLE_HEAD + b"\x81\0" * 550, RLE, "RLE that unpacks to more than 65,596"),
}


@pytest.mark.parametrize(("frame", "uid", "words"), FRAMES.values(), ids=FRAMES)
def test_a_dicom_frame_that_unpacks_to_more_than_its_header_says_is_refused_first(frame, uid, words):
    content = dicom_of(frame, uid)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=words):
        decode_image(content)
    assert time.perf_counter() - started < 0.5


def test_a_sound_compressed_dicom_is_read_as_before():
    literal = RLE_HEAD + bytes([29]) + LEVELS.tobytes()
    assert np.array_equal(np.asarray(decode_image(dicom_of(literal + bytes(1), RLE))), LEVELS)
    padded = literal + b"\x80" + b"\xf1\0" * 100  # longer than the frame, as some writers pad
    assert np.array_equal(np.asarray(decode_image(dicom_of(padded, RLE))), LEVELS)
    for kind, uid in (("JPEG", JPEG_8), ("JPEG2000", JPEG_2000)):
        wanted = np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(LEVELS), kind))))
        assert np.array_equal(np.asarray(decode_image(dicom_of(saved(Image.fromarray(LEVELS), kind), uid))), wanted)
