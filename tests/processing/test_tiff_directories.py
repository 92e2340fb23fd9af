"""TIFF files that ask for far more than they hold are refused before they are read; sound ones are read as before."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hostile_pictures import (
    assert_refused_unread,
    bigtiff_of_many_tags,
    tiff_of_directories,
    tiff_that_names_gigabytes,
    tiff_whose_exif_names_gigabytes,
    tiff_with_a_large_tile,
)
from PIL import Image

from regionmed_clip.processing.medical_image import decode_image
from regionmed_clip.processing.tiff_directories import MAX_DIRECTORIES, check_tiff

LONG = [*range(1, MAX_DIRECTORIES + 1), None]
HOSTILE = {
    "a tile of 8192 x 8192": (tiff_with_a_large_tile(), "tiles, 8192 x 8192, do not fit its 16 x 16 pixels"),
    "directories in a loop": (tiff_of_directories([1, 2, 0]), "directories come back to one before"),
    "a directory that follows itself": (tiff_of_directories([0]), "directories come back to one before"),
    "6,001 directories": (tiff_of_directories(LONG), "directories are more than 6,000"),
    "tags of 2 GB": (tiff_that_names_gigabytes(), "of 340,014 bytes whose directories name at least"),
    "the same, broken off": (tiff_that_names_gigabytes()[:-500], "whose directories name at least"),
    "EXIF of 1.8 GB": (tiff_whose_exif_names_gigabytes(), "whose directories name at least 1,800,120,000"),
    "800,000 tags": (bigtiff_of_many_tags(), "directories have more than 250,000 tags"),
    "a tile of no whole number": (tiff_with_a_large_tile().replace(b"\x42\1\4\0", b"\x42\1\5\0"), "tiles, None x 8192"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_tiff_that_asks_for_too_much_is_refused_by_name_in_any_form(content, words, tmp_path):
    assert_refused_unread(content, rf"is a TIFF .*{words}", tmp_path / "odd.tif", (Image, "open"))


def test_an_opened_picture_is_looked_at_before_it_is_decoded():
    for name in ("a tile of 8192 x 8192", "directories in a loop"):
        content, words = HOSTILE[name]
        with Image.open(io.BytesIO(content)) as picture, pytest.raises(ValueError, match=words):
            decode_image(picture)


def test_a_later_frame_that_is_too_large_is_refused_like_a_first_one():
    stack = tiff_of_directories([1, None], sizes={1: (40_000, 40_000)})
    with pytest.raises(ValueError, match=r"is too large \(frame 1 has 40000 x 40000 pixels\)"):
        decode_image(stack, frame_index=1)
    assert decode_image(stack, frame_index=0).size == (1, 1)


@pytest.mark.parametrize("big_tiff", [False, True])
def test_sound_files_of_many_pages_are_read(big_tiff):
    pages = [Image.new("L", (5, 4), level) for level in range(30)]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:], big_tiff=big_tiff)
    assert decode_image(stream.getvalue(), frame_index=29).getpixel((0, 0)) == 29


@pytest.mark.parametrize(
    ("side", "is_packed"),
    [(16, False), (2048, True), (4096, True), (4112, False)],  # 2048 as viewers of slides write; 4112: 16.9 MB of it
)
def test_a_small_picture_in_one_larger_tile_is_read(side, is_packed):
    tile = np.zeros((side, side), dtype=np.uint8)
    tile[:4, :5] = 7
    data = zlib.compress(tile.tobytes()) if is_packed else tile.tobytes()
    entries = [(256, 5), (257, 4), (258, 8), (259, 8 if is_packed else 1), (262, 1), (277, 1)]
    entries += [(322, side), (323, side), (324, 134), (325, len(data))]
    packed = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in entries)
    content = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + packed + struct.pack(">I", 0) + data
    assert np.asarray(decode_image(content)).tolist() == [[7] * 5] * 4


def test_5000_pages_and_a_tag_of_a_broken_length_are_sound():
    check_tiff(io.BytesIO(tiff_of_directories([*range(1, 5000), None])), "a stack")
    page = tiff_of_directories([None])
    broken = page.replace(struct.pack("<HHII", 279, 4, 1, 1), struct.pack("<HHII", 40_000, 2, 4_000_000_000, 8))
    assert broken != page
    check_tiff(io.BytesIO(broken), "a file with a damaged remark")


@pytest.mark.parametrize(
    "content", [b"", b"II*", b"II*\0\x08\0\0\0", b"II+\0" + b"\xff" * 40, b"\x89PNG", b"II*\0" + b"\xff" * 9]
)
def test_what_breaks_off_or_is_no_tiff_is_left_to_the_reader_where_it_was(content):
    stream = io.BytesIO(content)
    stream.seek(2)
    check_tiff(stream, "a file")
    assert stream.tell() == 2
