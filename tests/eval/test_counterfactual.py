"""True texts against the same made false in one respect: which are, and who wins."""

from dataclasses import replace

import numpy as np
import pytest

from regionmed_clip.eval.metric_titles import METRIC_TITLES
from regionmed_clip.eval.tasks.counterfactual import counterfactual_hits, measure, score_pairs
from regionmed_clip.eval.tasks.counterfactual_texts import (
    TextPairs,
    false_texts,
    list_image_pairs,
    list_region_pairs,
)
from regionmed_clip.eval.tasks.region_facts import record_of
from regionmed_clip.processing.corpus.captions import describe_region

PLAIN = {"anatomy": None, "laterality": None, "place": None, "size": None, "severity": None, "certainty": None}


def region(finding: str, **stated) -> dict:
    return {"box": [0, 0, 4, 4], "finding": finding, "is_negated": False, **PLAIN, **stated}


def cavity(side: str, zone: str) -> dict:
    return region("cavity", laterality=side, place=f"{zone} zone", anatomy="lung")


def test_a_place_has_the_other_places_of_its_axis_and_a_side_the_other_side():
    asked = cavity("right", "upper")
    assert sorted(false_texts(asked, "place")) == [
        "cavity in the right lower zone of the lung",
        "cavity in the right middle zone of the lung",
    ]
    assert false_texts(asked, "laterality") == ["cavity in the left upper zone of the lung"]
    assert false_texts(region("splenic infarct"), "place") == []


@pytest.fixture
def embedded(embed_by_hand):
    """Two images; texts are the unit vectors right upper, right lower, left upper, infarct."""
    texts = [
        "cavity in the right upper zone of the lung",
        "cavity in the right lower zone of the lung",
        "cavity in the left upper zone of the lung",
        "splenic infarct",
    ]
    embeds = [[0.9, 0.1, 0.2, 0], [0.6, 0.5, 0, 0.4], [0.5, 0, 0.5, 0], [0, 0, 0, 1]]
    images = [0, 0, 1, 1]
    regions = [(images[i], texts[i], embeds[i], (0, 0, 4, 4)) for i in range(4)]
    return embed_by_hand(np.eye(4)[:2], ["one", "two"], regions=regions)


REGIONS = [cavity("right", "upper"), cavity("right", "lower"), cavity("left", "upper"), region("splenic infarct")]


def test_only_texts_of_the_split_compete_and_regions_without_any_are_left_out(embedded):
    hits = counterfactual_hits(embedded, REGIONS, "place")  # right upper against right lower, and the reverse
    assert hits.is_correct.tolist() == [True, False]  # 0.9 > 0.1; 0.5 < 0.6
    assert hits.images.tolist() == [0, 0]
    assert hits.num_candidates.tolist() == [2, 2]
    assert hits.chance == 0.5


def test_a_tie_is_a_miss(embedded):
    hits = counterfactual_hits(embedded, REGIONS, "laterality")  # right upper against left upper, and the reverse
    assert hits.is_correct.tolist() == [True, False]  # 0.9 > 0.2; 0.5 = 0.5
    assert hits.images.tolist() == [0, 1]


def test_a_split_without_counterfactuals_has_no_outcomes(embed_by_hand):
    embedded = embed_by_hand([[1, 0]], ["one"], regions=[(0, "splenic infarct", [1, 0], (0, 0, 4, 4))])
    assert counterfactual_hits(embedded, [region("splenic infarct")], "place") is None


def test_regions_that_the_frame_has_lost_are_refused(embedded):
    with pytest.raises(ValueError, match="3 regions for 4 embedded ones"):
        counterfactual_hits(embedded, REGIONS[:3], "place")


# ---- pairs of a true and a false text


def split_of(embed_by_hand, stated, captions=("one",), images=None, **changes):
    """A split of regions with these facts, all with one embedding."""
    images = images or [0] * len(stated)
    regions = [(i, describe_region(record_of(f)), np.eye(4)[0], f["box"]) for i, f in zip(images, stated, strict=True)]
    embedded = embed_by_hand(np.eye(4)[: len(captions)], list(captions), regions=regions)
    return replace(
        embedded,
        region_facts=stated,
        region_findings=np.array([f["finding"] for f in stated], dtype=str),
        region_is_negated=np.array([bool(f["is_negated"]) for f in stated], dtype=bool),
        **changes,
    )


def pairs_by_change(pairs, row=0):
    """change -> the false texts of a region."""
    found = {}
    for place, changed, text in zip(pairs.rows, pairs.changes, pairs.false_texts, strict=True):
        if place == row:
            found.setdefault(str(changed), set()).add(text)
    return found


def test_every_respect_in_which_a_text_can_be_false_gives_a_pair(embed_by_hand):
    asked = cavity("right", "upper") | {"size": "small", "severity": "mild"}
    other = region("consolidation") | {"box": [9, 9, 12, 12]}
    embedded = split_of(embed_by_hand, [asked, other], image_studies=np.array(["chest radiograph"]))
    pairs = list_region_pairs(embedded)
    assert pairs.true_texts[0] == "small mild cavity in the right upper zone of the lung"
    assert pairs_by_change(pairs) == {
        "laterality": {"small mild cavity in the left upper zone of the lung"},
        "place": {f"small mild cavity in the right {zone} zone of the lung" for zone in ("middle", "lower")},
        "size": {"large mild cavity in the right upper zone of the lung"},
        "severity": {"small severe cavity in the right upper zone of the lung"},
        "negation": {"no small mild cavity in the right upper zone of the lung", "no cavity"},
        "finding": {"small consolidation in the right upper zone of the lung"},
    }


def test_what_an_overlapping_region_shows_is_not_false(embed_by_hand):
    box, elsewhere = {"box": [2, 2, 6, 6]}, {"box": [20, 20, 30, 30]}
    asked = cavity("right", "upper")
    chest = {"image_studies": np.array(["chest radiograph"])}
    near = split_of(embed_by_hand, [asked, region("consolidation") | box], **chest)
    far = split_of(embed_by_hand, [asked, region("consolidation") | elsewhere], **chest)
    assert "finding" not in pairs_by_change(list_region_pairs(near))
    assert "finding" in pairs_by_change(list_region_pairs(far))


def test_the_same_text_true_elsewhere_in_the_image_is_still_false_of_this_box(embed_by_hand):
    both = [cavity("right", "upper"), cavity("left", "upper") | {"box": [20, 20, 30, 30]}]
    pairs = list_region_pairs(split_of(embed_by_hand, both))
    assert pairs_by_change(pairs, 0)["laterality"] == {"cavity in the left upper zone of the lung"}


def test_denied_findings_are_said_to_be_there(embed_by_hand):
    pairs = list_region_pairs(split_of(embed_by_hand, [cavity("left", "lower") | {"is_negated": True}]))
    assert pairs.true_texts == ["no cavity in the left lower zone of the lung"]
    assert pairs_by_change(pairs) == {"negation": {"cavity in the left lower zone of the lung"}}


def test_findings_that_no_table_knows_take_those_of_their_own_data(embed_by_hand):
    stated = [region("nerve"), region("blood vessel") | {"box": [9, 9, 12, 12]}]
    pairs = list_region_pairs(split_of(embed_by_hand, stated))
    assert pairs_by_change(pairs, 0)["finding"] == {"blood vessel"}
    assert pairs_by_change(pairs, 1)["finding"] == {"nerve"}


def test_what_the_source_may_have_said_itself_is_not_false(embed_by_hand):
    own = cavity("right", "upper") | {"text_origin": "source", "description": "cavity, right more than left, apical"}
    pairs = list_region_pairs(split_of(embed_by_hand, [own]))
    assert "laterality" not in pairs_by_change(pairs)
    assert "place" in pairs_by_change(pairs)


def test_normal_and_abnormal_images_are_asked_for_each_other(embed_by_hand):
    captions = ("A chest radiograph.", "Normal chest radiograph without focal abnormality.", "Chest radiograph.")
    studies = np.array(["chest radiograph"] * 3)
    embedded = split_of(embed_by_hand, [region("consolidation")], captions, image_studies=studies)
    pairs = list_image_pairs(embedded)
    normal, abnormal = "Normal chest radiograph without focal abnormality.", "Chest radiograph with a consolidation."
    assert list(zip(pairs.rows.tolist(), pairs.true_texts, pairs.false_texts, strict=True)) == [
        (0, abnormal, normal),
        (1, normal, abnormal),
    ]  # of the third nothing is known


def test_normal_cells_make_no_image_abnormal(embed_by_hand):
    studies = np.array(["blood smear"])
    embedded = split_of(embed_by_hand, [region("neutrophil")], ("A smear.",), image_studies=studies)
    assert list_image_pairs(embedded).rows.tolist() == []


def test_a_pair_is_won_by_the_nearer_text_and_never_by_a_tie(embed_by_hand):
    embedded = embed_by_hand(np.eye(4)[:2], ["one", "two"])
    pairs = TextPairs.of([(0, "place", "a", "b"), (1, "size", "a", "b"), (1, "size", "c", "c'")])
    texts = {"a": [0.9, 0.1, 0, 0], "b": [0.5, 0.2, 0, 0], "c": [0, 0.3, 0, 0], "c'": [0, 0.3, 0.9, 0]}
    asked = []

    def encode(names):
        asked.append(list(names))
        return np.array([texts[name] for name in names], dtype=np.float32)

    scored = score_pairs(pairs, np.eye(4, dtype=np.float32)[:2], np.array([0, 1]), embedded, encode)
    assert scored.is_won.tolist() == [True, False, False]
    np.testing.assert_allclose(scored.margins, [0.4, -0.1, 0.0], atol=1e-6)  # float32
    assert asked == [["a", "b", "c", "c'"]]


def test_figures_of_all_pairs_and_of_each_change(embed_by_hand):
    asked = cavity("right", "upper")  # false: 1 side, 2 places, 2 denials; no other finding is known
    embedded = split_of(embed_by_hand, [asked])
    embeds = {
        "cavity in the right upper zone of the lung": 0.5,
        "cavity in the left upper zone of the lung": 0.4,
        "cavity in the right middle zone of the lung": 0.4,
        "cavity in the right lower zone of the lung": 0.6,
        "no cavity in the right upper zone of the lung": 0.1,
        "no cavity": 0.2,
    }

    class Inputs:
        seed = 0

        def __init__(self):
            self.embedded = embedded

        def encode(self, texts):
            return np.array([[embeds.get(text, 0.0), 0, 0, 0] for text in texts], dtype=np.float32)

    findings = measure(Inputs())
    figures = {m.metric: m for m in findings.measured if m.source is None}
    assert figures["counterfactual_pair_accuracy"].value == 0.8
    assert figures["counterfactual_pair_accuracy"].protocol["pairs"] == {"laterality": 1, "negation": 2, "place": 2}
    assert figures["counterfactual_pair_accuracy"].protocol["of_the_model"]["mean_of_changes"] == pytest.approx(
        (1 + 1 + 0.5) / 3, abs=1e-4
    )
    assert figures["counterfactual_pair_accuracy"].protocol["of_the_model"]["in_split"]["n"] == 0
    assert figures["counterfactual_accuracy"].value == 0.0
    assert figures["counterfactual_accuracy"].protocol["chance"] == pytest.approx(1 / 6)
    assert figures["counterfactual_pair_accuracy_place"].value == 0.5
    assert figures["counterfactual_accuracy_laterality"].value == 1.0
    assert figures["counterfactual_accuracy_negation"].value == 1.0
    assert figures["counterfactual_accuracy_size"].protocol["skipped"].startswith("no region text can be made false")
    assert figures["place_accuracy"].value is None
    assert set(figures) <= set(METRIC_TITLES)
    (worst,) = findings.details["counterfactual_worst"]
    assert (worst["changed"], worst["false_text"]) == ("place", "cavity in the right lower zone of the lung")


def test_position_figures_are_those_of_the_hits(embedded):
    class Inputs:
        seed = 0

        def __init__(self, split):
            self.embedded = split

        def encode(self, texts):
            return np.zeros((len(texts), 4), dtype=np.float32)

    figures = {m.metric: m for m in measure(Inputs(replace(embedded, region_facts=REGIONS))).measured}
    assert (figures["place_accuracy"].value, figures["laterality_accuracy"].value) == (0.5, 0.5)
    assert figures["place_accuracy"].protocol["chance"] == 0.5
    assert figures["counterfactual_pair_accuracy"].value == 0.0  # all texts alike: ties
