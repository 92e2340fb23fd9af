"""Boxes of every format and points are checked, and mistakes named by their image and region."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from regionmed_clip.processing.box_inputs import pixel_boxes, pixel_points


def test_the_three_box_formats_say_the_same_box():
    size = (200, 100)
    expected = [[20.0, 10.0, 60.0, 40.0]]
    np.testing.assert_allclose(pixel_boxes([(20, 10, 60, 40)], "xyxy", size), expected)
    np.testing.assert_allclose(pixel_boxes([(20, 10, 40, 30)], "xywh", size), expected)
    np.testing.assert_allclose(pixel_boxes([(0.2, 0.25, 0.2, 0.3)], "cxcywh_fraction", size), expected)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda rows: [np.array(row) for row in rows]])
def test_boxes_may_be_lists_arrays_or_tensors(make):
    np.testing.assert_array_equal(pixel_boxes(make([[1, 2, 3, 4], [0, 0, 9, 9]]), "xyxy", (9, 9))[1], [0, 0, 9, 9])


def test_no_boxes_are_an_empty_array():
    assert pixel_boxes([], "xyxy", (9, 9)).shape == (0, 4)
    assert pixel_boxes(np.zeros((0, 4)), "xyxy", (9, 9)).shape == (0, 4)


def test_a_rounding_overshoot_of_half_a_pixel_is_clipped_to_the_image():
    np.testing.assert_array_equal(pixel_boxes([(-0.4, 0, 10.5, 8)], "xyxy", (10, 8)), [[0, 0, 10, 8]])


@pytest.mark.parametrize(
    ("box", "box_format", "words"),
    [
        ((5, 5, 2, 8), "xyxy", ["(5, 5, 2, 8)", "x1 must exceed x0", "box_format"]),
        ((5, 5, 5, 8), "xyxy", ["(5, 5, 5, 8)", "inverted or empty"]),
        ((5, 5, -1, 3), "xywh", ["(5, 5, -1, 3) (xywh)", "as xyxy it is (5, 5, 4, 8)"]),
        ((1, float("nan"), 3, 4), "xyxy", ["(1, nan, 3, 4)", "not finite"]),
        ((1, 1, float("inf"), 4), "xyxy", ["inf", "not finite"]),
        ((1, 1, 3, 12), "xyxy", ["(1, 1, 3, 12)", "outside the image of 20 x 10 pixels", "Clip"]),
        ((-3, 1, 3, 4), "xyxy", ["(-3, 1, 3, 4)", "outside"]),
        ((30, 1, 33, 4), "xyxy", ["outside"]),
        ((15, 5, 10, 3), "xywh", ["outside", "(15, 5, 25, 8)"]),
        ((1.5, 0.5, 0.2, 0.2), "cxcywh_fraction", ["(1.5, 0.5, 0.2, 0.2)", "outside"]),
        ((1, 2, 3), "xyxy", ["must be 4 numbers"]),
        (("a", 2, 3, 4), "xyxy", ["'a'", "must be 4 numbers"]),
        ((1, 1, 1 + 1e-7, 5), "xyxy", ["no area", "points"]),
        ((1, 1, 1.0005, 5), "xyxy", ["no area", "at least 0.001 pixels"]),
    ],
)
def test_a_bad_box_is_named_with_its_image_its_region_its_value_and_the_rule(box, box_format, words):
    good = {"xyxy": (0, 0, 5, 5), "xywh": (0, 0, 5, 5), "cxcywh_fraction": (0.5, 0.5, 0.1, 0.1)}[box_format]
    with pytest.raises(ValueError, match="image 3, region 1") as error:
        pixel_boxes([good, box], box_format, (20, 10), image_index=3)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_box_format_and_boxes_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="'yxyx' is not known; it must be one of xyxy, xywh, cxcywh_fraction"):
        pixel_boxes([], "yxyx", (9, 9))
    with pytest.raises(ValueError, match=r"image 0: boxes have shape \(4,\)"):
        pixel_boxes(np.array([1.0, 2, 3, 4]), "xyxy", (9, 9))


@pytest.mark.parametrize("point", [(9, 3), (3, -1), (float("nan"), 1), (1, 2, 3)])
def test_a_bad_point_is_named(point):
    with pytest.raises(ValueError, match="image 2, region 0: point"):
        pixel_points([point], (9, 9), image_index=2)


@pytest.mark.parametrize("row", [("1", "2", "3", "4"), (1, 2, {}, 4), (True, True, True, True), (1, 2, [3], 4), "abcd",
                                 (1, 1, True, 4), (1, 1, 10**400, 4), (1, 1, -(10**400), 4), (1, 1, "nan", 4),
                                 (1, 1, 2j, 4), (1, 1, Fraction(10**400), 4), (1, 1, Decimal("sNaN"), 4)])  # fmt: skip
def test_what_is_not_four_numbers_is_refused(row):
    with pytest.raises(ValueError, match=r"image 0, region 0: box .* must be 4 numbers"):
        pixel_boxes([row], "xyxy", (9, 9))
    with pytest.raises(ValueError, match=r"image 0, region 0: point .* must be 2 numbers"):
        pixel_points([row[2:]], (9, 9))


@pytest.mark.parametrize("number", [Decimal("2.5"), Fraction(5, 2), np.float16(2.5)])
def test_exact_numbers_are_numbers(number):
    assert pixel_boxes([(1, 1, number, 4)], "xyxy", (9, 9)).tolist() == [[1, 1, 2.5, 4]]
    assert pixel_points([(1, number)], (9, 9)).tolist() == [[1, 2.5]]


@pytest.mark.parametrize("box_format", ["xyxy", "xywh"])
def test_fractions_given_as_pixels_are_warned_of(box_format):
    with pytest.warns(UserWarning, match=r"image 4: all boxes lie within its first pixel.*\(0.1, 0.2, 0.5, 0.6\)"):
        pixel_boxes([(0.1, 0.2, 0.5, 0.6), (0, 0, 1, 1)], box_format, (100, 80), image_index=4)


def test_a_box_of_the_first_pixel_and_small_boxes_elsewhere_are_not():
    small = (0.1, 0.2, 0.5, 0.6)
    for boxes, image_size in (([(0, 0, 1, 1)], (100, 80)), ([small, (4, 4, 20, 20)], (100, 80)), ([small], (4, 4))):
        assert pixel_boxes(boxes, "xyxy", image_size).tolist() == [list(box) for box in boxes]  # and no warning
    found = pixel_boxes([(0.5, 0.5, 0.2, 0.2)], "cxcywh_fraction", (100, 80))
    np.testing.assert_allclose(found, [(40, 32, 60, 48)])


def test_infinite_numbers_of_any_format_are_named_before_any_sum():
    for box_format in ("xyxy", "xywh", "cxcywh_fraction"):
        with pytest.raises(ValueError, match=r"image 0, region 1: box .*inf.* is not finite"):
            pixel_boxes([(0.4, 0.4, 0.5, 0.5), (float("inf"), 1, float("inf"), 2)], box_format, (4, 4))
