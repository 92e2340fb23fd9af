"""Crops and flips of the frame carry boxes, points, masks and pixels alike, compose, and can be undone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_strategies import SHAPES, UNIT, shape_of

from regionmed_clip.processing.frame_augmentation import FrameAugmentation, draw_augmentation
from regionmed_clip.processing.region_boxes import FrameGeometry, box_coverage, frame_mask_coverage

IDENTITY = FrameAugmentation()
FLIPS = [FrameAugmentation(flip_x=x, flip_y=y) for x in (False, True) for y in (False, True)]
PAIR = st.tuples(UNIT, UNIT)
FEWER = settings(max_examples=40)
CROP = FrameAugmentation((0.25, 0.5, 0.75, 1.0))


@st.composite
def augmentations(draw, min_side=0.1):
    sides = []
    for _ in range(2):
        side = min_side + draw(UNIT) * (1 - min_side)
        start = draw(UNIT) * (1 - side)
        sides.append((start, start + side))
    crop = (sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    return FrameAugmentation(crop, draw(st.booleans()), draw(st.booleans()))


def inside(augmentation, fractions):
    """Positions of the frame at these fractions of the crop: (..., 2)."""
    crop = np.array(augmentation.crop)
    return crop[:2] + np.asarray(fractions) * (crop[2:] - crop[:2])


def assert_identity(augmentation):
    np.testing.assert_allclose(augmentation.crop, IDENTITY.crop, atol=1e-9)
    assert not augmentation.flip_x
    assert not augmentation.flip_y


@FEWER
@given(augmentations())
def test_an_augmentation_and_its_inverse_are_the_identity_in_either_order(augmentation):
    assert_identity(augmentation.then(augmentation.inverse()))
    assert_identity(augmentation.inverse().then(augmentation))


@FEWER
@given(augmentations(), augmentations(), augmentations())
def test_composition_is_associative_and_undone_backwards(a, b, c):
    left, right = a.then(b).then(c), a.then(b.then(c))
    np.testing.assert_allclose(left.crop, right.crop, atol=1e-9)
    assert (left.flip_x, left.flip_y) == (right.flip_x, right.flip_y)
    assert_identity(a.then(b).then(b.inverse()).then(a.inverse()))


@FEWER
@given(augmentations(), PAIR, PAIR)
def test_a_box_within_the_crop_returns_through_the_inverse(augmentation, first, second):
    low, high = np.minimum(first, second) * 0.98, np.maximum(first, second) * 0.98 + 0.02
    box = np.concatenate([inside(augmentation, low), inside(augmentation, high)]).astype(np.float32)
    moved, is_visible = augmentation.boxes(box[None])
    assert is_visible.all()
    assert moved.dtype == np.float32
    returned, _ = augmentation.inverse().boxes(moved)
    np.testing.assert_allclose(returned[0], box, atol=1e-6)  # float32


@FEWER
@given(augmentations(), st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)))
def test_a_point_within_the_crop_returns_through_the_inverse(augmentation, fractions):
    point = inside(augmentation, fractions)
    moved, is_visible = augmentation.points(point[None])
    assert is_visible.all()
    assert ((moved >= 0) & (moved < 1)).all()
    np.testing.assert_allclose(augmentation.inverse().points(moved)[0][0], point, atol=1e-9)


@FEWER
@given(augmentations(min_side=0.3), PAIR, PAIR, st.sampled_from(SHAPES), st.booleans())
def test_a_mask_within_the_crop_returns_through_the_inverse(augmentation, sizes, places, shape, is_bool):
    side_px = 224
    low, high = np.ceil(inside(augmentation, (0, 0)) * side_px), np.floor(inside(augmentation, (1, 1)) * side_px)
    width, height = (32 + np.array(sizes) * (high - low - 32)).astype(int)
    x0, y0 = (low + np.array(places) * (high - low - (width, height))).astype(int)
    mask = np.zeros((1, side_px, side_px), dtype=bool if is_bool else np.float32)
    mask[0, y0 : y0 + height, x0 : x0 + width] = shape_of(shape, width, height)
    moved = augmentation.masks(mask)
    assert moved.dtype == mask.dtype
    scale = np.prod(inside(augmentation, (1, 1)) - inside(augmentation, (0, 0)))
    np.testing.assert_allclose(moved.sum() * scale, mask.sum(), rtol=0.05 if is_bool else 1e-4)
    returned, expected = augmentation.inverse().masks(moved)[0] >= 0.5, mask[0] >= 0.5
    assert (returned & expected).sum() / (returned | expected).sum() >= 0.95


@FEWER
@given(st.sampled_from(FLIPS), st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_flips_are_exact_and_undo_themselves(flip, seed, size):
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, 256, (3, *size), dtype=np.uint8)
    shares = generator.random((2, *size)).astype(np.float32)
    axes = [axis for axis, is_flipped in ((-1, flip.flip_x), (-2, flip.flip_y)) if is_flipped]
    np.testing.assert_array_equal(flip.frames(frames), np.flip(frames, axes))
    np.testing.assert_array_equal(flip.masks(shares), np.flip(shares, axes))
    np.testing.assert_array_equal(flip.masks(shares > 0.5), np.flip(shares, axes) > 0.5)
    for values in (shares, shares > 0.5):
        np.testing.assert_array_equal(flip.inverse().masks(flip.masks(values)), values)
    assert flip.inverse() == flip
    assert flip.swaps_sides == flip.flip_x


def test_boxes_points_and_masks_follow_a_crop_and_a_flip_by_hand():
    boxes = [(0.5, 0.5, 0.75, 0.75), (0, 0.5, 0.5, 1), (0, 0, 0.25, 1), (0, 0, 0, 0)]
    moved, is_visible = CROP.boxes(boxes)
    np.testing.assert_allclose(moved, [[0.5, 0, 1, 0.5], [0, 0, 0.5, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert is_visible.tolist() == [True, True, False, False]
    flipped = FrameAugmentation(CROP.crop, flip_x=True)
    np.testing.assert_allclose(flipped.boxes(boxes)[0][:2], [[0, 0, 0.5, 0.5], [0.5, 0, 1, 1]])
    np.testing.assert_allclose(CROP.then(FrameAugmentation(flip_y=True)).boxes(boxes)[0][0], [0.5, 0.5, 1, 1])
    points, is_inside = flipped.points([(0.375, 0.625), (0.25, 0.5), (0.75, 0.75), (0.5, 0.25)])
    np.testing.assert_allclose(points, [[0.75, 0.25], [1, 0], [0, 0.5], [0, 0]], atol=1e-12)
    assert is_inside.tolist() == [True, True, True, False]  # the border belongs to both sides, within rounding
    masks = np.zeros((1, 4, 4), dtype=np.float32)
    masks[0, 2, 1], masks[0, 3, 2] = 1, 0.5
    np.testing.assert_allclose(CROP.masks(masks)[0, 0], [1, 1, 0, 0])
    np.testing.assert_allclose(CROP.masks(masks)[0, 3], [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(flipped.masks(masks)[0, 0], [0, 0, 1, 1])
    np.testing.assert_allclose(CROP.inverse().masks(np.ones((1, 4, 4)))[0, :, 1], [0, 0, 1, 1])


@FEWER
@given(augmentations(min_side=0.3), PAIR, PAIR)
def test_the_pixels_of_a_box_are_where_the_moved_box_says(augmentation, first, second):
    side_px = 96
    first, second = np.minimum(first, second) * 0.8, np.maximum(first, second) * 0.8 + 0.2
    x0, y0 = np.round(inside(augmentation, first) * side_px).astype(int)
    x1, y1 = np.round(inside(augmentation, second) * side_px).astype(int)
    frame = np.zeros((3, side_px, side_px), dtype=np.uint8)
    frame[:, y0:y1, x0:x1] = 200
    moved = augmentation.frames(frame)
    assert moved.shape == frame.shape
    assert moved.dtype == np.uint8
    assert moved.max() <= 200
    (box,), is_visible = augmentation.boxes([(x0 / side_px, y0 / side_px, x1 / side_px, y1 / side_px)])
    assert is_visible.all()
    rows, columns = np.flatnonzero((moved[0] > 100).any(axis=1)), np.flatnonzero((moved[0] > 100).any(axis=0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(found, box * side_px, atol=1.01)  # pixels of the frame


def test_a_ramp_is_resampled_to_the_ramp_of_the_crop_and_black_lies_outside():
    ramp = np.repeat((np.arange(100, dtype=np.uint8) * 2)[None, None, :], 100, axis=1)
    cropped = FrameAugmentation((0.2, 0, 0.7, 1)).frames(ramp)[0, 50]
    np.testing.assert_allclose(cropped, (20 + (np.arange(100) + 0.5) / 2 - 0.5) * 2, atol=0.51)  # rounded to levels
    shrunk = FrameAugmentation((-0.5, 0, 1.5, 1)).frames(ramp)[0, 50].astype(float)
    np.testing.assert_allclose(shrunk[26:74], (np.arange(26, 74) - 25 + 0.5) * 4 - 1, atol=0.51)
    assert not shrunk[:25].any()
    assert not shrunk[75:].any()
    checks = np.tile(np.array([[0, 255], [255, 0]], dtype=np.uint8), (50, 50))[None]
    smooth = FrameAugmentation((-1, -1, 2, 2)).frames(checks)[0, 40:60, 40:60]
    np.testing.assert_allclose(smooth, 127.5, atol=2)  # nine become one: about their mean, no pattern of its own


@FEWER
@given(augmentations(), PAIR, PAIR)
def test_the_coverage_of_a_moved_mask_is_that_of_the_moved_box(augmentation, first, second):
    box = np.concatenate([np.minimum(first, second), np.maximum(first, second)]) * 63 // 1
    box[2:] += 1
    frame = FrameGeometry.centred((64, 64), (64, 64), (64, 64))
    x0, y0, x1, y1 = box.astype(int)
    mask = np.zeros((1, 64, 64), dtype=bool)
    mask[0, y0:y1, x0:x1] = True
    coverage = frame_mask_coverage(augmentation.masks(frame.masks_to_frame(mask)), (4, 4))
    moved, _ = augmentation.boxes(box[None] / 64)
    np.testing.assert_allclose(coverage, box_coverage(moved, (4, 4)), atol=1e-4)


@pytest.mark.parametrize("values", [np.zeros((2, 8, 8), bool), np.zeros((2, 8, 8)), np.zeros((0, 8, 8), bool)])
def test_arrays_stay_arrays_and_tensors_tensors(values):
    for augmentation in (IDENTITY, CROP):
        as_array, as_tensor = augmentation.masks(values), augmentation.masks(torch.from_numpy(values))
        assert isinstance(as_array, np.ndarray)
        assert isinstance(as_tensor, torch.Tensor)
        assert as_array.dtype == (bool if values.dtype == bool else np.float32)
        np.testing.assert_array_equal(as_tensor, as_array)
    batch = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert CROP.frames(batch).shape == batch.shape


def test_frames_that_may_not_be_written_and_views_are_taken_as_they_are():
    frame = np.frombuffer(bytes(range(48)), dtype=np.uint8).reshape(3, 4, 4)
    np.testing.assert_array_equal(FLIPS[2].frames(frame), frame[..., ::-1])
    np.testing.assert_array_equal(FLIPS[2].frames(frame[..., ::-1]), frame)


def test_a_drawn_augmentation_depends_on_its_seed_alone_and_stays_in_the_frame():
    drawn = [draw_augmentation((7, 0, position), flip_x=0.5, flip_y=0.25, min_side=0.6) for position in range(400)]
    assert drawn == [draw_augmentation((7, 0, p), flip_x=0.5, flip_y=0.25, min_side=0.6) for p in range(400)]
    assert len({augmentation.crop for augmentation in drawn}) == 400
    crops = np.array([augmentation.crop for augmentation in drawn])
    sides = crops[:, 2:] - crops[:, :2]
    assert crops.min() >= 0
    assert crops.max() <= 1 + 1e-12
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    assert 0.6 <= sides.min() < 0.62
    assert 0.98 < sides.max() <= 1
    assert 160 <= sum(augmentation.flip_x for augmentation in drawn) <= 240  # 200 expected, 4 standard deviations
    assert 65 <= sum(augmentation.flip_y for augmentation in drawn) <= 135  # 100 expected
    assert not any(draw_augmentation(seed).flip_x or draw_augmentation(seed).flip_y for seed in range(50))
    assert draw_augmentation(3, min_side=1.0) == IDENTITY
    assert draw_augmentation(3, flip_x=1.0, min_side=1.0).swaps_sides


@FEWER
@given(st.lists(st.tuples(PAIR, PAIR), min_size=1, max_size=4), st.floats(0.05, 1))
def test_a_drawn_crop_holds_the_boxes_that_are_to_be_kept_and_grows_for_them(corners, min_side):
    boxes = np.array([(*np.minimum(*pair), *np.maximum(*pair)) for pair in corners])
    crops = [draw_augmentation((1, p), min_side=min_side, kept_boxes=boxes).crop for p in range(20)]
    needed = max(boxes[:, 2].max() - boxes[:, 0].min(), boxes[:, 3].max() - boxes[:, 1].min(), min_side)
    for x0, y0, x1, y1 in crops:
        assert min(x0, y0) >= 0
        assert max(x1, y1) <= 1 + 1e-12
        assert (boxes[:, :2] >= np.array([x0, y0]) - 1e-9).all()
        assert (boxes[:, 2:] <= np.array([x1, y1]) + 1e-9).all()
        assert needed - 1e-9 <= x1 - x0 <= 1 + 1e-12
        assert x1 - x0 == pytest.approx(y1 - y0)


def test_a_crop_without_boxes_to_keep_is_the_one_drawn_without_them():
    assert draw_augmentation(5, kept_boxes=np.zeros((0, 4))) == draw_augmentation(5)


@pytest.mark.parametrize("crop", [(0, 0, 0, 1), (0.5, 0, 0.2, 1), (0, 0, float("nan"), 1), (0, 0, 1), "abcd"])
def test_a_bad_crop_is_refused(crop):
    with pytest.raises(ValueError, match=r"crop is .*it must be finite \(x0, y0, x1, y1\).*Divide pixels"):
        FrameAugmentation(crop)


@pytest.mark.parametrize("options", [{"flip_x": 1.5}, {"flip_y": -0.1}, {"min_side": 0}, {"min_side": float("nan")}])
def test_bad_shares_of_a_draw_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*between 0 and 1"):
        draw_augmentation(0, **options)


def test_frames_and_masks_of_other_types_are_refused():
    with pytest.raises(ValueError, match=r"frames have shape \(3, 4, 4\) and type torch.float32.*normalize_frames"):
        CROP.frames(np.zeros((3, 4, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"masks have shape \(4, 4\)"):
        CROP.masks(np.zeros((4, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"type torch.uint8; they must be.*Divide 0 and 255 by 255"):
        CROP.masks(np.zeros((1, 4, 4), dtype=np.uint8))
