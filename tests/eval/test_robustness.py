"""Robustness: hand-made cosines and drops, and the tiny model end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regionmed_clip.eval.metric_titles import METRIC_TITLES
from regionmed_clip.eval.tasks import robustness
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.perturbations import PERTURBATIONS, perturb_example
from regionmed_clip.eval.tasks.robustness import (
    JITTER_PERCENTS,
    PerturbedImages,
    choose_images,
    embed_jittered,
    embed_perturbed,
    measure,
    measure_jitter,
    measure_jittered_accuracy,
    measure_perturbed,
)
from regionmed_clip.eval.tasks.task_inputs import TaskInputs
from regionmed_clip.processing.corpus.shown_image import shown_image

UNIT = np.eye(24, dtype=np.float32)
BOX = (0, 0, 4, 4)


@pytest.fixture
def embedded(embed_by_hand):
    """Two images with a region each, whose embeddings are those of their texts."""
    regions = [(0, "left nodule", UNIT[0], BOX), (1, "left cyst", UNIT[1], BOX)]
    return embed_by_hand(UNIT[:2], ["a", "b"], regions=regions)


@pytest.fixture
def inputs(model, processor, draw_example) -> TaskInputs:
    """The tiny model on three drawn images."""
    examples = [draw_example(i) for i in range(3)]
    return TaskInputs(
        model=model,
        processor=processor,
        region_reading="roi",
        embedded=embed_examples(model, processor, examples, progress=False),
        examples=examples,
        embed_split={}.__getitem__,
        splits=("test",),
        tuning_split="validation",
        is_shown=False,
    )


def test_the_mean_cosine_is_that_of_each_region_with_itself(embedded):
    moved = np.stack([UNIT[0], 0.6 * UNIT[1] + 0.8 * UNIT[2]])  # the first stayed, the second has cosine 0.6
    figures = {m.metric: m for m in measure_jitter(embedded, {10: moved, 20: UNIT[[5, 6]]})}
    assert figures["region_jitter_cosine@10"].value == pytest.approx(0.8)
    assert figures["region_jitter_cosine@10"].protocol["of_the_model"]["p10"] == pytest.approx(
        0.64
    )  # 0.6 + 0.1 x (1 - 0.6)
    assert figures["region_jitter_cosine@20"].value == 0.0
    assert figures["region_jitter_cosine@20"].n == 2


def test_the_drop_is_what_jitter_costs_in_accuracy(embedded):
    moved = np.stack([UNIT[0], UNIT[0]])  # the cyst is now read as the nodule
    accuracy, drop = measure_jittered_accuracy(embedded, {20: moved})
    assert (accuracy.metric, accuracy.value) == ("region_to_text_accuracy_jitter@20", 0.5)
    assert (drop.metric, drop.value) == ("region_to_text_accuracy_drop_jitter@20", 0.5)
    assert drop.protocol["of_the_model"] == {
        "before": 1.0,
        "after": 0.5,
        "by_source": {"drawn": {"before": 1.0, "after": 0.5, "n": 2}},
    }
    assert drop.protocol["lower_is_better"]
    assert (drop.low, drop.high) == (0.0, 1.0)


def test_a_gain_is_a_negative_drop(embedded):
    exact = replace(embedded, region_embeds=UNIT[[1, 1]])
    _, drop = measure_jittered_accuracy(exact, {20: UNIT[[0, 1]]})
    assert drop.value == -0.5


def test_worse_images_are_compared_with_themselves_alone(embedded):
    name = PERTURBATIONS[0].name
    changed = PerturbedImages(
        np.array([1]), np.array([1]), 0.5 * UNIT[[1]], UNIT[[0]]
    )  # image 1, its cyst now a nodule
    figures = {m.metric: m for m in measure_perturbed(embedded, {name: changed})}
    assert (figures[f"image_cosine_{name}"].value, figures[f"image_cosine_{name}"].n) == (0.5, 1)
    drop = figures[f"region_to_text_accuracy_drop_{name}"]
    assert (drop.value, drop.n) == (1.0, 1)


def test_jitter_moves_embeddings_a_little_and_always_the_same_way(inputs):
    first, again = embed_jittered(inputs), embed_jittered(inputs)
    for percent in JITTER_PERCENTS:
        assert np.array_equal(first[percent].region_embeds, again[percent].region_embeds)
        assert not np.array_equal(first[percent].region_embeds, inputs.embedded.region_embeds)
    embeds = {percent: split.region_embeds for percent, split in first.items()}
    assert all(-1 <= m.value <= 1 for m in measure_jitter(inputs.embedded, embeds) if m.value is not None)


def test_every_perturbed_embedding_is_that_of_its_own_image_under_its_own_change(inputs):
    perturbed = embed_perturbed(inputs)
    assert list(perturbed) == [one.name for one in PERTURBATIONS]
    for place in (0, len(PERTURBATIONS) - 1):
        one = PERTURBATIONS[place]
        alone = inputs.embed(perturb_example(e, shown_image(e), one, inputs.seed) for e in inputs.examples)
        np.testing.assert_allclose(perturbed[one.name].image_embeds, alone.image_embeds, atol=1e-5)  # float32
        np.testing.assert_allclose(perturbed[one.name].region_embeds, alone.region_embeds, atol=1e-5)
    assert perturbed[one.name].regions.tolist() == list(range(6))


def test_the_task_gives_figures_of_every_kind_and_only_jitter_when_brief(inputs):
    findings = measure(inputs)
    stems = {m.metric.partition("@")[0] for m in findings.measured}
    kinds = {one.kind for one in PERTURBATIONS}
    drops = {f"region_to_text_accuracy_drop_{kind}" for kind in (*kinds, "jitter")}
    of_jitter = {"region_jitter_cosine", "region_to_text_accuracy_jitter"}
    assert stems == of_jitter | drops | {f"image_cosine_{kind}" for kind in kinds}
    assert {m.metric for m in findings.measured} <= set(METRIC_TITLES)
    curve = [row["strength"] for row in findings.details["robustness_curves"] if row["figure"] == "image_cosine_noise"]
    assert curve == [5, 15]
    assert {m.metric for m in measure(replace(inputs, is_brief=True)).measured} == {
        f"region_jitter_cosine@{percent}" for percent in JITTER_PERCENTS
    }


def test_without_regions_only_images_are_measured(inputs, draw_example):
    examples = [draw_example(i, num_regions=0) for i in range(2)]
    bare = replace(inputs, examples=examples, embedded=inputs.embed(examples))
    assert {m.metric.partition("_")[0] for m in measure(bare).measured} == {"image"}


def test_the_images_chosen_depend_on_their_names_alone(monkeypatch):
    monkeypatch.setattr(robustness, "MAX_PERTURBED_IMAGES", 3)
    names = [f"image {i}" for i in range(10)]
    chosen = {name for name, is_in in zip(names, choose_images(names), strict=True) if is_in}
    assert len(chosen) == 3
    turned = names[::-1]
    assert {name for name, is_in in zip(turned, choose_images(turned), strict=True) if is_in} == chosen
    assert choose_images(names[:2]).all()


def test_lost_regions_are_refused(embedded):
    with pytest.raises(ValueError, match="2 regions were embedded exactly and 0 with jitter"):
        measure_jitter(embedded, {10: np.zeros((0, 24))})


@pytest.mark.parametrize("is_another_lost", [False, True])
def test_a_frame_that_crops_has_no_figures_of_jitter_and_all_others(inputs, monkeypatch, is_another_lost):
    # the first image lost a region to jitter; with `is_another_lost` the frame had lost one of the last image before
    moved = inputs.embed([{**e, "regions": e["regions"][place == 0 :]} for place, e in enumerate(inputs.examples)])
    if is_another_lost:
        examples = [{**e, "regions": e["regions"][: 2 - (place == 2)]} for place, e in enumerate(inputs.examples)]
        inputs = replace(inputs, examples=examples, embedded=inputs.embed(examples))
        assert inputs.embedded.num_regions == moved.num_regions  # as many, and not the same
    monkeypatch.setattr(robustness, "embed_jittered", lambda inputs: {10: moved})
    measured = {m.key: m for m in measure(inputs).measured}
    figure = measured["region_jitter_cosine@10", None, None]
    assert figure.value is None
    assert "cropped" in figure.protocol["skipped"]
    assert not any("jitter" in metric for metric, _, _ in measured if metric != "region_jitter_cosine@10")
    assert any(metric.startswith("image_cosine") for metric, _, _ in measured)
