"""Texts by template: they read as English, state what the record states, and never more."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.processing.corpus.captions import (
    count_statements,
    describe_region,
    write_caption,
    write_findings,
    write_impression,
)
from regionmed_clip.processing.corpus.grammar import count_in_words, is_or_are, join_list, plural, with_article
from regionmed_clip.processing.corpus.records import RegionRecord

BOX = (0.0, 0.0, 1.0, 1.0)
NODULE = RegionRecord(BOX, "pulmonary nodule", "lung", laterality="right", place="upper zone", size="large")
EFFUSION = RegionRecord(BOX, "pleural effusion", "pleural space", laterality="left", size="small")


@pytest.mark.parametrize(
    ("region", "text"),
    [
        (NODULE, "large pulmonary nodule in the right upper zone of the lung"),
        (EFFUSION, "small left pleural effusion"),
        (RegionRecord(BOX, "pneumothorax", "pleural space", laterality="left"), "left pneumothorax"),
        (RegionRecord(BOX, "cardiomegaly", "heart", severity="mild"), "mild cardiomegaly"),
        (
            RegionRecord(BOX, "hepatic cyst", "liver", place="segment 7", size="small"),
            "small hepatic cyst in segment 7 of the liver",
        ),
        (RegionRecord(BOX, "renal mass", "kidney", laterality="left"), "renal mass in the left kidney"),
        (
            RegionRecord(BOX, "cyst", "kidney", laterality="left", place="upper pole"),
            "cyst in the upper pole of the left kidney",
        ),
        (
            RegionRecord(BOX, "hard exudate", "retina", place="temporal quadrant"),
            "hard exudate in the temporal quadrant of the retina",
        ),
        (RegionRecord(BOX, "drusen", "retina", laterality="left", place="macula"), "drusen in the left macula"),
        (
            RegionRecord(BOX, "sickle cell", "blood", place="upper left"),
            "sickle cell in the upper left of the image",
        ),
        (
            RegionRecord(
                BOX, "consolidation", "lung", laterality="left", place="left lower lobe", certainty="possible"
            ),
            "possible consolidation in the left lower lobe of the lung",
        ),
        (
            RegionRecord(BOX, "hilar lymphadenopathy", "hilum", laterality="bilateral"),
            "bilateral hilar lymphadenopathy",
        ),
        (RegionRecord(BOX, "pneumothorax", laterality="right", is_negated=True), "no right pneumothorax"),
        (RegionRecord(BOX, "small vessel disease", size="small"), "small vessel disease"),
        (RegionRecord(BOX, "red blood cell"), "red blood cell"),
    ],
)
def test_a_region_text_stands_alone(region, text):
    assert describe_region(region) == text


def test_a_caption_names_every_finding_in_one_sentence():
    assert write_caption("chest radiograph", None, [NODULE, EFFUSION]) == (
        "Chest radiograph with a small left pleural effusion and a large pulmonary nodule in the right upper zone."
    )


def test_a_caption_leaves_out_an_organ_that_the_finding_names():
    cyst = RegionRecord(BOX, "hepatic cyst", "liver", place="segment 7")
    assert write_caption("CT", "axial", [cyst], anatomy="abdomen") == (
        "Axial CT of the abdomen with a hepatic cyst in segment 7."
    )
    assert write_findings([cyst]) == "A hepatic cyst in segment 7 of the liver."


def test_a_caption_does_not_depend_on_the_order_of_the_regions():
    assert write_caption("CT", "axial", [NODULE, EFFUSION]) == write_caption("CT", "axial", [EFFUSION, NODULE])


def test_normality_is_claimed_only_when_asked_for():
    assert write_caption("chest radiograph", None, [], is_normal=True) == (
        "Normal chest radiograph without focal abnormality."
    )
    assert write_caption("radiology image", None, [], anatomy="head") == "Radiology image of the head."
    assert write_caption("CT", "axial", [], anatomy="abdomen", is_normal=True) == (
        "Normal axial CT of the abdomen without focal abnormality."
    )


def test_equal_regions_are_counted_in_words():
    cells = [RegionRecord(BOX, name) for name in ["red blood cell"] * 13 + ["white blood cell"] + ["platelet"] * 3]
    assert write_caption("light microscopy", None, cells) == (
        "Light microscopy with a white blood cell, three platelets and many red blood cells."
    )
    assert write_findings(cells) == "A white blood cell. Three platelets. Many red blood cells."
    assert write_impression(cells) == "Platelet, red blood cell and white blood cell."


def test_a_caption_with_too_much_to_say_drops_the_places_first():
    quadrants = ["temporal", "nasal", "superior", "inferior"]
    exudates = [RegionRecord(BOX, "exudate", "retina", place=f"{name} quadrant", size="small") for name in quadrants]
    drusen = [RegionRecord(BOX, "drusen", "macula", size="large")]
    assert write_caption("fundus photograph", None, exudates + drusen) == (
        "Fundus photograph with large drusen and four small exudates."
    )


def test_a_denial_is_never_widened():
    findings = ["cavity", "nodule", "mass", "fracture", "effusion"]
    regions = [RegionRecord(BOX, name) for name in findings]
    denial = RegionRecord(BOX, "pneumothorax", laterality="left", is_negated=True)
    assert write_caption("chest radiograph", None, [*regions, denial]).endswith(", without left pneumothorax.")
    assert write_findings([denial]) == "No left pneumothorax."


def test_a_doubt_is_never_dropped():
    zones = ["upper zone", "middle zone", "lower zone"]
    doubts = [
        RegionRecord(BOX, "nodule", "lung", side, zone, certainty="possible")
        for zone in zones
        for side in ("left", "right")
    ]
    assert write_caption("chest radiograph", None, doubts) == (
        "Chest radiograph with three possible left nodules and three possible right nodules."
    )


def test_an_impression_keeps_the_doubt():
    doubt = RegionRecord(BOX, "nodule", certainty="possible", size="large")
    assert write_impression([doubt, EFFUSION]) == "Pleural effusion and possible nodule."


def test_a_denial_is_not_counted():
    denial = RegionRecord(BOX, "pneumothorax", laterality="left", is_negated=True)
    assert count_statements([denial, denial]) == count_statements([denial])


@pytest.mark.parametrize(
    ("noun", "verb"),
    [
        ("drusen", "are"),
        ("cluster of hard exudates", "is"),
        ("gallstones", "are"),
        ("ascites", "is"),
        ("hydronephrosis", "is"),
        ("abscess", "is"),
        ("embolus", "is"),
        ("nodule", "is"),
    ],
)
def test_a_verb_agrees_with_the_finding(noun, verb):
    assert is_or_are(noun) == verb


@pytest.mark.parametrize(
    ("noun", "many"),
    [
        ("platelet", "platelets"),
        ("opacity", "opacities"),
        ("cavity", "cavities"),
        ("hepatic metastasis", "hepatic metastases"),
        ("abscess", "abscesses"),
        ("pneumothorax", "pneumothoraces"),
        ("embolus", "emboli"),
        ("fracture of the rib", "fractures of the rib"),
        ("foreign body", "foreign bodies"),
        ("x-ray", "x-rays"),
    ],
)
def test_nouns_get_their_plural(noun, many):
    assert plural(noun) == many


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("ulcer", "an ulcer"),
        ("unilateral effusion", "a unilateral effusion"),
        ("intracranial hemorrhage", "an intracranial hemorrhage"),
        ("MRI artefact", "an MRI artefact"),
        ("CT artefact", "a CT artefact"),
        ("nodule", "a nodule"),
    ],
)
def test_articles_follow_the_sound(phrase, said):
    assert with_article(phrase) == said


def test_counts_have_a_word_for_every_number():
    assert [count_in_words(count) for count in (1, 2, 4, 5, 9, 10, 400)] == [
        *("one", "two", "four", "several", "several", "many", "many")
    ]


def test_lists_have_one_conjunction():
    assert [join_list(list("abc"[:count])) for count in range(4)] == ["", "a", "a and b", "a, b and c"]


attribute = st.none() | st.sampled_from(
    ["upper zone", "segment 7", "temporal quadrant", "upper left", "left lower lobe"]
)
regions_of_any_kind = st.builds(
    RegionRecord,
    box=st.just(BOX),
    finding=st.sampled_from(["pulmonary nodule", "cardiomegaly", "hard exudate", "red blood cell", "ulcer", "drusen"]),
    anatomy=st.none() | st.sampled_from(["lung", "heart", "liver", "retina", "kidney", "blood"]),
    laterality=st.none() | st.sampled_from(["left", "right", "bilateral"]),
    place=attribute,
    size=st.none() | st.sampled_from(["small", "medium", "large"]),
    severity=st.none() | st.sampled_from(["mild", "moderate", "severe"]),
    is_negated=st.booleans(),
)


@given(regions_of_any_kind)
def test_a_region_text_repeats_no_word_and_states_every_known_word_or_less(region):
    words = describe_region(region).split()
    assert all(first != second for first, second in pairwise(words))
    known = (region.finding, region.anatomy, region.laterality, region.place, region.size, region.severity)
    said = {word for value in known if value for word in value.split()}
    assert set(words) <= said | {"in", "the", "of", "image", "no"}
    assert set(region.finding.split()) <= set(words)


@given(st.lists(regions_of_any_kind, max_size=9), st.booleans())
def test_a_caption_is_one_clean_sentence(regions, is_normal):
    caption = write_caption("CT", "axial", regions, anatomy="abdomen", is_normal=is_normal)
    assert caption[0].isupper()
    assert caption.endswith(".")
    assert caption.count(".") == 1
    assert "  " not in caption
    assert " ," not in caption
    words = caption.lower().split()
    assert all(first != second for first, second in pairwise(words))
