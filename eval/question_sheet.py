"""Questions beside what the model says to them: answer and truth, and where on the image it was read."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from regionmed_clip.eval.overlays import draw_box, draw_heat
from regionmed_clip.eval.selection import Shown
from regionmed_clip.eval.style import HIT, MISS, SERIES, TRUTH, bare, drawing, head
from regionmed_clip.eval.tasks.embedding import evaluating
from regionmed_clip.eval.tasks.prepared import PreparedExample
from regionmed_clip.eval.tasks.region_readings import normalized
from regionmed_clip.eval.tasks.vqa_answers import boxes_given
from regionmed_clip.eval.tasks.vqa_facts import Answering
from regionmed_clip.eval.tasks.vqa_questions import NOT_MARKED, QuestionChoice
from regionmed_clip.processing.corpus.plot_style import MUTED
from regionmed_clip.processing.corpus.visual_questions import VisualQuestion, questions_of_example

NUM_ASKED = 3  # questions of an image
NUM_IMAGES, IMAGES_PER_ROW = 6, 2
MAX_DRAWN_REGIONS = 5  # of a panel, those with the most attention
TITLE = "Questions, answers, and where they were read"
LEGEND = "yellow: the marked region; turquoise: regions with their share in the answer; bright: attention to patches"


@dataclass(frozen=True)
class Answered:
    """A question of an image with what the model says.

    Attributes:
        question: what was asked; it knows the truth. answer, score: the best answer and its sigmoid.
        boxes: (R, 4) float regions in original pixels; shares: (R,) of the attention to regions.
        is_proposed: whether the model found the regions itself.
        heat: (height, width) attention to patches over the image, NaN where the model did not see it.
    """

    question: VisualQuestion
    answer: str
    score: float
    boxes: np.ndarray
    shares: np.ndarray
    is_proposed: bool
    heat: np.ndarray


def draw_question_sheet(
    path: Path, answering: Answering, processor: Any, shown: Sequence[Shown], choice: QuestionChoice, note: str = ""
) -> bool:
    """Whether there was anything to draw; NUM_ASKED questions on each of the first NUM_IMAGES that are asked something.

    Regions are given where the image has some, else proposed. Questions are chosen by their kind, never by the answer.
    """
    asked = [(one, choose_questions(one, choice)) for one in shown]
    asked = [(one, questions) for one, questions in asked if questions][:NUM_IMAGES]
    if not asked or not answering.facts.has_images:
        return False
    num_rows = -(-len(asked) // IMAGES_PER_ROW)
    with drawing(path, (3.2 * NUM_ASKED * IMAGES_PER_ROW, 1.0 + 3.9 * num_rows)) as figure:
        grid = figure.subplots(num_rows, NUM_ASKED * IMAGES_PER_ROW, squeeze=False)
        for axes in grid.flat:
            bare(axes)
        for panels, (one, questions) in zip(grid.reshape(-1, NUM_ASKED), asked, strict=False):
            answers = answer_shown(answering, processor, one, questions)
            for axes, answered in zip(panels, answers, strict=False):
                _draw_answer(axes, one, answered)
        head(figure, TITLE, "; ".join(text for text in (LEGEND, note) if text))
    return True


def choose_questions(shown: Shown, choice: QuestionChoice) -> list[VisualQuestion]:
    """At most NUM_ASKED questions of an image: one that marks a region, an open and a closed one, where it has them.

    Which one of each sort depends on the image's row, so that a sheet shows many kinds.
    """
    questions = questions_of_example(shown.example, derived=choice.is_derived)
    sorts = (
        [q for q in questions if q.marked is not None],
        [q for q in questions if q.marked is None and q.answer_type == "open"],
        [q for q in questions if q.marked is None and q.answer_type == "closed"],
    )
    chosen = [of_sort[shown.row % len(of_sort)] for of_sort in sorts if of_sort]
    others = [question for question in questions if question not in chosen]
    return [*chosen, *others][:NUM_ASKED]


def answer_shown(
    answering: Answering, processor: Any, shown: Shown, questions: Sequence[VisualQuestion]
) -> list[Answered]:
    """What the model says to questions about one image, and where it read it."""
    prepared = PreparedExample.read(shown.example, processor.image_processor, False)
    device = next(answering.model.parameters()).device
    inputs = {"pixel_values": normalized(processor.image_processor, [prepared.frame], device)}
    geometry = processor.image_processor.geometry_for(shown.image.width, shown.image.height)
    answered = []
    for question in questions:
        given = boxes_given(prepared, NOT_MARKED if question.marked is None else question.marked)
        own = {name: value.to(device) for name, value in processor.encode_texts([question.question]).items()} | inputs
        own |= {"region_boxes": torch.from_numpy(given)[None].to(device)} if len(given) else {}
        with evaluating(answering.model):
            output = answering.model(**own, regions=None if len(given) else "proposed")
        is_real = output.region_mask[0].cpu().numpy()
        scores = output.logits[0].float().sigmoid()
        (heat,) = processor.post_process_heatmap(output.patch_attention.float()[:, None], target_sizes=[shown.size])
        answered.append(
            Answered(
                question=question,
                answer=answering.vocabulary.answers[int(scores.argmax())],
                score=float(scores.max()),
                boxes=geometry.frame_fractions_to_boxes(output.region_boxes[0].cpu().numpy()[is_real]),
                shares=output.region_attention[0].cpu().numpy()[is_real],
                is_proposed=not len(given),
                heat=np.squeeze(heat),
            )
        )
    return answered


def _draw_answer(axes: Axes, shown: Shown, answered: Answered) -> None:
    """None; the question above the image with its attention, the answer below it."""
    question = answered.question
    low, high = float(np.nanmin(answered.heat)), float(np.nanmax(answered.heat))
    draw_heat(axes, shown.image, np.nan_to_num((answered.heat - low) / max(high - low, 1e-9)))
    colour = SERIES[0] if question.marked is None else TRUTH
    for place in np.argsort(-answered.shares, kind="stable")[:MAX_DRAWN_REGIONS].tolist():
        share = f"{answered.shares[place]:.2f}" if question.marked is None else ""
        draw_box(axes, answered.boxes[place].tolist(), colour, share)
    regions = "regions proposed" if answered.is_proposed else "marked region" if question.marked is not None else ""
    kind = " · ".join(text for text in (question.kind, regions) if text)
    title = textwrap.fill(question.question, 44, max_lines=2, placeholder=" ...")
    axes.set_title(f"{title}\n{kind}", fontsize=8.5, fontweight="normal", loc="left")
    is_right = answered.answer == question.answer
    said = textwrap.shorten(f"{answered.answer} ({answered.score:.2f})", 46, placeholder=" ...")
    truth = "" if is_right else "\n" + textwrap.shorten(f"truth: {question.answer}", 46, placeholder=" ...")
    axes.set_xlabel(f"{said}{truth}", fontsize=9, loc="left", color=HIT if is_right else MISS)
    axes.xaxis.label.set_visible(True)
    axes.annotate(
        shown.example["modality"], (0.99, 0.01), xycoords="axes fraction", ha="right", fontsize=7, color=MUTED
    )
