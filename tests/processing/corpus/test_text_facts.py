"""Facts of texts as numbers: what follows from a text says less in them, and what contradicts it does not."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from record_strategies import BOX, regions_of_any_kind

from regionmed_clip.processing.corpus.captions import Statement, count_statements, state_region
from regionmed_clip.processing.corpus.entailment import entails, know
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.text_facts import (
    FACTS,
    NO_FACTS,
    caption_facts,
    says_no_more,
    statement_facts,
)

ATTRIBUTES = ("anatomy", "laterality", "place", "size", "severity")
NODULE = Statement("pulmonary nodule", size="large", laterality="left", place="upper zone", anatomy="lung")
RADIOGRAPH = ("chest radiograph", "frontal", "chest")


def caption(*regions, study=RADIOGRAPH, is_normal=False):
    return caption_facts(*study, tuple(count_statements(regions)), is_normal=is_normal)


def nodule(**attributes):
    return RegionRecord(BOX, "pulmonary nodule", **attributes)


def test_each_said_attribute_has_a_number_and_what_is_unsaid_is_zero():
    facts = dict(zip(FACTS, statement_facts(Statement("nodule", size="large")), strict=True))
    assert {name for name, value in facts.items() if value} == {"finding", "is_negated", "certainty", "size"}
    assert all(0 <= value < 2**63 for value in facts.values())
    assert len(set(facts.values()) - {0}) == 4


def test_a_fact_is_a_hash_of_its_name_and_value_that_never_changes():
    digest = hashlib.blake2b(b"fact\x1fsize\x1flarge\x1f", digest_size=8).digest()
    assert statement_facts(Statement("nodule", size="large"))[3] == int.from_bytes(digest, "big") >> 1


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (Statement("pulmonary nodule"), NODULE),
        (Statement("lung nodule"), NODULE),  # a synonym
        (Statement("pulmonary nodule", place="left upper zone"), NODULE),  # the side said in the place
        (Statement("pulmonary nodule", certainty="possible"), NODULE),  # "possible nodule" follows from "large nodule"
        (Statement("pulmonary nodule", certainty="possible"), replace(NODULE, certainty="probable")),
        (Statement("cyst", is_negated=True), Statement("cyst", is_negated=True, size="large")),
    ],
)
def test_a_text_that_leaves_attributes_out_says_less(less, more):
    assert says_no_more([statement_facts(less)], [statement_facts(more)])
    assert not says_no_more([statement_facts(more)], [statement_facts(less)])


@pytest.mark.parametrize(
    "changed",
    [{"size": "small"}, {"laterality": "right"}, {"place": "lower zone"}, {"is_negated": True}, {"finding": "cavity"}],
)
def test_a_text_with_another_value_says_neither_less_nor_more(changed):
    one, other = statement_facts(NODULE), statement_facts(replace(NODULE, **changed))
    assert not says_no_more([one], [other])
    assert not says_no_more([other], [one])


@settings(max_examples=40)
@given(regions_of_any_kind, st.sets(st.sampled_from(ATTRIBUTES)), st.sampled_from([None, "possible"]))
def test_what_follows_from_a_region_says_less_or_the_same(region, unsaid, doubt):
    known = state_region(region)
    claim = state_region(replace(region, **dict.fromkeys(unsaid), certainty=doubt or region.certainty))
    assume(entails(know(known), know(claim)))
    assert says_no_more([statement_facts(claim)], [statement_facts(known)])


@given(regions_of_any_kind, regions_of_any_kind)
def test_of_two_texts_that_affirm_one_says_less_exactly_where_it_follows_from_the_other(one, other):
    known, claim = (state_region(replace(region, is_negated=False)) for region in (one, other))
    assert says_no_more([statement_facts(claim)], [statement_facts(known)]) == entails(know(known), know(claim))


def test_a_text_of_unknown_structure_says_neither_less_nor_more_than_any():
    for facts in (NO_FACTS, statement_facts(NODULE)):
        assert not says_no_more([NO_FACTS], [facts])
        assert not says_no_more([facts], [NO_FACTS])
    assert not says_no_more((), [statement_facts(NODULE)])


def test_a_caption_with_fewer_findings_or_attributes_says_less():
    whole = caption(nodule(laterality="left", size="large"), RegionRecord(BOX, "cardiomegaly"))
    assert says_no_more(caption(nodule()), whole)
    assert says_no_more(caption(nodule(laterality="left"), RegionRecord(BOX, "cardiomegaly")), whole)
    assert not says_no_more(whole, caption(nodule()))
    assert not says_no_more(caption(nodule(laterality="right")), whole)


def test_captions_of_different_kinds_of_image_say_neither_less_nor_more():
    radiograph, slices = caption(nodule()), caption(nodule(), study=("CT", "axial", "chest"))
    assert not says_no_more(radiograph, slices)
    assert not says_no_more(slices, radiograph)
    unknown_view = caption(nodule(), study=("chest radiograph", None, None))
    assert says_no_more(unknown_view, radiograph)
    assert not says_no_more(radiograph, unknown_view)


def test_captions_that_differ_in_counts_alone_contradict_each_other():
    one, two, three = (caption(*[nodule(size="small")] * count) for count in (1, 2, 3))
    for less, more in ((one, two), (two, one), (two, three)):
        assert not says_no_more(less, more)
    assert len(one) == len(two) == 2  # the kind of image, and the nodules


def test_a_claim_of_normality_is_a_statement_of_its_own():
    cell = RegionRecord(BOX, "red blood cell")
    plain, normal = caption(cell), caption(cell, is_normal=True)
    assert says_no_more(plain, normal)
    assert not says_no_more(normal, plain)


def test_a_caption_that_states_no_region_has_no_facts():
    assert caption() == caption(is_normal=True) == ()


denials = st.builds(replace, regions_of_any_kind, is_negated=st.just(True))


@settings(max_examples=30)
@given(
    st.lists(regions_of_any_kind, min_size=1, max_size=3, unique_by=state_region),
    st.lists(denials, max_size=1),
    st.sets(st.sampled_from(ATTRIBUTES)),
)
def test_a_caption_that_follows_from_another_says_less_or_the_same(regions, denied, unsaid):
    """What is there is said with fewer attributes, what is denied with more; organs, often left out, aside."""
    there = [replace(region, is_negated=False, anatomy=None) for region in regions]
    weaker = [replace(region, **dict.fromkeys(unsaid)) for region in there]
    follows = all(entails(know(state_region(a)), know(state_region(b))) for a, b in zip(there, weaker))
    assume(follows and len(set(map(state_region, weaker))) == len(there))  # counts stay one
    broader = [replace(region, **dict.fromkeys(ATTRIBUTES)) for region in denied]
    known, claim = caption(*there, *broader), caption(*weaker, *denied)
    assume(len(known) == len(claim))  # not coarsened
    assert says_no_more(claim, known)
