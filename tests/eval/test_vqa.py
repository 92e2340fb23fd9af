"""Questions answered under every view, by a model whose answers can be told in advance, and the figures of them."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.eval.tasks.runner import compare_outcomes, run_tasks
from regionmed_clip.eval.tasks.vqa_answers import View, answer_questions, exchange_images
from regionmed_clip.eval.tasks.vqa_facts import FACTS_FILE, AnswerFacts, Answering, question_hash
from regionmed_clip.eval.tasks.vqa_questions import QuestionChoice, ask_split
from regionmed_clip.eval.tasks.vqa_statements import statement_of

ANSWERS = ("yes", "no", "left", "right", "2")
YES, NO, LEFT, RIGHT, TWO = range(5)
BRIGHT, SIDE, COUNT = "Is the image bright?", "Which side is marked?", "How many findings are there?"
AS_STORED = QuestionChoice(is_derived=False)


class BoxReader(torch.nn.Module):
    """Says where its one box is, or "2" of two; without boxes whether the image is bright; without an image "no"."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(id2label=dict(enumerate(ANSWERS)))
        self.num_images = []

    def forward(
        self,
        input_ids,
        attention_mask,
        pixel_values=None,
        image_index=None,
        region_boxes=None,
        region_mask=None,
        regions=None,
    ):
        said = torch.full((len(input_ids),), NO)
        if pixel_values is not None:
            self.num_images.append(len(pixel_values))
            is_bright = pixel_values.mean(dim=(1, 2, 3))[image_index] > 0
            said = torch.where(is_bright, YES, NO)
        if regions == "proposed":
            said = torch.full_like(said, TWO)
        if region_boxes is not None:
            num_regions = region_mask.sum(dim=1)
            side = torch.where(region_boxes[:, 0, [0, 2]].mean(dim=1) < 0.5, LEFT, RIGHT)
            said = torch.where(num_regions == 1, side, torch.where(num_regions == 2, TWO, said))
        return SimpleNamespace(logits=torch.nn.functional.one_hot(said, len(ANSWERS)).float())


def picture(name: str, brightness: int, boxes=(), qa=()) -> dict:
    """An example of 32 x 32 pixels of one brightness, with its questions (question, answer, kind)."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), brightness, dtype=np.uint8)).save(buffer, format="PNG")
    regions = [
        {"box": list(box), "finding": "nodule", "is_negated": False, "description": "a nodule", "key": 1}
        for box in boxes
    ]
    return {
        "image_id": name,
        "image": {"bytes": buffer.getvalue(), "path": None},
        "width": 32,
        "height": 32,
        "source": "drawn",
        "modality": "CT",
        "view": None,
        "anatomy": None,
        "caption": f"A picture, {name}.",
        "caption_key": 0,
        "regions": regions,
        "qa": [dict(zip(("question", "answer", "kind"), one, strict=True)) for one in qa],
    }


@pytest.fixture
def examples() -> list[dict]:
    """A bright image with two boxes, a dark one with a box at the right, a dark one that is asked nothing."""
    left, right = (2, 8, 10, 20), (20, 8, 30, 20)
    return [
        picture("a", 250, [left, right], [(BRIGHT, "yes", "closed-look"), (COUNT, "2", "open-count")]),
        picture("b", 5, [right], [(BRIGHT, "no", "closed-look"), (SIDE, "right", "open-side")]),
        picture("c", 5),
    ]


def ask(examples, processor, *views: View, **options) -> list[list[str]]:
    """What BoxReader says to the stored questions under each view."""
    asked = ask_split(examples, AS_STORED)
    found = answer_questions(BoxReader(), processor, examples, asked, views, progress=False, **options)
    return [[ANSWERS[row] for row in logits.argmax(axis=1)] for logits in found]


def test_each_view_shows_what_it_says(examples, processor):
    views = [View(), View("given"), View("proposed"), View(image="blank"), View(image="none")]
    as_is, with_boxes, proposed, blank, none = ask(examples, processor, *views)
    assert as_is == ["yes", "yes", "no", "no"]
    assert with_boxes == ["2", "2", "right", "right"]  # no question marks a region: all of the image are given
    assert proposed == ["2"] * 4
    assert blank == none == ["no"] * 4


def test_a_shuffled_image_is_that_of_another_patient(examples, processor):
    clusters = np.array([0, 1, 1])  # b and c are of one patient: both can but get the bright image a, a a dark one
    (said,) = ask(examples, processor, View(image="shuffled"), clusters=clusters)
    assert said == ["no", "no", "yes", "yes"]


def test_a_marked_question_is_given_its_region_alone(examples, processor):
    asked = ask_split(examples, AS_STORED)
    marks = (None, 0, None, None)
    questions = [
        SimpleNamespace(question=q.question, answer=q.answer, kind=q.kind, answer_type=q.answer_type, marked=mark)
        for q, mark in zip(asked.questions, marks, strict=True)
    ]
    asked = type(asked)(questions, asked.images, asked.has_regions)
    (logits,) = answer_questions(BoxReader(), processor, examples, asked, [View("given")], progress=False)
    assert logits.argmax(axis=1).tolist() == [TWO, LEFT, RIGHT, RIGHT]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_size_of_passes_changes_no_answer(examples, processor, batch_size):
    assert ask(examples, processor, View("given"), batch_size=batch_size) == [["2", "2", "right", "right"]]


def test_a_view_of_no_image_takes_no_regions():
    with pytest.raises(ValueError, match="without one they must be 'off'"):
        View("given", "none")
    with pytest.raises(ValueError, match="choose from given, proposed, off"):
        View("some")


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda c: len(set(c)) > 1), st.integers(0, 5))
def test_no_image_is_exchanged_for_one_of_its_own_patient(clusters, seed):
    clusters = np.array(clusters)
    partners = exchange_images(clusters, seed)
    assert (clusters[partners] != clusters).all()
    assert (partners == exchange_images(clusters, seed)).all()


def test_images_of_one_patient_cannot_be_exchanged():
    with pytest.raises(ValueError, match="all images are of one patient"):
        exchange_images(np.zeros(3, dtype=np.int64), seed=0)


def outcome_of(examples, model, processor, context, name="m", **options):
    return run_tasks(
        model,
        processor,
        {"test": examples},
        model_name=name,
        context=context,
        tasks=["vqa"],
        progress=False,
        question_choice=AS_STORED,
        **options,
    )


FACTS = AnswerFacts(
    is_derived=False, by_question={question_hash(BRIGHT): "yes"}, by_kind={"open-side": "left", "closed-look": "no"}
)


def test_figures_of_a_model_that_answers(examples, model, processor, context):
    outcome = outcome_of(examples, model, processor, context, answering=Answering(BoxReader(), FACTS))
    values = {result.metric: result.value for result in outcome.results if result.stratum is None}
    assert values["vqa_accuracy"] == 2 / 4  # both questions on brightness
    assert values["vqa_closed_accuracy"] == 1.0
    assert values["vqa_open_accuracy"] == 0.0
    assert values["vqa_accuracy_given_boxes"] == 2 / 4  # the count and the side
    assert values["vqa_open_accuracy_given_boxes"] == 1.0
    assert values["vqa_accuracy_proposed_boxes"] == 1 / 4
    assert values["vqa_accuracy_blank_image"] == 1 / 4
    assert values["vqa_accuracy_majority"] == 1 / 4  # "yes" of "yes", "no"; nothing of the count; "left" of "right"
    assert values["vqa_unmarked_gain_given_boxes"] == 0.0
    assert values["vqa_gain_image"] == 1 / 4
    assert "vqa_marked_accuracy" not in values  # none is marked
    figure = next(result for result in outcome.results if result.metric == "vqa_accuracy")
    assert figure.protocol["chance"] == 1 / 4
    assert figure.protocol["gallery"] == 5
    assert figure.protocol["answers_in_vocabulary"] == 1.0
    assert figure.n == 4


def test_the_question_alone_stands_beside_every_way_of_having_regions(examples, model, processor, context):
    main = outcome_of(examples, model, processor, context, answering=Answering(BoxReader(), FACTS))
    blind_facts = AnswerFacts(has_images=False, is_derived=False)
    blind = outcome_of(examples, model, processor, context, "q", answering=Answering(BoxReader(), blind_facts))
    values = {result.metric: result.value for result in blind.results}
    assert values["vqa_accuracy"] == values["vqa_accuracy_given_boxes"] == 1 / 4  # "no" to all
    assert "vqa_accuracy_blank_image" not in values
    differences = {result.metric: result.value for result in compare_outcomes(main, blind) if result.stratum is None}
    assert differences["vqa_accuracy_given_boxes"] == 1 / 4
    assert differences["vqa_closed_accuracy"] == 1 / 2


def test_an_encoder_without_a_head_is_measured_by_statements_alone(examples, model, processor, context):
    outcome = outcome_of(examples, model, processor, context)
    by_metric = {result.metric: result for result in outcome.results if result.stratum is None}
    assert by_metric["vqa_accuracy"].value is None
    assert by_metric["vqa_accuracy"].protocol["skipped"] == "the model has no answer head"
    zero_shot = by_metric["vqa_accuracy_zero_shot"]
    assert zero_shot.n == 4
    assert zero_shot.protocol["chance"] == (1 / 2 + 1 + 1 / 2 + 1) / 4  # yes or no; one count, one side


def test_data_without_questions_are_skipped_with_the_reason(model, processor, context):
    outcome = outcome_of([picture("a", 9)], model, processor, context, answering=Answering(BoxReader(), FACTS))
    assert [(one.metric, one.value, one.protocol["skipped"]) for one in outcome.results] == [
        ("vqa_accuracy", None, "the data have no questions")
    ]


def test_an_answer_that_is_not_in_the_vocabulary_counts_as_wrong(model, processor, context):
    examples = [picture("a", 250, qa=[(BRIGHT, "very", "closed-look")]), picture("b", 5, qa=[(BRIGHT, "no", "closed")])]
    outcome = outcome_of(examples, model, processor, context, answering=Answering(BoxReader(), FACTS))
    figure = next(result for result in outcome.results if result.metric == "vqa_accuracy")
    assert figure.value == 1 / 2
    assert figure.protocol["answers_in_vocabulary"] == 1 / 2


def test_balance_leaves_out_questions_whose_wording_tells_the_answer():
    many = [picture(name, 9, qa=[(BRIGHT, answer, "closed")]) for name, answer in zip("abcde", ["yes"] * 4 + ["no"])]
    asked = ask_split(many, QuestionChoice(is_derived=False, is_balanced=True))
    assert sorted(asked.answers) == ["no", "yes"]
    assert asked.num_left_out == 3
    assert asked.images[-1] == 4  # the one that is answered "no" stays


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("Does this image show a cavity?", "yes", "a cavity"),
        ("Does this image show a cavity?", "no", "no cavity"),
        ("Is there an effusion?", "no", "no effusion"),
        ("How many nodules are visible?", "2", "2 nodules"),
        ("What does the marked region show?", "drusen", "drusen"),
        ("Where is the cyst?", "upper zone", "Where is the cyst? upper zone"),
    ],
)
def test_a_statement_says_the_answer(question, answer, statement):
    assert statement_of(question, answer) == statement


def test_facts_are_read_as_they_were_written(tmp_path):
    FACTS.write(tmp_path)
    assert AnswerFacts.read(tmp_path) == FACTS
    assert AnswerFacts.read(tmp_path / "elsewhere") == AnswerFacts()


@pytest.mark.parametrize("text", ["{", '{"more": 1}', '{"by_kind": []}', "[]"])
def test_facts_that_are_none_are_refused_by_name(tmp_path, text):
    (tmp_path / FACTS_FILE).write_text(text)
    with pytest.raises(ValueError, match=FACTS_FILE):
        AnswerFacts.read(tmp_path)


def test_what_a_folder_says_of_its_training_holds_no_question_text(tmp_path):
    FACTS.write(tmp_path)
    assert BRIGHT not in (tmp_path / FACTS_FILE).read_text()
    assert AnswerFacts.read(tmp_path) == FACTS
