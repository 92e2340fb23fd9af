"""Questions as numbers: what a batch holds, what is drawn at a position, and what is cut or unknown."""

import numpy as np
import pytest
import torch
from question_fixtures import BRIGHT, COUNT, LEFT, RIGHT, SIDE, VOCABULARY, question_set, tiny_processor, write_store

from regionmed_clip.processing.corpus.data_spec import parse_data_spec
from regionmed_clip.train.frame_store import write_part
from regionmed_clip.train.question_set import (
    GIVEN,
    NO_ANSWER,
    OFF,
    PROPOSED,
    AskedTexts,
    DrawnQuestions,
    DrawSettings,
    QuestionSet,
    all_batches,
)
from regionmed_clip.train.question_store import QuestionStore, question_rows


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> QuestionSet:
    return question_set(write_store(tmp_path_factory.mktemp("store")), tiny_processor())


def test_images_without_a_question_take_no_part_and_unknown_answers_have_no_class(questions):
    assert questions.rows.tolist() == [0, 1, 3]
    assert questions.ends.tolist() == [3, 4, 6]
    assert [VOCABULARY.answers[place] for place in questions.answers[:5]] == ["left", "right", "2", "yes", "no"]
    assert questions.answers[5] == NO_ANSWER  # "behind"
    assert questions.marked.tolist() == [0, 1, -1, -1, -1, 1]


def test_each_question_is_given_its_marked_region_or_all_that_lie_in_the_frame(questions):
    ((indices, batch),) = all_batches(questions, GIVEN, max_questions=100)
    assert indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["image_index"].tolist() == [0, 0, 0, 1, 2, 2]
    assert batch["region_mask"].tolist() == [[True, False]] * 2 + [
        [True, True],
        [True, False],
        [True, False],
        [False] * 2,
    ]
    assert batch["region_boxes"][1, 0].tolist() == RIGHT
    assert batch["region_boxes"][2].tolist() == [LEFT, RIGHT]
    assert batch["region_boxes"][5].tolist() == [[0.0] * 4] * 2  # its region lies outside the frame
    pixels = questions.processor.image_processor.normalize_frames(torch.full((1, 3, 48, 48), 3, dtype=torch.uint8))
    assert torch.equal(batch["pixel_values"][2:], pixels)  # of image "d", row 3 of the store
    assert batch["sample_id"] == ["a", "b", "d"]


@pytest.mark.parametrize("mode", [PROPOSED, OFF])
def test_no_region_is_given_where_they_are_proposed_or_off(questions, mode):
    ((_, batch),) = all_batches(questions, mode, max_questions=100)
    assert not batch["region_mask"].any()
    assert batch["is_proposed"].tolist() == [mode == PROPOSED] * 6


def test_small_batches_hold_every_question_once_and_no_image_is_split(questions):
    parts = [indices.tolist() for indices, _ in all_batches(questions, OFF, max_questions=2)]
    assert parts == [[0, 1, 2], [3], [4, 5]]
    parts = [indices.tolist() for indices, _ in all_batches(questions, OFF, max_questions=4)]
    assert parts == [[0, 1, 2, 3], [4, 5]]


def test_every_distinct_text_is_tokenised_once_and_too_long_ones_are_counted(questions):
    processor = tiny_processor()
    texts = AskedTexts.encode([SIDE, BRIGHT, SIDE, "bright " * 40], processor)
    assert texts.row_of_text == {SIDE: 0, BRIGHT: 1, "bright " * 40: 2}
    assert (texts.num_cut, texts.input_ids.shape) == (1, (3, 24))
    alone = processor.encode_texts([BRIGHT])["input_ids"]
    batch = texts.batch(np.array([1, 1]))
    length = alone.shape[1]
    assert batch["input_ids"].shape[1] == -(-length // 8) * 8
    assert torch.equal(batch["input_ids"][0, :length], alone[0])
    assert int(batch["attention_mask"].sum()) == 2 * length


def draws(questions: QuestionSet, **changes) -> DrawnQuestions:
    settings = {"seed": 5, "questions_per_image": 2, "shares": (1.0, 1.0, 1.0), "max_regions": 1, "box_noise": 0.0}
    return DrawnQuestions(questions, DrawSettings(**{**settings, **changes}))


def test_what_is_drawn_depends_on_seed_and_position_alone(questions):
    whole, first, second = (draws(questions).batch(positions) for positions in (range(3, 9), range(3, 6), range(6, 9)))
    for name in ("answer", "is_proposed"):
        assert torch.equal(whole[name], torch.cat([first[name], second[name]])), name
    assert whole["sample_id"] == first["sample_id"] + second["sample_id"]
    other = [draws(questions, seed=seed).batch(range(3, 9))["answer"].tolist() for seed in range(6, 12)]
    assert any(answers != whole["answer"].tolist() for answers in other)


def test_at_most_so_many_questions_and_regions_are_drawn_and_their_number_is_known_before(questions):
    drawn = draws(questions, shares=(1.0, 0.0, 0.0))
    for positions in (range(3), range(3, 6), range(2, 8)):
        batch = drawn.batch(positions)
        assert drawn.num_questions(positions) == len(batch["answer"])
    assert drawn.num_questions(range(3)) == 2 + 1 + 2  # of an epoch of all three images: "a" has one more
    assert batch["region_mask"].shape[1] == 1


def test_the_shares_of_the_modes_are_kept(questions):
    batch = draws(questions, shares=(0.0, 0.75, 0.25)).batch(range(600))
    assert batch["is_proposed"].float().mean().item() == pytest.approx(0.75, abs=0.06)  # 1,000 draws: sd 0.014
    assert not batch["region_mask"].any()


def test_noise_moves_the_given_boxes_and_keeps_them_in_the_frame(questions):
    boxes = draws(questions, shares=(1.0, 0.0, 0.0), box_noise=0.2).batch(range(30))
    real = boxes["region_boxes"][boxes["region_mask"]]
    assert len(set(real[:, 1].tolist())) > 10  # every one was 0.25
    assert real.min() >= 0
    assert real.max() <= 1


def test_a_split_without_questions_is_refused(questions):
    with pytest.raises(ValueError, match=r"the split has no questions; give data with questions"):
        QuestionSet(questions.store, [(2, [])], VOCABULARY, questions.processor)


def test_a_prepared_store_holds_frames_boxes_and_questions_of_the_examples(tmp_path):
    images = tiny_processor().image_processor
    spec = parse_data_spec("phantom:num_train=3")
    part = tmp_path / "part-00000-of-00001.arrow"
    assert write_part(part, str(spec), "train", 0, 1, images.to_dict(), question_rows(derived=True)) == 3
    store = QuestionStore([tmp_path], 48)
    assert store.image_ids == [f"phantom-0-train-00000{index}" for index in range(3)]
    assert store.frames([2, 0]).shape == (2, 3, 48, 48)
    assert not np.array_equal(*store.frames([2, 0]))
    kinds = {question.kind for of_image in store.questions for question in of_image}
    assert "open-modality" in kinds  # stored
    assert "region-finding" in kinds  # derived
    marked = [
        (q.marked, len(store.boxes[row])) for row in range(3) for q in store.questions[row] if q.marked is not None
    ]
    assert marked
    assert all(0 <= region < number for region, number in marked)
    assert all(prints["patient"] != 0 for prints in store.fingerprints)
    assert COUNT not in {question.question for of_image in store.questions for question in of_image}
