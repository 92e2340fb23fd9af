"""Examples: plain dicts that the features of the corpus take as they are, filled at every level, and quickly."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from record_strategies import BOX, make_study

from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.medregion import corpus_features
from regionmed_clip.processing.corpus.multi_level_text import write_texts
from regionmed_clip.processing.corpus.negatives import write_negatives
from regionmed_clip.processing.corpus.phantoms.study import draw_phantom
from regionmed_clip.processing.corpus.records import MaskRle, QARecord, RegionRecord
from regionmed_clip.processing.corpus.text_keys import caption_key, region_text_key

NODULE = RegionRecord(BOX, "pulmonary nodule", "lung", laterality="right", place="upper zone", size="large")


def test_an_example_has_the_columns_of_the_corpus_and_nothing_else():
    example = example_from_record(draw_phantom(0, 3))
    features = corpus_features()
    assert set(example) == set(features)
    for name in ("regions", "qa", "texts", "negatives"):
        inner = getattr(features[name], "feature", features[name])
        assert all(set(item) == set(inner) for item in example[name])
    assert features.encode_example(example)["image_id"] == example["image_id"]


def test_an_example_holds_what_the_record_says():
    record = make_study(
        [replace(NODULE, mask_rle=MaskRle((30, 40), (0, 5, 1195)))], qa=(QARecord("Is it?", "yes", "closed"),)
    )
    example = example_from_record(record)
    assert example["image"] == {"bytes": b"png", "path": None}
    assert example_from_record(replace(record, image="a.png"))["image"] == {"bytes": None, "path": "a.png"}
    assert example["caption_key"] == caption_key(record)
    (region,) = example["regions"]
    assert region["description"] == "large pulmonary nodule in the right upper zone of the lung"
    assert region["key"] == region_text_key(NODULE)
    assert region["mask"] == {"size": [30, 40], "counts": [0, 5, 1195]}
    assert example["qa"] == [{"question": "Is it?", "answer": "yes", "kind": "closed"}]


def test_window_and_perceptual_hash_are_null_unless_known():
    record = make_study()
    assert (example_from_record(record)["window"], example_from_record(record)["phash"]) == (None, None)
    example = example_from_record(replace(record, window=(-160.0, 240.0)), phash="00ff00ff00ff00ff")
    assert (example["window"], example["phash"]) == ([-160.0, 240.0], "00ff00ff00ff00ff")


@pytest.mark.parametrize("seed", [0, 7])
def test_texts_and_negatives_are_those_of_the_seed(seed):
    record = draw_phantom(0, 16)
    example = example_from_record(record, seed=seed)
    assert [(text["text"], text["key"]) for text in example["texts"]] == [
        (text.text, text.key) for text in write_texts(record, seed)
    ]
    assert [(negative["region"], negative["changed"]) for negative in example["negatives"]] == [
        (negative.region, negative.changed) for negative in write_negatives(record, seed)
    ]


def test_findings_are_swapped_for_those_that_the_source_looked_for():
    record = make_study([NODULE])
    assert "finding" not in {negative["changed"] for negative in example_from_record(record)["negatives"]}
    example = example_from_record(record, looked_for=frozenset(("cavity",)))
    swapped = [negative["text"] for negative in example["negatives"] if negative["changed"] == "finding"]
    assert "large cavity in the right upper zone of the lung" in swapped
    assert not any("consolidation" in text for text in swapped)


def test_an_example_costs_little_beside_drawing_its_phantom():
    records = [draw_phantom(0, index) for index in range(60)]
    for record in records:
        example_from_record(record)  # wordings are remembered
    started_at = time.process_time()
    for record in records:
        example_from_record(record)
    milliseconds = 1000 * (time.process_time() - started_at) / len(records)
    assert milliseconds < 2.0  # about 0.35 on one core; a busy machine may take longer
