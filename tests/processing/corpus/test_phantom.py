"""Phantoms: determinism, exact boxes and masks, the patient's sides, texts and answers that agree with the regions."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.processing.corpus.phantoms.canvas import Dice, stamp_curve, tight_box
from regionmed_clip.processing.corpus.phantoms.findings import Layout
from regionmed_clip.processing.corpus.phantoms.study import MODALITIES
from regionmed_clip.processing.corpus.records import StudyRecord
from regionmed_clip.processing.corpus.sources.phantom import ABOUT, PhantomSource, draw_phantom, open_sources


@lru_cache(maxsize=1)
def some_phantoms() -> tuple[StudyRecord, ...]:
    """A test split large enough to meet every finding."""
    return tuple(PhantomSource(num_train=0, num_test=600).records("test"))


def pixels_of(record: StudyRecord) -> np.ndarray:
    assert isinstance(record.image, bytes)
    return np.asarray(Image.open(io.BytesIO(record.image)))


def regions_of(modality: str):
    """Pairs of record and region, over all phantoms of one modality."""
    return [(record, region) for record in some_phantoms() if record.modality == modality for region in record.regions]


def test_equal_arguments_give_equal_records_and_other_ones_other_images():
    record = draw_phantom(7, 3, 0.4, "train")
    assert draw_phantom(7, 3, 0.4, "train") == record
    assert draw_phantom(7, 3) == record
    others = [draw_phantom(7, 4), draw_phantom(8, 3), draw_phantom(7, 3, 0.6), draw_phantom(7, 3, 0.4, "test")]
    assert len({record.sha256, *(other.sha256 for other in others)}) == 5


def test_the_order_of_drawing_does_not_matter():
    forwards = [draw_phantom(1, index).sha256 for index in range(6)]
    backwards = [draw_phantom(1, index).sha256 for index in reversed(range(6))]
    assert forwards == backwards[::-1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    index=st.integers(0, 10**7),
    difficulty=st.floats(0.0, 1.0),
    split=st.sampled_from(("train", "validation", "test")),
)
def test_every_phantom_passes_the_check_and_its_boxes_are_those_of_its_masks(seed, index, difficulty, split):
    record = draw_phantom(seed, index, difficulty, split)
    record.check()
    assert record.sha256 == hashlib.sha256(record.image).hexdigest()
    assert pixels_of(record).shape[:2] == (record.height, record.width)
    for region in record.regions:
        assert region.box == tight_box(region.mask_rle.to_array())


def test_a_tight_box_is_half_open():
    mask = np.zeros((6, 9), dtype=bool)
    mask[2, 3] = mask[4, 7] = True
    assert tight_box(mask) == (3, 2, 8, 5)
    assert tight_box(np.zeros((6, 9), dtype=bool)) is None


def test_all_modalities_findings_and_normal_images_occur():
    records = some_phantoms()
    assert {record.modality for record in records} == {modality.name for modality in MODALITIES}
    findings = {region.finding for record in records for region in record.regions}
    assert findings == {finding for modality in MODALITIES for finding in modality.findings}
    assert len(findings) >= 12
    share_normal = np.mean([not record.regions for record in records])
    assert 0.12 < share_normal < 0.30  # 0.22 is planned; 600 images give a standard error of 0.017
    assert all(record.caption.startswith("Normal ") == (not record.regions) for record in records)


def test_the_region_texts_are_between_40_and_150():
    texts = {region.description for record in some_phantoms() for region in record.regions}
    assert 40 <= len(texts) <= sum(len(modality.meanings) for modality in MODALITIES) <= 150


def test_regions_of_one_image_hardly_overlap():
    for record in some_phantoms():
        masks = [region.mask_rle.to_array() for region in record.regions]
        for i, a in enumerate(masks):
            for b in masks[:i]:
                assert (a & b).sum() <= 0.2 * min(a.sum(), b.sum()), record.image_id


def test_the_smallest_box_side_keeps_four_pixels_in_a_96_pixel_frame():
    for record in some_phantoms():
        for region in record.regions:
            x0, y0, x1, y1 = region.box
            assert min(x1 - x0, y1 - y0) * 96 / max(record.width, record.height) >= 4.0, (
                record.image_id,
                region.finding,
            )


def test_the_patients_right_lung_and_kidney_lie_in_the_left_half_of_the_image():
    sided = [*regions_of("chest radiograph"), *regions_of("CT")]
    sided = [(record, region) for record, region in sided if region.laterality is not None]
    assert {region.laterality for _, region in sided} == {"left", "right"}
    for record, region in sided:
        is_image_left = (region.box[0] + region.box[2]) / 2 < record.width / 2
        assert is_image_left == (region.laterality == "right"), (record.image_id, region.description)


def test_the_optic_disc_of_a_right_eye_lies_on_image_right():
    for record, region in regions_of("fundus photograph"):
        red, green, _ = np.moveaxis(pixels_of(record).astype(np.float64), 2, 0)
        paleness = np.where(red > 40, green / np.maximum(red, 1.0), 0.0)  # the disc is pale, whatever the light
        for other in record.regions:
            paleness[other.mask_rle.to_array()] = 0.0
        middle, edge = slice(int(0.3 * record.height), int(0.65 * record.height)), int(0.25 * record.width)
        left, right = np.percentile(paleness[middle, 8:edge], 90), np.percentile(paleness[middle, -edge:-8], 90)
        assert (right > left) == (region.laterality == "right"), (record.image_id, left, right)
        assert {other.laterality for other in record.regions} == {region.laterality}  # one image shows one eye


def test_temporal_lesions_lie_away_from_the_disc_and_superior_ones_above():
    for record, region in regions_of("fundus photograph"):
        if region.place == "macula":
            continue
        x = (region.box[0] + region.box[2]) / 2 / record.width
        y = (region.box[1] + region.box[3]) / 2 / record.height
        is_towards_image_right = ("nasal" in region.place) == (region.laterality == "right")
        assert (x > 0.5) == is_towards_image_right, (record.image_id, region.description, x)
        assert (y < 0.5) == region.place.startswith("supero"), (record.image_id, region.description, y)


def test_places_in_a_smear_are_those_of_the_image_frame():
    for record, region in regions_of("blood smear"):
        vertical, horizontal = region.place.split()
        assert (region.box[0] + region.box[2] < record.width) == (horizontal == "left"), record.image_id
        assert (region.box[1] + region.box[3] < record.height) == (vertical == "upper"), record.image_id


def test_zones_of_the_lung_descend():
    rows: dict[str, list[float]] = {}
    for record, region in regions_of("chest radiograph"):
        if region.place is not None:
            rows.setdefault(region.place, []).append((region.box[1] + region.box[3]) / 2 / record.height)
    assert max(rows["upper zone"]) < min(rows["middle zone"]) < max(rows["middle zone"]) < min(rows["lower zone"])


@pytest.mark.parametrize(
    ("finding", "attribute", "less", "more"),
    [
        ("pulmonary nodule", "size", "small", "large"),
        ("hepatic cyst", "size", "small", "large"),
        ("pneumothorax", "size", "small", "large"),
        ("pleural effusion", "size", "small", "large"),
        ("hydronephrosis", "severity", "mild", "severe"),
        ("cardiomegaly", "severity", "mild", "severe"),
    ],
)
def test_stated_sizes_and_severities_are_apart_in_pixels(finding, attribute, less, more):
    extents: dict[str, list[float]] = {less: [], more: []}
    for record in some_phantoms():
        for region in record.regions:
            if region.finding == finding:
                x0, y0, x1, y1 = region.box
                extents[getattr(region, attribute)].append(((x1 - x0) * (y1 - y0)) ** 0.5 / record.width)
    assert max(extents[less]) < min(extents[more])


def test_the_test_split_depends_neither_on_the_training_split_nor_on_where_reading_starts():
    small, large = PhantomSource(num_train=2, num_test=6), PhantomSource(num_train=50, num_test=8)
    few = [record.sha256 for record in small.records("test")]
    assert few == [record.sha256 for record in large.records("test")][:6]
    assert few[2:5] == [record.sha256 for record in small.records("test", 2, 5)]
    assert set(few).isdisjoint(record.sha256 for record in large.records("train"))
    assert len(list(small.records("test", 4, 99))) == 2


def test_splits_name_only_those_with_records():
    assert PhantomSource(num_train=3, num_test=0).splits() == ("train",)
    assert PhantomSource(num_train=3, num_test=2, num_validation=1).splits() == ("train", "validation", "test")
    assert PhantomSource().num_records("train") == 6000
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation, test"):
        PhantomSource().num_records("dev")


def test_validation_images_are_drawn_only_where_asked_for_and_are_none_of_the_other_splits():
    assert PhantomSource() == PhantomSource(num_validation=0)
    source = PhantomSource(num_train=8, num_test=8, num_validation=8)
    images = {split: {record.sha256 for record in source.records(split)} for split in source.splits()}
    patients = {split: {record.patient_id for record in source.records(split)} for split in source.splits()}
    for kind in (images, patients):
        assert len(set.union(*kind.values())) == 24
    assert {record.split for record in source.records("validation")} == {"validation"}
    assert source.revision == PhantomSource().revision


def test_the_source_is_opened_with_options_as_texts():
    (source,) = open_sources(None, num_train="5", num_test="0", seed="3", difficulty="0.25")
    assert source == PhantomSource(5, 0, 3, 0.25)
    assert list(source.read("train", 1, 3)) == list(source.records("train", 1, 3))
    assert list(source.bad_items()) == []
    assert set(ABOUT.options) == {"num_train", "num_test", "num_validation", "seed", "difficulty"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": "many"}, "num_train is 'many'; it must be a whole number from 0"),
        ({"difficulty": "2"}, "difficulty is '2'; it must be a number from 0 to 1"),
        ({"size": "2"}, "size is no option of phantom; the options are num_train, num_test, num_validation, seed"),
        ({"root": "/data"}, "is drawn and takes no root"),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_sources(**options)


def test_the_revision_names_seed_and_difficulty_but_not_the_number_of_records():
    assert (
        PhantomSource(5, 5, 3, 0.25).revision
        == PhantomSource(9, 9, 3, 0.25).revision
        == "phantom-v1:seed=3:difficulty=0.25"
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"seed": -1, "index": 0}, "seed is -1"),
        ({"seed": 0, "index": -2}, "index -2"),
        ({"seed": 0, "index": 0, "difficulty": 1.5}, "difficulty is 1.5"),
        ({"seed": 0, "index": 0, "split": "dev"}, "split is 'dev'"),
    ],
)
def test_arguments_out_of_range_are_refused_with_the_rule(arguments, match):
    with pytest.raises(ValueError, match=match):
        draw_phantom(**arguments)


def test_answers_follow_from_the_regions():
    for record in some_phantoms():
        by_finding = Counter(region.finding for region in record.regions)
        for qa in record.qa:
            words = qa.question.lower()
            if qa.kind == "closed-presence":
                assert (qa.answer == "yes") == any(finding in words for finding in by_finding), (record.image_id, qa)
            elif qa.kind == "open-modality":
                assert qa.answer == record.modality
            elif qa.question == "How many findings does this image show?":
                assert int(qa.answer) == len(record.regions)
            elif qa.kind == "open-count":
                stems = [finding for finding in by_finding if finding[:-2] in words]
                assert int(qa.answer) == sum(by_finding[finding] for finding in stems), (record.image_id, qa)
            else:
                attribute = {"side": "laterality"}.get(qa.kind.split("-")[1], qa.kind.split("-")[1])
                values = {getattr(region, attribute) for region in record.regions if region.finding in words}
                values = values or {region.laterality for region in record.regions}  # "Is this a left eye?"
                assert len(values) == 1, (record.image_id, qa)
                value = values.pop()
                assert qa.answer == (
                    value if qa.kind.startswith("open") else ("yes" if f" {value} " in words else "no")
                )


def test_closed_questions_are_balanced_and_every_kind_occurs():
    questions = [qa for record in some_phantoms() for qa in record.qa]
    assert {qa.kind for qa in questions} == {
        "closed-presence",
        "closed-side",
        "open-count",
        "open-side",
        "open-place",
        "open-size",
        "open-severity",
        "open-modality",
    }
    for kind in ("closed-presence", "closed-side"):
        answers = [qa.answer == "yes" for qa in questions if qa.kind == kind]
        assert abs(np.mean(answers) - 0.5) < 4 * 0.5 / len(answers) ** 0.5  # four standard errors of a fair coin


def test_difficulty_lowers_the_contrast_of_a_lesion():
    def contrasts(difficulty: float) -> list[float]:
        values = []
        for index in range(160):
            record = draw_phantom(0, index, difficulty)
            for region in record.regions:
                if region.finding == "hepatic cyst":
                    image, mask = pixels_of(record).astype(np.float64), region.mask_rle.to_array()
                    x0, y0, _, _ = (int(side) for side in region.box)
                    corner = image[y0 : y0 + 2, x0 : x0 + 2].mean()
                    values.append(abs(image[mask].mean() - corner))
        return values

    assert np.mean(contrasts(0.0)) > np.mean(contrasts(1.0))


def test_a_curve_outside_the_field_leaves_it_untouched():
    field = np.zeros((5, 5), dtype=np.float32)
    stamp_curve(field, np.array([-9.0, 20.0]), np.array([2.0, 2.0]), np.array([1.0, 1.0]))
    assert not field.any()


def test_the_layout_refuses_a_place_that_is_taken():
    layout = Layout((40, 40))
    dice = Dice(np.random.default_rng(0), 0.5)
    assert layout.place(dice, lambda dice: (20.0, 20.0), 5.0, 5.0) == (20.0, 20.0)
    assert layout.place(dice, lambda dice: (22.0, 21.0), 5.0, 5.0) is None
    assert layout.place(dice, lambda dice: (0.0, 0.0), 5.0, 5.0) == (6.0, 6.0)  # moved inside the image
