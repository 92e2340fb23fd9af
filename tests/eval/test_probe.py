"""Probes on embeddings built by hand: what is taught, what the penalty is chosen on, and what counts as an error."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from regionmed_clip.eval.tasks import probe, probe_fitting
from regionmed_clip.eval.tasks.probe import measure
from regionmed_clip.eval.tasks.probe_fitting import PENALTIES, Standard, answer
from regionmed_clip.eval.tasks.probe_items import ProbeItems, draw_shots, region_items, thin_items
from regionmed_clip.eval.tasks.sharing import Share
from regionmed_clip.eval.tasks.task_inputs import TaskInputs

LABELS = ("cyst", "effusion", "nodule")


def make_inputs(embedded, training, tuning):
    """Inputs with the three splits; None is a split that the data lack."""
    splits = {"train": training, "validation": tuning}

    def embed_split(name):
        if splits[name] is None:
            raise ValueError(f"there is no split {name!r}.")
        return splits[name]

    return TaskInputs(
        model=SimpleNamespace(),
        processor=None,
        region_reading="roi",
        embedded=embedded,
        examples=[],
        embed_split=embed_split,
        splits=["train", "validation", "test"],
        tuning_split="validation",
    )


def pick(findings, metric, source=None):
    """The one figure of that name."""
    (found,) = [m for m in findings.measured if m.key == (metric, source, None)]
    return found


def draw_split(embed_by_hand, name, seed, *, count=60, noise=0.3, is_telling=True):
    """A split with one finding in every image and one region of it; embeddings tell the finding, up to noise."""
    generator = np.random.default_rng(seed)
    label = np.arange(count) % 3
    centres = np.eye(8)[:3] if is_telling else np.zeros((3, 8))
    embeds = centres[label] + noise * generator.normal(size=(count, 8))
    regions = [(i, LABELS[label[i]], embeds[i] / np.linalg.norm(embeds[i]), (0, 0, 4, 4)) for i in range(count)]
    findings = [frozenset({LABELS[index]}) for index in label]
    texts = np.zeros((3, 8), dtype=np.float32)
    embedded = embed_by_hand(
        embeds / np.linalg.norm(embeds, axis=1, keepdims=True),
        [f"{name} {i}" for i in range(count)],
        regions=regions,
        region_text_embeds=texts,
        findings=findings,
    )
    return replace(embedded, image_ids=[f"{name}-{i}" for i in range(count)])


@pytest.fixture(scope="module")
def splits(embed_by_hand):
    """(test, training, tuning) in which embeddings tell the finding."""
    return tuple(draw_split(embed_by_hand, name, seed) for seed, name in enumerate(("test", "train", "tune")))


@pytest.fixture(scope="module")
def found(splits):
    """What the probes find there."""
    return measure(make_inputs(*splits))


def test_more_shots_read_more_out_of_a_telling_embedding(found):
    for metric in ("probe_balanced_accuracy", "region_probe_balanced_accuracy"):
        one, four, whole = (pick(found, f"{metric}{suffix}").value for suffix in ("@1", "@4", ""))
        assert 1 / 3 < one < four
        assert whole > 0.85
        assert pick(found, metric).protocol["chance"] == pytest.approx(1 / 3)
    few = pick(found, "probe_balanced_accuracy@4").protocol
    assert (few["shots"], few["draws"], few["train"], few["tuned_on"]["split"]) == (
        4,
        5,
        {"split": "train", "n": 12},
        "validation",
    )
    assert few["draw_sd"] > 0
    assert pick(found, "probe_balanced_accuracy").protocol["train"]["n"] == 60


def test_a_telling_embedding_has_a_high_auroc_and_it_is_that_of_sklearn(splits, found):
    test, training, _ = splits
    figure = pick(found, "probe_macro_auroc")
    move = Standard.of(training.image_embeds)
    taught, asked = move(training.image_embeds), move(test.image_embeds)
    expected = []
    for label in LABELS:
        is_taught, is_asked = ([label in shown for shown in split.image_findings] for split in (training, test))
        model = LogisticRegression(C=figure.protocol["penalty_c"], class_weight="balanced", max_iter=5000)
        expected.append(roc_auc_score(is_asked, model.fit(taught, is_taught).decision_function(asked)))
    assert figure.value == pytest.approx(np.mean(expected), abs=1e-9)
    assert figure.value > 0.9


def test_the_penalty_of_presence_is_that_which_is_best_on_the_tuning_split_and_not_on_the_test(
    embed_by_hand, monkeypatch
):
    class Scripted:  # right where the first number says shown, under one penalty; wrong under all others
        def __init__(self, penalty):
            self.sign = 1.0 if penalty == 1e-2 else -1.0

        def fit(self, inputs, labels):
            return self

        def decision_function(self, inputs):
            return self.sign * inputs[:, 0]

    def split(name, sign):
        is_shown = np.arange(24) % 2 == 0
        embeds = sign * np.where(is_shown, 1.0, -1.0)[:, None] * np.eye(8)[0]
        findings = [frozenset({"nodule"} if shown else ()) for shown in is_shown]
        embedded = embed_by_hand(embeds, [f"{name} {i}" for i in range(24)], findings=findings)
        return replace(embedded, image_ids=[f"{name}-{i}" for i in range(24)])

    monkeypatch.setattr(probe, "make_classifier", Scripted)
    found = measure(make_inputs(split("test", -1.0), split("train", 1.0), split("validation", 1.0)))
    figure = pick(found, "probe_macro_auroc")
    assert (figure.protocol["penalty_c"], figure.value) == (1e-2, 0.0)  # the other penalties would have given 1


def test_noise_teaches_nothing(embed_by_hand, monkeypatch):
    monkeypatch.setattr(probe, "SHOTS", ())
    names = enumerate(("test", "train", "tune"))
    splits = [draw_split(embed_by_hand, name, seed, count=150, is_telling=False) for seed, name in names]
    found = measure(make_inputs(*splits))
    assert pick(found, "probe_balanced_accuracy").low < 1 / 3 < pick(found, "probe_balanced_accuracy").high
    assert pick(found, "probe_macro_auroc").value == pytest.approx(0.5, abs=0.1)  # of 150 images


@pytest.mark.parametrize(("missing", "reason"), [(1, "nothing to learn from"), (2, "nothing to choose on")])
def test_without_training_or_tuning_images_every_probe_is_skipped_with_the_reason(splits, missing, reason):
    given = [None if place == missing else split for place, split in enumerate(splits)]
    measured = measure(make_inputs(*given)).measured
    assert len(measured) == 9
    assert all(figure.value is None and reason in figure.protocol["skipped"] for figure in measured)


def test_what_shares_an_image_with_the_split_under_test_teaches_and_tunes_nothing(splits):
    test, training, tuning = splits
    for own in (make_inputs(test, test, tuning), make_inputs(test, training, test)):
        reasons = {figure.protocol.get("skipped", "") for figure in measure(own).measured}
        assert all("shares 60 images with the split under test" in reason for reason in reasons), reasons
    elsewhere = replace(training, image_ids=test.image_ids, image_sources=np.array(["other"] * training.num_images))
    assert "shares" not in str(pick(measure(make_inputs(test, elsewhere, tuning)), "probe_macro_auroc").protocol)


def test_of_several_processes_only_the_main_one_fits(splits, monkeypatch):
    monkeypatch.setattr(Share, "from_main", lambda share, make: make() if share.is_main else ["from the main one"])
    found = measure(replace(make_inputs(*splits), share=Share(1, 2)))
    assert found.measured == ["from the main one"]


def test_a_finding_that_training_lacks_is_answered_wrong_and_named(splits, monkeypatch):
    monkeypatch.setattr(probe, "SHOTS", ())
    test, training, tuning = splits
    fewer = replace(training, image_findings=[shown - {"nodule"} for shown in training.image_findings])
    found = measure(make_inputs(test, fewer, tuning))
    figure = pick(found, "probe_balanced_accuracy")
    assert figure.protocol["not_taught"] == ["drawn, CT: nodule"]
    assert figure.value <= 2 / 3
    assert pick(found, "probe_macro_auroc").protocol["not_taught"] == ["CT: nodule"]
    assert pick(found, "probe_macro_auroc").protocol["gallery"] == 2


def test_too_few_training_items_for_the_shots_are_skipped(embed_by_hand, splits, monkeypatch):
    monkeypatch.setattr(probe, "SHOTS", (16,))
    test, _, tuning = splits
    training = draw_split(embed_by_hand, "few", 5, count=12)
    figure = pick(measure(make_inputs(test, training, tuning)), "region_probe_balanced_accuracy@16")
    assert figure.protocol["skipped"] == "fewer than two classes have 16 items in the training split"


def test_no_penalty_is_chosen_on_nine_items(embed_by_hand, splits):
    tuning = draw_split(embed_by_hand, "tune", 5, count=9)
    found = measure(make_inputs(*splits[:2], tuning))
    assert {figure.value for figure in found.measured} == {None}
    reason = "the tuning split has 9 items of these classes, fewer than 10"
    assert pick(found, "probe_balanced_accuracy").protocol["skipped"] == reason


def make_items(count, *, seed=0, num_images=None):
    """Items of two groups with two labels each, drawn."""
    generator = np.random.default_rng(seed)
    return ProbeItems(
        features=generator.normal(size=(count, 4)).astype(np.float32),
        groups=np.array(["s", "t"])[np.arange(count) // 2 % 2],
        labels=np.array(["a", "b"])[np.arange(count) % 2],
        images=np.arange(count) % (num_images or count),
        names=np.array([f"item {i}" for i in range(count)]),
        clusters=np.arange(count),
    )


def test_shots_are_drawn_by_name_whatever_the_order():
    items = make_items(80)
    order = np.random.default_rng(1).permutation(80)
    first, second = draw_shots(items, 3, 0, seed=7), draw_shots(items.take(order), 3, 0, seed=7)
    assert sorted(first.names.tolist()) == sorted(second.names.tolist())
    classes, counts = np.unique(first.classes(), return_counts=True)
    assert (len(classes), counts.tolist()) == (4, [3, 3, 3, 3])
    assert set(first.names) != set(draw_shots(items, 3, 1, seed=7).names)
    assert set(first.names) != set(draw_shots(items, 3, 0, seed=8).names)


def test_shots_come_from_different_images_as_far_as_there_are():
    items = replace(make_items(80), images=np.arange(80) // 8)  # two of each class in an image, ten images
    drawn = draw_shots(items, 5, 0, seed=0)
    for name in np.unique(drawn.classes()):
        assert len(set(drawn.images[drawn.classes() == name].tolist())) == 5
    assert len(draw_shots(items, 15, 0, seed=0)) == 60  # more than images: some twice


def test_items_are_thinned_by_name():
    items = make_items(50)
    kept = thin_items(items, 20)
    assert len(kept) == 20
    order = np.random.default_rng(1).permutation(50)
    assert set(kept.names) == set(thin_items(items.take(order), 20).names)
    assert thin_items(items, 50) is items


def test_the_penalty_is_the_one_that_answers_the_tuning_split_best(monkeypatch):
    taught, tuning, test = make_items(40), make_items(60, seed=1), make_items(60, seed=2)
    answered = answer([taught], tuning, test)
    move = Standard.of(taught.features)

    def score(penalty, asked):
        told = np.empty(len(asked), dtype=object)
        for group in ("s", "t"):
            rows, own = taught.groups == group, asked.groups == group
            model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
            told[own] = model.fit(move(taught.features[rows]), taught.labels[rows]).predict(move(asked.features[own]))
        hits = (told == asked.labels).astype(int)
        return np.mean([hits[asked.classes() == name].mean() for name in np.unique(asked.classes())])

    scores = [score(penalty, tuning) for penalty in PENALTIES]
    assert len(set(scores)) > 1
    assert answered.penalty == PENALTIES[int(np.argmax(scores))]
    assert answered.draw_values == (pytest.approx(score(answered.penalty, test)),)
    best_on_test = max(PENALTIES, key=lambda penalty: score(penalty, test))
    monkeypatch.setattr(probe_fitting, "PENALTIES", (best_on_test,))
    assert answer([taught], tuning, test).draw_values[0] >= answered.draw_values[0]


def test_answers_are_balanced_as_sklearn_balances_them():
    items = replace(make_items(40), groups=np.array(["s"] * 40))
    answered = answer([items], items, items)
    move = Standard.of(items.features)
    model = LogisticRegression(C=answered.penalty, class_weight="balanced", max_iter=5000)
    told = model.fit(move(items.features), items.labels).predict(move(items.features))
    assert answered.draw_values[0] == pytest.approx(balanced_accuracy_score(items.labels, told))


def test_denied_regions_teach_and_ask_nothing(splits):
    test = splits[0]
    denied = replace(test, region_is_negated=np.arange(test.num_regions) % 2 == 0)
    items = region_items(denied, {"drawn": list(LABELS)})
    assert len(items) == test.num_regions // 2
    assert len(region_items(test, {"drawn": ["cyst"]})) == 20
    assert len(region_items(test, {"another": list(LABELS)})) == 0


def test_features_are_moved_and_scaled_by_one_number():
    features = np.random.default_rng(0).normal(3, (1, 2, 4, 8), size=(50, 4))
    moved = Standard.of(features)(features)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=1e-12)  # float64
    assert np.square(moved).mean() == pytest.approx(1)
    assert moved.std(axis=0)[3] / moved.std(axis=0)[0] == pytest.approx(
        features.std(axis=0)[3] / features.std(axis=0)[0]
    )
    np.testing.assert_array_equal(Standard.of(np.ones((3, 2)))(np.ones((3, 2))), 0)  # nothing to scale
