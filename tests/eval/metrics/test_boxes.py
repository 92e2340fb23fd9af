"""Overlap, recall and matching of boxes against hand sums."""

from __future__ import annotations

import numpy as np
import pytest

from regionmed_clip.eval.metrics.boxes import best_iou, box_recall, match_boxes, pairwise_iou

NO_BOX = np.zeros((0, 4))


def test_iou_of_a_quarter_overlap():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]], dtype=np.float32)
    expected = [[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1]]  # overlap 1, union 4 + 4 - 1
    np.testing.assert_allclose(pairwise_iou(boxes), expected, atol=1e-12)


def test_boxes_that_touch_do_not_overlap():
    assert pairwise_iou(np.array([[0, 0, 2, 2]]), np.array([[2, 0, 4, 2]])).tolist() == [[0.0]]


def test_the_iou_of_integer_boxes_is_that_of_their_pixels():
    generator = np.random.default_rng(0)
    corners, sides = generator.integers(0, 8, (6, 2)), generator.integers(1, 8, (6, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    masks = np.zeros((6, 16, 16), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    expected = [[(a & b).sum() / (a | b).sum() for b in masks] for a in masks]
    np.testing.assert_allclose(pairwise_iou(boxes), expected, atol=1e-12)


def test_the_best_overlap_with_nothing_is_zero():
    assert best_iou(np.array([[0, 0, 1, 1]]), NO_BOX).tolist() == [0.0]


def test_box_recall_counts_the_truths_that_are_found():
    truths = np.array([[0, 0, 2, 2], [4, 4, 6, 6], [8, 8, 9, 9]])
    boxes = np.array([[0, 0, 2, 2], [4, 4, 6, 5], [20, 20, 30, 30]])  # overlaps 1, 0.5, 0
    assert box_recall(boxes, truths, 0.5) == pytest.approx(2 / 3)
    assert box_recall(boxes, truths, 0.51) == pytest.approx(1 / 3)
    assert box_recall(NO_BOX, truths) == 0.0


def test_the_recall_of_no_truth_is_an_error():
    with pytest.raises(ValueError, match="0 true boxes is undefined"):
        box_recall(np.array([[0, 0, 1, 1]]), NO_BOX)


def test_a_box_is_matched_once_and_the_largest_overlap_first():
    truths = np.array([[0, 0, 10, 10], [0, 0, 10, 8]])
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10]])  # overlaps 0.9, 8/9 and 1, 0.8
    assert match_boxes(boxes, truths).tolist() == [[1, 0], [0, 1]]
    assert match_boxes(boxes[:1], truths).tolist() == [[0, 0]]
    assert match_boxes(boxes, truths, 0.95).tolist() == [[1, 0]]


def test_boxes_apart_are_never_matched():
    assert match_boxes(np.array([[0, 0, 1, 1]]), np.array([[5, 5, 6, 6]]), 0.0).shape == (0, 2)
    assert match_boxes(NO_BOX, np.array([[5, 5, 6, 6]])).shape == (0, 2)
    assert match_boxes(np.array([[5, 5, 6, 6]]), NO_BOX).shape == (0, 2)
