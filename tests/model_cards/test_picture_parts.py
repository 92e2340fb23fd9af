"""What a picture file holds beside its pixels is named, wherever it stands; plain pictures of our own hold nothing."""

from __future__ import annotations

import zlib
from io import BytesIO

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from regionmed_clip.model_cards.picture_parts import PROFILE, telling_parts

PICTURE = Image.effect_noise((40, 30), 60)
KINDS = {
    "PNG": [{}, {"optimize": True, "dpi": (72, 72)}],
    "JPEG": [{}, {"progressive": True, "quality": 95}],
    "WEBP": [{}, {"lossless": True}],
}


def saved(kind, picture=PICTURE, **options):
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, content):
    """A chunk of PNG."""
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def riff(kind, content):
    """A chunk of WebP."""
    return kind + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)


def segment(marker, content):
    """A segment of JPEG."""
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*(("PNG", mode) for mode in ("1", "L", "P", "RGB", "RGBA")), *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
     ("WEBP", "RGB"), ("WEBP", "RGBA")],
)  # fmt: skip
def test_pixels_alone_tell_nothing(kind, mode):
    for options in KINDS[kind]:
        assert telling_parts(saved(kind, PICTURE.convert("RGB").convert(mode), **options)) == []


@pytest.mark.parametrize("name", [b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME", b"sPLT", b"prVt", b"doEc"])
def test_a_chunk_of_png_that_is_not_known_is_named_before_and_behind_the_pixels(name):
    plain = saved("PNG")
    end, first = len(plain) - 12, plain.index(b"IDAT") - 4
    for place in (first, end):
        content = plain[:place] + chunk(name, b"Doe^Jane") + plain[place:]
        Image.open(BytesIO(content)).load()
        assert telling_parts(content) == [f"the chunk {name.decode()}"]


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
def test_every_segment_of_jpeg_that_may_hold_text_is_named(marker):
    for plain in (saved("JPEG"), saved("JPEG", progressive=True)):
        content = plain[:20] + segment(marker, b"Doe^Jane") + plain[20:]
        Image.open(BytesIO(content)).load()
        assert telling_parts(content) == ["a comment" if marker == 0xFE else f"the segment APP{marker - 0xE0}"]


def test_a_thumbnail_in_a_known_segment_of_jpeg_is_named():
    content = saved("JPEG")
    assert content[6:11] == b"JFIF\0"
    with_thumbnail = content[:2] + segment(0xE0, content[6:18] + b"\1\1abc") + content[20:]
    assert telling_parts(with_thumbnail) == ["the segment APP0"]


@pytest.mark.parametrize("name", [b"sBIT", b"cICP", b"bKGD", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tRNS", b"PLTE"])
def test_a_known_chunk_of_png_of_another_length_is_named(name):
    plain = saved("PNG")
    place = plain.index(b"IDAT") - 4
    content = plain[:place] + chunk(name, b"Patient DOE^JANE 1962-03-04 MRN 123") + plain[place:]
    assert telling_parts(content) == [f"the chunk {name.decode()}"]


def test_known_chunks_of_png_of_their_lengths_tell_nothing_but_once():
    plain = saved("PNG")
    place = plain.index(b"IDAT") - 4
    sizes = {b"sBIT": 1, b"cICP": 4, b"bKGD": 2, b"pHYs": 9, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"tRNS": 2}
    chunks = b"".join(chunk(name, b"\0" * size) for name, size in sizes.items())
    assert telling_parts(plain[:place] + chunks + plain[place:]) == []
    assert telling_parts(plain[:place] + 2 * chunk(b"cHRM", b"D" * 32) + plain[place:]) == ["the chunk cHRM"]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
@pytest.mark.parametrize("restarts", [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("size", [(40, 30), (17, 33)])
def test_bytes_behind_the_last_restart_of_jpeg_are_named_and_restarts_are_not(mode, options, restarts, size):
    plain = saved("JPEG", PICTURE.resize(size).convert("RGB").convert(mode), **options, **restarts)
    assert telling_parts(plain) == []
    content = plain[:-2] + b"\xff\xd0DOE^JANE MRN 1234567" + plain[-2:]
    Image.open(BytesIO(content)).load()
    assert telling_parts(content) == ["data behind its pixels"]


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
@pytest.mark.parametrize("name", [b"VP8 ", b"VP8L"])
def test_a_second_chunk_of_pixels_of_webp_is_named(name, options):
    chunks = saved("WEBP", **options)[12:] + riff(name, b"Patient DOE^JANE")
    content = b"RIFF" + (len(chunks) + 4).to_bytes(4, "little") + b"WEBP" + chunks
    assert telling_parts(content) == [f"the chunk {name.decode().strip()}"]


@pytest.mark.parametrize("name", [b"EXIF", b"XMP ", b"ABCD"])
def test_a_chunk_of_webp_that_is_not_known_is_named(name):
    chunks = saved("WEBP")[12:] + riff(name, b"Doe^Jane!")
    content = b"RIFF" + (len(chunks) + 4).to_bytes(4, "little") + b"WEBP" + chunks
    assert telling_parts(content) == [f"the chunk {name.decode().strip()}"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_behind_the_end_is_named_but_for_zeros(kind):
    assert telling_parts(saved(kind) + b"Doe^Jane") == ["data behind its end"]
    assert telling_parts(saved(kind) + b"\0\0") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_colour_profile_and_exif_are_told_apart(kind):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = PICTURE.convert("RGB")
    assert telling_parts(saved(kind, picture, icc_profile=profile)) == [PROFILE]
    exif = Image.Exif()
    exif[0x013B] = "Jane Doe"  # artist
    (part,) = telling_parts(saved(kind, picture, exif=exif.tobytes()))
    assert part == {"PNG": "the chunk eXIf", "JPEG": "the segment APP1", "WEBP": "the chunk EXIF"}[kind]


def test_each_part_is_named_once():
    told = PngImagePlugin.PngInfo()
    for key in ("a", "b"):
        told.add_text(key, "c")
    assert telling_parts(saved("PNG", pnginfo=told)) == ["the chunk tEXt"]


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_picture_and_another_kind_are_refused(kind):
    with pytest.raises(ValueError, match="ends before its last part"):
        telling_parts(saved(kind)[:-40] if kind != "WEBP" else saved(kind)[:14])
    with pytest.raises(ValueError, match="neither PNG nor JPEG nor WebP"):
        telling_parts(saved("TIFF"))
