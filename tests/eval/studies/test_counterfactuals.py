"""Place and side: a region's text against the texts of the split that differ in place or side alone."""

import numpy as np
import pytest

from regionmed_clip.eval.studies.counterfactuals import counterfactual_hits, counterfactual_texts

PLAIN = {"anatomy": None, "laterality": None, "place": None, "size": None, "severity": None, "certainty": None}


def region(finding: str, **stated) -> dict:
    return {"box": [0, 0, 4, 4], "finding": finding, "is_negated": False, **PLAIN, **stated}


def cavity(side: str, zone: str) -> dict:
    return region("cavity", laterality=side, place=f"{zone} zone", anatomy="lung")


def test_a_place_has_the_other_places_of_its_axis_and_a_side_the_other_side():
    asked = cavity("right", "upper")
    assert sorted(counterfactual_texts(asked, "place")) == [
        "cavity in the right lower zone of the lung",
        "cavity in the right middle zone of the lung",
    ]
    assert counterfactual_texts(asked, "laterality") == ["cavity in the left upper zone of the lung"]
    assert counterfactual_texts(region("splenic infarct"), "place") == []


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
    assert hits.clusters.tolist() == [0, 0]
    assert hits.num_candidates.tolist() == [2, 2]
    assert hits.chance == 0.5


def test_a_tie_is_a_miss(embedded):
    hits = counterfactual_hits(embedded, REGIONS, "laterality")  # right upper against left upper, and the reverse
    assert hits.is_correct.tolist() == [True, False]  # 0.9 > 0.2; 0.5 = 0.5
    assert hits.clusters.tolist() == [0, 1]


def test_a_split_without_counterfactuals_has_no_outcomes(embed_by_hand):
    embedded = embed_by_hand([[1, 0]], ["one"], regions=[(0, "splenic infarct", [1, 0], (0, 0, 4, 4))])
    assert counterfactual_hits(embedded, [region("splenic infarct")], "place") is None


def test_regions_that_the_frame_has_lost_are_refused(embedded):
    with pytest.raises(ValueError, match="3 regions for 4 embedded ones"):
        counterfactual_hits(embedded, REGIONS[:3], "place")
