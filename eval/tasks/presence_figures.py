"""Figures of presence questions, planned for the strata: macro and micro AUROC and average precision, macro F1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.classification import (
    best_f1_threshold,
    weighted_auroc,
    weighted_average_precision,
    weighted_f1_at,
)
from regionmed_clip.eval.metrics.ranking import chance_of_precision
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.measured import Measured, Stratum, iter_strata, skipped
from regionmed_clip.eval.tasks.prompting import Prompting
from regionmed_clip.eval.tasks.question_figures import Column, Plan
from regionmed_clip.eval.tasks.questions import PresenceQuestion, belongs
from regionmed_clip.eval.tasks.tuning import MIN_TUNING_ITEMS

TASK = "zero_shot"
NO_QUESTION = "no finding that some images show and others do not"
WeightedStatistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # scores, is_positive, weights -> (b,)


@dataclass(frozen=True)
class Scored:
    """Presence questions and the scores that one way of asking gives the images of a split.

    Attributes:
        suffix: what the way adds to the names of metrics.
        scores: for each question (n,) float; higher says shown.
        protocol: what every figure's protocol says of the way.
    """

    suffix: str
    questions: Sequence[PresenceQuestion]
    scores: Sequence[np.ndarray]
    protocol: Mapping[str, Any]

    @classmethod
    def of(cls, prompting: Prompting, image_embeds: np.ndarray, questions: Sequence[PresenceQuestion]) -> Scored:
        """The questions as `prompting` puts them to the image embeddings (N, D)."""
        return cls(prompting.suffix, questions, prompting.scores(image_embeds, questions), prompting.protocol)

    def columns(self, statistic: WeightedStatistic) -> list[Column]:
        """A statistic of scores and truth, for each question."""
        pairs = zip(self.questions, self.scores, strict=True)
        return [Column(question.images, partial(statistic, scores, question.is_shown)) for question, scores in pairs]

    def chosen(self, stratum: Stratum) -> list[int]:
        """Places of the questions that belong to the stratum."""
        return [place for place, question in enumerate(self.questions) if belongs(question, stratum)]

    def prevalences(self, chosen: Sequence[int]) -> np.ndarray:
        """(C,) share of the chosen questions' images that show the finding."""
        return np.array([self.questions[place].is_shown.mean() for place in chosen])

    def names(self, chosen: Sequence[int]) -> list[str]:
        """The chosen questions for a table; with their sources where two would be named alike."""
        names = [self.questions[place].name for place in chosen]
        if len(set(names)) == len(names):
            return names
        return [f"{self.questions[place].source}, {name}" for place, name in zip(chosen, names, strict=True)]


def wide_strata(embedded: EmbeddedSplit) -> Iterator[Stratum]:
    """The whole and the sources, without their modalities."""
    return (stratum for stratum in iter_strata(embedded) if stratum.name is None)


def plan_macro_auroc(scored: Scored, columns: Sequence[Column], strata: Sequence[Stratum]) -> list[Plan | Measured]:
    """`macro_auroc` with the suffix of each stratum; a stratum without a question is skipped with the reason."""
    plans: list[Plan | Measured] = []
    metric = f"macro_auroc{scored.suffix}"
    for stratum in strata:
        chosen = scored.chosen(stratum)
        if not chosen:
            plans.append(skipped(TASK, metric, NO_QUESTION, n=int(stratum.is_member.sum()), stratum=stratum))
            continue
        own = [columns[place] for place in chosen]
        values = [round(column.value(), 4) for column in own]
        protocol = {"gallery": len(own), **scored.protocol, "chance": 0.5}
        protocol["per_finding"] = dict(zip(scored.names(chosen), values, strict=True))
        plans.append(Plan(metric, stratum, own, protocol))
    return plans


def plan_macro_ap(scored: Scored, columns: Sequence[Column], strata: Sequence[Stratum]) -> list[Plan]:
    """`macro_ap` with the suffix of each stratum that has a question; chance is that of scores at random."""
    plans = []
    for stratum in strata:
        if chosen := scored.chosen(stratum):
            chance = _chance_of_precision([scored.questions[place].is_shown for place in chosen])
            protocol = {"gallery": len(chosen), **scored.protocol, "chance": chance}
            own = [columns[place] for place in chosen]
            plans.append(Plan(f"macro_ap{scored.suffix}", stratum, own, protocol, is_centred=True))
    return plans


def plan_micro(scored: Scored, strata: Sequence[Stratum]) -> list[Plan]:
    """`micro_auroc` and `micro_ap` with the suffix of each stratum that has a question.

    All its pairs of an image and a finding are ranked as one list.
    """
    plans = []
    for stratum in strata:
        if not (chosen := scored.chosen(stratum)):
            continue
        questions = [scored.questions[place] for place in chosen]
        is_shown = np.concatenate([question.is_shown for question in questions])
        scores = np.concatenate([scored.scores[place] for place in chosen])
        images = np.concatenate([question.images for question in questions])
        shared = {
            "gallery": len(chosen),
            **scored.protocol,
            "images": int(stratum.is_member.sum()),
            "pooled": "one ranking of all pairs of an image and a finding",
        }
        rankings = (
            ("micro_auroc", weighted_auroc, 0.5),
            ("micro_ap", weighted_average_precision, _chance_of_precision([is_shown])),
        )
        for name, statistic, chance in rankings:
            column = Column(images, partial(statistic, scores, is_shown))
            protocol, is_centred = shared | {"chance": chance}, name == "micro_ap"
            plans.append(Plan(f"{name}{scored.suffix}", stratum, [column], protocol, len(images), is_centred))
    return plans


def _chance_of_precision(truths: Sequence[np.ndarray]) -> float:
    """The mean over questions of the average precision of scores at random; `truths`: of each (n,) bool."""
    sizes = np.array([(is_shown.sum(), len(is_shown)) for is_shown in truths])
    return float(chance_of_precision(*sizes.T).mean())


def choose_thresholds(scored: Scored) -> list[float | None]:
    """The threshold of each question that gives its best F1 on these images, which are those of the tuning split.

    None where there are fewer than MIN_TUNING_ITEMS images, or none that shows the finding, or none that does not.
    """
    pairs = zip(scored.questions, scored.scores, strict=True)
    return [
        best_f1_threshold(scores, q.is_shown) if q.has_both and len(q.images) >= MIN_TUNING_ITEMS else None
        for q, scores in pairs
    ]


def f1_columns(scored: Scored, thresholds: Sequence[float | None]) -> list[Column | None]:
    """The F1 of each question at its threshold, None without one: shown is what scores at least the threshold."""
    trios = zip(scored.questions, scored.scores, thresholds, strict=True)
    return [
        None if least is None else Column(q.images, partial(weighted_f1_at, scores, q.is_shown, least))
        for q, scores, least in trios
    ]


def plan_macro_f1(
    scored: Scored,
    columns: Sequence[Column | None],
    thresholds: Sequence[float | None],
    strata: Sequence[Stratum],
    tuned_on: Mapping[str, Any],
) -> list[Plan | Measured]:
    """`macro_f1` with the suffix of each stratum that has a question; chance is that of always saying shown."""
    plans: list[Plan | Measured] = []
    metric = f"macro_f1{scored.suffix}"
    for stratum in strata:
        chosen = scored.chosen(stratum)
        tuned = [place for place in chosen if columns[place] is not None]
        if chosen and not tuned:
            reason = (
                f"the tuning split has no finding of these that some of at least {MIN_TUNING_ITEMS} images show and "
                "others do not"
            )
            size = int(stratum.is_member.sum())
            plans.append(skipped(TASK, metric, reason, n=size, stratum=stratum, tuned_on=dict(tuned_on)))
        elif tuned:
            prevalences = scored.prevalences(tuned)
            protocol = {
                "gallery": len(tuned),
                **scored.protocol,
                "chance": float((2 * prevalences / (1 + prevalences)).mean()),
                "threshold": "of each finding the one of best F1 on the tuning split",
                "tuned_on": dict(tuned_on),
                "left_out": scored.names([place for place in chosen if columns[place] is None]),
            }
            plans.append(Plan(metric, stratum, [columns[place] for place in tuned], protocol))
    return plans
