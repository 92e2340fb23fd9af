"""Hard negatives: each differs from a true text in the named attribute and is false by the record itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import BOX, make_study, regions_of_any_kind, studies_of_any_kind

from regionmed_clip.processing.corpus.captions import count_statements, describe_region, state_region, study_phrase
from regionmed_clip.processing.corpus.entailment import entails, is_false, know
from regionmed_clip.processing.corpus.finding_table import SITES, findings_instead, findings_named, may_be_one
from regionmed_clip.processing.corpus.multi_level_text import write_texts
from regionmed_clip.processing.corpus.negatives import MAX_IMAGE_NEGATIVES, carry, read_negative, write_negatives
from regionmed_clip.processing.corpus.phantoms.study import draw_phantom
from regionmed_clip.processing.corpus.places import exclude_each_other, other_places
from regionmed_clip.processing.corpus.records import NEGATIVE_CHANGES, QARecord, RegionRecord
from regionmed_clip.processing.corpus.sources.nih_bbox import FINDING_OF_LABEL
from regionmed_clip.processing.corpus.sources.phantom import FINDINGS
from regionmed_clip.processing.corpus.sources.vindr_cxr import DIAGNOSIS_OF_LABEL, FINDING_OF_CLASS
from regionmed_clip.processing.corpus.text_keys import region_text_key, stated_caption_key, statement_key

NODULE = RegionRecord(BOX, "pulmonary nodule", "lung", laterality="right", place="upper zone", size="large")
EVERYTHING = frozenset(name for sites in SITES.values() for site in sites for group in site for name in group)
ATTRIBUTES = ("anatomy", "laterality", "place", "size", "severity")


def write_all(record, seed=0, looked_for=EVERYTHING, **options):
    """The negatives of a record whose source looked for all that the table knows."""
    return write_negatives(record, seed, looked_for=looked_for, **options)


def of_region(record, index=0, **options):
    return [negative for negative in write_all(record, **options) if negative.region == index]


def of_image(record, **options):
    return [negative for negative in write_all(record, **options) if negative.region is None]


def subsets(items):
    return chain.from_iterable(combinations(items, count) for count in range(len(items) + 1))


def keys_of_true_texts(record):
    """Keys of all that follows from single regions: less of what is there, and more of what is not."""
    keys = set()
    for region in record.regions:
        for names in subsets(ATTRIBUTES):
            if not region.is_negated:
                less = replace(region, **dict.fromkeys(names))
                keys |= {
                    region_text_key(replace(less, certainty=certainty)) for certainty in {region.certainty, "possible"}
                }
        if region.is_negated:
            for side in ("left", "right"):
                keys.add(region_text_key(replace(region, laterality=region.laterality or side)))
            for size in ("small", "large"):
                keys.add(region_text_key(replace(region, size=region.size or size)))
    return keys


def test_a_nodule_gets_a_negative_of_every_kind():
    negatives = of_region(make_study([NODULE]), max_per_region=20)
    assert {(negative.changed, negative.text) for negative in negatives} == {
        ("laterality", "large pulmonary nodule in the left upper zone of the lung"),
        ("place", "large pulmonary nodule in the right middle zone of the lung"),
        ("place", "large pulmonary nodule in the right lower zone of the lung"),
        ("size", "small pulmonary nodule in the right upper zone of the lung"),
        ("negation", "no large pulmonary nodule in the right upper zone of the lung"),
        ("negation", "no pulmonary nodule"),
        ("finding", "large consolidation in the right upper zone of the lung"),
        ("finding", "large cavity in the right upper zone of the lung"),
    }


@pytest.mark.parametrize(
    ("region", "changed", "text"),
    [
        (RegionRecord(BOX, "cardiomegaly", "heart", severity="mild"), "severity", "severe cardiomegaly"),
        (RegionRecord(BOX, "cardiomegaly", "heart", severity="mild"), "finding", "pneumothorax"),
        (RegionRecord(BOX, "pneumothorax", laterality="left", is_negated=True), "negation", "left pneumothorax"),
        (
            RegionRecord(BOX, "consolidation", "lung", place="left lower lobe"),
            "laterality",
            "consolidation in the right lower lobe of the lung",
        ),
        (RegionRecord(BOX, "left ventricular hypertrophy"), "laterality", "right ventricular hypertrophy"),
        (RegionRecord(BOX, "sickle cell", place="upper left"), "place", "sickle cell in the lower right of the image"),
        (
            RegionRecord(BOX, "hepatic cyst", "liver", place="segment 7"),
            "place",
            "hepatic cyst in segment 2 of the liver",
        ),
    ],
)
def test_each_rule_changes_what_it_names(region, changed, text):
    negatives = of_region(make_study([region]), max_per_region=30)
    assert (changed, text) in [(negative.changed, negative.text) for negative in negatives]


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ([replace(NODULE, laterality="left")], "large pulmonary nodule in the left upper zone of the lung"),
        (
            [RegionRecord(BOX, "lung nodule", laterality="left")],
            "large pulmonary nodule in the left upper zone of the lung",
        ),
        ([RegionRecord(BOX, "lung opacity")], "large consolidation in the right upper zone of the lung"),
        ([RegionRecord(BOX, "pneumonia", "lung")], "large consolidation in the right upper zone of the lung"),
        ([replace(NODULE, size="small")], "small pulmonary nodule in the right upper zone of the lung"),
    ],
)
def test_what_another_region_makes_true_or_possible_is_dropped(others, text):
    assert text in [negative.text for negative in of_region(make_study([NODULE]), max_per_region=30)]
    assert text not in [negative.text for negative in of_region(make_study([NODULE, *others]), max_per_region=30)]


def test_a_doubtful_finding_is_not_denied():
    negatives = of_region(make_study([replace(NODULE, certainty="possible")]))
    assert "negation" not in {negative.changed for negative in negatives}
    assert "possible large pulmonary nodule in the left upper zone of the lung" in {n.text for n in negatives}


def test_a_right_middle_lobe_has_no_left_one():
    region = RegionRecord(BOX, "consolidation", "lung", laterality="right", place="middle lobe")
    texts = {negative.text for negative in of_region(make_study([region]), max_per_region=30)}
    assert "consolidation in the right lower lobe of the lung" in texts
    assert not any("left" in text for text in texts)
    left = replace(region, laterality="left", place="upper lobe")
    assert not any("middle lobe" in negative.text for negative in of_region(make_study([left]), max_per_region=30))


def test_every_kind_of_change_comes_before_a_second_of_any():
    for seed in range(20):
        chosen = [negative.changed for negative in of_region(make_study([NODULE]), seed=seed, max_per_region=5)]
        assert sorted(chosen) == sorted({"laterality", "place", "size", "negation", "finding"})
    assert of_region(make_study([NODULE]), max_per_region=0) == []
    with pytest.raises(ValueError, match="max_per_region is -1"):
        write_negatives(make_study(), max_per_region=-1)


def test_an_image_gets_captions_with_one_statement_changed():
    effusion = RegionRecord(BOX, "pleural effusion", "pleural space", laterality="left", size="small")
    record = make_study([NODULE, effusion])
    negatives = of_image(record)
    assert len(negatives) == MAX_IMAGE_NEGATIVES
    assert negatives[0].text == "Normal frontal chest radiograph without focal abnormality."
    true = (" a small left pleural effusion", " a large pulmonary nodule in the right upper zone")
    assert all(sum(text in negative.text for text in true) == 1 for negative in negatives[1:])


def test_a_normal_image_gets_findings_that_it_does_not_show():
    negatives = of_image(make_study(is_normal=True))
    assert {negative.changed for negative in negatives} == {"finding"}
    assert all(negative.text.startswith("Frontal chest radiograph with ") for negative in negatives)
    assert of_image(make_study()) == []  # without boxes and without a claim nothing is false
    assert of_image(make_study(is_normal=True, modality="photograph", anatomy=None)) == []


@settings(max_examples=100, deadline=None)
@given(studies_of_any_kind, st.integers(0, 9))
def test_no_negative_follows_from_the_record(record, seed):
    true_keys = keys_of_true_texts(record)
    negatives = write_all(record, seed, max_per_region=30)
    assert not true_keys & {negative.key for negative in negatives if negative.region is not None}
    study = study_phrase(record.modality, record.view, record.anatomy)
    captions = {stated_caption_key(study, count_statements(some)) for some in subsets(record.regions)}
    assert not captions & {negative.key for negative in negatives if negative.region is None}


@settings(max_examples=80, deadline=None)
@given(studies_of_any_kind, st.integers(0, 9))
def test_no_negative_shares_a_key_or_the_words_of_a_true_text(record, seed):
    texts, negatives = write_texts(record, seed), write_all(record, seed)
    assert not {text.key for text in texts} & {negative.key for negative in negatives}
    assert not {text.text for text in texts} & {negative.text for negative in negatives}
    assert negatives == write_all(record, seed)
    assert {negative.changed for negative in negatives} <= set(NEGATIVE_CHANGES)


def test_two_hundred_phantoms_have_true_texts_and_false_negatives():
    for index in range(200):
        record = draw_phantom(0, index)
        texts, negatives = write_texts(record), write_all(record, looked_for=FINDINGS)
        true_keys = keys_of_true_texts(record) | {text.key for text in texts}
        assert not true_keys & {negative.key for negative in negatives}
        regions = [negative for negative in negatives if negative.region is not None]
        assert {negative.region for negative in regions} == set(range(len(record.regions)))
        assert all(len([n for n in regions if n.region == index]) <= 8 for index in range(len(record.regions)))
        keys = [(negative.region, negative.key) for negative in negatives]
        assert len(keys) == len(set(keys))
        assert any(negative.region is None for negative in negatives)


@given(regions_of_any_kind)
def test_a_statement_is_stated_again_by_a_region_that_carries_it(region):
    statement = state_region(region)
    carried = RegionRecord(BOX, **{name: getattr(statement, name) for name in statement.__dataclass_fields__})
    assert state_region(carried) == statement


@given(regions_of_any_kind, regions_of_any_kind)
def test_what_is_entailed_is_never_false(first, second):
    facts = [know(first), know(second)]
    for claim in (first, second, replace(first, place=None), replace(second, size=None, certainty="possible")):
        if any(entails(fact, know(claim)) for fact in facts):
            assert not is_false(know(claim), facts)


@pytest.mark.parametrize(
    ("place", "others"),
    [
        ("upper zone", ("middle zone", "lower zone")),
        ("left mid lung zone", ("left upper lung zone", "left lower lung zone")),
        ("upper pole", ("lower pole",)),
        ("superonasal quadrant", ("superotemporal quadrant", "inferotemporal quadrant", "inferonasal quadrant")),
        ("temporal lobe", ("frontal lobe", "parietal lobe", "occipital lobe")),
        ("temporal quadrant", ("superior quadrant", "inferior quadrant", "nasal quadrant")),
        ("right upper lobe", ("right middle lobe", "right lower lobe")),
        ("left upper lobe", ("left lower lobe",)),
        ("upper left", ("lower left", "upper right", "lower right")),
        ("bottom", ("top",)),
        ("macula", ()),
        ("centre", ()),
    ],
)
def test_other_places_exclude_the_place_in_its_own_words(place, others):
    assert other_places(place) == others
    assert all(exclude_each_other(place, other) for other in others)
    assert not exclude_each_other(place, place)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(
            ("upper zone", "upper lobe"),
            ("upper zone", "lower lobe"),
            ("segment 4a", "segment 4b"),
            ("macula", "upper"),
        ),
        *(("superior quadrant", "superotemporal quadrant"), ("upper left", "left"), ("upper left", "upper lobe")),
    ],
)
def test_places_that_may_overlap_exclude_nothing(first, second):
    assert not exclude_each_other(first, second)
    assert not exclude_each_other(second, first)


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("pulmonary nodule", "lung nodule", True),
        ("pulmonary nodule", "nodule", True),
        ("consolidation", "pneumonia", True),
        ("lung opacity", "pulmonary nodule", True),
        ("white blood cell", "neutrophil", True),
        ("brain tumor", "glioma", True),
        ("pituitary tumor", "glioma", False),
        ("pulmonary nodule", "cavity", False),
        ("red blood cell", "white blood cell", False),
        ("nerve", "blood vessel", False),
    ],
)
def test_findings_are_two_only_where_they_surely_differ(first, second, is_one):
    assert may_be_one(first, second) == may_be_one(second, first) == is_one


def test_what_may_be_put_instead_surely_differs():
    for part, sites in SITES.items():
        for finding in {name for groups in sites for group in groups for name in group}:
            assert not any(may_be_one(finding, other) for other in findings_instead(finding, part, EVERYTHING)), finding


def test_a_word_of_many_meanings_is_read_in_its_part_of_the_body_only():
    assert "cavity" in findings_instead("nodule", "chest", EVERYTHING)
    assert findings_instead("nodule", None, EVERYTHING) == findings_instead("nodule", "abdomen", EVERYTHING) == ()
    assert findings_instead("nerve", None, EVERYTHING) == ()


@pytest.mark.parametrize(
    ("finding", "said", "text"),
    [  # of VinDr-CXR and NIH: findings without a box stand in the impression alone
        ("mass or nodule", "Mass or nodule and pneumonia.", "consolidation"),
        ("mass or nodule", "Mass or nodule and tuberculosis.", "consolidation"),
        ("mass or nodule", "Mass or nodule and chronic obstructive pulmonary disease.", "cavity"),
        ("cardiomegaly", "Cardiomegaly and effusions.", "pleural effusion"),
        ("cardiomegaly", "Cardiomegaly, hydropneumothorax.", "pneumothorax"),
        ("cardiomegaly", "Cardiomegaly with blunting of the costophrenic angles.", "pleural effusion"),
        ("pneumothorax", "Pneumothorax, pleural thickening.", "pleural effusion"),
    ],
)
def test_a_finding_that_a_text_names_without_a_region_is_put_nowhere(finding, said, text):
    record = make_study([RegionRecord(BOX, finding)])
    for changed in (
        replace(record, impression=said),
        replace(record, findings=said),
        replace(record, caption=said),
        replace(record, qa=(QARecord("What is seen?", said, "open"),)),
    ):
        assert text in {negative.text for negative in of_region(record, max_per_region=30)}
        assert text not in {negative.text for negative in of_region(changed, max_per_region=30)}
        assert not any(text in negative.text for negative in of_image(changed))


def test_a_question_answered_by_no_names_nothing():
    record = make_study([RegionRecord(BOX, "mass")], qa=(QARecord("Is there a consolidation?", "No", "closed"),))
    assert "consolidation" in {negative.text for negative in of_region(record, max_per_region=30)}


def test_a_normal_image_gets_no_finding_that_its_texts_name():
    record = make_study(is_normal=True)
    texts = [negative.text for seed in range(20) for negative in write_all(record, seed)]
    assert any("consolidation" in text for text in texts)
    changed = replace(record, impression="No focal abnormality. Old tuberculosis.")
    texts = [negative.text for seed in range(20) for negative in write_all(changed, seed)]
    assert texts
    assert not any(word in text for text in texts for word in ("consolidation", "cavity", "nodule", "effusion"))


@pytest.mark.parametrize(
    ("said", "dropped"),
    [
        ("Nodules in both lungs.", {"laterality"}),
        ("Large nodule on the right. A smaller one on the left.", {"laterality"}),
        ("Large nodule of the right upper zone, tiny ones below.", {"size"}),
        ("Nodule of the right upper zone, smaller ones in the lower zone.", {"place"}),
        ("Large nodule in the right upper zone.", set()),
    ],
)
def test_what_a_text_of_the_source_may_mean_is_no_negative(said, dropped):
    record = make_study([NODULE])
    every = {negative.changed for negative in of_region(record, max_per_region=30)}
    changed = replace(record, caption=said, findings=said, impression="", text_origin="source")
    kept = of_region(changed, max_per_region=30)
    assert every - {negative.changed for negative in kept} == dropped - {"place"}
    assert ("place" in dropped) != any("lower zone" in n.text for n in kept if n.changed == "place")


def test_a_general_word_that_one_region_denies_is_not_false_where_another_has_a_finding():
    clear = RegionRecord(BOX, "abnormality", "lung", laterality="right", is_negated=True)
    opacity = RegionRecord(BOX, "consolidation", "lung", laterality="right", place="lower zone")
    assert [negative.changed for negative in of_region(make_study([clear]))] == ["negation"]
    assert of_region(make_study([clear, opacity])) == []


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("calcification", "pulmonary nodule", True),
        ("calcification", "pleural thickening", True),
        ("calcification", "aortic enlargement", True),
        ("pleural thickening", "pleural effusion", True),
        ("lung cyst", "lung cavity", True),
        ("emphysema", "lung cyst", True),
        ("emphysema", "pneumothorax", True),
        ("enlarged cardiomediastinum", "mediastinal shift", True),
        ("tuberculosis", "consolidation", True),
        ("lung tumor", "mass or nodule", True),
        ("infiltrates", "consolidation", True),  # a name that the table does not know may be any that it knows
        ("alveolar pattern", "consolidation", True),
        ("left lung", "consolidation", False),  # but for organs
        ("rib fracture", "clavicle fracture", False),
        ("aortic enlargement", "cardiomegaly", False),
        ("pleural thickening", "pneumothorax", False),
        ("hernia", "cardiomegaly", False),
        ("enlarged pulmonary artery", "aortic enlargement", False),
    ],
)
def test_findings_of_the_public_sources_are_two_only_where_they_surely_differ(first, second, is_one):
    assert may_be_one(first, second) == may_be_one(second, first) == is_one


def test_the_table_knows_the_findings_of_vindr_cxr_and_nih_and_puts_no_rare_one_instead():
    named = {*FINDING_OF_CLASS.values(), *DIAGNOSIS_OF_LABEL.values(), *FINDING_OF_LABEL.values()}
    for finding in named - {"other lesion"}:
        assert findings_named(f"There is {finding}.") == {finding}
    instead = {name for finding in named for name in findings_instead(finding, "chest", EVERYTHING)}
    assert instead <= {"pulmonary nodule", "consolidation", "cavity", "pleural effusion", "pneumothorax"}


@settings(max_examples=40)
@given(studies_of_any_kind)
def test_what_a_negative_states_is_read_again_from_its_text_and_key(record):
    for negative in write_all(record):
        if negative.region is not None:
            stated = read_negative(state_region(record.regions[negative.region]), negative.text, negative.key)
            assert statement_key(stated) == negative.key
            assert describe_region(carry(stated)) == negative.text


def test_a_text_that_no_rule_gives_is_not_read():
    assert read_negative(state_region(NODULE), "a strange thing", 5) is None
