"""The texts of an image and of its mirror image: rewritten from what they state, or refused, never left false."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from record_strategies import BOX, make_study, studies_of_any_kind

from regionmed_clip.processing.corpus.captions import describe_region, write_caption
from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.finding_table import SITES
from regionmed_clip.processing.corpus.image_texts import ImageTexts, mirror_words, texts_of_example
from regionmed_clip.processing.corpus.phantoms.study import draw_phantom
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.text_facts import FACTS, NO_FACTS, statement_facts
from regionmed_clip.processing.corpus.text_keys import caption_key, free_text_key, region_text_key

EVERYTHING = frozenset(name for sites in SITES.values() for site in sites for group in site for name in group)
NODULE = RegionRecord(BOX, "pulmonary nodule", "lung", laterality="right", place="upper zone", size="large")
EFFUSION = RegionRecord(BOX, "pleural effusion", laterality="left")
SIDED = ("finding", "anatomy", "laterality", "place")


def texts_of(record) -> ImageTexts:
    return texts_of_example(example_from_record(record, looked_for=EVERYTHING))


def mirror_of(record):
    """The record of the mirrored image as a source would have written it."""
    regions = []
    for region in record.regions:
        words = {name: mirror_words(getattr(region, name)) for name in SIDED if getattr(region, name)}
        mirrored = replace(region, description="", **words)
        regions.append(replace(mirrored, description=describe_region(mirrored)) if region.description else mirrored)
    is_normal = record.caption.startswith("Normal")
    said = (record.modality, record.view, regions)
    return replace(
        record, regions=tuple(regions), caption=write_caption(*said, anatomy=record.anatomy, is_normal=is_normal)
    )


def all_pairs(texts: ImageTexts):
    """(text, key) of the caption, of the regions and of their negatives."""
    pairs = [(texts.caption, texts.caption_key), *((region.text, region.key) for region in texts.regions)]
    return pairs + [(negative.text, negative.key) for region in texts.regions for negative in region.negatives]


def test_the_mirrored_texts_of_a_template_exchange_left_and_right_and_nothing_else():
    texts = texts_of(make_study([NODULE, EFFUSION]))
    mirrored = texts.mirrored()
    assert [region.text for region in mirrored.regions] == [
        "large pulmonary nodule in the left upper zone of the lung",
        "right pleural effusion",
    ]
    assert mirrored.caption == (
        "Frontal chest radiograph with a right pleural effusion and a large pulmonary nodule in the left upper zone."
    )
    laterality = FACTS.index("laterality")
    for before, after in zip(texts.regions, mirrored.regions, strict=True):
        changed = [place for place in range(len(FACTS)) if before.facts[place] != after.facts[place]]
        assert changed == [laterality]
    assert mirrored.regions[0].facts[laterality] == texts.regions[1].facts[laterality]


def test_negatives_are_mirrored_with_the_region_that_they_are_false_of():
    (region,) = texts_of(make_study([NODULE])).mirrored().regions
    texts = {negative.changed: negative.text for negative in region.negatives}
    assert texts["laterality"] == "large pulmonary nodule in the right upper zone of the lung"
    assert texts["size"] == "small pulmonary nodule in the left upper zone of the lung"
    assert region.key not in {negative.key for negative in region.negatives}


def test_a_negative_without_a_mirror_image_is_left_out():
    lobe = RegionRecord(BOX, "consolidation", "lung", laterality="right", place="upper lobe")
    texts = texts_of(make_study([lobe]))
    assert any("middle lobe" in negative.text for negative in texts.regions[0].negatives)
    mirrored = texts.mirrored()
    assert mirrored.regions[0].text == "consolidation in the left upper lobe of the lung"
    assert len(mirrored.regions[0].negatives) == len(texts.regions[0].negatives) - 1


@settings(max_examples=25)
@given(studies_of_any_kind)
def test_mirroring_gives_what_a_source_writes_of_the_mirrored_image(record):
    mirrored = texts_of(record).mirrored()
    assume(mirrored is not None)
    expected = mirror_of(record)
    assert (mirrored.caption, mirrored.caption_key) == (expected.caption, caption_key(expected))
    for region, of_source in zip(mirrored.regions, expected.regions, strict=True):
        assert (region.text, region.key) == (describe_region(of_source), region_text_key(of_source))
        assert region.facts == statement_facts(region.known)


@settings(max_examples=25)
@given(studies_of_any_kind)
def test_mirroring_twice_gives_the_same_texts(record):
    texts = texts_of(record)
    mirrored = texts.mirrored()
    assume(mirrored is not None)
    again = mirrored.mirrored()
    assert again.mirrored() == mirrored
    for before, after in zip(texts.regions, again.regions, strict=True):
        assert replace(after, negatives=()) == replace(before, negatives=())
        lost = set(before.negatives) - set(after.negatives)
        assert all("middle lobe" in negative.text or "atri" in negative.text for negative in lost)
        assert list(after.negatives) == [negative for negative in before.negatives if negative not in lost]
    assert replace(again, regions=()) == replace(texts, regions=())


@settings(max_examples=25)
@given(studies_of_any_kind)
def test_a_key_changes_exactly_where_its_text_does(record):
    texts = texts_of(record)
    texts = replace(texts, regions=tuple(replace(region, negatives=()) for region in texts.regions))
    mirrored = texts.mirrored()
    assume(mirrored is not None)
    for (text, key), (other_text, other_key) in zip(all_pairs(texts), all_pairs(mirrored), strict=True):
        assert (text != other_text) == (key != other_key)


@settings(max_examples=25)
@given(studies_of_any_kind)
def test_texts_come_back_from_their_details(record):
    texts = texts_of(record)
    described = [region.text for region in texts.regions], [region.key for region in texts.regions]
    assert ImageTexts.from_details(texts.caption, texts.caption_key, *described, texts.details()) == texts


@pytest.mark.parametrize(
    "region",
    [
        RegionRecord(BOX, "dextrocardia"),
        RegionRecord(BOX, "situs inversus"),
        RegionRecord(BOX, "consolidation", "lung", place="right middle lobe"),
        RegionRecord(BOX, "left ventricular hypertrophy", "heart"),
        RegionRecord(BOX, "enlargement", "right atrium"),
        RegionRecord(BOX, "cyst", "liver", place="left lobe"),
    ],
)
def test_what_is_on_one_side_alone_is_not_mirrored(region):
    assert texts_of(make_study([region])).mirrored() is None


@pytest.mark.parametrize("view", ["left lateral", "lateral", "sagittal", "LAO"])
def test_a_view_from_the_side_is_not_mirrored(view):
    record = make_study([NODULE])
    caption = write_caption(record.modality, view, record.regions, anatomy=record.anatomy)
    assert texts_of(replace(record, view=view, caption=caption)).mirrored() is None


def test_a_study_of_one_side_is_not_mirrored():
    record = make_study([NODULE])
    caption = write_caption(record.modality, record.view, record.regions, anatomy="left knee")
    assert texts_of(replace(record, anatomy="left knee", caption=caption)).mirrored() is None


@pytest.mark.parametrize(
    ("caption", "is_mirrored"),
    [
        ("A nodule in the LEFT lung.", False),
        ("Nodule, left-sided.", False),
        ("RLL opacity.", False),
        ("Derrame pleural derecho.", False),
        ("Lesion at 3 o'clock.", False),
        ("Middle lobe collapse.", False),
        ("A nodule in the lung.", True),
    ],
)
def test_a_caption_of_the_source_that_names_a_side_is_not_mirrored_and_another_is_kept(caption, is_mirrored):
    texts = texts_of(make_study([NODULE], caption=caption, text_origin="source"))
    assert texts.caption_facts == ()
    mirrored = texts.mirrored()
    assert (mirrored is not None) == is_mirrored
    if mirrored is not None:
        assert (mirrored.caption, mirrored.caption_key) == (caption, free_text_key(caption))
        assert mirrored.regions[0].text == "large pulmonary nodule in the left upper zone of the lung"


def test_a_region_text_of_the_source_has_no_facts_and_is_kept_where_it_names_no_side():
    said = replace(NODULE, description="a spiculated nodule", text_origin="source")
    texts = texts_of(make_study([said]))
    assert texts.regions[0].facts == NO_FACTS
    (region,) = texts.mirrored().regions
    assert (region.text, region.key) == ("a spiculated nodule", free_text_key("a spiculated nodule"))
    assert region.known.laterality == "left"
    assert texts_of(make_study([replace(said, description="spiculated nodule on the right")])).mirrored() is None


@pytest.mark.parametrize(
    ("region", "names_height"),
    [
        (NODULE, True),
        (RegionRecord(BOX, "cyst", "liver", place="segment 7"), True),
        (RegionRecord(BOX, "drusen", "retina", place="superonasal quadrant"), True),
        (RegionRecord(BOX, "consolidation", "lung", place="apex"), True),
        (RegionRecord(BOX, "cell", place="lower left"), True),
        (RegionRecord(BOX, "cell", place="left"), False),
        (RegionRecord(BOX, "renal cyst", "kidney", laterality="left"), False),
    ],
)
def test_a_text_that_names_a_height_is_known(region, names_height):
    assert texts_of(make_study([region])).names_height() == names_height


def test_a_text_that_names_a_place_in_the_picture_is_known():
    assert texts_of(make_study([RegionRecord(BOX, "cell", place="lower left")])).names_place_in_frame()
    caption = "A cell in the corner."
    assert texts_of(make_study([], caption=caption, text_origin="source")).names_place_in_frame()
    assert not texts_of(make_study([NODULE])).names_place_in_frame()


SIDE_OF_RIGHT = {"pulmonary nodule": 0, "consolidation": 0, "cavity": 0, "pleural effusion": 0, "pneumothorax": 0}
SIDE_OF_RIGHT |= {"renal cyst": 0, "renal mass": 0, "kidney stone": 0, "hydronephrosis": 0}


def test_the_texts_of_a_mirrored_phantom_agree_with_where_its_boxes_are():
    """Phantoms are drawn by side and place: right is on the picture's left; temporal is left of a right eye's fovea."""
    num_checked = {"laterality": 0, "quadrant": 0, "place in frame": 0}
    for index in range(60):
        record = draw_phantom(0, index)
        for texts, is_mirrored in ((texts_of(record), False), (texts_of(record).mirrored(), True)):
            assert texts is not None
            for region, drawn in zip(texts.regions, record.regions, strict=True):
                centre = (drawn.box[0] + drawn.box[2]) / 2 / record.width
                is_on_left = (centre < 0.5) != is_mirrored
                known = region.known
                if known.finding in SIDE_OF_RIGHT:
                    assert is_on_left == (known.laterality == "right")
                    num_checked["laterality"] += 1
                elif known.place and "temporal" in known.place:
                    assert is_on_left == (known.laterality == "right")
                    num_checked["quadrant"] += 1
                elif known.place and known.place.endswith(("left", "right")):
                    assert is_on_left == known.place.endswith("left")
                    num_checked["place in frame"] += 1
    assert min(num_checked.values()) > 15


def test_a_phantom_without_regions_keeps_its_caption():
    record = next(record for record in (draw_phantom(0, index) for index in range(30)) if not record.regions)
    texts = texts_of(record)
    assert texts.mirrored() == texts
    assert np.shape(texts.caption_facts) == (0,)
