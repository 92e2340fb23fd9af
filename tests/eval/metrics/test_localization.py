"""Contrast, pointing and overlap of heat maps against hand sums and pixel counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from regionmed_clip.eval.metrics.localization import (
    absolute_contrast_to_noise_ratio,
    contrast_to_noise_ratio,
    heat_ious,
    mask_iou,
    pointing_game_hit,
)

LEFT_HALF = np.array([[True, True, False, False]])


def test_the_contrast_by_hand():
    # inside 3 and 5: mean 4, variance 1; outside 0 and 4: mean 2, variance 4 -> 2 / sqrt(5)
    heat = np.array([[3.0, 5.0, 0.0, 4.0]])
    assert contrast_to_noise_ratio(heat, LEFT_HALF) == pytest.approx(2 / 5**0.5, abs=1e-12)


def test_heat_outside_of_the_region_is_negative_contrast_and_the_published_form_hides_it():
    heat = np.array([[0.0, 4.0, 3.0, 5.0]])
    assert contrast_to_noise_ratio(heat, LEFT_HALF) == pytest.approx(-2 / 5**0.5, abs=1e-12)
    assert absolute_contrast_to_noise_ratio(heat, LEFT_HALF) == pytest.approx(2 / 5**0.5, abs=1e-12)


@given(st.integers(0, 2**31), st.floats(0.1, 50), st.floats(-5, 5))
def test_the_contrast_knows_no_scale_and_no_offset(seed, scale, offset):
    heat = np.random.default_rng(seed).random((4, 5))
    is_inside = np.arange(20).reshape(4, 5) % 3 == 0
    expected = contrast_to_noise_ratio(heat, is_inside)
    assert contrast_to_noise_ratio(scale * heat + offset, is_inside) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_constant_map_has_no_contrast_and_a_perfect_one_has_endless():
    assert contrast_to_noise_ratio(np.ones((1, 4)), LEFT_HALF) == 0.0
    assert contrast_to_noise_ratio(LEFT_HALF.astype(float), LEFT_HALF) == np.inf
    assert contrast_to_noise_ratio(-LEFT_HALF.astype(float), LEFT_HALF) == -np.inf


def test_pixels_that_the_model_never_saw_do_not_count():
    seen, heat = np.array([[3.0, 5.0, 0.0, 4.0]]), np.array([[3.0, 5.0, 0.0, 4.0, np.nan, np.nan]])
    is_inside = np.array([[True, True, False, False, True, False]])
    assert contrast_to_noise_ratio(heat, is_inside) == contrast_to_noise_ratio(seen, LEFT_HALF)
    assert heat_ious(heat, is_inside, [3.5]).tolist() == heat_ious(seen, LEFT_HALF, [3.5]).tolist()
    assert pointing_game_hit(heat, is_inside)


def test_the_hottest_pixel_points():
    heat = np.array([[0.1, 0.9, 0.3, 0.2]])
    assert pointing_game_hit(heat, LEFT_HALF)
    assert not pointing_game_hit(heat, ~LEFT_HALF)


def test_a_constant_map_points_nowhere():
    assert not pointing_game_hit(np.ones((1, 4)), LEFT_HALF)
    assert not pointing_game_hit(np.array([[0.0, 1.0, 1.0, 0.0]]), LEFT_HALF)  # one of the two hottest lies outside


@given(st.integers(0, 2**31), st.floats(0, 6))
def test_the_tolerance_is_the_distance_between_pixel_centres(seed, tolerance_px):
    generator = np.random.default_rng(seed)
    is_inside = generator.random((9, 11)) < 0.05
    is_inside[generator.integers(9), generator.integers(11)] = True
    y, x = generator.integers(9), generator.integers(11)
    heat = np.zeros((9, 11))
    heat[y, x] = 1.0
    nearest_px = min(((y - a) ** 2 + (x - b) ** 2) ** 0.5 for a, b in zip(*np.nonzero(is_inside), strict=True))
    assert pointing_game_hit(heat, is_inside, tolerance_px) == (nearest_px <= tolerance_px)


@pytest.mark.parametrize("tolerance_px", [3, 4, 15, 15.5])
def test_a_tolerance_beyond_the_map_reaches_all_of_it(tolerance_px):
    assert pointing_game_hit(np.array([[0.0, 0.0, 0.0, 1.0]]), LEFT_HALF, tolerance_px)
    assert pointing_game_hit(np.array([[0.0, 0.0, 0.0, 1.0]]).T, LEFT_HALF.T, tolerance_px)


def test_the_overlap_of_masks_is_the_jaccard_score_of_scikit_learn():
    generator = np.random.default_rng(0)
    first, second = generator.random((20, 30)) < 0.4, generator.random((20, 30)) < 0.3
    assert mask_iou(first, second) == pytest.approx(jaccard_score(first.ravel(), second.ravel()), abs=1e-9)
    assert mask_iou(first, np.zeros_like(first)) == 0.0
    assert mask_iou(np.zeros_like(first), np.zeros_like(first)) == 1.0


def test_overlaps_at_thresholds_are_those_of_the_thresholded_maps():
    generator = np.random.default_rng(0)
    heat, is_inside = generator.integers(0, 10, (12, 9)) / 10, generator.random((12, 9)) < 0.3
    thresholds = [0.0, 0.1, 0.35, 0.9, 2.0]
    expected = [mask_iou(heat >= one, is_inside) for one in thresholds]
    np.testing.assert_allclose(heat_ious(heat, is_inside, thresholds), expected, atol=1e-12)


@pytest.mark.parametrize("is_inside", [np.zeros((1, 4), dtype=bool), np.ones((1, 4), dtype=bool)])
@pytest.mark.parametrize("metric", [contrast_to_noise_ratio, pointing_game_hit, heat_ious])
def test_a_region_that_is_nothing_or_everything_is_an_error(metric, is_inside):
    with pytest.raises(ValueError, match=r"the region holds [04] of 4 pixels with heat"):
        metric(np.arange(4.0)[None], is_inside)


def test_maps_of_other_shapes_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"maps are \(2, 2\) and \(1, 4\) bool"):
        contrast_to_noise_ratio(np.ones((2, 2)), LEFT_HALF)
    with pytest.raises(ValueError, match="the region bool"):
        mask_iou(LEFT_HALF, LEFT_HALF.astype(int))
