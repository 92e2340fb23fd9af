"""Worst errors and confusions, against a search by brute force and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from regionmed_clip.eval.report_errors import (
    MAX_LABELS,
    OTHER,
    confusion,
    confusion_by_source,
    worst_errors,
    worst_images,
    worst_regions,
)

UNIT = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_the_worst_errors_are_those_that_brute_force_finds(seed, monkeypatch):
    monkeypatch.setattr("regionmed_clip.eval.report_errors._CHUNK", 40)  # several blocks of two queries
    generator = np.random.default_rng(seed)
    queries, gallery = generator.normal(size=(23, 5)), generator.normal(size=(20, 5))
    query_keys, gallery_keys = generator.integers(0, 6, 23), generator.integers(0, 5, 20)  # key 5 has no answer
    expected = []
    for row, (query, key) in enumerate(zip(queries, query_keys, strict=True)):
        scores = gallery @ query
        true_rows, false_rows = np.flatnonzero(gallery_keys == key), np.flatnonzero(gallery_keys != key)
        if len(true_rows):
            truth = true_rows[scores[true_rows].argmax()]
            chosen = false_rows[scores[false_rows].argmax()]
            rank = 1 + int((scores[false_rows] >= scores[truth]).sum())
            if scores[chosen] >= scores[truth]:
                expected.append((row, int(truth), int(chosen), rank, float(scores[chosen] - scores[truth])))
    expected = sorted(expected, key=lambda error: -error[-1])[:5]
    found = worst_errors(queries, gallery, query_keys, gallery_keys, 5)
    assert [(e.query, e.truth, e.chosen, e.rank) for e in found] == [error[:4] for error in expected]
    np.testing.assert_allclose([e.margin for e in found], [error[-1] for error in expected], atol=1e-12)  # float64


def test_a_perfect_model_has_no_errors():
    assert worst_errors(UNIT, UNIT, np.arange(4), np.arange(4), 3) == []


def test_the_worst_regions_are_of_different_images_and_texts(embed_by_hand):
    regions = [(0, "left cyst", UNIT[1], (0, 0, 1, 1)), (0, "left nodule", 0.9 * UNIT[0], (0, 0, 1, 1))]
    regions += [(1, "left cyst", 0.8 * UNIT[1], (0, 0, 1, 1)), (2, "left effusion", 0.1 * UNIT[0], (0, 0, 1, 1))]
    embedded = embed_by_hand(UNIT[:3], list("abc"), regions=regions)  # text t has the t-th unit vector
    assert [error.query for error in worst_regions(embedded, 3)] == [0, 3]


def test_the_worst_image_names_the_caption_that_was_chosen(embed_by_hand):
    embedded = embed_by_hand([UNIT[0], 0.7 * UNIT[0] + 0.1 * UNIT[1]], ["a", "b"])
    (error,) = worst_images(embedded, 4)
    assert (error.query, error.chosen, error.rank) == (1, 0, 2)
    assert error.margin == pytest.approx(0.6, abs=1e-6)  # float32


def test_confusions_count_the_finding_of_the_nearest_text_by_source(embed_by_hand):
    regions = [(0, "left cyst", UNIT[0], (0, 0, 1, 1)), (0, "left cyst", UNIT[1], (0, 0, 1, 1))]
    regions += [(1, "left nodule", UNIT[1], (0, 0, 1, 1)), (2, "right cyst", UNIT[0], (0, 0, 1, 1))]
    embedded = embed_by_hand(UNIT[:3], list("abc"), regions=regions, sources=["x", "x", "alone"])
    (matrix,) = confusion_by_source(embedded).values()
    assert (matrix["labels"], matrix["counts"]) == (["cyst", "nodule"], [[1, 1], [0, 1]])
    assert confusion_by_source(embed_by_hand(UNIT[:2], list("ab"))) == {}


def test_rare_labels_share_the_last_row_and_column():
    truth = [f"l{k:02d}" for k in range(20) for _ in range(30 - k)]
    matrix = confusion(truth, truth)
    assert matrix["labels"] == [f"l{k:02d}" for k in range(MAX_LABELS - 1)] + [OTHER]
    assert np.trace(matrix["counts"]) == np.sum(matrix["counts"]) == len(truth)
    assert matrix["counts"][-1][-1] == sum(30 - k for k in range(MAX_LABELS - 1, 20))
