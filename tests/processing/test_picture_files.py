"""Picture files with more than 8-bit levels, several frames, metadata that is left alone, too many or too few bytes."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from regionmed_clip.processing.medical_image import decode_image

RAMP = np.linspace(0, 255, 12 * 10).reshape(12, 10).astype(np.uint8)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Image.Transpose that stores it so


def levels(source, **choice) -> np.ndarray:
    return np.asarray(decode_image(source, **choice)).astype(int)


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def tiff_of(values: np.ndarray, photometric: int, sample_format: int = 1) -> bytes:
    """An uncompressed little-endian TIFF of (H, W) or (H, W, 3) values, written by hand: Pillow writes few kinds."""
    height, width = values.shape[:2]
    channels, bits = values.size // (height * width), values.itemsize * 8
    data = struct.pack("<6H", *[bits] * 3, *[sample_format] * 3) + values.tobytes()
    per_channel = {258: (bits, 8), 339: (sample_format, 14)}  # tag -> value, or its place where there are three
    tags = [(256, width), (257, height), (258, 0), (259, 1), (262, photometric), (273, 20), (277, channels)]
    tags += [(278, height), (279, values.nbytes), (339, 0)]
    directory = struct.pack("<H", len(tags))
    for tag, value in tags:
        count = channels if tag in per_channel else 1
        value = per_channel[tag][channels > 1] if tag in per_channel else value
        packed = struct.pack("<HH", value, 0) if count == 1 else struct.pack("<I", value)  # three lie elsewhere
        directory += struct.pack("<HHI", tag, 3, count) + packed
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + struct.pack("<I", 0)


def png_of_16_bit_colour(values: np.ndarray) -> bytes:
    """A PNG of (H, W, 3) uint16 values, written by hand: Pillow writes none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("dtype", "sample_format", "mode"), [("<u2", 1, "I;16"), ("<i2", 2, "I"), ("<u4", 1, "I"), ("<f4", 3, "F")]
)
def test_numeric_tiff_files_are_shown_from_their_minimum_to_their_maximum(dtype, sample_format, mode):
    offset = 0 if dtype[1] == "u" else -2000
    file = tiff_of((RAMP.astype(float) * 16 + offset).astype(dtype), 1, sample_format)
    assert Image.open(io.BytesIO(file)).mode == mode
    np.testing.assert_array_equal(levels(file), RAMP)


@pytest.mark.parametrize(
    ("values", "sample_format"),
    [(RAMP, 1), (RAMP.astype("<u2") * 16, 1), ((RAMP * np.float32(16) - 2000).astype("<f4"), 3)],
)
def test_a_tiff_whose_zero_is_white_is_shown_so_whatever_its_depth(values, sample_format):
    np.testing.assert_array_equal(levels(tiff_of(values, 0, sample_format)), 255 - RAMP)
    np.testing.assert_array_equal(levels(tiff_of(values, 1, sample_format)), RAMP)


def test_a_window_on_a_tiff_whose_zero_is_white_is_inverted_too():
    file = tiff_of(np.array([[0, 100, 150, 200, 4000]], dtype="<u2"), 0)
    np.testing.assert_array_equal(levels(file, window=(150, 100)), [[255, 255, 127, 0, 0]])


@pytest.mark.parametrize("write", [png_of_16_bit_colour, lambda values: tiff_of(values.astype("<u2"), 2)])
def test_of_16_bit_colour_the_high_byte_is_shown(write):
    deep = COLOUR.astype(np.uint16) * 256 + np.uint16(77)
    np.testing.assert_array_equal(levels(write(deep)), COLOUR)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bit_grey_files_are_not_saturated(file_format):
    deep = RAMP.astype(np.uint16) * 200 + np.uint16(1000)
    np.testing.assert_array_equal(levels(encoded(Image.fromarray(deep), file_format)), RAMP)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM", "BMP"])
def test_1_bit_files_are_black_and_white(file_format):
    image = Image.fromarray(RAMP > 100)
    assert image.mode == "1"
    np.testing.assert_array_equal(levels(encoded(image, file_format)), (RAMP > 100) * 255)


@pytest.mark.parametrize("file_format", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_of_every_format_is_applied_once(file_format, orientation):
    shown = Image.fromarray(COLOUR)
    stored = shown.transpose(Image.Transpose(UNDO[orientation])) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(file_format, {})
    image = levels(encoded(stored, file_format, exif=exif, **options))
    assert image.shape == COLOUR.shape
    np.testing.assert_allclose(image, COLOUR, atol=30)  # JPEG is lossy; a wrong turn differs by up to 255


def test_colour_profiles_and_gamma_are_left_unapplied():
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100_000))  # linear light
    file = encoded(Image.fromarray(COLOUR), "PNG", icc_profile=b"no profile that anything could apply", pnginfo=info)
    assert Image.open(io.BytesIO(file)).info.keys() >= {"icc_profile", "gamma"}
    np.testing.assert_array_equal(levels(file), COLOUR)


# ---- several frames


def frames_of(file_format: str) -> bytes:
    frames = [Image.new("L", (4, 4), value) for value in (0, 100, 200)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "PNG", "WEBP"])
def test_of_several_frames_one_must_be_chosen(tmp_path, file_format):
    path = tmp_path / f"stack.{file_format.lower()}"
    path.write_bytes(frames_of(file_format))
    with pytest.raises(ValueError, match=r"image 2 \(.*stack.*\) has 3 frames.*frame_index=0 to frame_index=2"):
        decode_image(path, "image 2")
    with pytest.raises(ValueError, match="has 3 frames, and frame_index is 3"):
        decode_image(path, frame_index=3)
    for index, value in enumerate((0, 100, 200)):
        assert (levels(path, frame_index=index) == value).all()


@pytest.mark.parametrize("file_format", ["TIFF", "GIF"])
def test_choosing_a_frame_leaves_an_opened_image_at_its_own(file_format):
    image = Image.open(io.BytesIO(frames_of(file_format)))
    image.seek(1)
    with pytest.raises(ValueError, match="has 3 frames"):
        decode_image(image)
    assert [levels(image, frame_index=index).max() for index in (2, 0, 1)] == [200, 0, 100]
    assert image.tell() == 1
    assert (levels(image.copy()) == 100).all()


def test_a_phones_photograph_with_previews_behind_it_is_one_picture():
    preview = Image.new("RGB", (4, 4))
    file = encoded(Image.fromarray(COLOUR), "MPO", save_all=True, append_images=[preview], quality=95)
    assert Image.open(io.BytesIO(file)).n_frames == 2
    assert levels(file).shape == COLOUR.shape


def test_the_only_frame_has_index_0():
    np.testing.assert_array_equal(levels(RAMP, frame_index=0), RAMP)
    np.testing.assert_array_equal(levels(Image.fromarray(RAMP), frame_index=0), RAMP)
    for source in (RAMP, torch.from_numpy(RAMP), Image.fromarray(RAMP), encoded(Image.fromarray(RAMP), "PNG")):
        with pytest.raises(ValueError, match="has 1 frames, and frame_index is 1; leave frame_index out"):
            decode_image(source, frame_index=1)


# ---- windows


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32])
def test_a_window_applies_to_the_values_of_an_array_themselves(dtype):
    values = np.array([[0, 100, 125, 150, 200, 4000]], dtype=dtype)
    expected = [[0, 0, 64, 128, 255, 255]]
    for source in (values, values[..., None], torch.from_numpy(values.astype(np.int32)), Image.fromarray(values)):
        np.testing.assert_array_equal(levels(source, window=(150, 100)), expected)
    assert decode_image(values, window=[(1, 2), (3, 4), (5, 6)]).mode == "RGB"


@pytest.mark.parametrize(
    "source", [RAMP, COLOUR, RAMP > 9, Image.fromarray(RAMP), Image.fromarray(COLOUR), COLOUR.astype(np.uint16)]
)
def test_a_window_on_8_bit_or_colour_pictures_is_refused(source):
    with pytest.raises(ValueError, match=r"image 3 .*a window needs one measured number a pixel.*Give no window"):
        decode_image(source, "image 3", window=(40, 80))


def test_a_ct_preset_on_plain_numbers_is_refused_with_its_numbers(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 9).save(tmp_path / "deep.png")
    for source in (RAMP.astype(np.int16), tmp_path / "deep.png"):
        with pytest.raises(ValueError, match=r"'lung' is one of CT.*give the numbers, window=\(-600, 1500\)"):
            decode_image(source, window="lung")


# ---- too much and too little


def test_a_decompression_bomb_is_a_value_error_not_a_warning(monkeypatch):
    file = encoded(Image.new("1", (300, 200)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 200)
    assert decode_image(file).size == (300, 200)
    for limit in (300 * 200 - 1, 1000):  # Pillow warns of the first, and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"(?s)image 6 .*too large.*at most {limit:,} are read.*MAX_IMAGE_PIXELS"):
            decode_image(file, "image 6")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_image(file).size == (300, 200)


@pytest.mark.parametrize("content", [b"", b"\0", b"no picture at all"])
def test_bytes_that_are_no_picture_are_refused_with_their_number(tmp_path, content):
    with pytest.raises(ValueError, match=rf"image 1 \({len(content)} bytes\) cannot be read as a picture"):
        decode_image(content, "image 1")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"image 1 \(.*a.png\) cannot be read as a picture"):
        decode_image(tmp_path / "a.png", "image 1")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "JPEG2000"])
def test_truncated_bytes_are_a_value_error(file_format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noise, file_format)
    for share in (0.05, 0.4, 0.9):
        with pytest.raises(ValueError, match=r"(?s)bytes\) (cannot be read as a picture|is truncated or corrupt)"):
            decode_image(whole[: int(len(whole) * share)])
