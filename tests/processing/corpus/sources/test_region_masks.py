"""Masks from files; their tight boxes and connected parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.processing.corpus.sources.region_masks import (
    connected_parts,
    read_mask,
    tight_box,
)

random_masks = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).random(drawn[:2]) < 0.45
)


def flooded(mask):
    """The sets of 8-connected true pixels, by flooding from one pixel after the other."""
    left, parts = set(zip(*(axis.tolist() for axis in np.nonzero(mask)))), []
    while left:
        part, border = set(), [min(left)]
        while border:
            y, x = border.pop()
            if (y, x) in left:
                left.remove((y, x))
                part.add((y, x))
                border += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        parts.append(part)
    return parts


@given(random_masks)
def test_connected_parts_equal_those_of_flooding(mask):
    parts = [set(zip(*(axis.tolist() for axis in np.nonzero(part)))) for part in connected_parts(mask)]
    assert parts == flooded(mask)


def test_small_parts_are_left_out_and_corners_connect():
    mask = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=bool)
    assert [int(part.sum()) for part in connected_parts(mask)] == [2, 1, 3]
    assert [int(part.sum()) for part in connected_parts(mask, 2)] == [2, 3]
    assert list(connected_parts(np.zeros((3, 4), dtype=bool))) == []


@given(random_masks)
def test_the_tight_box_touches_the_mask_on_all_sides(mask):
    box = tight_box(mask)
    if not mask.any():
        assert box is None
        return
    x0, y0, x1, y1 = (int(value) for value in box)
    inside = mask[y0:y1, x0:x1]
    assert inside.sum() == mask.sum()
    assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_any_mode_are_read(tmp_path, mode):
    values = np.zeros((6, 9), dtype=np.uint8)
    values[2:4, 3:8] = 255
    image = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values).convert(mode)
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (9, 6)), values > 0)


def test_values_of_one_count_in_a_lossless_mask_and_grey_around_a_jpeg_mask_does_not(tmp_path):
    values = np.zeros((32, 48), dtype=np.uint8)
    values[9:21, 11:37] = 1
    Image.fromarray(values).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (48, 32)), values > 0)
    Image.fromarray(values * 255).save(tmp_path / "m.jpg", quality=70)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg", (48, 32)), values > 0)


def test_a_missing_broken_or_misfitting_mask_is_refused(tmp_path):
    Image.new("L", (9, 6)).save(tmp_path / "m.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "m.png").read_bytes()[:40])
    for name, size, part in (
        ("m.png", (6, 9), "9x6 pixels and its image 6x9"),
        ("none.png", (9, 6), "does not exist"),
        ("cut.png", (9, 6), "cannot be decoded"),
    ):
        with pytest.raises(ValueError, match=name) as error:
            read_mask(tmp_path / name, size)
        assert part in str(error.value)
