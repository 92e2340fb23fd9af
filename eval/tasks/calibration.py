"""Calibration: are findings said to be shown with probability p shown in a share p of the images, and after scaling?

Two kinds of probability are looked at. Presence: the softmax over presence and absence prompts of a finding. Single
label: the softmax over the classes of a modality of a source. Both at the model's own temperature, then at that which
is likeliest on the tuning split; it moves no answer and no ranking. Of presence also after Platt scaling, by one slope
and one offset for all findings: a temperature cannot say that most findings are not shown in most images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from regionmed_clip.eval.metrics.calibration import (
    NUM_BINS,
    brier_losses,
    expected_calibration_error,
    fit_binary_temperature,
    fit_temperature,
    reliability_bins,
    sigmoid,
    softmax,
    weighted_expected_calibration_error,
)
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.measured import Measured, Stratum, skipped
from regionmed_clip.eval.tasks.presence_figures import NO_QUESTION, wide_strata
from regionmed_clip.eval.tasks.prompting import prompt_against_absence
from regionmed_clip.eval.tasks.question_figures import Column, Plan, measure_plans
from regionmed_clip.eval.tasks.questions import class_questions, presence_questions
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs
from regionmed_clip.eval.tasks.tuning import MIN_TUNING_ITEMS, find_tuning, tuned_on
from regionmed_clip.eval.tasks.zero_shot_classes import NO_CLASSES, ClassPrompts

TASK = "calibration"
NUM_SIMULATIONS = 50  # of outcomes drawn from the probabilities themselves
TITLES = {"": "", "_scaled": ", temperature scaled", "_platt": ", Platt scaled"}
_NO_PENALTY = 1e6  # so little that the line stays the likeliest, and finite where the tuning split is separable
_NEVER = -1e7  # logit of a class that a question does not have: finite, for 0 x infinity is no number


@dataclass(frozen=True)
class Judged:
    """Probabilities beside what came true, Q items, each of one image.

    Attributes:
        images: (Q,) int64 rows. confidence: (Q,) float64. came_true: (Q,) bool. losses: (Q,) float64 Brier losses.
    """

    images: np.ndarray
    confidence: np.ndarray
    came_true: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Logits:
    """What a model says of Q items, each of one image.

    Attributes:
        images: (Q,) int64 rows.
        logits: (Q,) float, of presence; or (Q, C), of classes.
        outcomes: (Q,) bool, shown; or (Q,) int64, the true class.
        base_losses: (Q,) float64 mean Brier loss of saying the shares of outcomes that the item's question has.
    """

    images: np.ndarray
    logits: np.ndarray
    outcomes: np.ndarray
    base_losses: np.ndarray

    @property
    def can_be_fitted(self) -> bool:
        """Whether there are MIN_TUNING_ITEMS, and of presence both outcomes."""
        has_both = self.logits.ndim == 2 or 0 < self.outcomes.sum() < len(self.outcomes)
        return len(self.outcomes) >= MIN_TUNING_ITEMS and has_both

    def fit_temperature(self) -> float:
        """The likeliest temperature."""
        return (fit_binary_temperature if self.logits.ndim == 1 else fit_temperature)(self.logits, self.outcomes)

    def fit_line(self) -> tuple[float, float]:
        """Slope and offset of the likeliest line through the logits of presence (Platt scaling)."""
        line = LogisticRegression(C=_NO_PENALTY, max_iter=1000).fit(self.logits[:, None], self.outcomes)
        return float(line.coef_[0, 0]), float(line.intercept_[0])

    def at(self, slope: float = 1.0, offset: float = 0.0) -> Judged:
        """The probabilities on a line through the logits: of presence that of the finding, of classes of the answer.

        Args:
            slope: the inverse temperature. offset: of presence alone.
        """
        if self.logits.ndim == 1:
            probabilities = sigmoid(slope * self.logits + offset)
            return Judged(self.images, probabilities, self.outcomes, brier_losses(probabilities, self.outcomes))
        probabilities = softmax(slope * self.logits)
        is_right = probabilities.argmax(axis=1) == self.outcomes
        return Judged(self.images, probabilities.max(axis=1), is_right, brier_losses(probabilities, self.outcomes))


LogitsOfSplit = Callable[[EmbeddedSplit], Logits]


@dataclass(frozen=True)
class Subject:
    """One kind of probability: its title, the names of its two figures, and the protocol that they share."""

    title: str
    error_metric: str
    brier_metric: str
    protocol: Mapping[str, Any]


def measure(inputs: TaskInputs) -> TaskFindings:
    """The figures of the whole and of each source, and reliability bins as details.

    Presence: `expected_calibration_error` and `brier_score`, over all pairs of an image and a finding. Single label:
    `top_label_calibration_error` and `multiclass_brier_score`. All of them again with `_scaled`, by a temperature, and
    those of presence with `_platt`.
    """
    parts = [_measure_presence(inputs), _measure_classes(inputs)]
    bins = {title: rows for part in parts for title, rows in part.details.items()}
    return TaskFindings(
        measured=[figure for part in parts for figure in part.measured], details={"reliability": bins} if bins else {}
    )


def _measure_presence(inputs: TaskInputs) -> TaskFindings:
    """Figures of the probability that a finding is shown."""
    embedded, questions = inputs.embedded, presence_questions(inputs.embedded)
    names = ("expected_calibration_error", "brier_score")
    if not questions:
        return _nothing(inputs, names, ("", "_scaled", "_platt"), NO_QUESTION)
    prompting = prompt_against_absence(embedded, questions, inputs.encode)

    def logits_of(split: EmbeddedSplit) -> Logits:
        asked = [question.asked_of(split) for question in questions]
        shares = [q.is_shown.mean() if len(q.images) else 0.0 for q in asked]
        return Logits(
            images=np.concatenate([question.images for question in asked]),
            logits=_scale(inputs) * np.concatenate(prompting.scores(split.image_embeds, asked)).astype(np.float64),
            outcomes=np.concatenate([question.is_shown for question in asked]),
            base_losses=np.repeat([share * (1 - share) for share in shares], [len(q.images) for q in asked]),
        )

    protocol = {"gallery": len(questions), **prompting.protocol}
    return _measure_subject(inputs, Subject("finding shown", *names, protocol), logits_of)


def _measure_classes(inputs: TaskInputs) -> TaskFindings:
    """Figures of the probability of the answer, where one class is asked for."""
    embedded, questions = inputs.embedded, class_questions(inputs.embedded)
    names = ("top_label_calibration_error", "multiclass_brier_score")
    if not questions:
        return _nothing(inputs, names, ("", "_scaled"), NO_CLASSES)
    prompts = ClassPrompts.of(embedded, questions, inputs.encode)
    width = max(len(question.labels) for question in questions)

    def logits_of(split: EmbeddedSplit) -> Logits:
        asked = [question.asked_of(split) for question in questions]
        padded, losses = [np.zeros((0, width))], [np.zeros(0)]
        for question, scores in zip(asked, prompts.scores(split.image_embeds, asked), strict=True):
            padded.append(np.full((len(scores), width), _NEVER))
            padded[-1][:, : scores.shape[1]] = _scale(inputs) * scores.astype(np.float64)
            counts = np.bincount(question.truth, minlength=width)
            losses.append(np.full(len(scores), 1 - (counts**2).sum() / max(counts.sum(), 1) ** 2))
        return Logits(
            images=np.concatenate([question.images for question in asked]),
            logits=np.concatenate(padded),
            outcomes=np.concatenate([question.truth for question in asked]),
            base_losses=np.concatenate(losses),
        )

    protocol = {"gallery": sum(len(question.labels) for question in questions), **prompts.protocol}
    return _measure_subject(inputs, Subject("answer right", *names, protocol), logits_of)


def _scale(inputs: TaskInputs) -> float:
    """The inverse temperature by which the model itself turns cosines of images and texts into logits."""
    return float(inputs.model.temperatures("image_text").detach().float())


def _measure_subject(
    inputs: TaskInputs, subject: Subject, logits_of: Callable[[EmbeddedSplit], Logits]
) -> TaskFindings:
    """The figures of one kind of probability, and its bins by title; `logits_of`: of a split."""
    of_test, wide = logits_of(inputs.embedded), list(wide_strata(inputs.embedded))
    ways: dict[str, tuple[Judged, dict[str, Any]]] = {"": (of_test.at(), {"temperature": 1 / _scale(inputs)})}
    plans: list[Plan | Measured] = []
    tuning, why_not = find_tuning(inputs)
    of_tuning = None if tuning is None else logits_of(tuning)
    is_binary = of_test.logits.ndim == 1
    if of_tuning is None or not of_tuning.can_be_fitted:
        reason = why_not or f"the tuning split has no {MIN_TUNING_ITEMS} items of both outcomes to fit a temperature"
        for suffix in ("_scaled", "_platt")[: 1 + is_binary]:
            names = f"{subject.error_metric}{suffix}", f"{subject.brier_metric}{suffix}"
            plans += [skipped(TASK, name, reason, n=len(of_test.images), stratum=wide[0]) for name in names]
    else:
        chosen = tuned_on(inputs, len(np.unique(of_tuning.images))) | {"items": len(of_tuning.images)}
        factor = of_tuning.fit_temperature()
        ways["_scaled"] = of_test.at(1 / factor), {"temperature": factor / _scale(inputs), "tuned_on": chosen}
        if is_binary:
            slope, offset = of_tuning.fit_line()
            ways["_platt"] = of_test.at(slope, offset), {"slope": slope, "offset": offset, "tuned_on": chosen}
    details = {}
    for suffix, (judged, protocol) in ways.items():
        plans += _plans(subject, suffix, judged, of_test.base_losses, wide, protocol, inputs.seed)
        title = f"{subject.title}{TITLES[suffix]}"
        details[title] = reliability_bins(judged.confidence, judged.came_true)
    return TaskFindings(measured=measure_plans(TASK, plans, inputs.embedded, inputs.seed), details=details)


def _plans(
    subject: Subject,
    suffix: str,
    judged: Judged,
    base_losses: np.ndarray,
    strata: Sequence[Stratum],
    protocol: Mapping[str, Any],
    seed: int,
) -> list[Plan | Measured]:
    """Calibration error and Brier score, of every stratum that has an item."""
    plans: list[Plan | Measured] = []
    for stratum in strata:
        is_own = stratum.is_member[judged.images]
        if not is_own.any():
            continue
        images, confidence, came_true = judged.images[is_own], judged.confidence[is_own], judged.came_true[is_own]
        shared = {**subject.protocol, **protocol, "images": len(np.unique(images)), "lower_is_better": True}
        error_column = Column(images, partial(weighted_expected_calibration_error, confidence, came_true))
        if_calibrated = _error_if_calibrated(confidence, seed)
        of_error = shared | {"bins": NUM_BINS, "if_calibrated": if_calibrated}
        name = f"{subject.error_metric}{suffix}"
        plans.append(Plan(name, stratum, [error_column], of_error, n=len(images), is_centred=True))
        brier_column = Column(images, partial(_weighted_mean, judged.losses[is_own]))
        of_brier = shared | {"chance": float(base_losses[is_own].mean()), "chance_is": "always saying the true shares"}
        plans.append(Plan(f"{subject.brier_metric}{suffix}", stratum, [brier_column], of_brier, n=len(images)))
    return plans


def _error_if_calibrated(confidence: np.ndarray, seed: int) -> float:
    """The mean calibration error of outcomes drawn with the very probabilities (Q,): what a perfect model would show.

    Source: consistency resampling, Bröcker and Smith 2007, doi:10.1175/WAF993.1.
    """
    generator = np.random.default_rng(seed)
    errors = [
        expected_calibration_error(confidence, generator.random(len(confidence)) < confidence)
        for _ in range(NUM_SIMULATIONS)
    ]
    return float(np.mean(errors))


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(b,) float64 mean of values (Q,) under each row of item weights (b, Q); NaN where a row is all 0."""
    totals = weights.sum(axis=1)
    return np.divide(weights @ values, totals, out=np.full(len(weights), np.nan), where=totals > 0)


def _nothing(inputs: TaskInputs, metrics: Sequence[str], suffixes: Sequence[str], reason: str) -> TaskFindings:
    """The figures, skipped."""
    whole = next(iter(wide_strata(inputs.embedded)))
    names = [f"{metric}{suffix}" for suffix in suffixes for metric in metrics]
    return TaskFindings(measured=[skipped(TASK, name, reason, n=0, stratum=whole) for name in names])
