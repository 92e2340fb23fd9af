"""The answer vocabulary: what enters it, in which order, and what it covers of other questions."""

from __future__ import annotations

import math

import pytest

from regionmed_clip.processing.corpus.answer_vocabulary import AnswerVocabulary
from regionmed_clip.processing.corpus.visual_questions import VisualQuestion


def questions(*answers):
    return [VisualQuestion(str(number), "What is it?", answer, "open") for number, answer in enumerate(answers)]


TRAINING = questions("yes", "no", "cyst", "no", "abscess", "yes", "no")


def test_answers_come_by_falling_count_then_by_their_letters():
    assert AnswerVocabulary.from_questions(TRAINING).answers == ("no", "yes", "abscess", "cyst")
    assert AnswerVocabulary.from_questions(reversed(TRAINING)).answers == ("no", "yes", "abscess", "cyst")


def test_rare_answers_and_all_beyond_a_number_can_be_left_out():
    assert AnswerVocabulary.from_questions(TRAINING, min_count=2).answers == ("no", "yes")
    assert AnswerVocabulary.from_questions(TRAINING, max_answers=3).answers == ("no", "yes", "abscess")


def test_an_answer_of_other_questions_is_known_only_if_training_has_it():
    vocabulary = AnswerVocabulary.from_questions(TRAINING)
    assert (vocabulary.index("yes"), vocabulary.index("haematoma")) == (1, None)
    assert "haematoma" not in vocabulary
    assert "cyst" in vocabulary
    assert vocabulary.coverage(questions("yes", "haematoma", "cyst", "fracture")) == 0.5
    assert math.isnan(vocabulary.coverage([]))


def test_a_model_configuration_holds_it_and_gives_it_back():
    vocabulary = AnswerVocabulary.from_questions(TRAINING)
    assert vocabulary.id2label == {0: "no", 1: "yes", 2: "abscess", 3: "cyst"}
    assert vocabulary.label2id == {"no": 0, "yes": 1, "abscess": 2, "cyst": 3}
    from_json = {"3": "cyst", "0": "no", "1": "yes", "2": "abscess"}
    assert AnswerVocabulary.from_id2label(from_json) == vocabulary
    assert len(vocabulary) == 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AnswerVocabulary.from_questions([]), "Of 0 training questions"),
        (lambda: AnswerVocabulary.from_questions(TRAINING, min_count=4), "no answer occurs 4 times"),
        (lambda: AnswerVocabulary.from_questions(TRAINING, min_count=0), "min_count is 0"),
        (lambda: AnswerVocabulary.from_questions(TRAINING, max_answers=0), "max_answers 0"),
        (lambda: AnswerVocabulary(()), "0 answers"),
        (lambda: AnswerVocabulary(("yes", "yes")), "'yes' occurs 2 times"),
        (lambda: AnswerVocabulary(("Yes.",)), "'Yes.' occurs 1 times"),
        (lambda: AnswerVocabulary(("",)), "'' occurs 1 times"),
        (lambda: AnswerVocabulary.from_id2label({0: "yes", 2: "no"}), "without a gap"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused_with_the_reason(make, words):
    with pytest.raises(ValueError, match=words):
        make()
