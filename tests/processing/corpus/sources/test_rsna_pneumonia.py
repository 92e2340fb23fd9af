"""Tests of the source `rsna_pneumonia` on a miniature folder with DICOM files made here."""

from __future__ import annotations

import json

import pytest
from corpus_fixtures import bad_items, painted, painted_box, read_all

from regionmed_clip.processing.corpus.sources.rsna_pneumonia import RsnaPneumoniaSource, open_sources

pytest.importorskip("pydicom", reason='The RSNA challenge is DICOM: pip install -e ".[dicom]"')

from dicom_fixtures import write_dicom

LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
SICK, NOT_NORMAL, NORMAL, OTHER = (
    "00436515-870c-4b36-a041-de91049b9ab4",
    "003d8fa0-6bf1-40ed-b54c-ac657f8495c5",
    "000924cf-0f8d-42bd-9158-1af53881a557",
    "00704310-78a8-4b38-8475-49f4573b2dbb",
)
BOXES = {SICK: [(3, 4, 20, 15), (40, 10, 70, 50)], OTHER: [(2, 3, 30, 60)]}  # two of them touch the border
SIZES = {SICK: (70, 50), NOT_NORMAL: (40, 40), NORMAL: (30, 45), OTHER: (30, 60)}
CLASS_OF = {SICK: "Lung Opacity", NOT_NORMAL: "No Lung Opacity / Not Normal", NORMAL: "Normal", OTHER: "Lung Opacity"}


def write_source(root):
    labels, classes = [], []
    for name in SIZES:
        for x0, y0, x1, y1 in BOXES.get(name, []):
            labels.append(f"{name},{x0}.0,{y0}.0,{x1 - x0}.0,{y1 - y0}.0,1")
            classes.append(f"{name},{CLASS_OF[name]}")  # the release repeats the class for every box
        if name not in BOXES:
            labels.append(f"{name},,,,,0")
            classes.append(f"{name},{CLASS_OF[name]}")
        write_dicom(
            root / "stage_2_train_images" / f"{name}.dcm",
            painted(SIZES[name], BOXES.get(name, ())),
            PatientName=name,
            PatientID=name,
            ViewPosition="AP" if name == SICK else "PA",
            BodyPartExamined="CHEST",
            Modality="CR",
        )
    (root / LABELS).write_text("\n".join(["patientId,x,y,width,height,Target", *labels, ""]))
    (root / CLASSES).write_text("\n".join(["patientId,class", *classes, ""]))
    return root


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def by_name(source):
    return {record.image_id.split("/")[1]: record for record in read_all(source)}


def test_boxes_are_the_painted_rectangles(tmp_path):
    records = by_name(RsnaPneumoniaSource(write_source(tmp_path)))
    for name, boxes in BOXES.items():
        assert [region.box for region in records[name].regions] == boxes
        assert [painted_box(records[name].image, index) for index in range(len(boxes))] == boxes
        assert {region.finding for region in records[name].regions} == {"lung opacity"}
        assert (records[name].width, records[name].height) == SIZES[name]


def test_normal_is_said_of_the_class_normal_alone(tmp_path):
    source = RsnaPneumoniaSource(write_source(tmp_path))
    assert source.looked_for == {"lung opacity"}
    records = by_name(source)
    assert records[NORMAL].caption == "Normal PA chest radiograph without focal abnormality."
    assert records[NOT_NORMAL].caption == "PA chest radiograph."
    assert records[SICK].caption == "AP chest radiograph with two lung opacities."
    assert not records[NORMAL].regions
    assert not records[NOT_NORMAL].regions


def test_the_patient_is_the_patient_id_and_a_hash_of_it_makes_the_split(tmp_path):
    records = by_name(RsnaPneumoniaSource(write_source(tmp_path)))
    assert all(record.patient_id == name for name, record in records.items())
    again = by_name(RsnaPneumoniaSource(tmp_path))
    assert {name: record.split for name, record in again.items()} == {n: record.split for n, record in records.items()}


def test_with_the_mapping_the_patient_is_nih_s_and_shares_a_split(tmp_path):
    numbers = {
        SICK: "00000013_028.png",
        NOT_NORMAL: "00000013_001.png",
        NORMAL: "00010555_003.png",
        OTHER: "00000002_000.png",
    }
    entries = [
        {"subset_img_id": name, "img_id": image, "SOPInstanceUID": "1.2", "orig_labels": []}
        for name, image in {**numbers, "of-the-test-set": "00000099_000.png"}.items()
    ]
    (write_source(tmp_path) / MAPPING).write_text(json.dumps(entries))
    records = by_name(RsnaPneumoniaSource(tmp_path))
    assert {name: record.patient_id for name, record in records.items()} == {
        SICK: "nih-cxr14:13",
        NOT_NORMAL: "nih-cxr14:13",
        NORMAL: "nih-cxr14:10555",
        OTHER: "nih-cxr14:2",
    }
    assert records[SICK].split == records[NOT_NORMAL].split
    (tmp_path / MAPPING).write_text(json.dumps(entries[1:]))
    assert f"is not in {MAPPING}" in bad_items(RsnaPneumoniaSource(tmp_path))[SICK]
    (tmp_path / MAPPING).write_text('{"a": 1}')
    with pytest.raises(ValueError, match="is no list of objects with subset_img_id"):
        RsnaPneumoniaSource(tmp_path)


def test_eight_bit_images_have_no_window_and_no_header_text(tmp_path):
    record = by_name(RsnaPneumoniaSource(write_source(tmp_path)))[SICK]
    assert record.window is None
    assert SICK.encode() not in record.image


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        (LABELS, f"{SICK},3.0,4.0,17.0,11.0,1", f"{SICK},3.0,4.0,-17.0,11.0,1", "width and height must exceed 0"),
        (LABELS, f"{SICK},3.0,4.0,17.0,11.0,1", f"{SICK},nan,4.0,17.0,11.0,1", "x is 'nan'"),
        (LABELS, f"{SICK},3.0,4.0,17.0,11.0,1", f"{SICK},3.0,4.0,17.0,11.0,0", "Target is '0' and the box"),
        (LABELS, f"{SICK},3.0,4.0,17.0,11.0,1", f"{SICK},3.0,4.0,17.0,11.0,maybe", "Target is 'maybe'"),
        (LABELS, f"{SICK},3.0,4.0,17.0,11.0,1", f"{SICK},3.0,4.0,170.0,11.0,1", "must lie within the image"),
        (CLASSES, f"{SICK},Lung Opacity", f"{SICK},Opacity", "class is 'Opacity'"),
        (CLASSES, f"{SICK},Lung Opacity", f"{SICK},Normal", "an image has one class"),
        (CLASSES, f"{SICK},Lung Opacity\n{SICK},Lung Opacity\n", "", "an image has one class"),
    ],
)
def test_a_bad_row_quarantines_its_image_alone(tmp_path, name, old, new, reason):
    replace_in(write_source(tmp_path) / name, old, new)
    source = RsnaPneumoniaSource(tmp_path)
    found = bad_items(source)
    assert list(found) == [SICK]
    assert reason in found[SICK]
    assert sum(hasattr(record, "sha256") for split in source.splits() for record in source.read(split)) == 3


def test_a_truncated_row_a_missing_image_and_an_image_without_labels_are_named(tmp_path):
    write_source(tmp_path)
    for name, line in ((LABELS, f"{SICK},3.0\n"), (CLASSES, "stranger,Normal\n")):
        (tmp_path / name).write_text((tmp_path / name).read_text() + line)
    (tmp_path / "stage_2_train_images" / f"{NORMAL}.dcm").unlink()
    found = bad_items(RsnaPneumoniaSource(tmp_path))
    assert "has 2 fields" in found[f"{LABELS}:7"]
    assert f"has no row in {LABELS}" in found["stranger"]
    assert f"{NORMAL}.dcm does not exist" in found[NORMAL]


def test_an_image_id_that_leads_out_of_the_folder_is_refused(tmp_path):
    write_source(tmp_path)
    for name, line in ((LABELS, "../../x,,,,,0\n"), (CLASSES, "../../x,Normal\n")):
        (tmp_path / name).write_text((tmp_path / name).read_text() + line)
    assert "must lie within" in bad_items(RsnaPneumoniaSource(tmp_path))["../../x"]


def test_a_wrong_root_or_header_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        open_sources(tmp_path / "absent")
    with pytest.raises(ValueError, match="has no stage_2_train_images"):
        open_sources(tmp_path)
    replace_in(write_source(tmp_path) / LABELS, "Target", "target")
    with pytest.raises(ValueError, match=rf"{LABELS} has the columns .* lacks Target"):
        open_sources(tmp_path)
    (tmp_path / LABELS).unlink()
    with pytest.raises(ValueError, match=rf"{LABELS} does not exist"):
        open_sources(tmp_path)
