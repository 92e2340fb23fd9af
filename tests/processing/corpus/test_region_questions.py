"""Questions derived from regions: what is asked, that every answer follows from the record, and where nothing does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import regions_of_any_kind

from regionmed_clip.processing.corpus.entailment import is_false, know
from regionmed_clip.processing.corpus.finding_table import may_be_one
from regionmed_clip.processing.corpus.grammar import counted, plural
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.region_questions import MAX_MARKED_REGIONS, derive_questions

LEFT_BOX, RIGHT_BOX, BIG_BOX = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0), (20.0, 20.0, 50.0, 50.0)
NODULE = RegionRecord(LEFT_BOX, "pulmonary nodule", "lung", laterality="left", place="upper zone", size="small")
EFFUSION = RegionRecord(RIGHT_BOX, "pleural effusion", "pleural space", laterality="right", size="large")
HEART = RegionRecord(BIG_BOX, "cardiomegaly", "heart", severity="severe")
SIDES = {"region-finding": "finding", "region-place": "place", "region-side": "side", "region-size": "size"}
FIELD_OF_KIND = {**SIDES, "region-severity": "severity"}
boxes = st.tuples(*4 * (st.integers(0, 90),)).map(lambda b: (b[0], b[1], b[0] + 1 + b[2], b[1] + 1 + b[3]))
studies = st.lists(st.builds(lambda region, box: replace(region, box=box), regions_of_any_kind, boxes), max_size=6)


def asked(regions, kind, image_id="demo/1", **options):
    """(question, answer, marked) of every derived question of a kind."""
    found = derive_questions(regions, image_id, **options)
    return [(pair.question, pair.answer, marked) for pair, marked in found if pair.kind == kind]


def answers(regions, kind, **options):
    """{marked region: answer} of a kind."""
    return {marked: answer for _, answer, marked in asked(regions, kind, **options)}


def test_a_marked_region_is_asked_for_whatever_it_states():
    regions = (NODULE, EFFUSION, HEART)
    assert answers(regions, "region-finding") == {0: "pulmonary nodule", 1: "pleural effusion", 2: "cardiomegaly"}
    assert answers(regions, "region-side") == {0: "left", 1: "right"}
    assert answers(regions, "region-size") == {0: "small", 1: "large"}
    assert answers(regions, "region-severity") == {2: "severe"}
    assert answers(regions, "region-place") == {}  # the nodule alone has one: the image tells it


def test_what_all_regions_have_in_common_is_not_asked_of_a_marked_one():
    other = replace(NODULE, box=RIGHT_BOX, place="lower zone")
    assert answers((NODULE, other), "region-place") == {0: "upper zone", 1: "lower zone"}
    assert answers((NODULE, other), "region-side") == {}
    assert answers((NODULE, other), "region-size") == {}


@pytest.mark.parametrize("change", [{"is_negated": True}, {"certainty": "possible"}, {"finding": "region of interest"}])
def test_what_is_denied_doubtful_or_unnamed_is_asked_nothing(change):
    assert set(answers((NODULE, replace(EFFUSION, **change)), "region-finding")) == {0}


def test_a_mark_on_two_findings_at_once_decides_neither_but_what_they_share():
    twin = replace(HEART, box=(0.0, 0.0, 10.0, 9.0), severity=None)  # covers 90 of the nodule's 100 pixels
    far = replace(NODULE, box=BIG_BOX, laterality="right", place="lower zone")
    assert answers((NODULE, twin, far), "region-finding") == {2: "pulmonary nodule"}
    assert answers((NODULE, twin, far), "region-side") == {0: "left", 2: "right"}


def test_whether_a_marked_region_shows_a_finding_is_yes_every_second_time():
    found = [
        pair
        for number in range(400)
        for pair in asked((NODULE, EFFUSION), "closed-region-finding", image_id=f"demo/{number}")
    ]
    own = {0: "Does the marked region show a pulmonary nodule?", 1: "Does the marked region show a pleural effusion?"}
    assert len(found) == 800
    assert all((question == own[marked]) == (answer == "yes") for question, answer, marked in found)
    assert 360 < sum(answer == "yes" for _, answer, _ in found) < 440  # 400 +- 2.8 standard deviations of 14


def test_of_many_regions_a_few_are_asked_for_with_as_many_findings_as_there_are():
    cells = [RegionRecord((x, 0, x + 5, 5), "red blood cell") for x in range(0, 200, 10)]
    cells.append(RegionRecord((300, 0, 320, 20), "platelet"))
    found = answers(cells, "region-finding")
    assert len(found) == MAX_MARKED_REGIONS
    assert found[20] == "platelet"


def test_two_findings_are_compared_by_the_number_of_their_regions_in_both_orders():
    regions = (NODULE, replace(NODULE, box=RIGHT_BOX), replace(NODULE, box=BIG_BOX, finding="pneumothorax"))
    found = Counter(asked(regions, "closed-comparison", image_id=f"demo/{number}")[0] for number in range(200))
    yes = ("Are there more pulmonary nodules than pneumothoraces?", "yes", None)
    no = ("Are there more pneumothoraces than pulmonary nodules?", "no", None)
    assert set(found) == {yes, no}
    assert 70 < found[yes] < 130  # 100 +- 4 standard deviations of 7
    open_ones = {asked(regions, "open-comparison", image_id=f"demo/{number}")[0] for number in range(50)}
    assert open_ones == {
        ("Are there more pulmonary nodules or more pneumothoraces?", "pulmonary nodule", None),
        ("Are there more pneumothoraces or more pulmonary nodules?", "pulmonary nodule", None),
    }


def test_a_finding_that_no_region_has_is_compared_only_where_it_was_looked_for():
    assert asked((NODULE,), "closed-comparison") == []
    looked_for = frozenset({"pulmonary nodule", "pneumothorax"})
    ((question, answer, _),) = asked((NODULE,), "closed-comparison", looked_for=looked_for)
    assert (question, answer) in {
        ("Are there more pulmonary nodules than pneumothoraces?", "yes"),
        ("Are there more pneumothoraces than pulmonary nodules?", "no"),
    }


@pytest.mark.parametrize("change", [{"is_negated": True}, {"certainty": "possible"}])
def test_a_finding_that_is_in_doubt_is_not_counted(change):
    unsure = replace(NODULE, box=BIG_BOX, **change)
    other = replace(EFFUSION, finding="pneumothorax")
    assert asked((NODULE, unsure, other, other), "closed-comparison") == []


def test_the_larger_of_two_findings_is_asked_for_where_it_is_twice_as_large():
    ((question, answer, marked),) = asked((NODULE, HEART), "open-comparison")  # 100 and 900 square pixels
    assert question in {
        "Which covers more of the image, the pulmonary nodule or the cardiomegaly?",
        "Which covers more of the image, the cardiomegaly or the pulmonary nodule?",
    }
    assert (answer, marked) == ("cardiomegaly", None)
    close = replace(HEART, box=(20.0, 20.0, 33.0, 35.0))  # 195 square pixels
    assert asked((NODULE, close), "open-comparison") == []


def test_organs_are_not_compared():
    liver, kidney = RegionRecord(BIG_BOX, "liver"), RegionRecord(LEFT_BOX, "kidney")
    found = derive_questions((liver, kidney, replace(kidney, box=RIGHT_BOX)), "slake/1")
    assert {pair.kind for pair, _ in found} == {"region-finding", "closed-region-finding"}


@settings(max_examples=60)
@given(studies, st.integers(0, 3))
def test_no_answer_contradicts_the_record(regions, seed):
    known = [know(region) for region in regions]
    counts = Counter(facts.finding for facts in known if not facts.is_negated and facts.is_certain)
    for pair, marked in derive_questions(regions, "demo/1", seed=seed):
        if pair.kind in FIELD_OF_KIND:
            assert getattr(known[marked], FIELD_OF_KIND[pair.kind]) == pair.answer
            claim = replace(regions[marked], description="")
            assert not is_false(know(claim), known)
        elif pair.kind == "closed-region-finding":
            named = [name for name in counts if counted("", name, "one") in pair.question]
            is_shown = known[marked].finding in named
            assert pair.answer == ("yes" if is_shown else "no")
            assert is_shown or not any(may_be_one(known[marked].finding, name) for name in named)
        elif pair.kind == "closed-comparison":
            first, second = pair.question.removeprefix("Are there more ").removesuffix("?").split(" than ")
            of_plural = {plural(name): number for name, number in counts.items()}
            assert pair.answer == ("yes" if of_plural[first] > of_plural[second] else "no")
        elif pair.question.startswith("Are there more"):
            others = [name for name in counts if f"more {plural(name)}" in pair.question and name != pair.answer]
            assert all(counts[pair.answer] > counts[name] for name in others)
        else:
            areas = {
                facts.finding: (region.box[2] - region.box[0]) * (region.box[3] - region.box[1])
                for facts, region in zip(known, regions)
            }
            others = [name for name in areas if f"the {name}" in pair.question and name != pair.answer]
            assert all(areas[pair.answer] >= 2 * areas[name] for name in others if name not in pair.answer)


def test_the_questions_of_an_image_are_the_same_on_every_machine():
    """As recorded: nothing may depend on the order of a set, on Python's hash or on a library's generator."""
    looked_for = frozenset({"cavity", "pneumothorax", "consolidation"})
    found = derive_questions((NODULE, EFFUSION, HEART), "demo/1", looked_for=looked_for)
    assert [(pair.question, pair.answer, marked) for pair, marked in found] == [
        ("What is the finding in the marked region?", "pulmonary nodule", 0),
        ("On which side of the patient is the marked region?", "left", 0),
        ("What size is the finding in the marked region?", "small", 0),
        ("Does the marked region show a pulmonary nodule?", "yes", 0),
        ("What is the finding in the marked region?", "pleural effusion", 1),
        ("Which side of the patient is the marked region on?", "right", 1),
        ("How large is the finding in the marked region?", "large", 1),
        ("Does the marked region show a pleural effusion?", "yes", 1),
        ("What does the marked region show?", "cardiomegaly", 2),
        ("What severity has the finding in the marked region?", "severe", 2),
        ("Does the marked region show a pleural effusion?", "no", 2),
        ("Are there more pulmonary nodules than consolidations?", "yes", None),
        ("Are there more cavities or more pleural effusions?", "pleural effusion", None),
        ("Which covers more of the image, the pulmonary nodule or the cardiomegaly?", "cardiomegaly", None),
    ]
