"""Probes: what a linear classifier reads out of frozen embeddings, taught all training items or a few of each class.

Beside the zero-shot figures they tell whether the embedding or the prompt falls short. The penalty is chosen on the
tuning split for every number of shots; strictly few-shot it is not, as that split has more labels than the shots.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.classification import auroc, weighted_auroc
from regionmed_clip.eval.tasks.class_figures import balanced_figure
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.measured import Measured, Stratum, skipped
from regionmed_clip.eval.tasks.presence_figures import NO_QUESTION, wide_strata
from regionmed_clip.eval.tasks.probe_fitting import PENALTIES, Answered, Standard, answer, make_classifier
from regionmed_clip.eval.tasks.probe_items import ProbeItems, draw_shots, image_items, region_items, thin_items
from regionmed_clip.eval.tasks.question_figures import Column, Plan, measure_plans
from regionmed_clip.eval.tasks.questions import PresenceQuestion, belongs, class_questions, presence_questions
from regionmed_clip.eval.tasks.region import iter_label_questions
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs
from regionmed_clip.eval.tasks.tuning import MIN_TUNING_ITEMS, find_training, find_tuning, tuned_on
from regionmed_clip.eval.tasks.zero_shot_classes import NO_CLASSES

TASK = "probe"
SHOTS = (1, 4, 16)
NUM_DRAWS = 5
MAX_TAUGHT_REGIONS = 5000
IMAGE_PROBE, REGION_PROBE, PRESENCE_PROBE = (
    "probe_balanced_accuracy",
    "region_probe_balanced_accuracy",
    "probe_macro_auroc",
)


def measure(inputs: TaskInputs) -> TaskFindings:
    """Probes of images and of regions, in the whole and in each source.

    `probe_macro_auroc`: is a finding shown, the questions of `macro_auroc`. `probe_balanced_accuracy`: which class is
    it, the questions of `zero_shot_balanced_accuracy`; with `@k` taught k images of each class, the mean over NUM_DRAWS
    draws. `region_probe_balanced_accuracy`: the finding of a region among those of its source, likewise.
    """
    (training, why_not), (tuning, why_untuned) = find_training(inputs), find_tuning(inputs)
    embedded = inputs.embedded
    if training is None or tuning is None:
        names = PRESENCE_PROBE, *_names(IMAGE_PROBE), *_names(REGION_PROBE)
        return TaskFindings(measured=_skips(names, why_not or why_untuned, embedded))
    questions, labels_of = class_questions(embedded), _labels_of(embedded)
    splits = training, tuning, embedded
    images = [image_items(split, questions) for split in splits]
    regions = [region_items(split, labels_of) for split in splits]
    regions[0] = thin_items(regions[0], MAX_TAUGHT_REGIONS)

    def fit() -> list[Measured]:
        return [
            *_measure_presence(inputs, training, tuning),
            *_measure_classes(inputs, IMAGE_PROBE, "image embeddings", *images, NO_CLASSES),
            *_measure_classes(inputs, REGION_PROBE, "region embeddings", *regions, "no source with two findings"),
        ]

    return TaskFindings(measured=inputs.share.from_main(fit))  # no pass over images: one process is enough


def _labels_of(embedded: EmbeddedSplit) -> dict[str, list[str]]:
    """Source -> the findings among its regions, of the sources with at least two."""
    if not embedded.num_regions:
        return {}
    found = ((stratum.source, labels) for stratum, _, labels in iter_label_questions(embedded))
    return {str(source): labels for source, labels in found if len(labels) > 1}


def _names(metric: str) -> tuple[str, ...]:
    """The metric, taught everything and few of each class."""
    return metric, *(f"{metric}@{shots}" for shots in SHOTS)


def _measure_classes(
    inputs: TaskInputs,
    metric: str,
    features: str,
    training: ProbeItems,
    tuning: ProbeItems,
    test: ProbeItems,
    no_test: str,
) -> list[Measured]:
    """A probe that names the class, taught everything and taught few of each class."""
    embedded, strata = inputs.embedded, list(wide_strata(inputs.embedded))
    if not len(test):
        return _skips(_names(metric), no_test, embedded)
    for split, items, least in (("training", training, 2), ("tuning", tuning, MIN_TUNING_ITEMS)):
        if len(items) < least:
            reason = f"the {split} split has {len(items)} items of these classes, fewer than {least}"
            return _skips(_names(metric), reason, embedded, len(test))
    measured = []
    taught_counts = np.unique(training.classes(), return_counts=True)[1]
    for name, shots in zip(_names(metric), (None, *SHOTS), strict=True):
        if shots is not None and (taught_counts >= shots).sum() < 2:
            reason = f"fewer than two classes have {shots} items in the training split"
            measured += _skips([name], reason, embedded, len(test))
            continue
        draws = [training] if shots is None else _draws(training, shots, inputs.seed)
        answered = answer(draws, tuning, test)
        protocol = {
            "features": f"{features}, frozen",
            "train": {"split": "train", "n": len(training) if shots is None else len(draws[0])},
            "tuned_on": tuned_on(inputs, len(np.unique(tuning.images))),
            "penalty_c": answered.penalty,
            "penalties": list(PENALTIES),
            "not_taught": sorted(name.replace("\n", ": ") for name in set(test.classes()) - set(training.classes())),
        }
        if shots is not None:
            protocol |= {"shots": shots, "draws": len(draws), "draw_sd": float(np.std(answered.draw_values, ddof=1))}
            protocol["fixed"] = "the draws: the interval is over patients of the split under test"
        measured += [
            _class_figure(name, answered, test, stratum, is_own, inputs.seed, protocol)
            for stratum in strata
            if (is_own := stratum.is_member[test.images]).any()
        ]
    return measured


def _draws(training: ProbeItems, shots: int, seed: int) -> list[ProbeItems]:
    """NUM_DRAWS draws of few items of each class."""
    return [draw_shots(training, shots, draw, seed) for draw in range(NUM_DRAWS)]


def _class_figure(
    metric: str,
    answered: Answered,
    test: ProbeItems,
    stratum: Stratum,
    is_own: np.ndarray,
    seed: int,
    protocol: dict[str, Any],
) -> Measured:
    """The balanced accuracy of the items `is_own` (Q,) bool; patients are resampled whole."""
    values, own = answered.is_correct[is_own], test.take(is_own)
    classes = own.classes()
    names, counts = np.unique(classes, return_counts=True)
    group_of_class = [name.partition("\n")[0] for name in names.tolist()]
    protocol = {
        "gallery": len(names),
        **protocol,
        "chance": float(np.mean([1 / group_of_class.count(group) for group in group_of_class])),
        "classes": {name.replace("\n", ": "): int(count) for name, count in zip(names, counts, strict=True)},
    }
    return balanced_figure(TASK, metric, values, classes, own.clusters, stratum=stratum, seed=seed, protocol=protocol)


def _measure_presence(inputs: TaskInputs, training: EmbeddedSplit, tuning: EmbeddedSplit) -> list[Measured]:
    """`probe_macro_auroc`: one probe for each presence question that training can teach, one penalty for all."""
    embedded, questions = inputs.embedded, presence_questions(inputs.embedded)
    if not questions:
        return _skips([PRESENCE_PROBE], NO_QUESTION, embedded)
    taught = [question.asked_of(training) for question in questions]
    tuned = [question.asked_of(tuning) for question in questions]
    places = [place for place, question in enumerate(taught) if question.has_both]
    usable = [place for place in places if tuned[place].has_both and len(tuned[place].images) >= MIN_TUNING_ITEMS]
    if not usable:
        reason = (
            "no finding is shown by some, and not by others, of the training images and of at least "
            f"{MIN_TUNING_ITEMS} tuning images"
        )
        return _skips([PRESENCE_PROBE], reason, embedded, embedded.num_images)
    standard = Standard.of(training.image_embeds)
    inputs_of = [standard(split.image_embeds) for split in (training, tuning, embedded)]
    found = []
    for penalty in PENALTIES:
        scores = [_presence_scores(taught[p], tuned[p], questions[p], *inputs_of, penalty) for p in places]
        aurocs = [auroc(s, tuned[p].is_shown) for p, (s, _) in zip(places, scores, strict=True) if p in usable]
        found.append((float(np.mean(aurocs)), [of_test for _, of_test in scores]))
    best = int(np.argmax([score for score, _ in found]))
    columns = [
        Column(questions[place].images, partial(weighted_auroc, scores, questions[place].is_shown))
        for place, scores in zip(places, found[best][1], strict=True)
    ]
    protocol = {
        "features": "image embeddings, frozen",
        "train": {"split": "train", "n": training.num_images},
        "tuned_on": tuned_on(inputs, tuning.num_images),
        "penalty_c": PENALTIES[best],
        "penalties": list(PENALTIES),
        "chance": 0.5,
        "not_taught": [question.name for place, question in enumerate(questions) if place not in places],
    }
    plans = []
    for stratum in wide_strata(embedded):
        own = [column for place, column in zip(places, columns, strict=True) if belongs(questions[place], stratum)]
        if own:
            plans.append(Plan(PRESENCE_PROBE, stratum, own, {"gallery": len(own), **protocol}))
    return measure_plans(TASK, plans, embedded, inputs.seed)


def _presence_scores(
    taught: PresenceQuestion,
    tuned: PresenceQuestion,
    asked: PresenceQuestion,
    of_training: np.ndarray,
    of_tuning: np.ndarray,
    of_test: np.ndarray,
    penalty: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the tuning and of the test images of a question by a probe taught the training images."""
    classifier = make_classifier(penalty).fit(of_training[taught.images], taught.is_shown)
    decide = classifier.decision_function
    none = np.zeros(0)
    return decide(of_tuning[tuned.images]) if len(tuned.images) else none, decide(of_test[asked.images])


def _skips(metrics: Sequence[str], reason: str, embedded: EmbeddedSplit, n: int = 0) -> list[Measured]:
    """The figures of the whole, skipped."""
    whole = next(iter(wide_strata(embedded)))
    return [skipped(TASK, metric, reason, n=n, stratum=whole) for metric in metrics]
