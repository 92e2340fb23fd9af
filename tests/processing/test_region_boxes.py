"""Boxes, masks and points keep their place and their area on the way into the model frame and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.processing.box_inputs import pixel_boxes, pixel_points
from regionmed_clip.processing.region_boxes import (
    FrameGeometry,
    box_coverage,
    clip_to_frame,
    frame_mask_coverage,
    heat_to_pixels,
    mask_boxes,
    mask_coverage,
    point_boxes,
)

SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 3000))
FRAMES = st.sampled_from([(224, 224), (96, 96), (384, 384), (320, 224)])
UNIT = st.floats(0, 1)


@st.composite
def images_with_boxes(draw):
    """(width, height) and a box of at least one pixel inside."""
    width, height = draw(SIZES)
    x0, y0 = draw(UNIT) * (width - 1), draw(UNIT) * (height - 1)
    x1, y1 = x0 + 1 + draw(UNIT) * (width - 1 - x0), y0 + 1 + draw(UNIT) * (height - 1 - y0)
    return (width, height), np.array([[x0, y0, min(x1, width), min(y1, height)]])


@given(images_with_boxes(), FRAMES)
def test_a_box_comes_back_from_the_padded_frame_within_a_pixel(image, frame):
    size, box = image
    geometry = FrameGeometry.padded(size, frame)
    fractions = geometry.boxes_to_frame_fractions(pixel_boxes(box, "xyxy", size))
    assert fractions.dtype == np.float32
    assert (fractions >= 0).all()
    assert (fractions <= 1).all()
    np.testing.assert_allclose(geometry.frame_fractions_to_boxes(fractions), box, atol=0.01)


@given(SIZES, FRAMES)
def test_padding_keeps_the_aspect_ratio_and_touches_the_frame_on_one_axis(size, frame):
    geometry = FrameGeometry.padded(size, frame)
    assert min(geometry.resized) >= 1
    assert geometry.resized[0] == frame[0] or geometry.resized[1] == frame[1]
    assert all(offset >= 0 for offset in geometry.offset)
    assert all(o + r <= f for o, r, f in zip(geometry.offset, geometry.resized, frame))
    exact = min(frame[0] / size[0], frame[1] / size[1])
    assert all(abs(r - max(1, s * exact)) <= 0.5 for r, s in zip(geometry.resized, size))


@given(st.tuples(UNIT, UNIT, UNIT, UNIT), st.sampled_from([(14, 14), (7, 7), (6, 9)]))
def test_the_coverage_of_a_box_sums_to_its_area(corners, grid):
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    coverage = box_coverage(np.array([[x0, y0, x1, y1]]), grid)
    assert coverage.shape == (1, *grid)
    assert coverage.dtype == np.float32
    assert coverage.min() >= 0
    assert coverage.max() <= 1
    np.testing.assert_allclose(coverage.sum() / (grid[0] * grid[1]), (x1 - x0) * (y1 - y0), atol=1e-5)


def test_the_coverage_of_a_box_is_the_hand_made_one():
    coverage = box_coverage(np.array([[0.125, 0.5, 0.5, 0.75]]), (2, 4))  # x: half of cell 0, cell 1; y: half of row 1
    np.testing.assert_allclose(coverage[0], [[0, 0, 0, 0], [0.25, 0.5, 0, 0]], atol=1e-7)


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)), st.integers(0, 2**32 - 1), st.sampled_from([(32, 32), (48, 32)])
)
def test_the_coverage_of_a_mask_sums_to_its_area_in_the_frame(size, seed, frame):
    masks = np.random.default_rng(seed).random((2, size[1], size[0])) < 0.4
    geometry = FrameGeometry.padded(size, frame)
    coverage = mask_coverage(masks, geometry, (frame[1] // 8, frame[0] // 8))
    area = masks.sum(axis=(1, 2)) * geometry.scale_x * geometry.scale_y
    np.testing.assert_allclose(coverage.sum(axis=(1, 2)) * 64, area, rtol=1e-4, atol=1e-3)


@given(images_with_boxes(), FRAMES)
def test_a_mask_that_fills_a_box_has_the_coverage_of_the_box(image, frame):
    (width, height), box = image
    width, height = min(width, 300), min(height, 200)
    x0, y0, x1, y1 = (int(v) for v in np.clip(box[0], 0, [width - 1, height - 1, width, height]))
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    mask = np.zeros((1, height, width), dtype=bool)
    mask[0, y0:y1, x0:x1] = True
    geometry = FrameGeometry.padded((width, height), frame)
    np.testing.assert_array_equal(mask_boxes(mask), [[x0, y0, x1, y1]])
    fractions = geometry.boxes_to_frame_fractions([[x0, y0, x1, y1]])
    grid = (frame[1] // 16, frame[0] // 16)
    np.testing.assert_allclose(mask_coverage(mask, geometry, grid), box_coverage(fractions, grid), atol=1e-4)


def test_the_coverage_of_a_mask_is_the_mean_over_each_patch_when_pixels_and_patches_align():
    mask = np.random.default_rng(0).random((1, 28, 28)) < 0.3
    geometry = FrameGeometry.padded((28, 28), (224, 224))  # 8 frame pixels per pixel, 2 x 2 pixels per patch of 16
    expected = mask[0].reshape(14, 2, 14, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(mask_coverage(mask, geometry, (14, 14))[0], expected, atol=1e-6)


def test_a_point_becomes_the_square_of_one_patch_around_it_clipped_to_the_frame():
    geometry = FrameGeometry.padded((448, 448), (224, 224))
    boxes, is_visible = point_boxes(pixel_points([(224, 112), (0, 447)], (448, 448)), geometry, 16)
    np.testing.assert_allclose(boxes[0] * 224, [104, 48, 120, 64], atol=1e-4)
    np.testing.assert_allclose(boxes[1] * 224, [0, 215.5, 8, 224], atol=1e-4)
    assert is_visible.all()


def test_a_point_just_inside_the_last_pixel_is_inside():
    geometry = FrameGeometry.padded((4000, 3000), (224, 224))
    point = (np.nextafter(4000.0, 0), 1500)  # its fraction of the frame is 1 in float32
    _, is_visible = point_boxes(pixel_points([point], (4000, 3000)), geometry, 16)
    assert is_visible.all()


def test_points_follow_the_padding_and_come_back():
    geometry = FrameGeometry.padded((448, 224), (224, 224))  # halved; rows 56 to 168 of the frame
    fractions = geometry.points_to_frame_fractions([(224, 112), (0, 0)])
    np.testing.assert_allclose(fractions, [[0.5, 0.5], [0, 0.25]])
    np.testing.assert_allclose(geometry.frame_fractions_to_points(fractions), [[224, 112], [0, 0]])
    np.testing.assert_allclose(geometry.frame_fractions_to_points([(0.5, 0.1), (0.5, 0.9)]), [[224, 0], [224, 224]])


def test_a_mask_in_the_frame_is_the_share_of_each_frame_pixel():
    geometry = FrameGeometry.padded((8, 4), (4, 4))  # halved; rows 1 and 2 of the frame
    mask = np.zeros((1, 4, 8), dtype=bool)
    mask[0, 1:4, 0:3] = True
    shares = geometry.masks_to_frame(mask)
    np.testing.assert_array_equal(shares[0], [[0, 0, 0, 0], [0.5, 0.25, 0, 0], [1, 0.5, 0, 0], [0, 0, 0, 0]])
    coverage = frame_mask_coverage(shares, (2, 2))
    np.testing.assert_array_equal(coverage[0], [[0.1875, 0], [0.375, 0]])
    np.testing.assert_array_equal(coverage, mask_coverage(mask, geometry, (2, 2)))


def test_a_mask_in_the_frame_comes_back_without_the_padding_and_what_was_cropped():
    enlarged = FrameGeometry.padded((6, 3), (24, 24))  # 4 frame pixels per pixel
    mask = np.random.default_rng(0).random((3, 3, 6)) < 0.5
    np.testing.assert_array_equal(enlarged.masks_from_frame(enlarged.masks_to_frame(mask)), mask)
    everywhere = np.ones((1, 24, 24), dtype=bool)
    assert enlarged.masks_from_frame(everywhere).shape == (1, 3, 6)
    assert enlarged.masks_from_frame(torch.from_numpy(everywhere)).all()
    assert not enlarged.masks_from_frame(np.zeros((1, 24, 24))).any()
    cropped = FrameGeometry.centred((100, 50), (200, 100), (100, 100))
    found = cropped.masks_from_frame(np.ones((1, 100, 100), dtype=bool))[0]
    assert found[:, 25:75].all()
    assert not found[:, :25].any()
    assert not found[:, 75:].any()


@given(st.integers(0, 2**32 - 1), st.sampled_from([(90, 70), (5, 40), (16, 16), (33, 7)]), st.booleans())
def test_masks_come_back_as_heat_maps_do(seed, size, is_cropped):
    geometry = FrameGeometry.padded(size, (24, 32))
    if is_cropped:
        geometry = FrameGeometry.centred(size, (size[0] // 2 + 1, size[1] * 2), (24, 32))
    generator = np.random.default_rng(seed)
    shares = (generator.random((1, 32, 24)) * (generator.random((1, 32, 24)) < 0.1)).astype(np.float32)
    expected = heat_to_pixels(shares[0], geometry) >= 0.3  # NaN, which was cropped away, is not
    np.testing.assert_array_equal(geometry.masks_from_frame(shares, threshold=0.3)[0], expected)


def test_masks_of_another_size_or_of_levels_are_refused():
    geometry = FrameGeometry.padded((8, 4), (32, 32))
    with pytest.raises(ValueError, match=r"masks have shape \(1, 8, 4\).*\(R, 4, 8\), the size of the original image"):
        geometry.masks_to_frame(np.zeros((1, 8, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"type uint8; they must be bool.*decode_masks"):
        geometry.masks_to_frame(np.full((1, 4, 8), 255, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"\(4, 8\).*\(R, 32, 32\), the size of the model frame.*mask\[None\]"):
        geometry.masks_from_frame(np.zeros((4, 8), dtype=bool))


def test_a_centre_crop_moves_boxes_with_the_image_and_sees_what_is_cut_away():
    geometry = FrameGeometry.centred((100, 50), (200, 100), (100, 100))  # doubled, then 50 px cut off left and right
    fractions = geometry.boxes_to_frame_fractions([[30, 10, 40, 20], [20, 0, 30, 10], [0, 0, 20, 50]])
    clipped, is_visible = clip_to_frame(fractions)
    np.testing.assert_allclose(clipped[:2], [[0.1, 0.2, 0.3, 0.4], [0, 0, 0.1, 0.2]], atol=1e-6)
    assert is_visible.tolist() == [True, True, False]
    assert geometry.visible_pixels() == (slice(0, 50), slice(25, 75))
    mask = np.zeros((1, 50, 100), dtype=bool)
    mask[0, :, :20] = True
    assert not mask_coverage(mask, geometry, (4, 4)).any()


@given(SIZES, FRAMES)
def test_a_constant_heat_map_stays_constant_in_original_pixels(size, frame):
    size = (min(size[0], 90), min(size[1], 70))
    heat = heat_to_pixels(np.full((5, 7), 0.25), FrameGeometry.padded(size, frame))
    assert heat.shape == (size[1], size[0])
    np.testing.assert_allclose(heat, 0.25, atol=1e-6)


def test_a_heat_map_that_ramps_over_the_frame_ramps_over_the_image_without_its_padding():
    geometry = FrameGeometry.padded((448, 224), (224, 224))  # halved; rows 56 to 168 of the frame
    ramp = np.repeat((np.arange(14)[:, None] + 0.5) / 14, 14, axis=1)  # value = y of the patch centre, in frames
    heat = heat_to_pixels(ramp, geometry)
    expected = (56 + (np.arange(224) + 0.5) / 2) / 224
    np.testing.assert_allclose(heat[:, 0], expected, atol=1e-6)


def test_a_heat_map_is_nan_where_the_crop_kept_the_image_from_the_model():
    heat = heat_to_pixels(np.ones((4, 4)), FrameGeometry.centred((100, 50), (200, 100), (100, 100)))
    assert np.isnan(heat[:, :25]).all()
    assert not np.isnan(heat[:, 25:75]).any()
