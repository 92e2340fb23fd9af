"""Multi-level text: every level is there where it can be, says what the record says or less, keyed by meaning."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import (
    ANATOMIES,
    BOX,
    FINDINGS,
    PLACES,
    make_study,
    regions_of_any_kind,
    studies_of_any_kind,
)

from regionmed_clip.processing.corpus.captions import names_organ, state_region
from regionmed_clip.processing.corpus.image_wording import NUM_CAPTION_WORDINGS, word_caption, word_findings
from regionmed_clip.processing.corpus.multi_level_text import write_texts
from regionmed_clip.processing.corpus.negatives import write_negatives
from regionmed_clip.processing.corpus.phantoms.study import MODALITIES, draw_phantom
from regionmed_clip.processing.corpus.records import (
    CERTAINTIES,
    LATERALITIES,
    SEVERITIES,
    SIZES,
    TEXT_LEVELS,
    RegionRecord,
)
from regionmed_clip.processing.corpus.sources.jsonl_fields import FINDING_OF_LABEL
from regionmed_clip.processing.corpus.synonyms import SYNONYMS, canonical_finding, names_of_finding
from regionmed_clip.processing.corpus.text_keys import caption_key, free_text_key, region_text_key
from regionmed_clip.processing.corpus.wording import state_shortly, word_attributes, word_denial, word_region

NODULE = RegionRecord(BOX, "pulmonary nodule", "lung", laterality="right", place="upper zone", size="large")
DENIED = RegionRecord(BOX, "pneumothorax", "pleural space", laterality="right", is_negated=True)
ATTRIBUTE_WORDS = (
    {word for values in (FINDINGS, PLACES, ANATOMIES) for value in values for word in value.split()}
    | {word for row in SYNONYMS for name in row for word in re.split(r"[ -]", name)}
    | {*LATERALITIES, *SIZES, *SEVERITIES, *CERTAINTIES}
) - {"of", "the"}


def texts_of(record, level, seed=0):
    return [text for text in write_texts(record, seed) if text.level == level]


def singular(word):
    """A word without the ending that a count gives it."""
    for many, one in (("ies", "y"), ("thoraces", "thorax"), ("ases", "asis"), ("calculi", "calculus")):
        if word.endswith(many):
            return word.removesuffix(many) + one
    return word.removesuffix("s") if word.removesuffix("s") in ATTRIBUTE_WORDS else word


def words_of_record(record):
    """Every attribute word that a text of the record may use; "both sides" are its bilateral ones."""
    known = {record.modality, record.view, record.anatomy}
    for region in record.regions:
        attributes = (region.anatomy, region.laterality, region.place, region.size, region.severity, region.certainty)
        known |= {*names_of_finding(region.finding), *attributes}
    return {word for value in known if value for word in re.split(r"[ -]", value)}


def test_a_region_is_told_at_every_level():
    texts = [text for seed in range(60) for text in write_texts(make_study([NODULE]), seed)]
    said = {level: {text.text for text in texts if text.level == level} for level in TEXT_LEVELS}
    assert "large pulmonary nodule in the right upper zone of the lung" in said["region"]
    assert "in the right upper zone of the lung, a large lung nodule" in said["region"]
    assert "pulmonary nodule in the right upper zone" in said["region_short"]
    assert not any("large" in text for text in said["region_short"])
    assert {"the pulmonary nodule is large in size", "large in size"} <= said["attribute"]
    assert {"located in the right upper zone of the lung", "on the patient's right"} <= said["attribute"]
    assert said["normal"] == set()
    assert all(len(said[level]) >= 4 for level in ("caption", "findings", "impression", "region", "region_short"))


def test_every_level_of_an_image_comes_once_in_its_own_and_once_in_other_words():
    record = make_study([NODULE])
    for level, own in (("caption", record.caption), ("findings", record.findings), ("impression", record.impression)):
        first, second = texts_of(record, level)
        assert (first.text, first.origin) == (own, "template")
        assert second.text != own
        assert second.key == first.key
    assert texts_of(record, "caption")[0].key == caption_key(record)


@pytest.mark.parametrize(
    ("is_normal", "statements", "texts"),
    [
        (
            False,
            [(state_region(NODULE), "two"), (state_region(DENIED), "one")],
            [
                "This CT shows two large lung nodules in the right upper zone of the lung, but no right pneumothorax.",
                "Two large lung nodules in the right upper zone of the lung on CT, without right pneumothorax.",
                "CT: two large lung nodules in the right upper zone of the lung; no right pneumothorax.",
                "CT showing two large lung nodules in the right upper zone of the lung and no right pneumothorax.",
            ],
        ),
        (
            True,
            [],
            [
                "This normal CT shows no focal abnormality.",
                "No focal abnormality on normal CT.",
                "Normal CT: no focal abnormality.",
                "Normal CT showing no focal abnormality.",
            ],
        ),
        (False, [], ["Image: CT.", "Shown: CT.", "Type of image: CT.", "Study: CT."]),
    ],
)
def test_a_caption_has_four_more_wordings(is_normal, statements, texts):
    worded = [word_caption(number, 1, "CT", statements, is_normal=is_normal) for number in range(NUM_CAPTION_WORDINGS)]
    assert worded == texts


def test_findings_in_other_words_keep_counts_and_denials():
    statements = [(state_region(NODULE), "two"), (state_region(DENIED), "one")]
    assert word_findings(1, 0, statements, is_normal=True) == (
        "Findings: two large pulmonary nodules in the right upper zone of the lung. "
        "No right pneumothorax or focal abnormality."
    )
    assert word_findings(0, 0, []) == ""


def test_normality_is_said_only_where_the_record_says_it():
    assert texts_of(make_study(), "normal") == []
    assert texts_of(make_study(caption="Normal chest.", text_origin="source"), "normal") == []
    (whole,) = texts_of(make_study(is_normal=True), "normal")
    assert whole.region is None
    assert "no focal abnormality" in whole.text.lower() or "No sign of" in whole.text
    (denial,) = texts_of(make_study([NODULE, DENIED]), "normal")
    assert (denial.region, denial.key) == (1, region_text_key(DENIED))
    assert "no" in denial.text.lower().split()
    assert denial.text.endswith("right pneumothorax.")


def test_a_short_text_states_less_and_has_a_key_of_its_own():
    (short,) = texts_of(make_study([NODULE]), "region_short")
    assert short.key != region_text_key(NODULE)
    assert short.key == region_text_key(replace(NODULE, size=None, anatomy=None))


@pytest.mark.parametrize("change", [{"certainty": "possible"}, {"is_negated": True}])
def test_a_short_text_never_says_more_by_saying_less(change):
    region = replace(NODULE, **change)
    short = state_shortly(region)
    assert short.certainty == region.certainty
    if region.is_negated:
        assert short == state_region(region)


def test_a_source_keeps_its_own_words_and_gets_templates_beside_them():
    region = replace(NODULE, description="Large nodule, RUZ", text_origin="source")
    record = make_study(
        [region], caption="Nodule seen.", findings="A nodule.", impression="Nodule.", text_origin="source"
    )
    for level, own in (("caption", "Nodule seen."), ("findings", "A nodule."), ("region", "Large nodule, RUZ")):
        first, second = texts_of(record, level)
        assert (first.text, first.origin, first.key) == (own, "source", free_text_key(own))
        assert second.origin == "template"
        assert second.key != first.key
    assert texts_of(record, "region")[1].key == region_text_key(NODULE)


def test_a_region_without_a_named_finding_is_told_in_the_source_s_words_alone():
    region = RegionRecord(BOX, "region of interest", description="A dark spot.", text_origin="source")
    record = make_study([region])
    assert [text.text for text in write_texts(record) if text.region == 0] == ["A dark spot."]
    assert write_negatives(record) == ()


def test_texts_depend_on_image_and_seed_alone():
    record = make_study([NODULE, DENIED])
    assert write_texts(record, 3) == write_texts(record, 3)
    assert len({write_texts(record, seed) for seed in range(8)}) > 1
    assert len({write_texts(replace(record, image_id=str(number))) for number in range(8)}) > 1


def test_the_wordings_of_a_meaning_are_the_same_on_every_machine():
    assert [text.text for text in write_texts(draw_phantom(0, 16)) if text.region == 0] == [
        "small left pleural effusion",
        "a small left pleural effusion",
        "a left pleural effusion",
        "small pleural fluid",
        "the pleural effusion is on the left side",
    ]


@settings(max_examples=80, deadline=None)
@given(studies_of_any_kind, st.integers(0, 50))
def test_no_text_states_a_word_that_the_record_does_not(record, seed):
    known = words_of_record(record) | {"both", "sides"}
    for text in write_texts(record, seed):
        words = {singular(word) for word in re.findall(r"[a-z]+", text.text.lower().replace("patient's", ""))}
        assert words & ATTRIBUTE_WORDS <= known, text


@settings(max_examples=80, deadline=None)
@given(st.lists(studies_of_any_kind, min_size=2, max_size=3), st.integers(0, 50))
def test_equal_texts_have_equal_keys(records, seed):
    keys = defaultdict(set)
    for record in records:
        for text in write_texts(record, seed):
            keys[text.region is None, text.text].add(text.key)
    assert all(len(found) == 1 for found in keys.values()), {
        text: found for text, found in keys.items() if len(found) > 1
    }


@given(regions_of_any_kind, regions_of_any_kind)
def test_two_meanings_share_no_wording(first, second):
    one, other = state_region(first), state_region(second)
    if set(word_region(one)) & set(word_region(other)):
        assert region_text_key(first) == region_text_key(second)


@given(regions_of_any_kind)
def test_every_region_has_four_wordings_or_more_and_attributes_state_no_more_than_the_region(region):
    assert len(word_region(state_region(region))) >= 4 or not region.is_negated
    assert len(word_denial(state_region(region))) >= 4
    for alternatives in word_attributes(region):
        for phrase in alternatives:
            said = {part for part in phrase.statement.parts() if not part.endswith("=")}
            whole = {*state_region(region).parts(), f"laterality={region.laterality}"}
            assert said <= whole, phrase
            assert phrase.texts


def test_synonyms_share_a_key_and_name_the_same_organ():
    for row in SYNONYMS:
        regions = [replace(NODULE, finding=name) for name in row]
        assert len({region_text_key(region) for region in regions}) == 1
        for organ in ("lung", "heart", "liver", "kidney", "spleen", "pleura", "pleural space", "retina", "brain"):
            assert len({names_organ(name, organ) for name in row}) == 1, (row, organ)
    names = [name for row in SYNONYMS for name in row]
    assert len(names) == len(set(names))


def test_the_names_of_published_data_stand_for_their_synonyms():
    published = {meaning.finding for modality in MODALITIES for meaning in modality.meanings}
    published |= {*FINDING_OF_LABEL.values(), "intracranial hemorrhage", "glioma", "pituitary tumor", "nerve"}
    assert {name: canonical_finding(name) for name in published} == {name: name for name in published}
