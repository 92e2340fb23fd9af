"""Every picture a user may hold becomes the right 8-bit image; every broken one is named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from regionmed_clip.processing.medical_image import decode_image, read_image

RAMP = np.linspace(0, 255, 12 * 10).reshape(12, 10).astype(np.uint8)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def read_array(source) -> np.ndarray:
    return np.asarray(read_image(source))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_8_bit_mode_becomes_the_colours_it_shows(mode):
    step = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    image = Image.fromarray(COLOUR).convert(step).convert(mode)
    expected = np.asarray(image.convert(step).convert("RGB"))
    np.testing.assert_allclose(
        read_array(image).astype(int), expected.astype(int), atol=1
    )  # premultiplied alpha rounds


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "I;16B"])
def test_16_bit_and_float_modes_are_windowed_from_their_minimum_to_their_maximum(mode):
    values = np.linspace(1000, 5000, 120).reshape(12, 10)
    image = Image.fromarray(values.astype(np.float32)).convert("I") if mode == "I" else None
    if mode == "F":
        image = Image.fromarray(values.astype(np.float32))
    elif mode.startswith("I;16"):
        raw = values.astype(">u2" if mode.endswith("B") else "<u2").tobytes()
        image = Image.frombytes(mode, (10, 12), raw)
    assert image.mode == mode
    levels = read_array(image)[..., 0]
    np.testing.assert_allclose(levels, (values - 1000) / 4000 * 255, atol=0.6)
    assert (levels.min(), levels.max()) == (0, 255)


def test_a_16_bit_png_file_is_not_saturated(tmp_path):
    Image.fromarray((np.arange(120).reshape(12, 10) * 500).astype(np.uint16)).save(tmp_path / "deep.png")
    levels = read_array(tmp_path / "deep.png")
    assert len(np.unique(levels)) == 120


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64])
def test_values_from_0_to_255_are_levels_whatever_their_type(dtype):
    np.testing.assert_array_equal(read_array(COLOUR.astype(dtype)), COLOUR)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_fractions_of_white(dtype):
    np.testing.assert_array_equal(read_array((COLOUR / 255).astype(dtype)), COLOUR)
    np.testing.assert_array_equal(read_array(np.array([[-0.01, 0.5, 1.02]], dtype=dtype))[..., 0], [[0, 128, 255]])


def test_negative_values_are_windowed_from_minimum_to_maximum():
    np.testing.assert_array_equal(read_array(np.array([[-1000, 0, 1000]], dtype=np.int16))[..., 0], [[0, 128, 255]])
    np.testing.assert_array_equal(read_array(np.array([[-2.0, 0.0, 2.0]]))[..., 0], [[0, 128, 255]])


def test_integers_that_are_only_0_and_1_are_black_and_white():
    np.testing.assert_array_equal(read_array(np.array([[0, 1, 1]]))[..., 0], [[0, 255, 255]])


def test_a_constant_image_is_readable_and_bool_is_black_and_white():
    assert not read_array(np.full((3, 4), 5000, dtype=np.uint16)).any()
    np.testing.assert_array_equal(read_array(np.array([[True, False]]))[..., 0], [[255, 0]])


def test_arrays_may_be_grey_or_colour_and_tensors_may_have_their_channels_first():
    for source in (RAMP, RAMP[..., None], RAMP[None], torch.from_numpy(RAMP), torch.from_numpy(RAMP)[None]):
        np.testing.assert_array_equal(read_array(source), np.repeat(RAMP[..., None], 3, axis=-1))
    channels_first = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    for source in (COLOUR, channels_first, torch.from_numpy(channels_first), torch.from_numpy(COLOUR)):
        np.testing.assert_array_equal(read_array(source), COLOUR)
    bfloat16 = torch.from_numpy(channels_first).to(torch.bfloat16)
    np.testing.assert_allclose(read_array(bfloat16).astype(int), COLOUR.astype(int), atol=1)  # 8 bits of mantissa


def test_a_shape_that_fits_both_ways_is_read_by_the_habit_of_its_library():
    array = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    np.testing.assert_array_equal(read_array(array), array)
    np.testing.assert_array_equal(read_array(torch.from_numpy(array)), array.transpose(1, 2, 0))


@pytest.mark.parametrize("as_array", [False, True])
def test_transparency_is_composited_over_black(as_array):
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[..., :3] = 200
    rgba[0, :, 3] = [0, 128, 255]
    source = rgba if as_array else Image.fromarray(rgba)
    np.testing.assert_allclose(read_array(source)[0, :, 0], [0, 100, 200], atol=1)


def test_the_transparent_colour_of_a_palette_image_is_black():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([250, 250, 250, 10, 20, 30])
    image.info["transparency"] = 0
    np.testing.assert_array_equal(read_array(image), [[[0, 0, 0], [10, 20, 30]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path, orientation):
    shown = Image.fromarray(COLOUR)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Image.Transpose that stores it so
    stored = shown.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_array(tmp_path / "turned.png"), COLOUR)
    np.testing.assert_array_equal(read_array(Image.open(tmp_path / "turned.png")), COLOUR)


def test_the_given_image_is_not_changed():
    image = Image.fromarray(COLOUR)
    image.getexif()[0x0112] = 6
    before = image.tobytes()
    read_image(image)
    assert (image.tobytes(), image.size) == (before, (10, 12))


def test_grey_stays_one_channel_until_it_is_needed():
    assert decode_image(RAMP).mode == "L"
    assert decode_image(Image.fromarray(COLOUR).convert("CMYK")).mode == "RGB"


def test_encoded_bytes_and_string_paths_are_read(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(COLOUR).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    np.testing.assert_array_equal(read_array(stream.getvalue()), COLOUR)
    np.testing.assert_array_equal(read_array(str(tmp_path / "a.png")), COLOUR)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6])
def test_a_truncated_file_is_a_value_error_with_its_path(tmp_path, file_format, kept):
    path = tmp_path / f"scan.{file_format.lower()}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, file_format)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ValueError, match=r"(?s)image 4.*scan.*complete image file.*Replace or re-export"):
        decode_image(path, "image 4")


def test_a_truncated_image_that_pillow_has_only_opened_is_named_by_its_file(tmp_path):
    path = tmp_path / "lazy.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(ValueError, match=r"image 0 \(.*lazy.jpg\) is truncated or corrupt"):
        decode_image(image, "image 0")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.png", "is not a file.*Download a URL first"),
        (np.array([[0.0, np.nan]]), "1 values that are NaN or infinite.*nan_to_num"),
        (np.array([[0.0, np.inf]], dtype=np.float32), "NaN or infinite"),
        (torch.full((1, 4, 4), float("nan")), "NaN"),
        (np.zeros((5, 6, 7), dtype=np.uint8), r"shape \(5, 6, 7\).*channels"),
        (np.zeros((4, 0), dtype=np.uint8), r"shape \(4, 0\)"),
        (np.zeros(4, dtype=np.uint8), r"shape \(4,\)"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), r"shape \(2, 4, 4, 3\).*list of images"),
        (np.full((4, 4, 4), 900, dtype=np.uint16), "4 channels of uint16"),
        (np.zeros((4, 4), dtype=complex), "complex128"),
        (object(), "is a object; it must be a PIL image.*a pydicom Dataset or a nibabel image"),
        (None, "is a NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_name(source, words):
    with pytest.raises(ValueError, match=f"(?s)image 7.*{words}"):
        decode_image(source, "image 7")
