"""Cosines of jittered boxes: a hand-made case, and the tiny model end to end."""

from __future__ import annotations

import numpy as np
import pytest

from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.robustness import JITTER_PERCENTS, embed_jittered, measure_robustness

UNIT = np.eye(24, dtype=np.float32)


def test_the_mean_cosine_is_that_of_each_region_with_itself(embed_by_hand):
    regions = [(0, "left nodule", UNIT[0], (0, 0, 4, 4)), (1, "left cyst", UNIT[1], (0, 0, 4, 4))]
    embedded = embed_by_hand(UNIT[:2], ["a", "b"], regions=regions)
    moved = np.stack([UNIT[0], 0.6 * UNIT[1] + 0.8 * UNIT[2]])  # the first stayed, the second has cosine 0.6
    figures = {m.metric: m for m in measure_robustness(embedded, {10: moved, 20: UNIT[[5, 6]]})}
    assert figures["region_jitter_cosine@10"].value == pytest.approx(0.8)
    assert figures["region_jitter_cosine@10"].protocol["p10"] == pytest.approx(0.64)  # 0.6 + 0.1 x (1 - 0.6)
    assert figures["region_jitter_cosine@20"].value == 0.0
    assert figures["region_jitter_cosine@20"].n == 2


def test_jitter_moves_embeddings_a_little_and_always_the_same_way(model, processor, draw_example):
    examples = [{**draw_example(i), "image_id": f"image {i}", "width": 48, "height": 40} for i in range(3)]
    exact = embed_examples(model, processor, examples, progress=False)
    first, again = (embed_jittered(model, processor, examples, progress=False) for _ in range(2))
    for percent in JITTER_PERCENTS:
        assert np.array_equal(first[percent], again[percent])
        assert not np.array_equal(first[percent], exact.region_embeds)
    assert all(-1 <= m.value <= 1 for m in measure_robustness(exact, first) if m.value is not None)


def test_lost_regions_are_refused(embed_by_hand):
    embedded = embed_by_hand(UNIT[:1], ["a"], regions=[(0, "left nodule", UNIT[0], (0, 0, 4, 4))])
    with pytest.raises(ValueError, match="1 regions were embedded exactly and 0 with jitter"):
        measure_robustness(embedded, {10: np.zeros((0, 24))})
