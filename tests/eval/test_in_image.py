"""Choice inside one image: hand-made cases, and a plain loop over random ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regionmed_clip.eval.tasks.in_image import image_texts, measure_in_image, pairs_within

UNIT = np.eye(8, dtype=np.float32)
BOX = (0, 0, 4, 4)


def pick(measured, metric):
    """The figure of the whole split."""
    return next(m for m in measured if m.key == (metric, None, None))


def test_only_the_texts_of_the_own_image_compete(embed_by_hand):
    regions = [
        (0, "left nodule", UNIT[0], BOX),
        (0, "left cyst", 0.9 * UNIT[2] + 0.4 * UNIT[1], BOX),  # nearest is "right cyst", which image 0 does not have
        (1, "right cyst", UNIT[0] * 0.5 + UNIT[2] * 0.4, BOX),  # "left nodule" of its own image is nearer
        (1, "left nodule", UNIT[0], BOX),
        (2, "left cyst", UNIT[1], BOX),  # alone: no choice
    ]
    embedded = embed_by_hand(UNIT[:3], ["a", "b", "c"], regions=regions)
    figures = list(measure_in_image(embedded))
    to_text = pick(figures, "region_to_text_accuracy_in_image")
    assert (to_text.value, to_text.n, to_text.protocol["chance"]) == (0.75, 4, 0.5)
    assert to_text.protocol["unique_texts"] == 3
    # image 0: each text has its region; image 1 too, "right cyst" scores 0.4 with its own and 0 with the other
    assert pick(figures, "text_to_region_accuracy_in_image").value == 1.0


def test_regions_of_one_meaning_share_their_text_and_ties_are_misses(embed_by_hand):
    regions = [
        (0, "left cyst", UNIT[0], BOX),
        (0, "left cyst", UNIT[3], BOX),  # scores 0 with both texts: a tie
        (0, "left nodule", UNIT[1], BOX),
    ]
    embedded = embed_by_hand(UNIT[:1], ["a"], regions=regions)
    assert image_texts(embedded).tolist() in ([[0, 0], [0, 1]], [[0, 1], [0, 0]])  # in the order of their keys
    figures = list(measure_in_image(embedded))
    assert pick(figures, "region_to_text_accuracy_in_image").value == pytest.approx(2 / 3)
    by_text = pick(figures, "text_to_region_accuracy_in_image")
    assert (by_text.value, by_text.n) == (1.0, 2)
    assert by_text.protocol["chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_an_image_of_one_text_gives_no_figure_but_the_reason(embed_by_hand):
    embedded = embed_by_hand(UNIT[:1], ["a"], regions=[(0, "left cyst", UNIT[0], BOX)] * 2)
    figures = list(measure_in_image(embedded))
    assert [m.protocol["skipped"] for m in figures] == ["no image whose regions bear two different texts"] * 2


def test_pairs_within_groups_are_all_of_them():
    query, candidate = pairs_within(np.array([5, 2, 9, 5]), np.array([2, 2, 5, 7]))
    assert list(zip(query.tolist(), candidate.tolist(), strict=True)) == [(0, 2), (1, 0), (1, 1), (3, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_random_splits_agree_with_a_loop_over_images(embed_by_hand, seed):
    generator = np.random.default_rng(seed)
    images = np.sort(generator.integers(0, 10, 40))
    texts = [f"{side} {name}" for side in ("left", "right") for name in ("cyst", "nodule", "effusion")]
    regions = [(i, texts[generator.integers(6)], generator.standard_normal(8), BOX) for i in images]
    embedded = embed_by_hand(np.tile(UNIT[:1], (10, 1)), [f"c{i}" for i in range(10)], regions=regions)
    embedded = replace(embedded, region_text_embeds=generator.standard_normal((len(embedded.region_texts), 8)))
    by_region, by_text = [], []
    for image in range(10):
        rows = np.flatnonzero(embedded.region_image == image)
        own = sorted(set(embedded.region_text[rows].tolist()))
        if len(own) < 2:
            continue
        scores = embedded.region_embeds[rows] @ embedded.region_text_embeds[own].T
        truth = embedded.region_text[rows][:, None] == np.array(own)[None, :]
        by_region += list(scores.argmax(axis=1) == truth.argmax(axis=1))
        by_text += list(truth[scores.argmax(axis=0), np.arange(len(own))])
    figures = list(measure_in_image(embedded))
    for metric, expected in (("region_to_text", by_region), ("text_to_region", by_text)):
        figure = pick(figures, f"{metric}_accuracy_in_image")
        assert (figure.value, figure.n) == (pytest.approx(np.mean(expected), abs=1e-12), len(expected))
