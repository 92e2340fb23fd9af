"""Samples as they are shown: crops and flips that keep boxes and texts true, negatives by position, reproducible."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_corpora import rows_of

from regionmed_clip.processing.corpus.image_texts import NegativeText
from regionmed_clip.processing.corpus.sources.phantom import PhantomSource
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.train.augmented_samples import PositionedSamples, SampleSettings, augment, draw_negatives
from regionmed_clip.train.frame_store import StoredSample, sample_from_example
from regionmed_clip.train.recipe_parts import Augmentation, Stage
from regionmed_clip.train.sample_order import SampleOrder

IMAGES = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=8)
FLIP_X, FLIP_Y, CROP = Augmentation(flip_x=1.0), Augmentation(flip_y=1.0), Augmentation(min_side=0.5)
SEEDS = [(7, position) for position in range(8)]
TEXT_FIELDS = (
    "caption",
    "caption_key",
    "region_texts",
    "region_keys",
    "region_findings",
    "details",
    "region_negatives",
)


class Store:
    """Phantoms of all modalities, prepared."""

    def __init__(self, num_samples: int):
        source = PhantomSource(num_train=num_samples, num_test=0)
        rows = rows_of(source.records("train"), source.looked_for)
        self.found = [sample_from_example(row, IMAGES) for row in rows]

    def samples(self, indices):
        return [self.found[index] for index in indices]


@pytest.fixture(scope="module")
def store() -> Store:
    return Store(24)


def assert_same(one: StoredSample, other: StoredSample) -> None:
    np.testing.assert_array_equal(one.frame, other.frame)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-6)  # float32, mirrored and back
    np.testing.assert_array_equal(one.region_facts, other.region_facts)
    np.testing.assert_array_equal(one.caption_facts, other.caption_facts)
    for name in TEXT_FIELDS:
        assert getattr(one, name) == getattr(other, name)


def test_a_sample_that_is_mirrored_twice_is_the_same_and_once_is_not(store):
    for sample in store.found:
        mirrored = sample.mirrored()
        assert_same(mirrored.mirrored(), sample)
        np.testing.assert_array_equal(mirrored.frame, sample.frame[:, :, ::-1])
        flipped = np.stack([1 - sample.boxes[:, 2], sample.boxes[:, 1], 1 - sample.boxes[:, 0], sample.boxes[:, 3]], 1)
        np.testing.assert_allclose(mirrored.boxes, flipped, atol=1e-6)
    is_changed = [sample.mirrored().region_texts != sample.region_texts for sample in store.found]
    assert 0.3 < sum(is_changed) / len(is_changed) < 1


def test_facts_and_keys_of_a_mirrored_sample_change_exactly_with_its_texts(store):
    for sample in store.found:
        mirrored = sample.mirrored()
        assert (mirrored.caption != sample.caption) == (mirrored.caption_key != sample.caption_key)
        for region, text in enumerate(sample.region_texts):
            is_same = mirrored.region_texts[region] == text
            assert is_same == (mirrored.region_keys[region] == sample.region_keys[region])
            assert is_same == np.array_equal(mirrored.region_facts[region], sample.region_facts[region])


def test_a_finding_that_names_a_side_is_that_of_the_other_side_in_the_mirror(store):
    sample = next(sample for sample in store.found if len(sample.region_findings) == 2)
    named = replace(sample, region_findings=("left hydrocele", ""))
    assert named.mirrored().region_findings == ("right hydrocele", "")


def test_a_flip_shows_the_mirrored_sample(store):
    for sample, seed in zip(store.found, SEEDS):
        assert_same(augment(sample, FLIP_X, seed), sample.mirrored())


def test_what_cannot_be_mirrored_is_shown_as_it_is(store):
    sample = next(sample for sample in store.found if sample.region_texts)
    unknown = replace(sample, details="")
    assert augment(unknown, FLIP_X, (1, 2)) is unknown
    sided = replace(sample, caption="A nodule on the left.", caption_key=5)
    assert augment(sided, FLIP_X, (1, 2)) is sided


def test_top_and_bottom_are_exchanged_only_where_no_text_names_a_height(store):
    num_turned = 0
    for sample in store.found:
        shown = augment(sample, FLIP_Y, (3,))
        if any(word in text for text in sample.region_texts for word in ("zone", "upper", "lower", "segment", "super")):
            assert shown is sample
        elif shown is not sample:
            np.testing.assert_array_equal(shown.frame, sample.frame[:, ::-1])
            np.testing.assert_allclose(shown.boxes[:, 1], 1 - sample.boxes[:, 3], atol=1e-6)
            assert shown.region_texts == sample.region_texts
            num_turned += 1
    assert num_turned > 3


def test_a_crop_keeps_every_region_whole_and_shows_the_same_pixels_in_its_boxes(store):
    num_cropped = 0
    for sample, seed in zip(store.found, SEEDS * 3):
        shown = augment(sample, CROP, seed)
        if "of the image" in sample.caption:  # places in the picture, which a crop would move
            assert shown is sample
            continue
        assert shown.region_texts == sample.region_texts
        scales = (shown.boxes[:, 2:] - shown.boxes[:, :2]) / (sample.boxes[:, 2:] - sample.boxes[:, :2])
        assert (scales <= 2 + 1e-5).all()
        np.testing.assert_allclose(scales, np.broadcast_to(scales[:1, :1], scales.shape), rtol=1e-4)  # none is cut off
        num_cropped += shown is not sample
    assert num_cropped > 8


def test_a_crop_grows_where_the_regions_need_more_than_its_shortest_side(store):
    sample = next(sample for sample in store.found if "of the image" not in sample.caption)
    corners = np.array([[0.1, 0.1, 0.2, 0.2], [0.8, 0.7, 0.9, 0.9]], dtype=np.float32)  # 0.8 from end to end
    shown = augment(replace(sample, boxes=corners), Augmentation(min_side=0.1), (5,))
    width = 0.1 / (shown.boxes[0, 2] - shown.boxes[0, 0])
    assert 0.8 - 1e-5 <= width < 1
    assert shown.boxes.min() >= 0
    assert shown.boxes.max() <= 1


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 10**12))
def test_a_sample_shown_again_at_its_position_is_the_same(store, seed, position):
    everything = SampleSettings(2, 0.1, 3, Augmentation(min_side=0.6, flip_x=0.5, flip_y=0.5))
    order = SampleOrder(len(store.found), seed)
    (one, regions), (other, again) = (PositionedSamples(store, order, everything)[position] for _ in range(2))
    assert_same(one, other)
    assert one.drawn_negatives == other.drawn_negatives
    assert regions.tolist() == again.tolist()


def test_a_batch_shows_what_its_positions_show_one_by_one(store):
    everything = SampleSettings(2, 0.1, 3, Augmentation(min_side=0.6, flip_x=0.5, flip_y=0.5))
    samples = PositionedSamples(store, SampleOrder(len(store.found), 3), everything)
    for position, (shown, regions) in zip(range(20, 28), samples.__getitems__(range(20, 28))):
        alone, chosen = samples[position]
        assert_same(shown, alone)
        assert regions.tolist() == chosen.tolist()
    sent = pickle.loads(pickle.dumps(samples))  # noqa: S301  (as worker processes that are spawned get it)
    assert_same(sent[21][0], samples[21][0])


def test_by_default_samples_are_shown_as_they_are_stored(store):
    order = SampleOrder(len(store.found), 0)
    for shown, _ in PositionedSamples(store, order, SampleSettings(4)).__getitems__(range(24)):
        assert any(shown is sample for sample in store.found)


def test_the_settings_of_a_stage_are_its_own():
    stage = Stage(
        name="a", steps=1, max_regions=3, box_noise=0.1, num_negatives=2, augmentation=Augmentation(min_side=0.7)
    )
    assert SampleSettings.of(stage) == SampleSettings(3, 0.1, 2, Augmentation(min_side=0.7))


def with_negatives(sample: StoredSample, *negatives: NegativeText) -> StoredSample:
    texts = sample.texts
    regions = tuple(replace(region, negatives=negatives) for region in texts.regions)
    return replace(sample, details=replace(texts, regions=regions).details())


KINDS = ("laterality", "place", "size", "finding")
MANY = [
    NegativeText(f"{kind} {number}", 1000 * row + number, kind) for row, kind in enumerate(KINDS) for number in (1, 2)
]


@pytest.fixture(scope="module")
def boxed(store) -> StoredSample:
    return next(sample for sample in store.found if len(sample.region_texts) == 2)


def test_no_kind_of_change_comes_twice_before_all_have_come(boxed):
    sample = with_negatives(boxed, *MANY)
    seen = set()
    for position in range(40):
        for drawn in draw_negatives(sample, 5, np.random.default_rng(position)):
            kinds = [negative.changed for negative in drawn]
            assert sorted(kinds[:4]) == sorted(KINDS)
            assert len(set(drawn)) == 5
            seen.update(drawn)
    assert seen == set(MANY)


def test_fewer_negatives_than_wanted_are_all_taken(boxed):
    sample = with_negatives(boxed, *MANY[:2])
    assert [set(drawn) for drawn in draw_negatives(sample, 5, np.random.default_rng(0))] == [set(MANY[:2])] * 2


def test_a_negative_that_means_a_text_of_its_own_image_is_left_out(boxed):
    caption = NegativeText("its caption in other words", boxed.caption_key, "place")
    other_region = NegativeText("its other region", boxed.region_keys[1], "size")
    sample = with_negatives(boxed, caption, other_region, MANY[0])
    assert draw_negatives(sample, 5, np.random.default_rng(0)) == ((MANY[0],), (MANY[0],))


def test_negatives_of_a_mirrored_sample_are_false_of_the_mirrored_image(store):
    settings = SampleSettings(4, num_negatives=8, augmentation=FLIP_X)
    num_sided = 0
    for shown, _ in PositionedSamples(store, SampleOrder(24, 0), settings).__getitems__(range(24)):
        for text, drawn in zip(shown.region_texts, shown.drawn_negatives, strict=True):
            for negative in drawn:
                assert negative.key not in shown.region_keys
                sides = [side for side in ("left", "right") if f"{side} " in text and "of the image" not in text]
                if negative.changed in ("size", "severity") and sides:
                    assert f"{sides[0]} " in negative.text
                    num_sided += 1
    assert num_sided > 3
