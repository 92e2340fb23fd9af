"""Polygons and COCO run lengths, plain and compressed, become the masks that they describe."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.processing.corpus.records import MaskRle
from regionmed_clip.processing.corpus.sources.region_masks import connected_parts
from regionmed_clip.processing.mask_codes import decode_counts, fill_polygons, mask_of_counts

# Public example of pycocotools output, https://github.com/cocodataset/cocoapi: size [848, 480].
PUBLISHED_COUNTS = (
    "i\\Y4<Qj05K4L4M3M2N3O000010O00001O00010O00000O101O0000000000000O010000000O10O10000O01000O100O010O1O1O1N2O1O0O2O1N20"
    "O01O1001N101O1N100O100O10O01O2O00000O1O10O1O11N1O1O100O1O2N1O1O3L4HTXk5"
)
random_masks = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).random(drawn[:2]) < 0.45
)


def compress(counts):
    """The compressed text of run lengths: 5 bits a character, low ones first, differences from the fourth on."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            is_last = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if is_last else 32))
            if is_last:
                break
    return text


def test_a_published_compressed_text_fills_its_image():
    counts = decode_counts(PUBLISHED_COUNTS, "a")
    assert sum(counts) == 848 * 480
    assert min(counts[1:]) > 0
    assert compress(counts) == PUBLISHED_COUNTS
    parts = list(connected_parts(mask_of_counts(PUBLISHED_COUNTS, [848, 480], "a")))
    assert len(parts) == 1  # one object


@given(random_masks)
def test_compressed_and_plain_run_lengths_give_the_mask_back(mask):
    counts = list(MaskRle.from_array(mask).counts)
    size = list(mask.shape)
    np.testing.assert_array_equal(mask_of_counts(counts, size, "a"), mask)
    np.testing.assert_array_equal(mask_of_counts(compress(counts), size, "a"), mask)


@pytest.mark.parametrize("counts", [[3, 60000, 70000, 1, 60000], [0, 5, 1000000, 2, 1], [7]])
def test_long_runs_and_their_differences_are_decoded(counts):
    assert decode_counts(compress(counts), "a") == counts


@pytest.mark.parametrize(
    ("counts", "size", "part"),
    [
        ("", [2, 2], "compressed"),
        ("5P", [2, 2], "compressed"),  # P says that more follows
        ("5\x7f", [2, 2], "compressed"),
        ("5é", [2, 2], "compressed"),
        ("P" * 20 + "0", [2, 2], "compressed"),
        ("3", [2, 2], "sum to 3"),
        ([1, 2], [2, 2], "sum to 3"),
        ([5, -1], [2, 2], "at least 0"),
        ([1.5, 2.5], [2, 2], "whole numbers"),
        (None, [2, 2], "whole numbers"),
        ([4], [4], "height, width"),
        ([4], None, "height, width"),
        ([4], [2, "2"], "height, width"),
    ],
)
def test_broken_run_lengths_are_refused_by_name(counts, size, part):
    with pytest.raises(ValueError, match="ann 7") as error:
        mask_of_counts(counts, size, "ann 7")
    assert part in str(error.value)


def test_the_corners_of_a_box_give_its_pixels_exactly():
    expected = np.zeros((20, 30), dtype=bool)
    expected[3:9, 4:15] = True
    np.testing.assert_array_equal(fill_polygons([[4, 3, 15, 3, 15, 9, 4, 9]], 30, 20, "a"), expected)
    np.testing.assert_array_equal(fill_polygons([[4, 9, 15, 9, 15, 3, 4, 3]], 30, 20, "a"), expected)  # the other way
    assert fill_polygons([[0, 0, 30, 0, 30, 20, 0, 20]], 30, 20, "a").all()


def test_a_polygon_holds_the_pixels_whose_centres_are_inside():
    mask = fill_polygons([[0, 0, 8, 0, 0, 8]], 10, 10, "a")
    ys, xs = np.mgrid[:10, :10] + 0.5
    inside = xs + ys < 8
    on_the_edge = xs + ys == 8
    np.testing.assert_array_equal(mask[~on_the_edge], inside[~on_the_edge])


def test_several_polygons_are_joined_and_slivers_are_empty():
    mask = fill_polygons([[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]], 10, 10, "a")
    assert mask.sum() == 16 + 16 - 4
    assert not fill_polygons([[1.1, 1, 1.2, 1, 1.2, 9]], 10, 10, "a").any()
    assert not fill_polygons([[1, 5, 4, 5, 9, 5]], 10, 10, "a").any()


@pytest.mark.parametrize(
    "polygon",
    [
        [1, 1, 2, 2],
        [1, 1, 2, 2, 3, 3, 4],
        [0, 0, 5, 0, 5, float("nan")],
        [0, 0, 50, 0, 5, 5],
        [0, 0, 5, 0, 5, 10**400],
        [0, 0, 5, 0, 5, True],
        "abcdef",
        [[1, 1], [2, 2]],
    ],
)
def test_a_broken_polygon_is_refused_by_name(polygon):
    with pytest.raises(ValueError, match="ann 7 has a polygon"):
        fill_polygons([polygon], 10, 10, "ann 7")
