"""The sheet of questions: what is asked, what is said to be read where, and what is drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_questions import tiny_question_model

from regionmed_clip.eval.question_sheet import NUM_ASKED, answer_shown, choose_questions, draw_question_sheet
from regionmed_clip.eval.selection import Shown
from regionmed_clip.eval.style import drawing, head
from regionmed_clip.eval.tasks.vqa_facts import AnswerFacts, Answering
from regionmed_clip.eval.tasks.vqa_questions import QuestionChoice
from regionmed_clip.processing.corpus.visual_questions import VisualQuestion
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

BOXES = [[4.0, 4.0, 20.0, 30.0], [40.0, 4.0, 60.0, 30.0]]
AS_STORED = QuestionChoice(is_derived=False)


@pytest.fixture(scope="module")
def processor() -> RegionMedClipProcessor:
    tokenizer = train_tokenizer(["is there a nodule on the left side?"], vocab_size=300, max_length=16)
    return RegionMedClipProcessor(
        RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=12), tokenizer
    )


@pytest.fixture(scope="module")
def answering(processor) -> Answering:
    answers = ("yes", "no", "left", "2")
    names = {"id2label": dict(enumerate(answers)), "label2id": {answer: place for place, answer in enumerate(answers)}}
    model = tiny_question_model(**names)
    model.resize_token_embeddings(len(processor.tokenizer))
    return Answering(model, AnswerFacts())


def shown(boxes, qa) -> Shown:
    """A grey picture of 64 x 48 pixels with these boxes and questions (question, answer, kind)."""
    image = Image.fromarray(np.full((48, 64, 3), 90, dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    example = {
        "image_id": "a",
        "image": {"bytes": buffer.getvalue(), "path": None},
        "width": 64,
        "height": 48,
        "source": "drawn",
        "modality": "CT",
        "regions": [{"box": box, "finding": "nodule", "is_negated": False} for box in boxes],
        "qa": [dict(zip(("question", "answer", "kind"), one, strict=True)) for one in qa],
    }
    return Shown(0, image, example, example["regions"])


QA = [
    ("Is there a nodule?", "yes", "closed-presence"),
    ("Is it left?", "no", "closed-side"),
    ("Where is it?", "left", "open-place"),
    ("How many?", "2", "open-count"),
]


def test_an_open_and_a_closed_question_come_before_a_second_of_one_sort():
    kinds = [question.kind for question in choose_questions(shown(BOXES, QA), AS_STORED)]
    assert kinds == ["open-place", "closed-presence", "closed-side"]
    assert len(kinds) == NUM_ASKED


def test_given_regions_come_back_in_original_pixels_with_shares_that_sum_to_one(answering, processor):
    asked = [VisualQuestion("a", "is it left?", "yes", "closed"), VisualQuestion("a", "where?", "left", "open", 1)]
    on_all, on_marked = answer_shown(answering, processor, shown(BOXES, []), asked)
    np.testing.assert_allclose(on_all.boxes, BOXES, atol=1e-3)  # float32 fractions of 64 pixels
    assert on_all.shares.sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(on_marked.boxes, BOXES[1:], atol=1e-3)
    assert on_marked.heat.shape == (48, 64)
    assert not on_all.is_proposed
    assert on_all.answer in answering.vocabulary.answers
    assert 0 <= on_all.score <= 1


def test_without_annotated_regions_the_model_looks_for_its_own(answering, processor):
    (answered,) = answer_shown(answering, processor, shown([], []), [VisualQuestion("a", "left?", "no", "closed")])
    assert answered.is_proposed


def test_a_sheet_is_drawn_where_something_is_asked(answering, processor, tmp_path):
    assert draw_question_sheet(tmp_path / "q.png", answering, processor, [shown(BOXES, QA)], AS_STORED)
    with Image.open(tmp_path / "q.png") as drawn:
        assert drawn.width > 500
    assert not draw_question_sheet(tmp_path / "none.png", answering, processor, [shown(BOXES, [])], AS_STORED)
    blind = Answering(answering.model, AnswerFacts(has_images=False))
    assert not draw_question_sheet(tmp_path / "none.png", blind, processor, [shown(BOXES, QA)], AS_STORED)
    assert not (tmp_path / "none.png").exists()


def test_drawing_leaves_the_model_as_it_was(answering, processor, tmp_path):
    before = {name: tensor.clone() for name, tensor in answering.model.state_dict().items()}
    draw_question_sheet(tmp_path / "q.png", answering, processor, [shown(BOXES, QA)], AS_STORED)
    assert not answering.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in answering.model.state_dict().items())


def test_the_note_below_a_picture_is_not_cut_off(tmp_path):
    with drawing(tmp_path / "note.png", (4.0, 2.0)) as figure:
        head(figure, "title", "phantom data: procedurally drawn pictures, not clinical evidence; " * 3)
        figure.canvas.draw()
        note = figure.texts[-1]
        assert note.get_text().startswith("phantom data")
        assert note.get_window_extent().x1 <= figure.bbox.x1
