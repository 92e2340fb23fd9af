"""Findings looked for: one finding is put in the place of another only where its absence says something."""

from __future__ import annotations

import pytest
from record_strategies import BOX, make_study

from regionmed_clip.processing.corpus.finding_table import SITES
from regionmed_clip.processing.corpus.negatives import write_negatives
from regionmed_clip.processing.corpus.phantoms.study import draw_phantom
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.sources.phantom import FINDINGS, PhantomSource

NODULE = RegionRecord(BOX, "pulmonary nodule", "lung", laterality="right", place="upper zone", size="large")
EVERYTHING = frozenset(name for sites in SITES.values() for site in sites for group in site for name in group)


def of_region(record, looked_for=EVERYTHING):
    negatives = write_negatives(record, max_per_region=30, looked_for=looked_for)
    return [negative for negative in negatives if negative.region == 0]


def of_image(record, seed, looked_for):
    return [negative for negative in write_negatives(record, seed, looked_for=looked_for) if negative.region is None]


SWAPS_OF_NODULE = {
    "large consolidation in the right upper zone of the lung",
    "large cavity in the right upper zone of the lung",
}


@pytest.mark.parametrize(
    ("looked_for", "swaps"),
    [
        ((), set()),
        (("pulmonary nodule", "lung opacity"), set()),  # its own name, and one that may be the same
        (("Consolidation ",), {"large consolidation in the right upper zone of the lung"}),
        (("lung cyst",), {"large lung cyst in the right upper zone of the lung"}),  # of the group of the cavity
        (("pleural effusion",), {"right pleural effusion"}),  # of another site, where the own has none
        (tuple(EVERYTHING), SWAPS_OF_NODULE),
    ],
)
def test_only_what_the_source_looked_for_is_put_in_the_place_of_another(looked_for, swaps):
    record = make_study([NODULE])
    negatives = of_region(record, looked_for=frozenset(looked_for))
    assert {negative.text for negative in negatives if negative.changed == "finding"} == swaps
    others = [negative for negative in negatives if negative.changed != "finding"]
    assert {*others} == {negative for negative in of_region(record) if negative.changed != "finding"}
    captions = [n.text for seed in range(20) for n in of_image(record, seed, looked_for=frozenset(looked_for))]
    assert any("consolidation" in text for text in captions) == any("consolidation" in text for text in swaps)


def test_synonyms_are_looked_for_together():
    record = make_study([RegionRecord(BOX, "renal mass")], modality="axial CT", anatomy="abdomen")
    for name in ("renal cyst", "kidney cyst"):
        assert "renal cyst" in {n.text for n in of_region(record, looked_for=frozenset((name,)))}


def test_phantoms_get_finding_swaps_in_every_modality():
    swapped = set()
    for index in range(60):
        record = draw_phantom(0, index)
        negatives = write_negatives(record, looked_for=FINDINGS)
        if any(n.changed == "finding" and n.region is not None for n in negatives):
            swapped.add(record.modality)
    assert len(swapped) == 4
    assert PhantomSource().looked_for == FINDINGS


def test_an_image_called_normal_as_a_whole_gets_findings_added_that_nobody_looked_for_by_name():
    negatives = of_image(make_study(is_normal=True), 0, frozenset())
    assert negatives
    assert {negative.changed for negative in negatives} == {"finding"}
