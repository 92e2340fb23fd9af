"""Noise on boxes: bounded, inside the image, decided by seed and image, and as large as it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.processing.corpus.box_noise import MAX_BOX_NOISE, jitter_boxes, jitter_example


@st.composite
def boxes_in_an_image(draw):
    """(R, 4) boxes of any size inside an image of (width, height) pixels, and that size."""
    width, height = draw(st.integers(1, 4000)), draw(st.integers(1, 3000))
    corners = st.tuples(*[st.floats(0, side) for side in (width, height, width, height)])
    raw = np.array(draw(st.lists(corners, min_size=1, max_size=5)))
    low, high = np.minimum(raw[:, :2], raw[:, 2:]), np.maximum(raw[:, :2], raw[:, 2:])
    return np.concatenate([low, high], axis=1), (float(width), float(height))


@given(boxes_in_an_image(), st.floats(0.01, MAX_BOX_NOISE), st.integers(0, 99))
def test_a_moved_box_stays_in_the_image_and_keeps_a_pixel(drawn, share, seed):
    boxes, size = drawn
    moved = jitter_boxes(boxes, share, np.random.default_rng(seed), frame_size=size, min_side=1.0)
    assert moved.shape == boxes.shape
    assert (moved >= 0).all()
    assert (moved <= np.array(size * 2)).all()
    assert (moved[:, 2:] - moved[:, :2] >= 1 - 1e-9).all()


@given(boxes_in_an_image(), st.floats(0.01, MAX_BOX_NOISE), st.integers(0, 99))
def test_no_edge_moves_by_more_than_its_share_of_the_side(drawn, share, seed):
    boxes, size = drawn
    moved = jitter_boxes(boxes, share, np.random.default_rng(seed), frame_size=size, min_side=0.0)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    assert (np.abs(moved - boxes) <= share * sides + 1e-9).all()  # the border only pulls an edge back


@given(boxes_in_an_image(), st.integers(0, 99))
def test_a_box_moves_alike_whatever_boxes_come_after_it(drawn, seed):
    boxes, size = drawn
    options = {"frame_size": size, "min_side": 1.0}
    whole = jitter_boxes(boxes, 0.2, np.random.default_rng(seed), **options)
    alone = jitter_boxes(boxes[:1], 0.2, np.random.default_rng(seed), **options)
    assert np.array_equal(whole[:1], alone)


def test_noise_of_a_fifth_leaves_the_overlap_and_the_area_that_the_draws_imply():
    boxes = np.tile([[40.0, 50.0, 60.0, 90.0]], (20_000, 1))  # far from the border
    moved = jitter_boxes(boxes, 0.2, np.random.default_rng(0), frame_size=(200, 200), min_side=1.0)
    overlap = np.minimum(boxes[:, 2:], moved[:, 2:]) - np.maximum(boxes[:, :2], moved[:, :2])
    shares = overlap.prod(axis=1) / 800  # per axis two edges, each inwards half the time by 0.1 on average: 0.9
    areas = (moved[:, 2:] - moved[:, :2]).prod(axis=1) / 800  # inwards and outwards cancel
    assert shares.mean() == pytest.approx(0.81, abs=0.005)
    assert areas.mean() == pytest.approx(1.0, abs=0.01)
    ious = shares / (1 + areas - shares)
    assert ious.mean() == pytest.approx(0.68, abs=0.01)


def test_no_noise_gives_the_boxes_back():
    boxes = np.array([[1.0, 2.0, 1.5, 9.0]])
    assert np.array_equal(jitter_boxes(boxes, 0.0, np.random.default_rng(0), frame_size=(9, 9), min_side=1.0), boxes)


@pytest.mark.parametrize("share", [-0.1, 0.51, float("nan")])
def test_a_share_that_could_turn_a_box_inside_out_is_refused(share):
    with pytest.raises(ValueError, match=r"from 0 \(exact boxes\) to 0.5"):
        jitter_boxes(np.zeros((1, 4)), share, np.random.default_rng(0), frame_size=(9, 9), min_side=1.0)


def example(image_id: str = "a") -> dict:
    regions = [
        {"box": [10.0, 10.0, 30.0, 40.0], "description": "nodule", "mask": {"size": [60, 50], "counts": [3000]}},
        {"box": [0.0, 0.0, 50.0, 60.0], "description": "effusion", "mask": None},
    ]
    return {"image_id": image_id, "width": 50, "height": 60, "regions": regions}


def test_an_example_keeps_its_texts_and_loses_the_masks_that_would_not_follow():
    moved = jitter_example(example(), 0.2, seed=0)
    assert [region["description"] for region in moved["regions"]] == ["nodule", "effusion"]
    assert [region["mask"] for region in moved["regions"]] == [None, None]
    assert moved["regions"][0]["box"] != [10.0, 10.0, 30.0, 40.0]
    assert example()["regions"][0]["box"] == [10.0, 10.0, 30.0, 40.0]


def test_seed_and_image_decide_the_noise():
    boxes = [[r["box"] for r in jitter_example(example(name), 0.2, seed)["regions"]] for name, seed in
             (("a", 0), ("a", 0), ("a", 1), ("b", 0))]  # fmt: skip
    assert boxes[0] == boxes[1]
    assert boxes[0] != boxes[2]
    assert boxes[0] != boxes[3]


def test_an_example_without_regions_stays_as_it_is():
    empty = {"image_id": "a", "width": 5, "height": 5, "regions": []}
    assert jitter_example(empty, 0.2, seed=0) == empty
