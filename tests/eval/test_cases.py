"""Similar cases: ranks by hand, average precision by scikit-learn, chance by counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from regionmed_clip.eval.tasks.cases import measure_cases, rank_cases, similar_images
from regionmed_clip.eval.tasks.region_facts import facts_of

UNIT = np.eye(8, dtype=np.float32)
BOX = (0, 0, 4, 4)


def pick(measured, metric):
    """The figure of the whole split."""
    return next(m for m in measured if m.key == (metric, None, None))


def facts(finding: str, **stated) -> dict:
    """What is stated of a region."""
    return {"box": BOX, "finding": finding, "is_negated": False, **stated}


@pytest.fixture
def embedded(embed_by_hand):
    """Four images; 0 and 1 show a cyst on the left, 2 one on the right, 3 a nodule; 1 is of the patient of 0."""
    regions = [(i, text, UNIT[i], BOX) for i, text in enumerate(("a cyst", "a cyst", "b cyst", "c nodule"))]
    images = [UNIT[4], UNIT[4], 0.5 * UNIT[0] + 0.1 * UNIT[4], 0.6 * UNIT[0]]
    split = embed_by_hand(images, ["a", "b", "c", "d"], regions=regions)
    stated = [facts("cyst", laterality="left")] * 2 + [facts("cyst", laterality="right"), facts("nodule")]
    return replace(split, image_clusters=np.array([0, 0, 2, 3]), region_facts=stated)


def test_cases_of_the_same_patient_are_no_answer_and_queries_without_one_are_left_out(embedded):
    figures = list(measure_cases(embedded))
    first = pick(figures, "case_recall@1")
    # 0 finds image 3 (0.6) before 2 (0.5); the text of region 1 gives the same by text, its box scores nothing: 3, 2
    # tie at 0.6 and 0.5 again. Region 2 finds, of images 0, 1 and 3, no score but 0: ties, so the nodule comes first.
    assert (first.value, first.n) == (0.0, 3)
    assert first.protocol["queries_without_positive"] == 1  # the only nodule
    assert pick(figures, "case_recall@5").value == 1.0
    assert pick(figures, "case_mean_average_precision").value == pytest.approx(
        (1 / 2 + 1 / 2 + (1 / 2 + 2 / 3) / 2) / 3
    )
    assert first.protocol["of_the_model"]["by_text_alone"] == 0.0


def test_with_side_and_place_only_equal_ones_are_similar(embedded):
    figures = list(measure_cases(embedded))
    # the cysts on the left are of one patient, the right one is alone
    assert (
        pick(figures, "case_recall_same_place@1").protocol["skipped"].startswith("no region of which another patient")
    )
    stated = [facts_of(region) for region in embedded.region_facts]
    shows, meanings = similar_images(embedded, stated, has_place=True)
    assert shows.sum() == 4
    assert meanings[0] == meanings[1] != meanings[2]


def test_a_place_is_asked_for_only_where_one_is_stated(embedded):
    stated = [facts("cyst", place="upper zone"), facts("cyst"), facts("cyst", place="upper zone"), facts("cyst")]
    figures = list(measure_cases(replace(embedded, region_facts=stated)))
    same_place = pick(figures, "case_recall_same_place@5")
    assert (same_place.value, same_place.n, same_place.protocol["queries_without_positive"]) == (1.0, 2, 0)
    assert pick(figures, "case_recall@5").n == 4


def test_negated_regions_ask_nothing_and_show_nothing(embedded):
    negated = replace(embedded, region_is_negated=np.array([False, False, True, False]))
    assert all(m.value is None for m in measure_cases(negated))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_agrees_with_scikit_learn(embed_by_hand, seed):
    generator = np.random.default_rng(seed)
    regions = [(i, f"x {name}", generator.standard_normal(8), BOX) for i, name in enumerate("abcab" * 6)]
    split = embed_by_hand(generator.standard_normal((30, 8)), [f"c{i}" for i in range(30)], regions=regions)
    shows, meanings = similar_images(split, [facts_of(region) for region in split.region_facts], has_place=False)
    ranked = rank_cases(split, np.arange(30), split.region_embeds, shows, meanings)
    for row in range(30):
        others = np.arange(30) != row
        scores = (split.image_embeds @ split.region_embeds[row])[others]
        truth = shows[others, meanings[row]]
        assert ranked.average_precisions[row] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
        assert ranked.first_ranks[row] == 1 + (scores > scores[truth].max()).sum()


def test_a_model_that_finds_all_images_alike_finds_no_case_wherever_they_stand(embed_by_hand):
    generator = np.random.default_rng(0)
    image = generator.standard_normal(8)
    regions = [(i, f"x {'ab'[i % 2]}", generator.standard_normal(8), BOX) for i in range(33)]
    split = embed_by_hand(np.tile(image, (33, 1)), [f"c{i}" for i in range(33)], regions=regions)
    shows, meanings = similar_images(split, [facts_of(region) for region in split.region_facts], has_place=False)
    ranked = rank_cases(split, np.arange(33), split.region_embeds, shows, meanings)
    assert np.array_equal(ranked.first_ranks, 1 + ranked.gallery - ranked.num_positives)  # behind all others


def test_the_chance_of_a_figure_is_that_of_random_order(embedded):
    figures = list(measure_cases(embedded))
    precision = pick(figures, "case_mean_average_precision")
    # of three: queries 0 and 1 have one positive of two, 1 / 1 or 1 / 2; query 2 two of three, 1, (1 + 2 / 3) / 2 or
    # (1 / 2 + 2 / 3) / 2
    of_two, of_three = (1 + 1 / 2) / 2, (1 + 5 / 6 + 7 / 12) / 3
    assert precision.protocol["chance"] == pytest.approx((2 * of_two + of_three) / 3, abs=1e-12)
