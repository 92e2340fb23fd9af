"""Zero-shot classification over embeddings built by hand, against sklearn, and through a tiny model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from regionmed_clip.eval.tasks import fused_embedding
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.fused_embedding import embed_fused
from regionmed_clip.eval.tasks.prepared import PreparedExample
from regionmed_clip.eval.tasks.question_figures import Column, resample_columns
from regionmed_clip.eval.tasks.questions import NO_FINDING, class_questions, presence_questions
from regionmed_clip.eval.tasks.task_inputs import TaskInputs
from regionmed_clip.eval.tasks.zero_shot import measure, measure_zero_shot
from regionmed_clip.eval.tasks.zero_shot_classes import measure_classes

UNIT = np.eye(8, dtype=np.float32)
CYST, NODULE = frozenset({"cyst"}), frozenset({"nodule"})


@dataclass(frozen=True, kw_only=True)
class HandInputs(TaskInputs):
    """Inputs whose texts are embedded by a function instead of a model."""

    embed_text: object = None

    def encode(self, texts):
        return np.stack([self.embed_text(text) for text in texts]).astype(np.float32)


def make_inputs(embedded, embed_text, tuning=None):
    """Inputs of a plain model, which has no fused embeddings, with a validation split or none."""

    def embed_split(name):
        if tuning is None:
            raise ValueError(f"there is no split {name!r}.")
        return tuning

    return HandInputs(
        model=SimpleNamespace(),
        processor=None,
        region_reading="dense_mean",
        embedded=embedded,
        examples=[],
        embed_split=embed_split,
        splits=["test"],
        tuning_split="validation",
        embed_text=embed_text,
    )


def pick(findings, metric, source=None, stratum=None):
    """The one figure of that name."""
    (found,) = [m for m in findings.measured if m.key == (metric, source, stratum)]
    return found


def say(text):
    """Presence of a nodule is axis 0, its absence axis 1; the same of a cyst on axes 2 and 3."""
    is_denied = text.startswith("no ") or "without" in text
    return UNIT[(2 if "cyst" in text else 0) + is_denied]


def test_only_what_denials_tell_is_found_by_presence_against_absence(embed_by_hand):
    images = [0 * UNIT[0], 0 * UNIT[0], UNIT[1], UNIT[1]]  # those without a nodule look like its denial alone
    findings = [NODULE, NODULE, frozenset(), frozenset()]
    found = measure(make_inputs(embed_by_hand(images, list("abcd"), findings=findings), say))
    assert pick(found, "macro_auroc").value == 0.5  # presence scores 0 everywhere
    assert pick(found, "macro_auroc_pos_neg").value == 1.0
    assert pick(found, "macro_ap").value == 0.5  # the share of positives
    assert "absence" in pick(found, "macro_auroc_pos_neg").protocol["prompts"]


def random_split(embed_by_hand, seed, count=60, name="image"):
    """Images of random direction with random findings, several of them for each patient."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(count, 8))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    truth = generator.random((count, 2)) < (0.3, 0.6)
    findings = [frozenset(np.array(["cyst", "nodule"])[row].tolist()) for row in truth]
    embedded = embed_by_hand(images, [f"{name} {i}" for i in range(count)], findings=findings)
    names = [f"{name}-{i}" for i in range(count)]
    return replace(embedded, image_ids=names, image_clusters=np.arange(count) // 2), truth


def test_macro_and_micro_figures_agree_with_sklearn(embed_by_hand):
    embedded, truth = random_split(embed_by_hand, 0)
    found = measure(make_inputs(embedded, say))
    presence = embedded.image_embeds[:, [2, 0]].astype(np.float64)  # cyst, nodule
    for suffix, scores in (("", presence), ("_pos_neg", presence - embedded.image_embeds[:, [3, 1]])):
        expected = {
            "macro_auroc": roc_auc_score(truth, scores),
            "macro_ap": average_precision_score(truth, scores),
            "micro_auroc": roc_auc_score(truth, scores, average="micro"),
            "micro_ap": average_precision_score(truth, scores, average="micro"),
        }
        for metric, value in expected.items():
            figure = pick(found, metric + suffix)
            assert figure.value == pytest.approx(value, abs=1e-6)  # scores are float32
            assert figure.low < figure.value < figure.high
    assert pick(found, "micro_ap").n == 120
    shuffled = np.random.default_rng(0).random((400, truth.size))
    at_random = np.mean([average_precision_score(truth.ravel(), scores) for scores in shuffled])
    assert pick(found, "micro_ap").protocol["chance"] == pytest.approx(at_random, abs=0.01)  # of 400 draws
    assert pick(found, "micro_ap").protocol["chance"] > truth.mean()
    rows = found.details["findings"]
    assert [row["finding"] for row in rows] == ["CT: cyst", "CT: nodule"]
    assert rows[0]["shown"] == truth[:, 0].sum()
    assert rows[1]["AUROC"] == round(roc_auc_score(truth[:, 1], presence[:, 1]), 3)


def test_the_interval_of_average_precision_lies_around_its_value(embed_by_hand):
    embedded, _ = random_split(embed_by_hand, 0)
    embedded = replace(embedded, image_clusters=np.arange(60))
    found = measure(make_inputs(embedded, say))
    for metric in ("macro_ap", "micro_ap"):
        figure = pick(found, metric)
        assert figure.resampled.mean() == pytest.approx(figure.value, abs=1e-3)  # uncentred it lies 0.005 above
        assert "centred" in figure.protocol["interval"]
    figure = pick(found, "macro_auroc")  # resampling leaves it where it is
    assert figure.resampled.mean() == pytest.approx(figure.value, abs=1e-2)  # of 1,000 draws
    assert "interval" not in figure.protocol


def test_f1_is_taken_at_the_threshold_that_is_best_on_the_tuning_split(embed_by_hand):
    findings = [NODULE, NODULE, NODULE, frozenset(), frozenset()]
    scores = np.array([[0.9], [0.85], [0.5], [0.4], [0.2]], dtype=np.float32)
    test = embed_by_hand(scores * UNIT[0], list("abcde"), findings=findings)
    of_tuning = np.array([[0.8], [0.45], [0.7], [0.1], *[[0.0]] * 6], dtype=np.float32)
    tuning = embed_by_hand(of_tuning * UNIT[0], list("qrstuvwxyz"), findings=[NODULE, *[frozenset()] * 9])
    tuning = replace(tuning, image_ids=list("qrstuvwxyz"))
    found = measure(make_inputs(test, say, tuning))
    figure = pick(found, "macro_f1")
    # best on the tuning split is 0.8: one nodule, nothing else. On the test split 0.5 would have given 1.
    assert figure.value == pytest.approx(f1_score([1, 1, 1, 0, 0], [1, 1, 0, 0, 0])) == pytest.approx(4 / 5)
    assert figure.protocol["tuned_on"] == {"split": "validation", "n": 10}
    assert figure.protocol["chance"] == pytest.approx(f1_score([1, 1, 1, 0, 0], [1] * 5))
    assert figure.protocol["left_out"] == []


def test_no_threshold_is_chosen_on_nine_images(embed_by_hand):
    embedded, _ = random_split(embed_by_hand, 0)
    nine, _ = random_split(embed_by_hand, 1, count=9, name="other")
    ten, _ = random_split(embed_by_hand, 1, count=10, name="other")
    assert pick(measure(make_inputs(embedded, say, nine)), "macro_f1").value is None
    assert pick(measure(make_inputs(embedded, say, ten)), "macro_f1").value > 0


def test_a_finding_that_the_tuning_split_lacks_is_left_out_of_f1_and_named(embed_by_hand):
    embedded, _ = random_split(embed_by_hand, 0)
    tuning, _ = random_split(embed_by_hand, 1, name="other")
    tuning = replace(tuning, image_findings=[shown - CYST for shown in tuning.image_findings])
    figure = pick(measure(make_inputs(embedded, say, tuning)), "macro_f1")
    assert (figure.protocol["left_out"], figure.protocol["gallery"]) == (["CT: cyst"], 1)
    without = replace(tuning, image_findings=[frozenset()] * 60)
    figure = pick(measure(make_inputs(embedded, say, without)), "macro_f1")
    assert figure.value is None
    assert "tuning split has no finding" in figure.protocol["skipped"]


def test_no_threshold_is_chosen_on_images_under_test_or_without_a_split(embed_by_hand):
    embedded, _ = random_split(embed_by_hand, 0)
    figure = pick(measure(make_inputs(embedded, say, embedded)), "macro_f1")
    assert figure.value is None
    assert "shares 60 images with the split under test" in figure.protocol["skipped"]
    figure = pick(measure(make_inputs(embedded, say)), "macro_f1_pos_neg")
    assert figure.protocol["skipped"] == "nothing to choose on: there is no split 'validation'."


def test_all_images_of_a_patient_are_drawn_together(embed_by_hand):
    embedded, _ = random_split(embed_by_hand, 0)
    embedded = replace(embedded, image_clusters=np.array([5] * 25 + [9] * 35))  # two patients
    columns = [
        Column(np.array([0, 3, 24]), lambda weights: weights.max(axis=1) - weights.min(axis=1)),
        Column(np.array([0, 25]), lambda weights: weights.sum(axis=1)),
        Column(np.array([0]), lambda weights: weights[:, 0]),
    ]
    apart, together, first = resample_columns(columns, embedded, seed=0)
    assert apart.max() == 0  # three images of one patient
    assert set(together) == {2.0}
    assert set(first) == {0.0, 1.0, 2.0}


def test_figures_of_one_patient_vary_not_at_all(embed_by_hand):
    embedded, _ = random_split(embed_by_hand, 0)
    found = measure(make_inputs(replace(embedded, image_clusters=np.zeros(60, dtype=np.int64)), say))
    for metric in ("macro_auroc", "macro_ap_pos_neg", "micro_auroc", "micro_ap"):
        figure = pick(found, metric)  # every draw of the one patient is the split itself
        assert (figure.low, figure.high) == pytest.approx((figure.value, figure.value), abs=1e-12)  # float64


def test_one_finding_in_two_sources_is_two_questions_with_two_names(embed_by_hand):
    images = [UNIT[0], UNIT[4], UNIT[4], UNIT[0]]
    findings = [NODULE, frozenset(), NODULE, frozenset()]
    embedded = embed_by_hand(images, list("abcd"), findings=findings, sources=["s", "s", "t", "t"])
    figure = measure_zero_shot(embedded, lambda texts: np.stack([say(text) for text in texts]))[0]
    assert figure.value == 0.5  # 1 in s, 0 in t
    assert figure.protocol["per_finding"] == {"s, CT: nodule": 1.0, "t, CT: nodule": 0.0}


def test_a_source_of_one_finding_for_each_image_is_asked_whole(embed_by_hand):
    findings = [CYST, NODULE, NODULE, frozenset()]
    captions = ["CT with a cyst.", "CT with a nodule.", "CT with two nodules.", "CT."]
    (question,) = class_questions(embed_by_hand(UNIT[:4], captions, findings=findings))
    assert (question.labels, question.images.tolist()) == (("cyst", "nodule"), [0, 1, 2])
    assert (question.truth.tolist(), question.num_left_out) == ([0, 1, 1], 1)  # no finding, but not called normal


def test_a_normal_image_is_a_class_of_its_own(embed_by_hand):
    captions = ["CT with a cyst.", "Normal CT without focal abnormality."]
    (question,) = class_questions(embed_by_hand(UNIT[:2], captions, findings=[CYST, frozenset()]))
    assert question.labels == ("cyst", NO_FINDING)
    assert question.truth.tolist() == [0, 1]


def test_of_a_source_with_several_findings_in_an_image_single_ones_are_asked_if_there_are_five(embed_by_hand):
    findings = [CYST] * 5 + [NODULE] * 5 + [frozenset({"heart"})] * 4 + [CYST | NODULE]
    embedded = embed_by_hand(np.ones((15, 2)), [str(i) for i in range(15)], findings=findings)
    (question,) = class_questions(embedded)
    assert (question.labels, len(question.images), question.num_left_out) == (("cyst", "nodule"), 10, 5)
    of_less = replace(embedded, image_findings=[CYST | NODULE, *findings[1:]])
    assert class_questions(of_less) == []


def test_the_class_of_an_image_is_that_of_the_highest_score_and_ties_are_errors(embed_by_hand):
    images = [UNIT[2], UNIT[2], UNIT[2], UNIT[0], 0 * UNIT[0], UNIT[2]]
    embedded = embed_by_hand(images, list("abcdef"), findings=[CYST, CYST, CYST, NODULE, NODULE, NODULE])
    found = measure_classes(embedded, {}, lambda texts: np.stack([say(text) for text in texts]))
    accuracy, balanced = pick(found, "zero_shot_accuracy"), pick(found, "zero_shot_balanced_accuracy")
    assert accuracy.value == pytest.approx(4 / 6)  # the fifth image scores 0 with both
    assert balanced.value == pytest.approx((1 + 1 / 3) / 2)
    assert (accuracy.protocol["chance"], accuracy.protocol["commonest_class"]) == (0.5, 0.5)
    assert found.details["confusion"] == {"drawn, CT": {"labels": ["cyst", "nodule"], "counts": [[3, 0], [2, 1]]}}
    assert [error["image_id"] for error in found.details["worst_errors"]] == ["image-5", "image-4"]
    assert found.details["worst_errors"][0]["cosine margin"] == 1.0


def test_classes_of_two_sources_are_balanced_over_all_of_them_with_their_own_chance(embed_by_hand):
    findings = [CYST, NODULE, CYST, NODULE, frozenset({"heart"})]
    images = [UNIT[2], UNIT[0], UNIT[2], UNIT[2], UNIT[7]]
    embedded = embed_by_hand(images, list("abcde"), findings=findings, sources=["s", "s", "t", "t", "t"])
    encode = lambda texts: np.stack([UNIT[7] if "heart" in text else say(text) for text in texts])  # noqa: E731
    found = measure_classes(embedded, {}, encode)
    assert pick(found, "zero_shot_balanced_accuracy").value == pytest.approx((1 + 1 + 1 + 0 + 1) / 5)
    assert pick(found, "zero_shot_balanced_accuracy").protocol["chance"] == pytest.approx((2 / 2 + 3 / 3) / 5)
    assert pick(found, "zero_shot_accuracy", "t").value == pytest.approx(2 / 3)
    assert pick(found, "zero_shot_accuracy", "t").protocol["chance"] == pytest.approx(1 / 3)


def test_a_split_without_classes_says_so(embed_by_hand):
    found = measure_classes(embed_by_hand(UNIT[:2], list("ab")), {}, None)
    assert {figure.value for figure in found.measured} == {None}
    assert "two classes" in found.measured[0].protocol["skipped"]


@pytest.fixture
def fusing_model(model):
    """The tiny model with its fusion switched on, and off again afterwards."""
    alpha = model.region_fusion.alpha
    with torch.no_grad():
        alpha.fill_(0.5)
    yield model
    with torch.no_grad():
        alpha.zero_()


def test_fused_embeddings_are_those_of_the_model_on_each_image_alone(fusing_model, processor, draw_example):
    examples = [draw_example(i, num_regions=count) for i, count in enumerate((2, 0, 5))]
    fused = embed_fused(fusing_model, processor, examples, batch_size=2, progress=False)
    plain = embed_examples(fusing_model, processor, examples, progress=False).image_embeds
    assert fused.num_given.tolist() == [2, 0, 5]
    for row, example in enumerate(examples):
        prepared = PreparedExample.read(example, processor.image_processor, False)
        pixels = processor.image_processor.normalize_frames(torch.from_numpy(prepared.frame[None]))
        with torch.no_grad():
            boxes = torch.from_numpy(prepared.boxes[None])
            given = fusing_model.get_image_features(pixels, region_boxes=boxes).pooler_output if row != 1 else None
            proposed = fusing_model.get_image_features(pixels, regions="proposed").pooler_output
        expected = plain[row] if given is None else torch.nn.functional.normalize(given)[0].numpy()
        np.testing.assert_allclose(fused.given[row], expected, atol=1e-5)  # float32
        np.testing.assert_allclose(fused.proposed[row], torch.nn.functional.normalize(proposed)[0], atol=1e-5)
    assert np.abs(fused.given[0] - plain[0]).max() > 1e-3  # fusion does something


def test_crowded_images_are_fused_in_smaller_batches(fusing_model, processor, draw_example, monkeypatch):
    examples = [draw_example(i, num_regions=count) for i, count in enumerate((2, 9, 1, 3))]
    whole = embed_fused(fusing_model, processor, examples, progress=False)
    monkeypatch.setattr(fused_embedding, "MOST_SLOTS", 6)
    parts = embed_fused(fusing_model, processor, examples, progress=False)
    np.testing.assert_allclose(parts.given, whole.given, atol=1e-5)  # float32
    np.testing.assert_allclose(parts.proposed, whole.proposed, atol=1e-5)
    assert parts.image_ids == [example["image_id"] for example in examples]


@pytest.fixture
def drawn_inputs(fusing_model, processor, draw_example):
    """Inputs of the tiny model with a tuning split of other images."""
    examples = [draw_example(i, num_regions=1 + i % 2) for i in range(16)]
    others = [draw_example(100 + i, num_regions=1 + i % 2) for i in range(24)]
    tuning = embed_examples(fusing_model, processor, others, progress=False)
    return TaskInputs(
        model=fusing_model,
        processor=processor,
        region_reading="roi",
        embedded=embed_examples(fusing_model, processor, examples, progress=False),
        examples=examples,
        embed_split=lambda name: tuning,
        splits=["test", "validation"],
        tuning_split="validation",
        is_shown=False,
    )


def test_every_figure_of_a_trained_region_path_is_there(drawn_inputs):
    found = measure(drawn_inputs)
    whole = {figure.metric for figure in found.measured if figure.source is None and figure.value is not None}
    families = {"macro_auroc", "macro_ap", "micro_auroc", "micro_ap", "macro_f1"}
    expected = families | {f"{name}_pos_neg" for name in families} | {"macro_auroc_ensemble"}
    boxes = ("_given_boxes", "_proposed_boxes")
    expected |= {f"{name}{suffix}" for name in ("macro_auroc", "macro_ap") for suffix in boxes}
    assert expected <= whole
    given, plain = pick(found, "macro_auroc_given_boxes"), pick(found, "macro_auroc")
    assert given.protocol["fused_with"].startswith("given boxes")
    assert given.protocol["prompts_sha256"] == plain.protocol["prompts_sha256"]
    assert np.array_equal(given.clusters, plain.clusters)
    assert set(found.details["findings"][0]) >= {"AUROC", "AP_pos_neg", "F1", "AUROC_given_boxes", "AUROC_ensemble"}


def test_macro_auroc_is_the_same_alone_and_among_all_figures(drawn_inputs):
    alone = measure_zero_shot(drawn_inputs.embedded, drawn_inputs.encode)
    among = [figure for figure in measure(drawn_inputs).measured if figure.metric == "macro_auroc"]
    assert [(f.key, f.value, f.low, f.high) for f in among] == [(f.key, f.value, f.low, f.high) for f in alone]


def test_a_brief_look_takes_macro_auroc_alone_and_no_other_pass(drawn_inputs):
    found = measure(replace(drawn_inputs, is_brief=True, examples=None, embed_split=None))
    assert {figure.metric for figure in found.measured} == {"macro_auroc"}


def test_an_untrained_region_path_gets_no_fused_figures(drawn_inputs):
    found = measure(replace(drawn_inputs, region_reading="crop", examples=None))
    figure = pick(found, "macro_auroc_given_boxes")
    assert (figure.value, figure.protocol["skipped"]) == (
        None,
        "the region path is not trained: regions are read by crop",
    )


def test_examples_in_another_order_are_refused(drawn_inputs):
    with pytest.raises(ValueError, match="fixed order"):
        measure(replace(drawn_inputs, examples=drawn_inputs.examples[::-1]))


def test_a_question_is_asked_of_another_split_in_the_same_words(embed_by_hand):
    embedded = embed_by_hand(UNIT[:2], ["a", "b"], findings=[NODULE, frozenset()])
    other = embed_by_hand(UNIT[:3], list("abc"), findings=[NODULE, CYST, NODULE], modalities=["CT", "CT", "MRI"])
    (question,) = presence_questions(embedded)
    asked = question.asked_of(other)
    assert (asked.images.tolist(), asked.is_shown.tolist(), asked.has_both) == ([0, 1], [True, False], True)
    assert question.asked_of(replace(other, image_sources=np.array(["x"] * 3))).has_both is False
