"""Zero-shot classification with a single label: of the classes of a modality of a source, which one is it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.ranking import even_products
from regionmed_clip.eval.prompts import normal_prompts, presence_prompts
from regionmed_clip.eval.tasks.class_figures import balanced_figure
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata, skipped
from regionmed_clip.eval.tasks.prompting import Encode, mean_embeddings, unit
from regionmed_clip.eval.tasks.questions import (
    MIN_IMAGES_OF_CLASS,
    NO_FINDING,
    ClassQuestion,
    class_questions,
    study_of,
)
from regionmed_clip.eval.tasks.task_inputs import TaskFindings

TASK = "zero_shot"
NO_CLASSES = (
    "no modality of a source has two classes: findings of which an image shows one, or of which at least "
    f"{MIN_IMAGES_OF_CLASS} images show nothing else"
)
TIES = "pessimistic: an equal score of another class is an error"
NUM_WORST = 10


@dataclass(frozen=True)
class ClassPrompts:
    """What stands for the classes: for each question (C, D) unit classifiers, and all texts."""

    classifiers: list[np.ndarray]
    texts: list[str]

    @classmethod
    def of(cls, embedded: EmbeddedSplit, questions: Sequence[ClassQuestion], encode: Encode) -> ClassPrompts:
        """Presence prompts of every finding, and of `NO_FINDING` those of a normal image; encoded in one call."""
        groups = []
        for question in questions:
            study = study_of(embedded, question.source, question.modality)
            for label in question.labels:
                groups.append(normal_prompts(study) if label == NO_FINDING else presence_prompts(study, label))
        ends = np.cumsum([len(question.labels) for question in questions])
        means = unit(mean_embeddings(groups, encode))
        return cls(np.split(means, ends[:-1]), [text for group in groups for text in group])

    @property
    def protocol(self) -> dict[str, Any]:
        """What was said: how many texts, their hash and the description."""
        texts = set(self.texts)
        description = "presence only, against the other classes of the same source and modality"
        return {"unique_texts": len(texts), "prompts_sha256": hash_texts(texts), "prompts": description}

    def scores(self, image_embeds: np.ndarray, questions: Sequence[ClassQuestion]) -> list[np.ndarray]:
        """For each question (n, C) cosines of its images with its classes; the questions in the order of `of`."""
        pairs = zip(questions, self.classifiers, strict=True)
        return [even_products(image_embeds[question.images], vectors) for question, vectors in pairs]


@dataclass(frozen=True)
class Answers:
    """The answers to all questions, one after the other, Q images.

    Attributes:
        images, classes: (Q,) int64 row, and class of the truth, told apart over all questions.
        is_correct: (Q,) bool. num_classes: (Q,) int64 of the image's question. is_commonest: (Q,) bool, whether the
            truth is the commonest class of the question.
    """

    images: np.ndarray
    classes: np.ndarray
    is_correct: np.ndarray
    num_classes: np.ndarray
    is_commonest: np.ndarray

    @classmethod
    def of(cls, questions: Sequence[ClassQuestion], scores: Sequence[np.ndarray]) -> Answers:
        """The class of the highest score answers; an equal score of another class makes it wrong."""
        columns, num_before = [], 0
        for question, of_question in zip(questions, scores, strict=True):
            truth, rows = question.truth, np.arange(len(question.truth))
            others = of_question.copy()
            others[rows, truth] = -np.inf
            is_correct = of_question[rows, truth] > others.max(axis=1)
            is_commonest = truth == np.bincount(truth).argmax()
            sizes = np.full(len(truth), len(question.labels))
            columns.append((question.images, truth + num_before, is_correct, sizes, is_commonest))
            num_before += len(question.labels)
        return cls(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    def among(self, is_asked: np.ndarray) -> Answers:
        """Those of `is_asked` (Q,) bool."""
        values = self.images, self.classes, self.is_correct, self.num_classes, self.is_commonest
        return Answers(*(value[is_asked] for value in values))


def measure_classes(
    embedded: EmbeddedSplit, fused: Mapping[str, np.ndarray], encode: Encode, *, seed: int = 0
) -> TaskFindings:
    """`zero_shot_accuracy` and `zero_shot_balanced_accuracy` of every stratum that is asked.

    Args:
        fused: suffix of the metrics -> (N, D) other embeddings of the same images.
    """
    questions = class_questions(embedded)
    whole = next(iter_strata(embedded))
    if not questions:
        metrics = ("zero_shot_accuracy", "zero_shot_balanced_accuracy")
        skips = [skipped(TASK, metric, NO_CLASSES, n=0, stratum=whole) for metric in metrics]
        return TaskFindings(measured=skips)
    prompts = ClassPrompts.of(embedded, questions, encode)
    measured = []
    for suffix, embeds in {"": embedded.image_embeds, **fused}.items():
        answers = Answers.of(questions, prompts.scores(embeds, questions))
        for stratum in iter_strata(embedded):
            own = answers.among(stratum.is_member[answers.images])
            if len(own.images):
                measured += _figures(own, suffix, embedded, stratum, _protocol(questions, prompts, stratum), seed)
    details = _details(embedded, questions, prompts.scores(embedded.image_embeds, questions))
    return TaskFindings(measured=measured, details=details)


def _protocol(questions: Sequence[ClassQuestion], prompts: ClassPrompts, stratum: Stratum) -> dict[str, Any]:
    """What all single-label figures of a stratum share."""
    asked = [q for q in questions if stratum.is_member[q.images].any()]
    return {
        "gallery": sum(len(question.labels) for question in asked),
        **prompts.protocol,
        "ties": TIES,
        "classes": {question.name: list(question.labels) for question in asked},
        "images_left_out": sum(question.num_left_out for question in asked),
    }


def _figures(
    answers: Answers, suffix: str, embedded: EmbeddedSplit, stratum: Stratum, protocol: dict[str, Any], seed: int
) -> list[Measured]:
    """Accuracy and balanced accuracy of the answers of a stratum; patients are resampled whole."""
    clusters = embedded.image_clusters[answers.images]
    accuracy = mean_figure(
        TASK,
        f"zero_shot_accuracy{suffix}",
        answers.is_correct,
        clusters,
        stratum=stratum,
        seed=seed,
        protocol=protocol
        | {"chance": float((1 / answers.num_classes).mean()), "commonest_class": float(answers.is_commonest.mean())},
    )
    _, first = np.unique(answers.classes, return_index=True)
    balanced = balanced_figure(
        TASK,
        f"zero_shot_balanced_accuracy{suffix}",
        answers.is_correct,
        answers.classes,
        clusters,
        stratum=stratum,
        seed=seed,
        protocol=protocol | {"chance": float((1 / answers.num_classes[first]).mean())},
    )
    return [accuracy, balanced]


def _details(
    embedded: EmbeddedSplit, questions: Sequence[ClassQuestion], scores: Sequence[np.ndarray]
) -> dict[str, Any]:
    """The confusion matrix of every question, and the errors that were answered most surely."""
    confusion, errors = {}, []
    for question, of_question in zip(questions, scores, strict=True):
        answer, truth, size = of_question.argmax(axis=1), question.truth, len(question.labels)
        counts = np.bincount(truth * size + answer, minlength=size * size).reshape(size, size)
        confusion[question.name] = {"labels": list(question.labels), "counts": counts.tolist()}
        rows = np.arange(len(truth))
        margins = of_question[rows, answer] - of_question[rows, truth]
        for row in np.flatnonzero(answer != truth):
            errors.append(
                {
                    "image_id": embedded.image_ids[question.images[row]],
                    "data": question.name,
                    "truth": question.labels[truth[row]],
                    "answer": question.labels[answer[row]],
                    "cosine margin": round(float(margins[row]), 3),
                }
            )
    errors.sort(key=lambda error: (-error["cosine margin"], error["image_id"]))
    return {"confusion": confusion, "worst_errors": errors[:NUM_WORST]}
