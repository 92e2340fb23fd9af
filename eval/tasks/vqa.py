"""Visual question answering: how many questions are answered right, by what the model is shown, beside its controls.

Of a model with an answer head: with the regions given, proposed and left out; with a black image and with that of
another patient; and what the most frequent training answer to each question would score. Of an encoder alone: the
answer whose statement is nearest to the image, or to the marked region.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from regionmed_clip.eval.tasks.measured import Measured, Stratum, skipped
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs
from regionmed_clip.eval.tasks.vqa_answers import View, answer_questions
from regionmed_clip.eval.tasks.vqa_facts import Answering
from regionmed_clip.eval.tasks.vqa_figures import TASK, AnsweredSplit, gain, table_by_kind
from regionmed_clip.eval.tasks.vqa_questions import AskedSplit, ask_split
from regionmed_clip.eval.tasks.vqa_statements import rank_statements, see_images, see_marked

GIVEN, PROPOSED = "_given_boxes", "_proposed_boxes"
BLANK, SHUFFLED = "_blank_image", "_shuffled_image"
MAJORITY, ZERO_SHOT = "_majority", "_zero_shot"
MAX_MISTAKES = 20  # rows of the details
NO_QUESTIONS = "the data have no questions"
NO_HEAD = "the model has no answer head"
ONE_PATIENT = "all images are of one patient: there is no other's to show"
MEANING = {  # suffix -> what the model is shown beside the question
    "": "the image, no region",
    GIVEN: "the image and the marked region, or all that are annotated where none is marked",
    PROPOSED: "the image and the regions that the model proposes",
    BLANK: "a black image, no region",
    SHUFFLED: "the image of another patient, no region",
    BLANK + GIVEN: "a black image and the given regions, so their boxes alone",
    SHUFFLED + GIVEN: "the image of another patient and the given regions, so their boxes alone",
    MAJORITY: "nothing: the most frequent training answer to the question, or to its kind where the question is new",
}


def measure(inputs: TaskInputs) -> TaskFindings:
    """The figures of the split under test, and as details tables of accuracy by kind and of frequent mistakes."""
    asked = ask_split(inputs.examples, inputs.question_choice)
    whole = Stratum(None, None, np.ones(inputs.embedded.num_images, dtype=bool))
    if not len(asked):
        return TaskFindings(measured=[skipped(TASK, "vqa_accuracy", NO_QUESTIONS, n=0, stratum=whole)])
    split = AnsweredSplit(
        asked, inputs.embedded.image_clusters[asked.images], inputs.embedded.image_sources[asked.images], inputs.seed
    )
    shared = {**inputs.question_choice.protocol(), "questions_left_out_by_balance": asked.num_left_out}
    if inputs.answering is None:
        nothing = skipped(TASK, "vqa_accuracy", NO_HEAD, n=len(asked), stratum=whole, **shared)
        return TaskFindings(measured=[nothing, *_zero_shot(inputs, split, shared)])
    answers, missing = _answers_by_view(inputs, inputs.answering, split)
    figures, details = _figures(inputs.answering, split, answers, shared)
    if inputs.is_brief:  # a control of another model, which has them
        figures = [figure for figure in figures if not figure.metric.endswith(MAJORITY)]
    figures += [skipped(TASK, f"vqa_accuracy{suffix}", why, n=0, stratum=whole) for suffix, why in missing.items()]
    return TaskFindings(measured=figures, details=details)


def views_of(asked: AskedSplit, is_brief: bool = False) -> dict[str, View]:
    """Suffix of the metrics -> what a model is shown; regions are given where there are any.

    Args:
        is_brief: leave out the other images.
    """
    regions = {"": "off", PROPOSED: "proposed"}
    if asked.has_regions[asked.images].any():
        regions[GIVEN] = "given"
    views = {suffix: View(name) for suffix, name in regions.items()}
    for image, which in ((BLANK, "blank"), (SHUFFLED, "shuffled")) if not is_brief else ():
        views |= {f"{image}{suffix}": View(name, which) for suffix, name in regions.items() if name != "proposed"}
    return views


def _answers_by_view(
    inputs: TaskInputs, answering: Answering, split: AnsweredSplit
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(suffix -> (Q,) str answers, suffix -> why there are none).

    A model that is asked without images answers alike with and without regions: it stands beside others in both.
    """
    asked, views, missing = split.asked, views_of(split.asked, inputs.is_brief), {}
    clusters = inputs.embedded.image_clusters
    if not answering.facts.has_images:
        alike = [suffix for suffix, view in views.items() if view.image == "as_is"]
        views = {"": View(image="none")}
    elif (clusters == clusters[0]).all():
        missing = {suffix: ONE_PATIENT for suffix, view in views.items() if view.image == "shuffled"}
        views = {suffix: view for suffix, view in views.items() if suffix not in missing}
    logits = answer_questions(
        answering.model,
        inputs.processor,
        inputs.examples,
        asked,
        list(views.values()),
        clusters=clusters,
        seed=inputs.seed,
        **inputs.pass_options,
    )
    names = np.array(answering.vocabulary.answers, dtype=str)
    answers = {suffix: names[of_view.argmax(axis=1)] for suffix, of_view in zip(views, logits, strict=True)}
    if not answering.facts.has_images:
        answers = dict.fromkeys(alike, answers[""])
    return answers, missing


def _figures(
    answering: Answering, split: AnsweredSplit, answers: Mapping[str, np.ndarray], shared: Mapping[str, Any]
) -> tuple[list[Measured], dict[str, Any]]:
    """The figures of the answers by view and of the majority, what regions and image gain, and the details."""
    asked, vocabulary, facts = split.asked, answering.vocabulary, answering.facts
    right = {suffix: said == asked.answers for suffix, said in answers.items()}
    chance = None
    if facts.by_kind:
        majority = np.array([facts.majority(question) or "" for question in asked.questions], dtype=str)
        chance = majority == asked.answers
    protocol = {
        **shared,
        "gallery": len(vocabulary),
        "answers_in_vocabulary": round(vocabulary.coverage(asked.questions), 4),
        "chance_is": MEANING[MAJORITY],
    }
    shown = MEANING if facts.has_images else dict.fromkeys(MEANING, "the question alone, no image")
    measured = []
    for suffix, outcomes in right.items():
        own, is_shown = {**protocol, "shown": shown[suffix]}, not suffix.startswith((BLANK, SHUFFLED))
        measured += split.figures(outcomes, suffix, own, chance, has_strata=is_shown)
    if facts.has_images:
        measured += _gains(measured, split.seed)
    if chance is not None:
        measured += split.figures(chance, MAJORITY, {**protocol, "shown": MEANING[MAJORITY]})
    titles = {suffix: suffix.strip("_").replace("_", " ") or "no region" for suffix in right}
    table = {titles[suffix]: outcomes for suffix, outcomes in right.items()}
    if chance is not None:
        table = {"majority": chance, **table}
    best = GIVEN if GIVEN in answers else ""
    details = {
        "accuracy by kind": table_by_kind(split, table),
        f"most frequent mistakes, {titles[best]}": _mistakes(asked, answers[best]),
    }
    return measured, details


def _gains(measured: Sequence[Measured], seed: int) -> Iterator[Measured]:
    """What given regions gain on marked and on other questions, and what the image gains over a black one."""
    by_metric = {figure.metric: figure for figure in measured if figure.source is None and figure.stratum is None}
    pairs = (
        ("vqa_marked_gain_given_boxes", "vqa_marked_accuracy", GIVEN, "", "regions given - left out"),
        ("vqa_unmarked_gain_given_boxes", "vqa_unmarked_accuracy", GIVEN, "", "regions given - left out"),
        ("vqa_gain_proposed_boxes", "vqa_accuracy", PROPOSED, "", "regions proposed - left out"),
        ("vqa_gain_image", "vqa_accuracy", "", BLANK, "the image - a black one"),
    )
    for metric, base, more, less, meaning in pairs:
        first, second = by_metric.get(f"{base}{more}"), by_metric.get(f"{base}{less}")
        if first is not None and second is not None and first.value is not None:
            yield gain(metric, first, second, seed, meaning)


def _mistakes(asked: AskedSplit, answers: np.ndarray) -> list[dict[str, Any]]:
    """Rows of (kind, truth, answer, n) of the most frequent wrong answers."""
    is_wrong = answers != asked.answers
    counts = Counter(zip(asked.kinds[is_wrong], asked.answers[is_wrong], answers[is_wrong], strict=True))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], *map(str, item[0])))[:MAX_MISTAKES]
    return [
        {"kind": str(kind), "truth": str(truth), "answer": str(said), "n": number}
        for (kind, truth, said), number in ranked
    ]


def _zero_shot(inputs: TaskInputs, split: AnsweredSplit, shared: Mapping[str, Any]) -> Iterator[Measured]:
    """The figures of the encoder alone, by statements: with the image, and with the marked region."""
    asked = split.asked
    views = {ZERO_SHOT: see_images(asked, inputs.embedded)}
    if asked.is_marked.any():
        boxes = marked_boxes(inputs.examples, asked)
        views[ZERO_SHOT + GIVEN] = see_marked(asked, inputs.embedded, boxes)
    shown = {
        ZERO_SHOT: "the image",
        ZERO_SHOT + GIVEN: "the marked region's own embedding, else the image",
    }
    ranked = rank_statements(asked, list(views.values()), inputs.encode)
    for suffix, of_view in zip(views, ranked, strict=True):
        protocol = {
            **shared,
            "gallery": int(of_view.num_candidates.max()),
            "mean_candidates": round(float(of_view.num_candidates.mean()), 2),
            "statements": of_view.num_statements,
            "candidates": "the answers to questions of the same kind in the split",
            "shown": shown[suffix],
            "chance_is": "one of the candidates at random",
        }
        outcomes = of_view.answers == asked.answers
        yield from split.figures(outcomes, suffix, protocol, 1.0 / of_view.num_candidates)


def marked_boxes(examples: Iterable[Mapping[str, Any]], asked: AskedSplit) -> list[tuple[float, ...] | None]:
    """Q boxes in original pixels of the marked regions; None without a mark."""
    found: list[tuple[float, ...] | None] = [None] * len(asked)
    places: dict[int, list[int]] = {}
    for place in np.flatnonzero(asked.is_marked).tolist():
        places.setdefault(int(asked.images[place]), []).append(place)
    for row, example in enumerate(examples):
        for place in places.get(row, ()):
            found[place] = tuple(example["regions"][int(asked.marked[place])]["box"])
    return found
