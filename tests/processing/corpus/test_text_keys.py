"""Text keys: equal for equal meanings, different for different ones, and the same for ever."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import astuple, replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.processing.corpus.captions import (
    describe_region,
    write_caption,
    write_findings,
    write_impression,
)
from regionmed_clip.processing.corpus.phantoms.study import MODALITIES, draw_phantom
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.text_keys import (
    caption_key,
    findings_key,
    free_text_key,
    hash_meaning,
    impression_key,
    normal_key,
    region_text_key,
)

BOX = (0.0, 0.0, 1.0, 1.0)
NODULE = RegionRecord(BOX, "pulmonary nodule", "lung", laterality="right", place="upper zone", size="large")


def study(regions, caption=None, is_normal=False, **changes):
    record = StudyRecord(
        image_id="demo/1",
        image=b"png",
        width=40,
        height=30,
        modality="chest radiograph",
        anatomy=None,
        view=None,
        caption=caption or write_caption("chest radiograph", None, regions, is_normal=is_normal),
        findings="",
        impression="",
        regions=tuple(regions),
        qa=(),
        patient_id=None,
        split="train",
        source="demo",
        source_revision="1",
        license="CC0 1.0",
        sha256="0" * 64,
    )
    return replace(record, **changes)


@given(st.lists(st.text(max_size=5), max_size=4))
def test_a_key_fits_into_a_signed_64_bit_integer(parts):
    assert 0 <= hash_meaning(parts) < 2**63


def test_a_key_tells_where_its_parts_end():
    assert hash_meaning(["a", "bc"]) != hash_meaning(["ab", "c"])


def test_a_key_is_the_same_in_every_process():
    # printf 'pulmonary nodule\x1f' | b2sum -l 64, shifted right by one bit
    assert hash_meaning(["pulmonary nodule"]) == 7111627996579943164
    code = (
        "from regionmed_clip.processing.corpus.text_keys import hash_meaning; print(hash_meaning(['pulmonary nodule']))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == hash_meaning(["pulmonary nodule"])


@pytest.mark.parametrize(
    "change",
    [
        {"finding": "cavity"},
        {"laterality": "left"},
        {"place": "lower zone"},
        {"size": "small"},
        {"severity": "mild"},
        {"is_negated": True},
        {"certainty": "possible"},
        {"anatomy": None},
        {"size": None},
    ],
)
def test_every_stated_attribute_enters_the_key_of_a_region(change):
    other = replace(NODULE, **change)
    assert describe_region(other) != describe_region(NODULE)
    assert region_text_key(other) != region_text_key(NODULE)


@pytest.mark.parametrize(
    "change", [{"box": (2.0, 2.0, 3.0, 3.0)}, {"description": "another wording"}, {"certainty": "definite"}]
)
def test_what_the_text_leaves_out_does_not_enter_the_key(change):
    assert region_text_key(replace(NODULE, **change)) == region_text_key(NODULE)


def test_an_organ_that_the_finding_names_changes_neither_text_nor_key():
    plain, with_organ = RegionRecord(BOX, "pleural effusion"), RegionRecord(BOX, "pleural effusion", "pleura")
    assert describe_region(plain) == describe_region(with_organ)
    assert region_text_key(plain) == region_text_key(with_organ)


attributes = {
    "finding": ["pulmonary nodule", "renal cyst", "cardiomegaly"],
    "anatomy": [None, "lung", "kidney", "heart"],
    "laterality": [None, "left", "right", "bilateral"],
    "place": [None, "upper zone", "segment 7", "upper left", "left lower lobe"],
    "size": [None, "small", "large"],
    "is_negated": [False, True],
}
regions_of_any_kind = st.builds(
    RegionRecord, box=st.just(BOX), **{name: st.sampled_from(values) for name, values in attributes.items()}
)


@given(regions_of_any_kind, regions_of_any_kind)
def test_two_regions_have_equal_keys_exactly_when_their_texts_are_equal(first, second):
    are_equal_texts = describe_region(first) == describe_region(second)
    assert (region_text_key(first) == region_text_key(second)) == are_equal_texts


@given(st.lists(regions_of_any_kind, max_size=7), st.lists(regions_of_any_kind, max_size=7))
def test_two_studies_have_equal_keys_exactly_when_their_captions_are_equal(first, second):
    are_equal_texts = study(first).caption == study(second).caption
    assert (caption_key(study(first)) == caption_key(study(second))) == are_equal_texts


def test_a_caption_key_knows_modality_view_count_and_normality():
    records = [
        study([NODULE]),
        study([NODULE, NODULE]),
        study([NODULE], modality="CT"),
        study([NODULE], view="frontal"),
        study([]),
        study([], is_normal=True),
        study([NODULE], is_normal=True),
    ]
    assert all(caption_key(first) != caption_key(second) for first, second in combinations(records, 2))


def test_texts_and_keys_of_published_results_stay_what_they_are():
    digest = hashlib.sha256()
    for meaning in (meaning for modality in MODALITIES for meaning in modality.meanings):
        region = RegionRecord(BOX, *astuple(meaning))  # finding, anatomy, laterality, place, size, severity
        digest.update(f"{describe_region(region)}={region_text_key(region)}\n".encode())
    # computed with the code of commit f79bce1, whose results are published
    assert digest.hexdigest() == "067dd61d3bf51db256d2582829744b8e613888d8826c223c9500fdf9749c2c41"
    assert [caption_key(draw_phantom(0, index)) for index in (0, 16, 25)] == [
        *(1558194830607789383, 1956571546244460715, 7078758027604950975)
    ]


def test_a_side_in_the_place_or_the_organ_means_the_same_as_one_stated_apart():
    apart = RegionRecord(BOX, "consolidation", "lung", laterality="left", place="lower lobe")
    within = [replace(apart, place="left lower lobe"), replace(apart, laterality=None, place="left lower lobe")]
    assert {describe_region(region) for region in [apart, *within]} == {describe_region(apart)}
    assert {region_text_key(region) for region in [apart, *within]} == {region_text_key(apart)}
    lung = RegionRecord(BOX, "cavity", "lung", laterality="left")
    organs = [lung, replace(lung, anatomy="left lung"), replace(lung, anatomy="left lung", laterality=None)]
    assert {describe_region(region) for region in organs} == {"cavity in the left lung"}
    assert len({region_text_key(region) for region in organs}) == 1


def test_findings_that_say_no_more_than_the_impression_share_its_key():
    heart = [RegionRecord(BOX, "cardiomegaly", "heart")]
    assert write_findings(heart) == write_impression(heart) == "Cardiomegaly."
    assert findings_key(heart) == impression_key(heart)
    assert findings_key([NODULE]) != impression_key([NODULE])
    assert findings_key([], is_normal=True) == impression_key([], is_normal=True) == normal_key()


def test_a_text_of_the_source_is_keyed_by_its_words():
    own = study([NODULE], caption="Nodule,  right.", text_origin="source")
    assert caption_key(own) == free_text_key("nodule, RIGHT.")
    region = replace(NODULE, description="Nodule, right", text_origin="source")
    assert region_text_key(region) == free_text_key("nodule, right")
    assert region_text_key(replace(region, description=describe_region(NODULE))) == region_text_key(NODULE)
