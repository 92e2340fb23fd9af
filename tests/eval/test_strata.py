"""Strata of regions: shares of the image by hand, unknown sexes and ages left out, small parts left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from regionmed_clip.eval.tasks.region import measure_region
from regionmed_clip.eval.tasks.strata import MIN_REGIONS, iter_region_strata

UNIT = np.eye(4, dtype=np.float32)


def split_of(embed_by_hand, sides, **changes):
    """A split of one image of 100 x 100 pixels a region, its square box of the given side in pixels."""
    regions = [
        (i, f"a {'cyst' if i % 2 else 'nodule'}", UNIT[i % 2], (0, 0, side, side)) for i, side in enumerate(sides)
    ]
    embedded = embed_by_hand(np.tile(UNIT[:1], (len(sides), 1)), ["c"] * len(sides), regions=regions)
    return replace(embedded, **changes)


def test_boxes_are_told_apart_by_their_share_of_the_image(embed_by_hand):
    embedded = split_of(embed_by_hand, [3] * 20 + [9.99] * 20 + [10] * 20 + [50] * 19)  # 0.09, 0.998, 1, 25 %
    strata = {s.name: np.flatnonzero(s.is_member) for s in iter_region_strata(embedded) if s.name.startswith("area")}
    assert {name: (rows.min(), rows.max() + 1) for name, rows in strata.items()} == {
        "area below 0.1 %": (0, 20),
        "area 0.1 to 1 %": (20, 40),
        "area 1 to 5 %": (40, 60),
    }  # the 19 large ones are too few


def test_sex_and_age_are_those_of_the_patient_where_known(embed_by_hand):
    count = 4 * MIN_REGIONS
    sexes = np.array(["F", "M", "", "M"] * MIN_REGIONS)
    ages = np.array([17.9, 18.0, np.nan, 39.9] * MIN_REGIONS, dtype=np.float32)
    embedded = split_of(embed_by_hand, [5] * count, image_sexes=sexes, image_ages=ages)
    strata = {s.name: s.is_member for s in iter_region_strata(embedded)}
    assert strata["sex F"].tolist() == (sexes == "F").tolist()
    assert strata["sex M"].sum() == 2 * MIN_REGIONS
    assert strata["age below 18"].tolist() == (sexes == "F").tolist()
    assert strata["age 18 to 39"].sum() == 2 * MIN_REGIONS
    assert not any("80" in name for name in strata)


def test_findings_are_told_apart_within_a_source_and_denied_ones_are_no_finding(embed_by_hand):
    is_negated = np.arange(60) >= 50
    embedded = split_of(embed_by_hand, [5] * 60, region_is_negated=is_negated)
    strata = {(s.source, s.name): s.is_member.sum() for s in iter_region_strata(embedded)}
    assert strata == {("drawn", "finding cyst"): 25, ("drawn", "finding nodule"): 25}


def test_one_part_alone_is_the_whole_and_is_not_told_twice(embed_by_hand):
    embedded = split_of(embed_by_hand, [5] * 30, region_findings=np.array(["cyst"] * 30))
    assert list(iter_region_strata(embedded)) == []


def test_the_region_task_takes_its_accuracy_apart(embed_by_hand):
    embedded = split_of(embed_by_hand, [5] * 40 + [20] * 40)
    wrong = embedded.region_embeds.copy()
    wrong[:10] = UNIT[2]  # of the small boxes 10 of 40 score nothing: a tie of all texts is a miss
    measured = measure_region(replace(embedded, region_embeds=wrong))
    values = {m.stratum: m.value for m in measured if m.metric == "region_to_text_accuracy" and m.stratum}
    assert values["area 0.1 to 1 %"] == 30 / 40
    assert values["area 1 to 5 %"] == 1.0
    assert values["finding cyst"] == 35 / 40
    brief = measure_region(embedded, is_brief=True)
    assert not any(m.stratum or "in_image" in m.metric or "case" in m.metric for m in brief)
