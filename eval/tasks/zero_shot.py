"""Zero-shot classification of whole images: is the finding shown, and which one is it?

Asked without boxes; with presence prompts alone, against their denials, and as an ensemble; and once more of image
embeddings that are fused with the given boxes, or with those that the model proposes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.classification import weighted_auroc, weighted_average_precision
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.fused_embedding import embed_fused
from regionmed_clip.eval.tasks.measured import Measured, iter_strata, skipped
from regionmed_clip.eval.tasks.presence_figures import (
    TASK,
    Scored,
    choose_thresholds,
    f1_columns,
    plan_macro_ap,
    plan_macro_auroc,
    plan_macro_f1,
    plan_micro,
    wide_strata,
)
from regionmed_clip.eval.tasks.prompting import (
    Encode,
    Prompting,
    prompt_against_absence,
    prompt_ensemble,
    prompt_presence,
)
from regionmed_clip.eval.tasks.question_figures import Column, Plan, measure_plans
from regionmed_clip.eval.tasks.questions import PresenceQuestion, presence_questions
from regionmed_clip.eval.tasks.region_readings import TRAINED_READING
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs
from regionmed_clip.eval.tasks.tuning import find_tuning, tuned_on
from regionmed_clip.eval.tasks.zero_shot_classes import measure_classes

BOX_READINGS = {  # suffix of a metric -> what the image embeddings are fused with
    "_given_boxes": "given boxes, which tell where, and that, something was annotated: an upper bound",
    "_proposed_boxes": "regions that the model proposes",
}


def zero_shot_questions(embedded: EmbeddedSplit) -> list[tuple[str, str, str]]:
    """(source, modality, finding) of every presence question; see `presence_questions`."""
    return [(question.source, question.modality, question.finding) for question in presence_questions(embedded)]


def measure_zero_shot(embedded: EmbeddedSplit, encode: Encode, *, seed: int = 0) -> list[Measured]:
    """`macro_auroc` of every stratum: the mean over its questions of the AUROC of cosine(image, presence prompts).

    Args:
        encode: texts -> (T, D) unit embeddings; called once with all prompts, where there are any.
    """
    questions = presence_questions(embedded)
    scored = Scored.of(prompt_presence(embedded, questions, encode), embedded.image_embeds, questions)
    plans = plan_macro_auroc(scored, scored.columns(weighted_auroc), list(iter_strata(embedded)))
    return measure_plans(TASK, plans, embedded, seed)


def measure(inputs: TaskInputs) -> TaskFindings:
    """Every figure of zero-shot classification.

    Presence: `macro_auroc`, `macro_ap`, `micro_auroc`, `micro_ap`, `macro_f1` (the threshold of each finding chosen on
    the tuning split), all of them with `_pos_neg` for presence against absence; `macro_auroc_ensemble`; `macro_auroc`
    and `macro_ap` with `_given_boxes` and `_proposed_boxes`. AUROCs are taken in every stratum, the others in the whole
    and in each source. Single label: `zero_shot_accuracy` and `zero_shot_balanced_accuracy`, with both box suffixes.
    A brief look takes `macro_auroc` alone.
    """
    if inputs.is_brief:
        return TaskFindings(measured=measure_zero_shot(inputs.embedded, inputs.encode, seed=inputs.seed))
    fused, skips = _fuse(inputs)
    classes = measure_classes(inputs.embedded, fused, inputs.encode, seed=inputs.seed)
    presence = _measure_presence(inputs, fused)
    return TaskFindings(
        measured=[*presence.measured, *classes.measured, *skips], details={**presence.details, **classes.details}
    )


def _fuse(inputs: TaskInputs) -> tuple[dict[str, np.ndarray], list[Measured]]:
    """(suffix -> (N, D) fused image embeddings, []), or ({}, skipped figures) of a model whose regions are not its own.

    The fusion reads regions by the ROI processor, whatever the reading of the regions: untrained, it would be noise.
    """
    if inputs.region_reading != TRAINED_READING:
        reason = f"the region path is not trained: regions are read by {inputs.region_reading}"
        whole, n = next(iter_strata(inputs.embedded)), inputs.embedded.num_images
        metrics = [f"{name}{suffix}" for suffix in BOX_READINGS for name in ("macro_auroc", "zero_shot_accuracy")]
        return {}, [skipped(TASK, metric, reason, n=n, stratum=whole) for metric in metrics]
    fused = embed_fused(inputs.model, inputs.processor, inputs.examples, **inputs.pass_options)
    if fused.image_ids != inputs.embedded.image_ids:
        raise ValueError(
            f"a second pass over the split gave {len(fused.image_ids)} images in another order or number than the "
            f"first, {inputs.embedded.num_images}; examples must come in a fixed order. Give a list or a Dataset."
        )
    return {"_given_boxes": fused.given, "_proposed_boxes": fused.proposed}, []


def _measure_presence(inputs: TaskInputs, fused: Mapping[str, np.ndarray]) -> TaskFindings:
    """The figures of the presence questions and, as details, one row for each."""
    embedded, questions = inputs.embedded, presence_questions(inputs.embedded)
    if not questions:
        return TaskFindings(measured=measure_zero_shot(embedded, inputs.encode, seed=inputs.seed))
    every, wide = list(iter_strata(embedded)), list(wide_strata(embedded))
    plain, versus, ensemble = (
        prompt(embedded, questions, inputs.encode)
        for prompt in (prompt_presence, prompt_against_absence, prompt_ensemble)
    )
    shown: dict[str, Sequence[Column | None]] = {}  # columns of the table of findings
    plans: list[Plan | Measured] = []
    for prompting in (plain, versus):
        scored = Scored.of(prompting, embedded.image_embeds, questions)
        shown |= _plan_rankings(scored, every, wide, plans)
        plans += plan_micro(scored, wide)
        shown |= _plan_f1(inputs, prompting, scored, plans)
    scored = Scored.of(ensemble, embedded.image_embeds, questions)
    shown[f"AUROC{scored.suffix}"] = scored.columns(weighted_auroc)
    plans += plan_macro_auroc(scored, shown[f"AUROC{scored.suffix}"], wide)
    for suffix, embeds in fused.items():
        scored = Scored.of(plain, embeds, questions)
        protocol = {**scored.protocol, "fused_with": BOX_READINGS[suffix]}
        shown |= _plan_rankings(replace(scored, suffix=suffix, protocol=protocol), every, wide, plans)
    return TaskFindings(
        measured=measure_plans(TASK, plans, embedded, inputs.seed),
        details={"findings": _rows(questions, shown)},
    )


def _plan_rankings(
    scored: Scored, every: Sequence[Any], wide: Sequence[Any], plans: list[Plan | Measured]
) -> dict[str, Sequence[Column | None]]:
    """The columns of AUROC and average precision by title; their figures are added to `plans`."""
    aurocs, precisions = scored.columns(weighted_auroc), scored.columns(weighted_average_precision)
    plans += plan_macro_auroc(scored, aurocs, every)
    plans += plan_macro_ap(scored, precisions, wide)
    return {f"AUROC{scored.suffix}": aurocs, f"AP{scored.suffix}": precisions}


def _plan_f1(
    inputs: TaskInputs, prompting: Prompting, scored: Scored, plans: list[Plan | Measured]
) -> dict[str, Sequence[Column | None]]:
    """The columns of F1 by title; its figures, or why there are none, are added to `plans`."""
    tuning, why_not = find_tuning(inputs)
    wide = list(wide_strata(inputs.embedded))
    if tuning is None:
        metric, n = f"macro_f1{scored.suffix}", inputs.embedded.num_images
        plans.append(skipped(TASK, metric, why_not, n=n, stratum=wide[0]))
        return {}
    tuned = Scored.of(prompting, tuning.image_embeds, [question.asked_of(tuning) for question in scored.questions])
    thresholds = choose_thresholds(tuned)
    columns = f1_columns(scored, thresholds)
    plans += plan_macro_f1(scored, columns, thresholds, wide, tuned_on(inputs, tuning.num_images))
    return {f"F1{scored.suffix}": columns}


def _rows(questions: Sequence[PresenceQuestion], shown: Mapping[str, Sequence[Column | None]]) -> list[dict[str, Any]]:
    """A row for each question: what it asks, of how many images, how many show it, and its value in every column."""
    rows = []
    for place, question in enumerate(questions):
        row = {"source": question.source, "finding": question.name, "images": len(question.images)}
        row["shown"] = int(question.is_shown.sum())
        for title, columns in shown.items():
            column = columns[place]
            row[title] = None if column is None else round(column.value(), 3)
        rows.append(row)
    return rows
