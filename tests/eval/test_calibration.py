"""Calibration of probabilities built by hand: what is measured, what scaling mends, and what it is fitted on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from regionmed_clip.eval.metrics.calibration import expected_calibration_error
from regionmed_clip.eval.tasks.calibration import measure
from regionmed_clip.eval.tasks.task_inputs import TaskInputs

SCALE = 4.0  # the model's own inverse temperature
CYST, NODULE = frozenset({"cyst"}), frozenset({"nodule"})
AXES = np.eye(4)


@dataclass(frozen=True, kw_only=True)
class HandInputs(TaskInputs):
    """Inputs whose texts are embedded by a function instead of a model."""

    embed_text: object = None

    def encode(self, texts):
        return np.stack([self.embed_text(text) for text in texts])


def say(text):
    """Presence of a nodule is axis 0, its absence axis 1; a cyst is axis 2, its absence axis 3."""
    return AXES[(2 if "cyst" in text else 0) + (text.startswith("no ") or "without" in text)]


def make_inputs(embedded, tuning=None):
    """Inputs of a model that knows only its temperature, with a validation split or none."""

    def embed_split(name):
        if tuning is None:
            raise ValueError(f"there is no split {name!r}.")
        return tuning

    return HandInputs(
        model=SimpleNamespace(temperatures=lambda name: torch.tensor([SCALE])),
        processor=None,
        region_reading="roi",
        embedded=embedded,
        examples=[],
        embed_split=embed_split,
        splits=["test"],
        tuning_split="validation",
        embed_text=say,
    )


def pick(findings, metric, source=None):
    """The one figure of that name."""
    (found,) = [m for m in findings.measured if m.key == (metric, source, None)]
    return found


def split_of(embed_by_hand, logits, is_nodule, name="image"):
    """Images whose logit of "a nodule is shown" is given; all count as of one modality."""
    images = np.zeros((len(logits), 4), dtype=np.float32)
    images[:, 0] = np.asarray(logits) / SCALE
    findings = [NODULE if shown else frozenset() for shown in is_nodule]
    embedded = embed_by_hand(images, [f"{name} {i}" for i in range(len(logits))], findings=findings)
    return replace(embedded, image_embeds=images, image_ids=[f"{name}-{i}" for i in range(len(logits))])


def drawn_split(embed_by_hand, seed, *, factor=1.0, offset=0.0, count=400, name="image"):
    """Images shown with the probabilities of log-odds that the model states `factor` times too large, plus `offset`."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0, 1.5, count)
    is_nodule = generator.random(count) < 1 / (1 + np.exp(-odds))
    return split_of(embed_by_hand, factor * odds + offset, is_nodule, name)


def test_error_and_brier_score_of_three_images(embed_by_hand):
    # probabilities 0.5, 0.5 and 3/4, of which one half and nothing come true
    found = measure(make_inputs(split_of(embed_by_hand, [0, 0, np.log(3)], [True, False, False])))
    error, brier = pick(found, "expected_calibration_error"), pick(found, "brier_score")
    assert error.value == pytest.approx((2 * 0 + 1 * 3 / 4) / 3, abs=1e-6)  # embeddings are float32
    assert brier.value == pytest.approx((1 / 4 + 1 / 4 + 9 / 16) / 3, abs=1e-6)
    assert brier.protocol["chance"] == pytest.approx(1 / 3 * 2 / 3)  # saying 1/3 of each
    assert (error.n, error.protocol["images"], error.protocol["temperature"]) == (3, 3, 1 / SCALE)
    bins = found.details["reliability"]["finding shown"]
    assert [(b["n"], b["accuracy"]) for b in bins if b["n"]] == [(2, 0.5), (1, 0.0)]


def test_a_temperature_mends_what_is_said_too_surely_and_is_found_on_the_tuning_split(embed_by_hand):
    test = drawn_split(embed_by_hand, 0, factor=3.0)
    tuning = drawn_split(embed_by_hand, 1, factor=3.0, count=4000, name="tuning")
    found = measure(make_inputs(test, tuning))
    raw, scaled = pick(found, "expected_calibration_error"), pick(found, "expected_calibration_error_scaled")
    assert scaled.protocol["temperature"] == pytest.approx(3.0 / SCALE, rel=0.1)  # of 4,000 drawn outcomes
    assert raw.low > scaled.high
    assert scaled.value < 2 * scaled.protocol["if_calibrated"]  # as good as its own probabilities coming true
    assert pick(found, "brier_score_scaled").value < pick(found, "brier_score").value
    assert scaled.protocol["tuned_on"] == {"split": "validation", "n": 4000, "items": 4000}


def test_platt_scaling_mends_an_offset_that_no_temperature_can(embed_by_hand):
    test = drawn_split(embed_by_hand, 0, factor=2.0, offset=3.0)
    found = measure(make_inputs(test, drawn_split(embed_by_hand, 1, factor=2.0, offset=3.0, count=4000, name="t")))
    scaled, platt = (pick(found, f"expected_calibration_error_{name}") for name in ("scaled", "platt"))
    assert platt.high < scaled.low
    assert platt.protocol["slope"] == pytest.approx(1 / 2, rel=0.1)  # of 4,000 drawn outcomes
    assert platt.protocol["offset"] == pytest.approx(-3 / 2, rel=0.1)


def test_the_interval_of_a_calibrated_model_holds_its_value(embed_by_hand):
    figure = pick(measure(make_inputs(drawn_split(embed_by_hand, 0))), "expected_calibration_error")
    assert 0 <= figure.low < figure.value < figure.high
    assert figure.value == pytest.approx(figure.protocol["if_calibrated"], abs=0.03)  # of 400 drawn outcomes
    assert figure.resampled.min() >= 0
    assert figure.resampled.mean() == pytest.approx(figure.value, abs=1e-3)  # uncentred it lies 0.023 above


def test_the_error_if_calibrated_is_that_of_outcomes_drawn_anew(embed_by_hand):
    embedded = drawn_split(embed_by_hand, 0)
    said = 1 / (1 + np.exp(-SCALE * embedded.image_embeds[:, 0].astype(np.float64)))
    generator = np.random.default_rng(9)
    errors = [expected_calibration_error(said, generator.random(400) < said) for _ in range(300)]
    figure = pick(measure(make_inputs(embedded)), "expected_calibration_error")
    assert figure.protocol["if_calibrated"] == pytest.approx(np.mean(errors), abs=4 * np.std(errors) / np.sqrt(50))


def test_without_a_tuning_split_scaled_figures_are_skipped_with_the_reason(embed_by_hand):
    found = measure(make_inputs(split_of(embed_by_hand, [0, 1], [True, False])))
    for metric in ("expected_calibration_error_scaled", "brier_score_platt"):
        assert pick(found, metric).value is None
        assert "there is no split 'validation'" in pick(found, metric).protocol["skipped"]


def test_a_tuning_split_without_the_finding_fits_nothing(embed_by_hand):
    test = split_of(embed_by_hand, [0, 1], [True, False])
    for truth in ([False] * 12, [True] * 4 + [False] * 5):  # one outcome, or too few
        found = measure(make_inputs(test, split_of(embed_by_hand, np.arange(len(truth)) / 9, truth, "tuning")))
        assert "no 10 items of both outcomes" in pick(found, "brier_score_scaled").protocol["skipped"]


def test_the_answer_among_classes_of_two_sources_with_two_and_three_classes(embed_by_hand):
    heart = frozenset({"heart"})
    images = np.log([[3, 1, 1, 1], [1, 1, 3, 1], [2, 1, 1, 1], [1, 1, 2, 1], [1, 1, 2, 1]]) / SCALE
    findings, sources = [NODULE, NODULE, NODULE, CYST, heart], ["s", "s", "t", "t", "t"]
    embedded = embed_by_hand(images, list("abcde"), findings=[*findings], sources=sources)
    embedded = replace(embedded, image_findings=[NODULE, CYST, NODULE, CYST, heart])
    inputs = make_inputs(embedded)
    inputs = replace(inputs, embed_text=lambda text: AXES[1] if "heart" in text else say(text))
    found = measure(inputs)
    # source s: nodule and cyst, 3/4 sure and right; t: three classes, 2/4 sure, the last image wrong
    error, brier = pick(found, "top_label_calibration_error"), pick(found, "multiclass_brier_score")
    assert error.value == pytest.approx((2 * 1 / 4 + 3 * (2 / 3 - 1 / 2)) / 5, abs=1e-6)  # float32
    right_of_two, right_of_three, wrong = 2 / 16, 1 / 4 + 2 / 16, (3 / 4) ** 2 + 1 / 4 + 1 / 16
    assert brier.value == pytest.approx((2 * right_of_two + 2 * right_of_three + wrong) / 5, abs=1e-6)
    assert brier.protocol["chance"] == pytest.approx((2 * 1 / 2 + 3 * 2 / 3) / 5)
    assert pick(found, "multiclass_brier_score", "s").value == pytest.approx(right_of_two, abs=1e-6)


def test_a_split_without_findings_says_so(embed_by_hand):
    found = measure(make_inputs(embed_by_hand(AXES[:2], ["a", "b"])))
    assert {figure.value for figure in found.measured} == {None}
    assert found.details == {}
    assert len(found.measured) == 10
