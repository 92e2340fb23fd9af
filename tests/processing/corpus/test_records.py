"""Records: run lengths give masks back, and `check` refuses what no reader may pass on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from regionmed_clip.processing.corpus.records import MaskRle, QARecord, RegionRecord, StudyRecord

RECORD = StudyRecord(
    image_id="demo/1",
    image=b"png",
    width=40,
    height=30,
    modality="chest radiograph",
    anatomy=None,
    view=None,
    caption="Chest radiograph.",
    findings="",
    impression="",
    regions=(RegionRecord((0.0, 0.0, 40.0, 30.0), "cavity"),),
    qa=(QARecord("Is there a cavity?", "yes", "closed"),),
    patient_id=None,
    split="train",
    source="demo",
    source_revision="1",
    license="CC0 1.0",
    sha256="0" * 64,
)


def with_region(**changes):
    return replace(RECORD, regions=(replace(RECORD.regions[0], **changes),))


@given(st_numpy.arrays(bool, st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_a_mask_survives_its_run_lengths(mask):
    rle = MaskRle.from_array(mask)
    np.testing.assert_array_equal(rle.to_array(), mask)
    assert rle.to_array().dtype == bool
    assert all(count > 0 for count in rle.counts[1:])  # only the first run of zeros may be empty


def test_run_lengths_go_down_the_columns_and_start_with_zeros():
    mask = np.array([[0, 1], [0, 1], [1, 0]], dtype=bool)
    assert MaskRle.from_array(mask).counts == (2, 3, 1)  # columns 0 0 1 | 1 1 0
    assert MaskRle.from_array(~mask).counts == (0, 2, 3, 1)
    assert MaskRle.from_array(np.zeros((2, 2), dtype=bool)).counts == (4,)


@given(
    st_numpy.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, bool]),
        st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.integers(0, 1),
    )
    | st_numpy.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int64]),
        st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.integers(0, 4) | st.just(200),
    )
)
def test_the_masks_of_a_label_image_are_those_of_its_labels_one_by_one(values):
    labels = sorted(set(values.ravel().tolist()) - {0})
    masks = MaskRle.from_labels(values)
    assert list(masks) == labels
    assert masks == {label: MaskRle.from_array(values == label) for label in labels}


@pytest.mark.parametrize("values", [np.zeros((2, 3, 1), np.uint8), np.zeros((0, 3), np.uint8), np.zeros((2, 3))])
def test_what_is_no_label_image_is_refused(values):
    with pytest.raises(ValueError, match=r"they must be a filled \(H, W\) array of whole numbers"):
        MaskRle.from_labels(values)


@pytest.mark.parametrize("counts", [(5,), (2, 3), (7, -1)])
def test_run_lengths_that_do_not_fill_the_mask_are_refused(counts):
    with pytest.raises(ValueError, match=r"sum to height \* width = 6"):
        MaskRle((2, 3), counts)


def test_a_whole_image_box_is_allowed_because_boxes_are_half_open():
    RECORD.check()


finite = st.floats(-100, 100, allow_nan=False)


@given(st.tuples(finite, finite, finite, finite))
def test_check_allows_exactly_the_boxes_within_the_image(box):
    x0, y0, x1, y1 = box
    if 0 <= x0 < x1 <= RECORD.width and 0 <= y0 < y1 <= RECORD.height:
        with_region(box=box).check()
    else:
        with pytest.raises(ValueError, match=r"demo/1: region 0 \('cavity'\) has box"):
            with_region(box=box).check()


@pytest.mark.parametrize(
    ("box", "rule"),
    [
        ((20.0, 5.0, 10.0, 9.0), "x1 must exceed x0 and y1 must exceed y0"),
        ((10.0, 9.0, 20.0, 9.0), "x1 must exceed x0 and y1 must exceed y0"),
        ((1.0, float("nan"), 3.0, 4.0), "all four values must be finite"),
        ((1.0, 2.0, float("inf"), 4.0), "all four values must be finite"),
        ((1.0, 2.0, 40.5, 4.0), "within the image of 40x30 pixels"),
        ((-0.5, 2.0, 40.0, 4.0), "within the image of 40x30 pixels"),
    ],
)
def test_a_bad_box_is_named_with_its_region_value_rule_and_way_out(box, rule):
    with pytest.raises(ValueError, match=rule) as error:
        with_region(box=box).check()
    assert "demo/1: region 0 ('cavity')" in str(error.value)
    assert str(box) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finding": "  "}, "empty finding"),
        ({"laterality": "Left"}, "laterality is 'Left'; it must be one of left, right, bilateral"),
        ({"size": "huge"}, "size is 'huge'"),
        ({"severity": "bad"}, "severity is 'bad'"),
        ({"certainty": "maybe"}, "certainty is 'maybe'"),
        ({"text_origin": "model"}, "text_origin is 'model'"),
        ({"mask_rle": MaskRle((40, 30), (1200,))}, r"mask of \(40, 30\)"),
    ],
)
def test_a_bad_region_attribute_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        with_region(**changes).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": ""}, "image_id is|has image_id ''"),
        ({"image": b""}, "image is empty"),
        ({"width": 0}, "size is 0x30"),
        ({"caption": " "}, "caption is empty"),
        ({"license": ""}, "license is empty"),
        ({"split": "val"}, "split is 'val'; it must be one of train, validation, test"),
        ({"sha256": "abc"}, "sha256 is 'abc'"),
        ({"text_origin": "model"}, "text_origin is 'model'"),
        ({"qa": (QARecord("Is there?", "", "open"),)}, "question 0"),
        ({"qa": (QARecord("Is there?", "no", "yes-no"),)}, "kind 'yes-no'; it must be open or closed"),
    ],
)
def test_a_bad_field_of_the_image_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECORD, **changes).check()
