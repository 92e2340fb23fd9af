"""Regions of every kind, in images of any size, keep their place and area in the frame and come back from it."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from region_strategies import (
    IMAGE_SIZES,
    PROCESSOR_NAMES,
    PROCESSORS,
    UNIT,
    boxes_within,
    geometries_with_shapes,
    visible_box,
)

from regionmed_clip.processing.box_inputs import BOX_FORMATS, pixel_points
from regionmed_clip.processing.region_boxes import FrameGeometry, clip_to_frame, frame_mask_coverage, mask_coverage
from regionmed_clip.processing.region_inputs import region_tensors

pytestmark = pytest.mark.filterwarnings("ignore:image 0, region 0. the centre crop")  # what it says is tested elsewhere


def written_as(box, box_format, size):
    """The numbers by which a user of that format writes the box."""
    x0, y0, x1, y1 = box
    if box_format == "xyxy":
        return [x0, y0, x1, y1]
    if box_format == "xywh":
        return [x0, y0, x1 - x0, y1 - y0]
    return [(x0 + x1) / 2 / size[0], (y0 + y1) / 2 / size[1], (x1 - x0) / size[0], (y1 - y0) / size[1]]


def area_in_frame(mask, geometry):
    """The area of a mask in frame pixels inside the frame: each pixel's own, summed."""
    pixel_sides = []
    for axis in (1, 0):
        num_pixels, scale, offset, frame_px = geometry.along_axis(axis)
        pixel_sides.append(np.diff(np.clip(np.arange(num_pixels + 1) * scale + offset, 0, frame_px)))
    rows, columns = np.nonzero(mask)
    return (pixel_sides[0][rows] * pixel_sides[1][columns]).sum()


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@given(PROCESSOR_NAMES, IMAGE_SIZES)
def test_no_image_is_resized_to_nothing_and_the_frame_is_as_promised(name, size):
    geometry = PROCESSORS[name].geometry_for(*size)
    assert min(geometry.resized) >= 1
    assert geometry.frame == PROCESSORS[name].frame_size
    assert geometry.original == size


@given(PROCESSOR_NAMES, IMAGE_SIZES, st.sampled_from(BOX_FORMATS), st.data())
def test_a_box_of_any_format_comes_back_within_a_pixel_clipped_to_what_the_model_sees(name, size, box_format, data):
    box = data.draw(boxes_within(size))
    processor = PROCESSORS[name]
    geometry = processor.geometry_for(*size)
    given_boxes = {"boxes": [[written_as(box, box_format, size)]]}
    arrays, _ = region_tensors(given_boxes, [geometry], processor.patch_size, box_format)
    visible = visible_box(geometry)
    expected = np.concatenate([np.maximum(box[:2], visible[:2]), np.minimum(box[2:], visible[2:])])
    is_clearly_inside = (expected[2:] - expected[:2] > 1e-2).all()
    is_clearly_outside = (expected[2:] - expected[:2] < -1e-2).any()
    if is_clearly_outside:
        assert not arrays["region_mask"][0, 0]
    if is_clearly_inside:
        assert arrays["region_mask"][0, 0]
        found = geometry.frame_fractions_to_boxes(arrays["region_boxes"][0])[0]
        np.testing.assert_allclose(found, expected, atol=0.01)  # float32 over 4000 pixels; the promise is 1
    if name != "centre crop":
        assert arrays["region_mask"][0, 0]


@given(PROCESSOR_NAMES, IMAGE_SIZES, UNIT, UNIT)
def test_a_point_comes_back_within_a_pixel_and_its_square_covers_one_patch(name, size, x, y):
    processor = PROCESSORS[name]
    geometry = processor.geometry_for(*size)
    point = np.minimum(np.array([x, y]) * size, np.nextafter(np.array(size, dtype=float), 0))
    fractions = geometry.points_to_frame_fractions(pixel_points([point], size))
    np.testing.assert_allclose(geometry.frame_fractions_to_points(fractions.astype(np.float32))[0], point, atol=0.01)
    assert (pixel_points(geometry.frame_fractions_to_points(fractions), size) >= 0).all()  # it may be given again
    arrays, _ = region_tensors({"points": [[point]]}, [geometry], processor.patch_size, "xyxy")
    is_inside = ((fractions >= 0) & (fractions < 1)).all()
    if name != "centre crop":
        assert is_inside
        assert arrays["region_mask"][0, 0]
    if arrays["region_mask"][0, 0]:
        half = processor.patch_size / 2 / np.array(geometry.frame)
        sides = np.minimum(fractions[0] + half, 1) - np.maximum(fractions[0] - half, 0)
        share = sides.prod() * np.prod(geometry.frame) / processor.patch_size**2  # of a patch; the frame cuts some off
        np.testing.assert_allclose(arrays["region_coverage"].sum(), share, rtol=0.01)


@settings(max_examples=25)
@given(geometries_with_shapes(min_side_in_frame=32))
def test_a_mask_comes_back_from_the_frame_with_an_iou_of_at_least_95_percent(drawn):
    geometry, mask = drawn
    shares = geometry.masks_to_frame(mask[None])
    assert shares.shape == (1, geometry.frame[1], geometry.frame[0])
    assert shares.dtype == np.float32
    assert iou(geometry.masks_from_frame(shares)[0], mask) >= 0.95


@settings(max_examples=25)
@given(geometries_with_shapes())
def test_the_coverage_of_a_mask_sums_to_its_area_in_the_frame(drawn):
    geometry, mask = drawn
    patch_size = 32
    grid = (geometry.frame[1] // patch_size, geometry.frame[0] // patch_size)
    area = area_in_frame(mask, geometry)
    assume(area > 0)
    coverage = mask_coverage(mask[None], geometry, grid)
    assert coverage.min() >= 0
    assert coverage.max() <= 1
    np.testing.assert_allclose(coverage.sum() * patch_size**2, area, rtol=1e-3)  # the promise is 0.01
    through_the_frame = frame_mask_coverage(geometry.masks_to_frame(mask[None]), grid)
    np.testing.assert_allclose(through_the_frame, coverage, atol=1e-4)


@given(PROCESSOR_NAMES, IMAGE_SIZES, st.data())
def test_the_coverage_of_a_box_beside_a_mask_sums_to_its_area_in_the_frame(name, size, data):
    box = data.draw(boxes_within(size))
    processor = PROCESSORS[name]
    geometry = processor.geometry_for(*size)
    tiny = FrameGeometry.centred((1, 1), geometry.frame, geometry.frame)
    given_regions = {"boxes": [[box], None], "masks": [None, np.ones((1, 1, 1), dtype=bool)]}
    arrays, _ = region_tensors(given_regions, [geometry, tiny], processor.patch_size, "xyxy")
    corners, _ = clip_to_frame(geometry.boxes_to_frame_fractions(box[None]))
    expected = (corners[0, 2:] - corners[0, :2]).astype(float).prod() * np.prod(geometry.frame)
    if arrays["region_mask"][0, 0]:
        area = arrays["region_coverage"][0].sum() * processor.patch_size**2
        np.testing.assert_allclose(area, expected, rtol=0.01)
    np.testing.assert_array_equal(arrays["region_coverage"][1], 1)
