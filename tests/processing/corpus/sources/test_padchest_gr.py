"""Tests of the source `padchest_gr` on a miniature folder with the JSON fields and columns of the release."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from corpus_fixtures import bad_items, painted, painted_box, read_all
from PIL import Image

from regionmed_clip.processing.corpus.sources.padchest_gr import ABOUT, PadchestGrSource

HEADER = ("StudyID", "ImageID", "PatientID", "PatientSex_DICOM", "label", "label_group", "split")
FIRST, SECOND, NORMAL = "2168_00-010-052.png", "2168_00-020-017.png", "2168_00-031-001.png"
SIZES = {FIRST: (70, 50), SECOND: (41, 67), NORMAL: (30, 30)}
BOXES = {  # in pixels, our frame
    FIRST: [(3, 4, 20, 15), (40, 10, 70, 50), (22, 20, 30, 33)],  # the second touches the border
    SECOND: [(1, 2, 14, 29)],
    NORMAL: [],
}
TABLE = {FIRST: ("p1", "train"), SECOND: ("p2", "validation"), NORMAL: ("p3", "test")}


def fractions(image, *numbers):
    width, height = SIZES[image]
    boxes = (BOXES[image][number] for number in numbers)
    return [[x0 / width, y0 / height, x1 / width, y1 / height] for x0, y0, x1, y1 in boxes]


def positive(text, boxes, labels, locations):
    return {
        "sentence_en": text,
        "sentence_es": "...",
        "abnormal": True,
        "boxes": boxes,
        "extra_boxes": [],
        "labels": labels,
        "locations": locations,
        "progression": None,
    }


def reports():
    """The content of the JSON file; sentences that deny a finding have no boxes, labels or locations."""
    no_pneumothorax = {"sentence_en": "No pneumothorax.", "sentence_es": "Sin neumotórax.", "abnormal": False}
    both = positive("Bilateral pleural effusion", fractions(FIRST, 0, 1), ["pleural effusion"], ["left", "right"])
    nodule = positive("Nodule in the right upper lobe.", fractions(FIRST, 2), ["nodule"], ["right", "upper lobe"])
    nodule |= {"extra_boxes": [[0.1, 0.1, 0.2, 0.2]]}
    aorta = positive("Elongated aorta.", [], ["aortic elongation"], ["aortic"])
    sign = positive("Basal  opacity.", fractions(SECOND, 0), ["Infiltrates", "atelectasis"], ["loc basal bilateral"])
    return [
        {"StudyID": "1", "ImageID": FIRST, "findings": [no_pneumothorax, both, nodule, aorta]},
        {"StudyID": "2", "ImageID": SECOND, "findings": [sign]},
        {"StudyID": "3", "ImageID": NORMAL, "findings": [{"sentence_en": "No findings.", "abnormal": False}]},
    ]


def write_reports(root, content):
    (root / "grounded_reports_20240819.json").write_text(json.dumps(content))


def write_table(root, rows, header=HEADER):
    with (root / "master_table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def table_rows():
    """Two rows an image, as the release has one for every label."""
    return [
        ("1", image, patient, "F", label, "", split)
        for label in ("nodule", "other")
        for image, (patient, split) in TABLE.items()
    ]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "Padchest_GR_files" / "PadChest_GR"
    folder.mkdir(parents=True)
    for image, size in SIZES.items():
        Image.fromarray(painted(size, BOXES[image]).astype(np.uint16) * 16).save(folder / image)  # 12 bits of 16
    write_reports(tmp_path, reports())
    write_table(tmp_path, table_rows())
    return tmp_path


def good_ids(root):
    source = PadchestGrSource(root)
    records = [item for split in source.splits() for item in source.read(split) if hasattr(item, "regions")]
    return [record.image_id.removeprefix("padchest_gr/") for record in records]


def test_every_box_comes_back_to_the_pixel(root):
    records = read_all(PadchestGrSource(root))
    assert [len(record.regions) for record in records] == [3, 1, 0]
    for record in records:
        stored = np.asarray(Image.open(record.image)) // 16
        for index, region in enumerate(record.regions):
            assert region.box == painted_box(stored, index)


def test_a_sentence_is_the_text_of_each_of_its_boxes(root):
    regions = read_all(PadchestGrSource(root))[0].regions
    assert [region.description for region in regions] == [
        "Bilateral pleural effusion",
        "Bilateral pleural effusion",
        "Nodule in the right upper lobe.",
    ]
    assert {region.text_origin for region in regions} == {"source"}
    assert [region.finding for region in regions] == ["pleural effusion", "pleural effusion", "nodule"]


def test_all_sentences_are_the_findings_also_those_without_boxes(root):
    first, _, normal = read_all(PadchestGrSource(root))
    assert first.findings == (
        "No pneumothorax. Bilateral pleural effusion. Nodule in the right upper lobe. Elongated aorta."
    )
    assert (normal.findings, normal.regions, normal.text_origin) == ("No findings.", (), "source")
    assert (first.modality, first.view, first.window) == ("chest radiograph", "frontal", None)


def test_sides_and_places_are_those_of_the_locations(root):
    first, second, _ = read_all(PadchestGrSource(root))
    assert [(r.laterality, r.place) for r in first.regions] == [(None, None), (None, None), ("right", "upper lobe")]
    assert (second.regions[0].laterality, second.regions[0].place) == ("bilateral", "base")
    assert second.regions[0].finding == "infiltrates and atelectasis"


def test_records_have_the_splits_and_patients_of_the_table(root):
    source = PadchestGrSource(root)
    assert [(record.split, record.patient_id) for record in read_all(source)] == [
        ("train", "p1"),
        ("validation", "p2"),
        ("test", "p3"),
    ]
    assert source.revision.startswith("20240819-")
    assert ABOUT.is_verified


def test_the_images_may_lie_in_a_folder_of_their_own(root, tmp_path):
    (root / "Padchest_GR_files").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="images=FOLDER"):
        PadchestGrSource(root)
    assert len(read_all(PadchestGrSource(root, images=str(tmp_path / "elsewhere" / "PadChest_GR")))) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"boxes": [[0.1, 0.2, float("nan"), 0.4]]}, "boxes is 'nan'"),
        ({"boxes": [[0.5, 0.2, 0.3, 0.4]]}, "x1 above x0"),
        ({"boxes": [[0.1, 0.2, 0.3]]}, "a box is [x0, y0, x1, y1]"),
        ({"boxes": [[3, 4, 20, 15]]}, "in fractions of the image"),
        ({"boxes": 7}, "boxes is 7; it must be a list of list"),
        ({"sentence_en": ""}, "sentence_en is ''"),
        ({"abnormal": "yes"}, "abnormal is 'yes'"),
        ({"abnormal": False}, "a sentence with boxes is abnormal"),
        ({"labels": []}, "names what they show"),
        ({"locations": [3]}, "locations is [3]"),
    ],
)
def test_a_bad_sentence_makes_its_image_bad_and_the_others_still_come(root, changed, said):
    content = reports()
    content[1]["findings"][0] |= changed
    write_reports(root, content)
    found = bad_items(PadchestGrSource(root))
    assert list(found) == [SECOND]
    assert found[SECOND].startswith("grounded_reports_20240819.json[1]: findings[0]: ")
    assert said in found[SECOND]
    assert good_ids(root) == [FIRST, NORMAL]


def test_reports_and_table_must_agree_on_the_images(root):
    write_reports(root, [*reports()[1:], {"StudyID": "9"}, {"ImageID": "new.png", "findings": []}, reports()[1]])
    found = bad_items(PadchestGrSource(root))
    assert f"{FIRST} has 0 reports" in found[FIRST]  # in the table alone
    assert "in master_table.csv; every image has one" in found["new.png"]
    assert "an object with ImageID" in found["grounded_reports_20240819.json[2]"]
    assert f"{SECOND} has 2 reports" in found[SECOND]
    assert good_ids(root) == [NORMAL]


def test_bad_rows_of_the_table_are_bad_items(root):
    write_table(
        root, [*table_rows(), ("1", FIRST, "p1", "F", "x", "", "dev"), ("1", SECOND, "p9", "F", "x", "", "test")]
    )
    with (root / "master_table.csv").open("a") as file:
        file.write("1,2\n")
    found = bad_items(PadchestGrSource(root))
    assert found[FIRST].startswith("master_table.csv:8: split is 'dev'")
    assert "every image has one" in found[SECOND]
    assert "has 2 fields" in found["master_table.csv:10"]
    assert good_ids(root) == [NORMAL]


def test_missing_and_truncated_images_are_bad_items(root):
    folder = root / "Padchest_GR_files" / "PadChest_GR"
    (folder / FIRST).unlink()
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-30])
    found = bad_items(PadchestGrSource(root))
    assert "does not exist" in found[FIRST]
    assert "cannot be decoded" in found[SECOND]
    assert good_ids(root) == [NORMAL]


def test_a_wrong_root_or_file_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        PadchestGrSource(tmp_path / "nowhere")
    write_reports(root, {})
    with pytest.raises(ValueError, match="holds a dict; it must be a list"):
        PadchestGrSource(root)
    write_reports(root, reports())
    write_table(root, [], HEADER[:-1])
    with pytest.raises(ValueError, match="lacks split"):
        PadchestGrSource(root)
    (root / "master_table.csv").unlink()
    with pytest.raises(ValueError, match=r"lacks master_table\.csv"):
        PadchestGrSource(root)
