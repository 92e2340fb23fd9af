"""Tasks over embeddings built by hand: every expected number is a sum of a few cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regionmed_clip.eval.prompts import presence_prompts
from regionmed_clip.eval.tasks.colour_probe import fit_and_predict
from regionmed_clip.eval.tasks.embedded_split import unique_texts
from regionmed_clip.eval.tasks.measured import choose_better, iter_strata
from regionmed_clip.eval.tasks.region import different_region_cosines, measure_region
from regionmed_clip.eval.tasks.retrieval import measure_retrieval
from regionmed_clip.eval.tasks.zero_shot import measure_zero_shot, zero_shot_questions

UNIT = np.eye(24, dtype=np.float32)


def pick(measured, metric, source=None, stratum=None):
    """The one figure of that name."""
    (found,) = [m for m in measured if m.key == (metric, source, stratum)]
    return found


def test_retrieval_counts_images_with_one_caption_as_positives_of_it(embed_by_hand):
    # 24 captions; image 24 repeats caption 0. Image 23 looks like caption 0, so caption 23 finds nothing of its own.
    captions = [f"caption {i}" for i in range(24)] + ["caption 0"]
    images = [*UNIT[:23], UNIT[0], UNIT[0]]
    measured = measure_retrieval(embed_by_hand(images, captions))
    to_text, to_image = pick(measured, "image_to_text_recall@1"), pick(measured, "text_to_image_recall@1")
    assert (to_text.value, to_text.n, to_text.protocol["gallery"]) == (24 / 25, 25, 24)
    # of the text queries caption 0 ties with the foreign image 23, which ranks first; caption 23 scores 0 with all
    assert (to_image.value, to_image.n, to_image.protocol["gallery"]) == (22 / 24, 24, 25)
    assert to_text.protocol["unique_texts"] == 24
    assert to_text.low <= to_text.value <= to_text.high


def test_images_of_a_patient_are_resampled_together_and_texts_each_alone(embed_by_hand):
    patients = np.arange(24) // 2
    embedded = replace(embed_by_hand(UNIT, [f"caption {i}" for i in range(24)]), image_clusters=patients)
    measured = measure_retrieval(embedded)
    for figure in ("recall@1", "recall@10", "mrr"):
        assert pick(measured, f"image_to_text_{figure}").clusters.tolist() == patients.tolist()
        assert pick(measured, f"text_to_image_{figure}").clusters.tolist() == list(range(24))


def test_retrieval_with_few_unique_texts_gives_no_number_but_the_reason(embed_by_hand):
    measured = measure_retrieval(embed_by_hand(UNIT[:19], [f"caption {i}" for i in range(19)]))
    assert {m.value for m in measured} == {None}
    assert measured[0].protocol["skipped"] == "19 unique texts, fewer than 20"
    assert len(measured) == 8  # R@1, R@5, R@10 and the mean reciprocal rank, both ways


def test_one_wording_under_two_keys_is_one_text_and_never_its_own_negative():
    texts, rows, keys = unique_texts(["a", "b", "a", "c"], [5, 7, 7, 9])
    assert (texts, rows.tolist()) == (["a", "b", "c"], [0, 1, 0, 2])
    assert keys.tolist() == [5, 5, 9]  # "a" bears 5 and 7, "b" bears 7: all one meaning


REGIONS = [  # image, text, embedding, box
    (0, "left nodule", UNIT[0], (0, 0, 4, 4)),  # right
    (0, "left cyst", UNIT[0], (6, 6, 9, 9)),  # read as the nodule
    (1, "left nodule", UNIT[0], (0, 0, 4, 4)),  # right
    (1, "left cyst", UNIT[1], (1, 1, 4, 4)),  # right; overlaps its neighbour
    (1, "right cyst", UNIT[2], (6, 6, 9, 9)),  # right
]


def test_region_figures_of_five_regions(embed_by_hand):
    embedded = embed_by_hand(UNIT[:2], ["a", "b"], regions=REGIONS)
    measured = measure_region(embedded)
    accuracy = pick(measured, "region_to_text_accuracy")
    assert (accuracy.value, accuracy.n, accuracy.protocol["gallery"]) == (0.8, 5, 3)
    assert set(np.unique(accuracy.resampled)) == {0.5, 0.8, 1.0}  # image 0 alone has one of two right, image 1 all
    assert 0 < accuracy.low < 0.5 < accuracy.high < 1.0  # of two images: Wilson's, wider than their draws below
    assert pick(measured, "text_to_region_recall@1").protocol["skipped"] == "3 unique texts, fewer than 20"


def test_regions_that_all_texts_suit_alike_are_named_right_by_none(embed_by_hand):
    regions = [(i, text, UNIT[5], box) for i, text, _, box in REGIONS]  # a model that sees nothing
    measured = measure_region(embed_by_hand(UNIT[:2], ["a", "b"], regions=regions))
    for metric, source in (("region_to_text_accuracy", None), ("region_balanced_accuracy", "drawn")):
        figure = pick(measured, metric, source)
        assert figure.value == 0.0
        assert figure.protocol["ties"] == "pessimistic: an equal negative ranks first"


def test_chance_of_a_ranking_is_that_of_its_gallery_in_random_order(embed_by_hand):
    measured = measure_region(embed_by_hand(UNIT[:2], ["a", "b"], regions=REGIONS))
    assert pick(measured, "region_to_text_accuracy").protocol["chance"] == pytest.approx(1 / 3)  # three texts
    captions = [f"caption {i}" for i in range(24)] + ["caption 0"]
    to_image = measure_retrieval(embed_by_hand([*UNIT, UNIT[0]], captions))
    chance = pick(to_image, "text_to_image_recall@5").protocol["chance"]
    # 23 captions have one image of 25, one has two: it is missed by 5 draws of 25 with 20 / 25 x 19 / 24
    assert chance == pytest.approx((23 * 5 / 25 + (1 - 20 / 25 * 19 / 24)) / 24, abs=1e-12)
    assert pick(to_image, "image_to_text_recall@1").protocol["chance"] == pytest.approx(1 / 24)


def test_text_to_region_ranks_every_region_for_every_unique_text(embed_by_hand):
    # 20 texts, two regions each; those of text 0 look like text 1, which then ties with them: pessimistically last
    regions = [(i % 2, f"cyst {t}", UNIT[max(t, 1)], (0, 0, 4, 4)) for t in range(20) for i in range(2)]
    measured = measure_region(embed_by_hand(UNIT[:2], ["a", "b"], regions=regions))
    first, fifth = (pick(measured, f"text_to_region_recall@{k}") for k in (1, 5))
    assert (first.value, fifth.value) == (18 / 20, 19 / 20)  # text 1 comes third, text 0 behind all
    assert (first.n, first.protocol["gallery"]) == (20, 40)


def test_balanced_accuracy_is_by_finding_with_the_texts_of_a_finding_averaged(embed_by_hand):
    embedded = embed_by_hand(UNIT[:2], ["a", "b"], regions=REGIONS)
    balanced = pick(measure_region(embedded), "region_balanced_accuracy", source="drawn")
    assert balanced.value == pytest.approx((1 + 2 / 3) / 2)  # nodules 2 of 2, cysts 2 of 3
    assert balanced.protocol["chance"] == 0.5
    assert balanced.protocol["labels"] == {"cyst": 3, "nodule": 2}


def test_a_source_with_one_label_gets_no_balanced_accuracy(embed_by_hand):
    embedded = embed_by_hand(UNIT[:2], ["a", "b"], regions=[r for r in REGIONS if "nodule" in r[1]])
    balanced = pick(measure_region(embedded), "region_balanced_accuracy", source="drawn")
    assert balanced.value is None
    assert balanced.protocol["skipped"] == "1 finding label in the split, two needed"


def test_negated_regions_are_no_examples_of_their_finding(embed_by_hand):
    embedded = embed_by_hand(UNIT[:2], ["a", "b"], regions=REGIONS)
    embedded = replace(embedded, region_is_negated=np.array([False, True, False, False, False]))
    balanced = pick(measure_region(embedded), "region_balanced_accuracy", source="drawn")
    assert (balanced.value, balanced.n) == (1.0, 4)


def test_box_sensitivity_pairs_are_of_one_image_with_other_meaning_and_little_overlap(embed_by_hand):
    embedded = embed_by_hand(UNIT[:2], ["a", "b"], regions=REGIONS)
    cosines, images = different_region_cosines(embedded, np.ones(5, dtype=bool))
    # image 0: the two regions, equal embeddings. image 1: (0, 2) and (1, 2); (0, 1) overlaps by 9 / 16.
    assert sorted(zip(images.tolist(), cosines.tolist(), strict=True)) == [(0, 1.0), (1, 0.0), (1, 0.0)]
    assert pick(measure_region(embedded), "region_median_cosine").value == 0.0


def test_a_split_without_regions_says_so(embed_by_hand):
    (figure,) = measure_region(embed_by_hand(UNIT[:2], ["a", "b"]))
    assert (figure.value, figure.protocol["skipped"]) == (None, "no regions in the split")


def test_strata_are_the_whole_then_sources_then_modalities(embed_by_hand):
    embedded = embed_by_hand(UNIT[:4], list("abcd"), sources=["s", "s", "t", "t"], modalities=["CT", "MRI", "CT", "CT"])
    found = [(s.source, s.name, int(s.is_member.sum())) for s in iter_strata(embedded)]
    assert found == [(None, None, 4), ("s", None, 2), ("s", "CT", 1), ("s", "MRI", 1), ("t", None, 2)]


def test_region_strata_choose_the_queries_and_keep_the_whole_gallery(embed_by_hand):
    embedded = embed_by_hand(UNIT[:2], ["a", "b"], regions=REGIONS, sources=["s", "t"])
    measured = measure_region(embedded)
    first, second = (pick(measured, "region_to_text_accuracy", source) for source in "st")
    assert (first.value, first.n, second.value, second.n) == (0.5, 2, 1.0, 3)
    assert first.protocol["gallery"] == 3


def test_zero_shot_asks_only_what_some_images_of_a_modality_show_and_others_do_not(embed_by_hand):
    findings = [frozenset({"nodule", "heart"}), frozenset({"heart"}), frozenset({"cyst"})]
    embedded = embed_by_hand(UNIT[:3], list("abc"), modalities=["X-ray", "X-ray", "CT"], findings=findings)
    assert zero_shot_questions(embedded) == [("drawn", "X-ray", "nodule")]


def test_macro_auroc_averages_the_findings(embed_by_hand):
    findings = [frozenset({"nodule"}), frozenset({"nodule", "cyst"}), frozenset(), frozenset({"cyst"})]
    images = [UNIT[0], UNIT[0], UNIT[2], UNIT[2]]
    embedded = embed_by_hand(images, list("abcd"), findings=findings)

    def encode(prompts):  # "nodule" points at UNIT[0], "cyst" nowhere: AUROC 1 and, all tied, 0.5
        return np.stack([UNIT[0] if "nodule" in p else UNIT[9] for p in prompts])

    (figure,) = measure_zero_shot(embedded, encode)
    assert figure.value == 0.75
    assert figure.protocol["per_finding"] == {"CT: cyst": 0.5, "CT: nodule": 1.0}
    assert figure.n == 4


def test_a_draw_without_positives_or_negatives_is_left_out_of_the_interval(embed_by_hand):
    findings = [frozenset({"nodule"}), frozenset(), frozenset(), frozenset()]  # one positive, ranked perfectly
    embedded = embed_by_hand([UNIT[0], UNIT[2], UNIT[2], UNIT[2]], list("abcd"), findings=findings)
    (figure,) = measure_zero_shot(embedded, lambda prompts: np.stack([UNIT[0]] * len(prompts)))
    assert (figure.value, figure.low, figure.high) == (1.0, 1.0, 1.0)  # every draw that has an AUROC has 1


def test_zero_shot_without_a_question_says_so(embed_by_hand):
    (figure,) = measure_zero_shot(embed_by_hand(UNIT[:3], list("abc")), lambda prompts: UNIT[: len(prompts)])
    assert figure.value is None


def test_prompts_are_english_sentences():
    assert presence_prompts("axial CT of the abdomen", "cyst")[0] == "Axial CT of the abdomen with a cyst."
    assert presence_prompts("chest radiograph", "cardiomegaly")[0] == "Chest radiograph with cardiomegaly."


def test_the_better_reading_counts_and_both_are_shown(embed_by_hand):
    good = measure_region(embed_by_hand(UNIT[:2], ["a", "b"], regions=REGIONS))
    worse_regions = [(i, text, UNIT[5], box) for i, text, _, box in REGIONS]
    bad = measure_region(embed_by_hand(UNIT[:2], ["a", "b"], regions=worse_regions))
    chosen, winner = choose_better({"crop": bad, "dense_mean": good}, "region_to_text_accuracy")
    accuracy = pick(chosen, "region_to_text_accuracy")
    assert (winner, accuracy.value, accuracy.protocol["reading"]) == ("dense_mean", 0.8, "dense_mean")
    assert accuracy.protocol["readings"] == {"crop": 0.0, "dense_mean": 0.8}  # all texts tie: none is right
    assert pick(chosen, "region_median_cosine").value == 0.0  # not the better-looking one: the winner's


def test_the_probe_learns_what_is_linear_in_colour():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(600, 5)).astype(np.float32)
    classes = np.array([10, 20, 30])[features[:, :3].argmax(axis=1)]
    predicted = fit_and_predict(features[:400], classes[:400], features[400:])
    assert (predicted == classes[400:]).mean() > 0.95


def test_the_probe_of_noise_is_at_chance():
    generator = np.random.default_rng(0)
    features, classes = generator.normal(size=(600, 5)).astype(np.float32), generator.integers(0, 4, 600)
    assert (fit_and_predict(features[:400], classes[:400], features[400:]) == classes[400:]).mean() < 0.4
