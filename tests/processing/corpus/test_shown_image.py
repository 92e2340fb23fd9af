"""The one place where an example's window is applied, and the window itself."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.processing.corpus.shown_image import shown_image
from regionmed_clip.processing.medical_image import apply_window

VALUES = np.array([[0, 1000], [1500, 2000], [3000, 65535]], dtype=np.uint16)
SHOWN = [[0, 0], [128, 255], [255, 255]]  # window (1000, 2000): 1500 lies at 127.5, rounded to even


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def forms(tmp_path):
    """A 16-bit image in every form in which an example may hold it."""
    content = encoded(Image.fromarray(VALUES))
    (tmp_path / "image.png").write_bytes(content)
    path = str(tmp_path / "image.png")
    return [
        Image.fromarray(VALUES),
        content,
        path,
        {"bytes": content, "path": None},
        {"bytes": content, "path": "elsewhere.png"},
        {"bytes": None, "path": path},
    ]


def test_the_window_of_an_example_is_applied_whatever_holds_the_image(forms):
    for value in forms:
        shown = shown_image({"image_id": "a", "image": value, "window": [1000.0, 2000.0]})
        assert shown.mode == "L"
        assert np.asarray(shown).tolist() == SHOWN


def test_without_a_window_the_whole_range_is_shown(forms):
    for value in forms:
        for example in ({"image": value}, {"image": value, "window": None}):
            assert np.asarray(shown_image(example)).tolist() == [[0, 4], [6, 8], [12, 255]]


def test_an_8_bit_image_stays_as_it_is():
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.asarray(shown_image({"image": encoded(Image.fromarray(colours))})).tolist() == colours.tolist()


def test_a_turned_photograph_is_shown_upright_with_and_without_a_window():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    content = encoded(Image.new("L", (4, 2)), exif=exif)
    assert shown_image({"image": content}).size == shown_image({"image": content, "window": (0, 9)}).size == (2, 4)


def test_a_broken_image_is_named():
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 9999, (30, 40), dtype=np.uint16)))[:1000]
    for window in (None, (0, 1)):
        with pytest.raises(ValueError, match="study/7"):
            shown_image({"image_id": "study/7", "image": content, "window": window})


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "F"])
def test_a_window_maps_low_to_black_and_high_to_white_in_every_mode_of_numbers(mode):
    values = np.array([[10, 20, 30, 40, 250]])
    kind = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(values.astype(kind))
    assert image.mode == mode
    assert np.asarray(apply_window(image, (20, 40))).tolist() == [[0, 0, 128, 255, 255]]


@given(st.floats(-2000, 2000), st.floats(1, 4000), st.lists(st.integers(-3000, 3000), min_size=2, max_size=20))
def test_a_window_keeps_the_order_of_values_and_negative_ones_too(low, width, values):
    image = Image.fromarray(np.array([sorted(values)], dtype=np.int32))
    shown = np.asarray(apply_window(image, (low, low + width)))[0].astype(int)
    assert (np.diff(shown) >= 0).all()
    assert all(level == 0 for level, value in zip(shown, sorted(values)) if value <= low)
    assert all(level == 255 for level, value in zip(shown, sorted(values)) if value >= low + width)


@pytest.mark.parametrize("window", [(2, 2), (3, 1), (float("nan"), 2), (0, float("inf"))])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(ValueError, match="it must be finite, low below high"):
        apply_window(Image.new("L", (2, 2)), window)


def test_colours_and_values_that_are_not_finite_have_no_window():
    with pytest.raises(ValueError, match="mode 'RGB' has no window"):
        apply_window(Image.new("RGB", (2, 2)), (0, 1))
    with pytest.raises(ValueError, match="all must be finite"):
        apply_window(Image.fromarray(np.array([[np.nan, 1]], dtype=np.float32)), (0, 1))
