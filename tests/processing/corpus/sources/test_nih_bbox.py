"""Tests of the source `nih_bbox` on miniature folders with the headers of the release."""

from __future__ import annotations

import pytest
from corpus_fixtures import bad_items, paint, painted_box, read_all

from regionmed_clip.processing.corpus.sources.nih_bbox import NihBboxSource, open_sources

BOXES_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
ENTRIES_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
SIDE = 256  # a copy at a quarter of the frame of 1024 in which boxes are given
BOXES = {  # image -> [(label, box in pixels of the file)]
    "00013118_008.png": [("Atelectasis", (56, 136, 78, 156)), ("Effusion", (200, 10, 256, 256))],  # touches the border
    "00014716_007.png": [("Infiltrate", (0, 0, 3, 250))],
    "00013118_009.png": [("Cardiomegaly", (10, 20, 200, 40)), ("Mass", (210, 30, 220, 31)), ("Nodule", (5, 60, 9, 70))],
}
LABELS = {
    "00013118_008.png": "Atelectasis|Effusion|Hernia",
    "00014716_007.png": "Infiltration",
    "00013118_009.png": "Cardiomegaly|Mass|Nodule",
    "00000005_000.png": "No Finding",  # without a box: no record
}
VIEWS = {"00014716_007.png": "AP"}  # the others are PA


def write_source(root, *, images="images_00{}/images", side=SIDE, entries_name="Data_Entry_2017.csv"):
    lines = []
    for number, (name, boxes) in enumerate(BOXES.items()):
        paint(root / images.format(number % 2 + 1) / name, (side, side), [box for _, box in boxes])
        for label, (x0, y0, x1, y1) in boxes:
            x, y, width, height = (value * 1024 / SIDE for value in (x0, y0, x1 - x0, y1 - y0))
            lines.append(f"{name},{label},{x},{y},{width},{height},,,")
    entries = [
        f"{name},{labels},0,{int(name[:8])},058Y,M,{VIEWS.get(name, 'PA')},2682,2749,0.143,0.143,"
        for name, labels in LABELS.items()
    ]
    (root / "BBox_List_2017.csv").write_text("\n".join([BOXES_HEADER, *lines, ""]))
    (root / entries_name).write_text("\n".join([ENTRIES_HEADER, *entries, ""]))
    return root


def write_lists(root, train_val, test):
    (root / "train_val_list.txt").write_text("".join(f"{name}\n" for name in train_val))
    (root / "test_list.txt").write_text("\n".join(test))


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def by_name(source):
    return {record.image_id.split("/")[1]: record for record in read_all(source)}


@pytest.mark.parametrize("images", ["images", "images_00{}/images"])
def test_boxes_are_the_painted_rectangles_whatever_the_size_of_the_copy(tmp_path, images):
    records = by_name(NihBboxSource(write_source(tmp_path, images=images)))
    assert set(records) == set(BOXES)
    for name, boxes in BOXES.items():
        assert [region.box for region in records[name].regions] == [box for _, box in boxes]
        assert [painted_box(records[name].image, index) for index in range(len(boxes))] == [box for _, box in boxes]


def test_in_files_of_the_release_s_own_size_boxes_are_as_they_are(tmp_path):
    write_source(tmp_path)
    box = (100, 200, 1024, 333)
    paint(tmp_path / "images_001" / "images" / "00014716_007.png", (1024, 1024), [box])
    (tmp_path / "images_002" / "images" / "00014716_007.png").unlink()
    replace_in(tmp_path / "BBox_List_2017.csv", "Infiltrate,0.0,0.0,12.0,1000.0", "Infiltrate,100,200,924,133")
    record = by_name(NihBboxSource(tmp_path))["00014716_007.png"]
    assert record.regions[0].box == painted_box(record.image, 0) == box


def test_findings_views_and_labels_without_a_box(tmp_path):
    records = by_name(NihBboxSource(write_source(tmp_path)))
    record = records["00013118_008.png"]
    assert [region.finding for region in record.regions] == ["atelectasis", "pleural effusion"]
    assert record.caption == "PA chest radiograph with atelectasis and a pleural effusion."
    assert record.impression == "Atelectasis, hernia and pleural effusion."
    assert "hernia" not in record.caption
    assert records["00014716_007.png"].view == "AP"
    assert records["00014716_007.png"].impression == "Infiltration."
    assert all(region.laterality is None and region.place is None for region in record.regions)


def test_the_patient_is_nih_s_and_shares_a_split(tmp_path):
    records = by_name(NihBboxSource(write_source(tmp_path)))
    assert records["00013118_008.png"].patient_id == records["00013118_009.png"].patient_id == "nih-cxr14:13118"
    assert records["00013118_008.png"].split == records["00013118_009.png"].split


def test_the_lists_of_the_release_make_the_splits(tmp_path):
    write_lists(
        write_source(tmp_path), ["00013118_008.png", "00013118_009.png", "00000005_000.png"], ["00014716_007.png"]
    )
    records = by_name(NihBboxSource(tmp_path))
    assert records["00014716_007.png"].split == "test"
    assert records["00013118_008.png"].split == records["00013118_009.png"].split != "test"
    write_lists(tmp_path, ["00013118_008.png"], ["00014716_007.png"])
    assert "is in 0 of train_val_list.txt, test_list.txt" in bad_items(NihBboxSource(tmp_path))["00013118_009.png"]
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(ValueError, match="both or none of"):
        NihBboxSource(tmp_path)


def test_the_data_entry_of_2020_without_a_last_empty_column_is_read_too(tmp_path):
    write_source(tmp_path, entries_name="Data_Entry_2017_v2020.csv")
    path = tmp_path / "Data_Entry_2017_v2020.csv"
    path.write_text("\n".join(line.rstrip(",") for line in path.read_text().splitlines()) + "\n")
    assert set(by_name(NihBboxSource(tmp_path))) == set(BOXES)


BOXES_NAME, ENTRIES_NAME, BAD = "BBox_List_2017.csv", "Data_Entry_2017.csv", "00014716_007.png"


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        (BOXES_NAME, "Infiltrate,0.0,", "Infiltrate,NaN,", "Bbox [x is 'NaN'"),
        (BOXES_NAME, "12.0,1000.0", "-12.0,1000.0", "w and h must exceed 0"),
        (BOXES_NAME, "12.0,1000.0", "12.0,2000.0", "must lie within the image"),
        (BOXES_NAME, "Infiltrate", "Infiltrating", "the label is 'Infiltrating'"),
        (ENTRIES_NAME, "Infiltration,0,14716", "Infiltration,0,patient", "Patient ID is 'patient'"),
        (ENTRIES_NAME, "M,AP", "M,LL", "View Position 'LL'"),
        (ENTRIES_NAME, "Infiltration,", "Infiltration|Sneeze,", "the label is 'Sneeze'"),
        (ENTRIES_NAME, BAD, "00014716_008.png", f"{BAD} has 0 rows in Data_Entry_2017.csv"),
    ],
)
def test_a_bad_row_quarantines_its_image_alone(tmp_path, file, old, new, reason):
    replace_in(write_source(tmp_path) / file, old, new)
    source = NihBboxSource(tmp_path)
    found = bad_items(source)
    assert list(found) == [BAD]
    assert reason in found[BAD]
    assert sum(hasattr(record, "sha256") for split in source.splits() for record in source.read(split)) == 2


def test_a_truncated_row_a_missing_and_an_oblong_image_are_named(tmp_path):
    write_source(tmp_path)
    (tmp_path / BOXES_NAME).write_text((tmp_path / BOXES_NAME).read_text() + "00013118_008.png,Mass\n")
    (tmp_path / "images_002" / "images" / BAD).unlink()
    paint(tmp_path / "images_001" / "images" / "00013118_009.png", (SIDE, SIDE - 1))
    found = bad_items(NihBboxSource(tmp_path))
    assert "has 2 fields" in found[f"{BOXES_NAME}:8"]
    assert f"{BAD} does not exist" in found[BAD]
    assert "images of this release are square" in found["00013118_009.png"]


def test_a_wrong_root_or_header_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        open_sources(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"has neither Data_Entry_2017\.csv"):
        open_sources(tmp_path)
    replace_in(write_source(tmp_path) / BOXES_NAME, "Bbox [x", "x")
    with pytest.raises(ValueError, match=r"BBox_List_2017\.csv has the columns .* lacks Bbox \[x"):
        open_sources(tmp_path)
    (tmp_path / BOXES_NAME).unlink()
    with pytest.raises(ValueError, match=r"BBox_List_2017\.csv does not exist"):
        open_sources(tmp_path)
