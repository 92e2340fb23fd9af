"""Tests of the source `vindr_cxr` on miniature folders of both layouts, with DICOM files made here."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from corpus_fixtures import bad_items, painted, painted_box, read_all
from PIL import Image

from regionmed_clip.processing.corpus.negatives import write_negatives
from regionmed_clip.processing.corpus.sources.vindr_cxr import VinDrCxrSource, box_iou, merge_marks, open_sources

pytest.importorskip("pydicom", reason='VinDr-CXR is DICOM: pip install -e ".[dicom]"')

from dicom_fixtures import write_dicom

TRAIN_HEADER = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max"
TEST_HEADER = "image_id,class_name,x_min,y_min,x_max,y_max"
KAGGLE_HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
CLASSES = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,{other},No finding"
)
SICK, NORMAL, TEST = (
    "0005e8e3701dfb1dd93d53e2ff537b6e",
    "50a418190bc3fb1ef1633bf9678929b3",
    "002a34c58c5b758217ed1f584ccbcfe9",
)
BOXES = [((3, 4, 20, 15), "Pleural effusion"), ((40, 10, 70, 50), "Cardiomegaly"), ((22, 20, 30, 33), "Nodule/Mass")]
SIZE = (70, 50)  # the second box touches the border


def label_row(image_id, reader, other, *names):
    columns = CLASSES.format(other=other).split(",")
    return ",".join([image_id, *([reader] if reader else []), *("1" if name in names else "0" for name in columns)])


def write_physionet(root):
    """Three readers draw the same boxes of SICK and find nothing in NORMAL; the consensus of TEST is one box."""
    readers = ("R8", "R9", "R10")
    lines = [f"{SICK},{reader},{name},{x0}.0,{y0},{x1},{y1}" for reader in readers for (x0, y0, x1, y1), name in BOXES]
    lines += [f"{NORMAL},{reader},No finding,,,," for reader in readers]
    labels = [label_row(SICK, reader, "Other diseases", *(name for _, name in BOXES)) for reader in readers]
    labels += [label_row(NORMAL, reader, "Other diseases", "No finding") for reader in readers]
    folder = root / "annotations"
    folder.mkdir(parents=True)
    (folder / "annotations_train.csv").write_text("\n".join([TRAIN_HEADER, *lines, ""]))
    (folder / "image_labels_train.csv").write_text(
        "\n".join([f"image_id,rad_id,{CLASSES.format(other='Other diseases')}", *labels, ""])
    )
    (folder / "annotations_test.csv").write_text(f"{TEST_HEADER}\n{TEST},Rib fracture,5,6,29,40\n")
    (folder / "image_labels_test.csv").write_text(
        f"image_id,{CLASSES.format(other='Other disease')}\n{label_row(TEST, None, 'Other disease', 'Rib fracture')}\n"
    )
    write_image(root / "train", SICK, SIZE, [box for box, _ in BOXES])
    write_image(root / "train", NORMAL, (30, 40))
    write_image(root / "test", TEST, (30, 60), [(5, 6, 29, 40)])
    return root


def write_image(folder, image_id, size, boxes=(), **elements):
    pixels = painted(size, boxes).astype(np.uint16) * 16
    write_dicom(folder / f"{image_id}.dicom", pixels, BitsStored=12, PatientSex="F", PatientAge="061Y", **elements)


def replace_in(path, old, new):
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def by_name(source):
    return {record.image_id.split("/")[1]: record for record in read_all(source)}


def painted_in(record, index):
    with Image.open(BytesIO(record.image)) as file:
        return painted_box(np.asarray(file) // 16, index)


def test_boxes_are_the_painted_rectangles(tmp_path):
    records = by_name(VinDrCxrSource(write_physionet(tmp_path)))
    found = {region.finding: region.box for region in records[SICK].regions}
    assert set(found) == {"pleural effusion", "cardiomegaly", "mass or nodule"}
    for index, (_, name) in enumerate(BOXES):
        finding = {"Nodule/Mass": "mass or nodule"}.get(name, name.lower())
        assert found[finding] == painted_in(records[SICK], index)
    assert records[TEST].regions[0].box == painted_in(records[TEST], 0)
    assert (records[SICK].width, records[SICK].height) == SIZE


def test_only_an_image_without_any_finding_by_any_reader_is_normal(tmp_path):
    records = by_name(VinDrCxrSource(write_physionet(tmp_path)))
    assert records[NORMAL].caption == "Normal PA chest radiograph without focal abnormality."
    assert not records[NORMAL].regions
    assert "normal" not in records[SICK].caption.lower()
    labels = tmp_path / "annotations" / "image_labels_train.csv"
    replace_in(
        labels,
        label_row(NORMAL, "R9", "Other diseases", "No finding"),
        label_row(NORMAL, "R9", "Other diseases", "Other diseases"),
    )
    record = by_name(VinDrCxrSource(tmp_path))[NORMAL]
    assert record.caption == "PA chest radiograph."
    assert record.impression == ""


def test_diagnoses_without_a_box_enter_the_impression_by_the_same_majority(tmp_path):
    labels = write_physionet(tmp_path) / "annotations" / "image_labels_train.csv"
    names = [name for _, name in BOXES]
    for reader, more in (("R8", ["Pneumonia", "COPD"]), ("R9", ["Pneumonia"])):
        replace_in(
            labels,
            label_row(SICK, reader, "Other diseases", *names),
            label_row(SICK, reader, "Other diseases", *names, *more),
        )
    impression = by_name(VinDrCxrSource(tmp_path))[SICK].impression
    assert impression == "Cardiomegaly, mass or nodule, pleural effusion and pneumonia."
    assert "chronic obstructive" in by_name(VinDrCxrSource(tmp_path, readers="union"))[SICK].impression


def test_a_diagnosis_among_the_annotations_needs_no_box_and_is_not_normal(tmp_path):
    annotations = write_physionet(tmp_path) / "annotations" / "annotations_train.csv"
    for reader, name in (("R8", "Tuberculosis"), ("R9", "Tuberculosis"), ("R10", "Other diseases")):
        replace_in(annotations, f"{NORMAL},{reader},No finding,,,,", f"{NORMAL},{reader},{name},,,,")
    record = by_name(VinDrCxrSource(tmp_path))[NORMAL]
    assert (record.caption, record.impression, record.regions) == ("PA chest radiograph.", "Tuberculosis.", ())


def test_splits_are_the_source_s_own(tmp_path):
    source = VinDrCxrSource(write_physionet(tmp_path))
    assert {split: source.num_records(split) for split in source.splits()} == {"train": 2, "test": 1}
    assert all(record.patient_id is None for record in read_all(source))


def test_sixteen_bit_pixels_come_with_their_window(tmp_path):
    write_physionet(tmp_path)
    write_image(
        tmp_path / "train",
        NORMAL,
        (30, 40),
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=2048,
        WindowWidth=4096,
    )
    record = by_name(VinDrCxrSource(tmp_path))[NORMAL]
    assert record.window == (0.0, 4095.0)


def test_the_kaggle_layout_is_read_too(tmp_path):
    names = {f"{number:032x}": (40 + number, 30) for number in range(12)}
    lines = [f"{name},Cardiomegaly,3,{reader},5,6,25,20" for name in names for reader in ("R1", "R2", "R3")]
    (tmp_path / "train.csv").write_text("\n".join([KAGGLE_HEADER, f"{NORMAL},No finding,14,R1,,,,", *lines, ""]))
    write_image(tmp_path / "train", NORMAL, (30, 40))
    for name, size in names.items():
        write_image(tmp_path / "train", name, size, [(5, 6, 25, 20)])
    source = VinDrCxrSource(tmp_path)
    records = by_name(source)
    assert len(records) == 13
    assert len(source.looked_for) == 14
    assert len(source.splits()) > 1  # by a hash of the image
    assert all(records[name].regions[0].box == painted_in(records[name], 0) for name in names)
    assert records[NORMAL].caption.startswith("Normal")


def test_boxes_of_fewer_than_half_of_the_readers_are_left_out_by_majority_and_kept_by_union(tmp_path):
    annotations = write_physionet(tmp_path) / "annotations" / "annotations_train.csv"
    replace_in(annotations, f"{SICK},R10,Pleural effusion,3.0,4,20,15\n", f"{SICK},R10,Atelectasis,1,30,9,40\n")
    findings = [region.finding for region in by_name(VinDrCxrSource(tmp_path))[SICK].regions]
    assert findings == ["cardiomegaly", "mass or nodule", "pleural effusion"]
    (union,) = open_sources(tmp_path, readers="union")
    assert [region.finding for region in by_name(union)[SICK].regions] == ["atelectasis", *findings]
    assert union.revision != open_sources(tmp_path)[0].revision


def test_what_a_minority_saw_is_put_in_the_place_of_nothing(tmp_path):
    annotations = write_physionet(tmp_path) / "annotations" / "annotations_train.csv"
    source = VinDrCxrSource(tmp_path)
    assert source.looked_for >= {"consolidation", "lung cavity", "pneumothorax"}
    record = by_name(source)[SICK]
    assert "consolidation" in source.looked_for_in(record)
    assert "pleural thickening" not in source.looked_for_in(record)  # an effusion was drawn, which it may be
    replace_in(annotations, f"{SICK},R10,Pleural effusion,3.0,4,20,15\n", f"{SICK},R10,Atelectasis,1,30,9,40\n")
    source = VinDrCxrSource(tmp_path)
    records = by_name(source)
    assert source.looked_for_in(records[SICK]) & {"consolidation", "lung cavity", "pneumothorax"} == {
        "lung cavity",
        "pneumothorax",
    }
    assert "consolidation" in source.looked_for_in(records[NORMAL])
    texts = [n.text for n in write_negatives(records[SICK], looked_for=source.looked_for_in(records[SICK]))]
    assert not any("consolidation" in text for text in texts)
    assert any("lung cavity" in text for text in texts)


def test_overlapping_boxes_of_different_readers_become_their_mean():
    marks = [("R1", "nodule", (0.0, 0.0, 10.0, 10.0)), ("R2", "nodule", (2.0, 0.0, 12.0, 10.0))]
    assert merge_marks([*marks, ("R3", "nodule", (50.0, 50.0, 60.0, 60.0))]) == [
        ("nodule", (1.0, 0.0, 11.0, 10.0), 2),
        ("nodule", (50.0, 50.0, 60.0, 60.0), 1),
    ]
    assert merge_marks([*marks, marks[0]]) == [("nodule", (1.0, 0.0, 11.0, 10.0), 2)]  # the same box twice counts once


def test_two_boxes_of_one_reader_stay_two_lesions():
    near = [("R1", "nodule", (0.0, 0.0, 10.0, 10.0)), ("R1", "nodule", (1.0, 0.0, 11.0, 10.0))]
    both = merge_marks([*near, ("R2", "nodule", (0.0, 0.0, 10.0, 10.0))])
    assert both == [("nodule", (0.0, 0.0, 10.0, 10.0), 2), ("nodule", (1.0, 0.0, 11.0, 10.0), 1)]


def test_boxes_of_different_findings_or_little_overlap_are_not_merged():
    far = [("R1", "nodule", (0.0, 0.0, 10.0, 10.0)), ("R2", "nodule", (5.0, 0.0, 15.0, 10.0))]  # IoU 50 / 150
    assert box_iou(far[0][2], far[1][2]) == pytest.approx(1 / 3)
    assert len(merge_marks(far)) == 2
    assert len(merge_marks([far[0], ("R2", "mass", far[0][2])])) == 2


@pytest.mark.parametrize("seed", range(20))
def test_merging_does_not_depend_on_the_order_and_keeps_readers_apart(seed):
    dice = np.random.default_rng(seed)
    marks = []
    for reader in ("R1", "R2", "R3"):
        for _ in range(dice.integers(0, 5)):
            x, y = dice.integers(0, 15, 2)
            width, height = dice.integers(8, 20, 2)
            marks.append(
                (reader, str(dice.choice(["a", "b"])), (float(x), float(y), float(x + width), float(y + height)))
            )
    merged = merge_marks(marks)
    assert merged == merge_marks([marks[index] for index in dice.permutation(len(marks))])
    assert sum(num_readers for *_, num_readers in merged) == len(set(marks))
    assert all(1 <= num_readers <= 3 for *_, num_readers in merged)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (f"{SICK},R9,Cardiomegaly,40.0,10,70,50", f"{SICK},R9,Cardiomegaly,70,10,40,50", "x_max must exceed x_min"),
        (f"{SICK},R9,Cardiomegaly,40.0,", f"{SICK},R9,Cardiomegaly,NaN,", "x_min is 'NaN'"),
        (f"{SICK},R9,Cardiomegaly,", f"{SICK},R9,Cardiac thing,", "class_name is 'Cardiac thing'"),
        (f"{SICK},R9,Cardiomegaly,40.0,10,70,50", f"{SICK},R9,Cardiomegaly,40,10,170,50", "must lie within the image"),
        (f"{SICK},R9,Cardiomegaly,40.0,10,70,50", f"{SICK},R9,Cardiomegaly,,,,", "x_min is ''"),
    ],
)
def test_a_bad_row_quarantines_its_image_alone(tmp_path, old, new, reason):
    annotations = write_physionet(tmp_path) / "annotations" / "annotations_train.csv"
    replace_in(annotations, old, new)
    source = VinDrCxrSource(tmp_path, readers="union")
    found = bad_items(source)
    assert list(found) == [SICK]
    assert reason in found[SICK]
    assert {
        record.image_id for split in source.splits() for record in source.read(split) if hasattr(record, "sha256")
    } == {
        f"vindr_cxr/{NORMAL}",
        f"vindr_cxr/{TEST}",
    }


def test_a_truncated_row_names_its_line_and_a_missing_or_broken_image_its_file(tmp_path):
    annotations = write_physionet(tmp_path) / "annotations" / "annotations_train.csv"
    annotations.write_text(annotations.read_text() + f"{SICK},R9\n")
    (tmp_path / "test" / f"{TEST}.dicom").unlink()
    (tmp_path / "train" / f"{NORMAL}.dicom").write_bytes(b"\0" * 200)
    found = bad_items(VinDrCxrSource(tmp_path))
    assert "has 2 fields" in found["annotations/annotations_train.csv:14"]
    assert f"{TEST}.dicom does not exist" in found[TEST]
    assert f"{NORMAL}.dicom" in found[NORMAL]


def test_a_label_that_is_neither_0_nor_1_quarantines_its_image(tmp_path):
    labels = write_physionet(tmp_path) / "annotations" / "image_labels_train.csv"
    good = label_row(NORMAL, "R9", "Other diseases", "No finding")
    replace_in(labels, good, good[:-1] + "7")
    assert "No finding is 7; it must be 0 or 1" in bad_items(VinDrCxrSource(tmp_path))[NORMAL]


def test_a_wrong_root_header_or_option_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        open_sources(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"has neither annotations/annotations_train\.csv"):
        open_sources(tmp_path)
    root = write_physionet(tmp_path / "data")
    with pytest.raises(ValueError, match="readers is 'all'"):
        open_sources(root, readers="all")
    replace_in(root / "annotations" / "annotations_test.csv", "x_min", "left")
    with pytest.raises(ValueError, match=r"annotations_test\.csv has the columns .* lacks x_min"):
        open_sources(root)
    (root / "annotations" / "image_labels_train.csv").unlink()
    with pytest.raises(ValueError, match=r"image_labels_train\.csv does not exist"):
        open_sources(root)
