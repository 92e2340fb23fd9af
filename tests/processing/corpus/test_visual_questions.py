"""Visual questions: normal form of answers, the questions of an example, balance and majority answers."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.phantoms.study import draw_phantom
from regionmed_clip.processing.corpus.sources.slake import SlakeSource
from regionmed_clip.processing.corpus.visual_questions import (
    VisualQuestion,
    balance_questions,
    majority_answers,
    normalize_answer,
    questions_of_example,
)

UNCOUNTED = ("cardiomegaly", "hydronephrosis", "drusen")  # words that are not counted


def question(answer, text="Is it?", image_id="a", kind="closed"):
    return VisualQuestion(image_id, text, answer, kind)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"),
        ("  The Left  lung ", "left lung"),
        ('"A cyst"', "cyst"),
        ("Two", "2"),
        ("T2-weighted MRI", "t2-weighted mri"),
        ("3.5 cm", "3.5 cm"),
        ("in the right (lower) lobe", "in right (lower) lobe"),
        ("none", "none"),
        ("a", "a"),
        ("?", "?"),
        ("50%", "50%"),
    ],
)
def test_answers_are_compared_without_case_articles_and_full_stops(answer, normal):
    assert normalize_answer(answer) == normal


@settings(max_examples=60)
@given(st.text(alphabet="atheTHEno19 .,;?\"'-%(İΣ"))
def test_a_normal_answer_is_its_own_normal_form(answer):
    normal = normalize_answer(answer)
    assert normalize_answer(normal) == normal
    assert bool(normal) == bool(answer.strip())


@pytest.mark.parametrize(
    ("kind", "answer_type"),
    [("closed", "closed"), ("CLOSED ", "closed"), ("closed-side", "closed"), ("open-size", "open"), ("organ", "open")],
)
def test_the_answer_type_is_told_by_the_kind(kind, answer_type):
    assert question("yes", kind=kind).answer_type == answer_type


def example(**changes):
    region = {
        "box": [0.0, 0.0, 4.0, 4.0],
        "finding": "pulmonary nodule",
        "anatomy": None,
        "laterality": None,
        "place": None,
        "size": None,
        "severity": None,
        "certainty": None,
        "is_negated": False,
    }
    asked = [{"question": "Is it  dense?", "answer": "Yes", "kind": "CLOSED"}]
    return {"image_id": "a", "source": "demo", "modality": "CT", "regions": [region], "qa": asked, **changes}


def test_an_example_is_asked_its_stored_questions_then_those_of_its_regions():
    stored, derived = questions_of_example(example())
    assert stored == VisualQuestion("a", "Is it dense?", "yes", "closed", None)
    assert (derived.answer, derived.kind, derived.marked) == ("pulmonary nodule", "region-finding", 0)
    assert questions_of_example(example(), derived=False) == [stored]
    assert questions_of_example(example(regions=[], qa=[])) == []


def test_a_question_that_is_stored_twice_is_asked_once():
    twice = [
        {"question": "Is it?", "answer": "Yes", "kind": "closed-presence"},
        {"question": "Is it? ", "answer": "yes.", "kind": "closed-abnormality"},
    ]
    assert questions_of_example(example(qa=twice), derived=False) == [question("yes", kind="closed-presence")]


def test_a_phantom_is_asked_for_what_it_does_not_show_too():
    """A comparison of two findings of the modality, one of which the phantom need not have."""
    found = Counter()
    for index in range(12):
        record = draw_phantom(0, index)
        asked = questions_of_example(example_from_record(record))
        assert all(one.image_id == record.image_id for one in asked)
        assert all(one.marked is None or one.marked < len(record.regions) for one in asked)
        has_comparison = any(one.kind == "closed-comparison" for one in asked)
        assert has_comparison == any(region.finding not in UNCOUNTED for region in record.regions)
        found.update(one.kind for one in asked)
    assert {"open-modality", "closed-presence", "region-finding", "open-comparison"} <= set(found)


def test_slake_questions_come_in_english_with_their_answer_type(tmp_path):
    entry = {"location": "Lung", "modality": "CT", "q_lang": "en", "answer_type": "OPEN", "content_type": "Position"}
    for number, split in enumerate(("train", "validate", "test")):
        asked = {**entry, "img_name": f"xmlab{number}/source.jpg"}
        rows = [
            {**asked, "question": "Where is it?", "answer": "The Left Lung"},
            {**asked, "question": "Is it left?", "answer": "Yes", "answer_type": "CLOSED"},
            {**asked, "question": "在哪里", "answer": "左肺", "q_lang": "zh"},
        ]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
        folder = tmp_path / "imgs" / f"xmlab{number}"
        folder.mkdir(parents=True)
        (folder / "source.jpg").write_bytes(draw_phantom(0, number).image)
        (folder / "detection.json").write_text('[{"Left Lung": [1, 2, 20, 30]}]')
    (record,) = SlakeSource(tmp_path).records("train")
    first, second, third = questions_of_example(example_from_record(record))
    assert (first.question, first.answer, first.kind) == ("Where is it?", "left lung", "open-position")
    assert (second.answer, second.kind, second.answer_type) == ("yes", "closed-position", "closed")
    assert (third.answer, third.kind, third.marked) == ("lung", "region-finding", 0)


def test_balanced_answers_are_as_even_as_the_data_allow():
    counts = {"no": 7, "yes": 3, "unclear": 1}
    asked = [question(answer, image_id=f"{answer}{n}") for answer, number in counts.items() for n in range(number)]
    kept = balance_questions(asked)
    assert Counter(one.answer for one in kept) == {"no": 3, "yes": 3, "unclear": 1}
    assert [one for one in asked if one in kept] == kept  # in their order
    other_order = balance_questions(asked[::-1])
    assert set(other_order) == set(kept)
    assert set(balance_questions(asked, seed=1)) != set(kept)


def test_of_a_question_with_one_answer_a_single_one_stays():
    asked = [question("CT", "What is it?", image_id=str(n)) for n in range(5)]
    assert len(balance_questions(asked)) == 1
    assert balance_questions([question("rib", "Which bone?")]) == [question("rib", "Which bone?")]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("xyz")), max_size=40))
def test_in_balanced_questions_no_answer_is_more_frequent_than_the_next(pairs):
    asked = [question(answer, text, image_id=str(n)) for n, (text, answer) in enumerate(pairs)]
    kept = balance_questions(asked)
    for text in {text for text, _ in pairs}:
        counts = sorted(Counter(one.answer for one in kept if one.question == text).values(), reverse=True)
        assert counts[0] == (counts[1] if len(counts) > 1 else 1)
        assert {one.answer for one in kept if one.question == text} == {a for t, a in pairs if t == text}


def test_the_majority_answer_is_told_for_every_question_text():
    asked = [question("no"), question("yes"), question("yes"), question("b", "Which?"), question("a", "Which?")]
    assert majority_answers(asked) == {"Is it?": "yes", "Which?": "a"}
