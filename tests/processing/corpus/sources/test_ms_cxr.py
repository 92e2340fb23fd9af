"""Tests of the source `ms_cxr` on miniature folders with the header and the JSON fields of the release."""

from __future__ import annotations

import csv
import json

import pytest
from corpus_fixtures import bad_items, paint, painted_box, read_all

from regionmed_clip.processing.corpus.sources.ms_cxr import ABOUT, MsCxrSource

HEADER = (
    "category_name,label_text,path,x,y,w,h,image_width,image_height,dicom_id,subject_id,study_id,split"  # v1.1.0
).split(",")
CSV_NAME, JSON_NAME = "MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.1.0.json"
FIRST, SECOND, THIRD = (f"02aa804e-bde0afdd-112c0b34-7bc16630-4e38401{n}" for n in range(3))
IMAGES = {  # dicom_id -> patient, split, size (width, height), [(box in our frame, category, phrase)]
    FIRST: (
        "p10000032",
        "train",
        (70, 50),
        [
            ((3, 4, 20, 15), "Pleural Effusion", "bilateral pleural effusions"),
            ((40, 10, 70, 50), "Pleural Effusion", "bilateral pleural effusions"),  # touches the border
            ((22, 20, 30, 33), "Lung Opacity", "patchy opacity in the right  lower lobe"),
        ],
    ),
    SECOND: ("p10000764", "val", (40, 60), [((0, 0, 12, 30), "Pneumothorax", "small right apical pneumothorax")]),
    THIRD: ("p10000898", "test", (30, 30), [((5, 5, 25, 9), "Edema", "mild interstitial edema")]),
}


def image_name(dicom_id):
    patient = IMAGES[dicom_id][0]
    return f"files/{patient[:3]}/{patient}/s50414267/{dicom_id}.jpg"


def phrase_rows():
    """The rows of the CSV file: boxes as x, y, w, h in pixels."""
    for dicom_id, (patient, split, (width, height), phrases) in IMAGES.items():
        for (x0, y0, x1, y1), category, text in phrases:
            values = (category, text, image_name(dicom_id), x0, y0, x1 - x0, y1 - y0, width, height)
            yield dict(zip(HEADER, (*values, dicom_id, patient[1:], "50414267", split)))


def write_csv(root, rows, header=HEADER, name=CSV_NAME):
    with (root / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def coco():
    """The content of the JSON file."""
    images, annotations = [], []
    names = sorted({category for *_, phrases in IMAGES.values() for _, category, _ in phrases})
    for number, (dicom_id, (_, split, (width, height), phrases)) in enumerate(IMAGES.items()):
        image = {"id": number, "file_name": f"{dicom_id}.jpg", "path": image_name(dicom_id), "split": split}
        images.append(image | {"width": width, "height": height})
        for (x0, y0, x1, y1), category, text in phrases:
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": names.index(category), "label_text": text}
            annotations.append({"id": len(annotations), "image_id": number, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def root(tmp_path):
    """The images, painted (PNG content, so that the boxes can be found again) under the JPEG names of the release."""
    for dicom_id, (_, _, size, phrases) in IMAGES.items():
        path = tmp_path / image_name(dicom_id)
        paint(path.with_suffix(".png"), size, [box for box, _, _ in phrases]).rename(path)
    return tmp_path


def write_annotations(root, kind):
    if kind == "csv":
        write_csv(root, phrase_rows())
    else:
        (root / JSON_NAME).write_text(json.dumps(coco()))


def found_patients(root):
    source = MsCxrSource(root)
    records = [item for split in source.splits() for item in source.read(split)]
    return [record.patient_id for record in records if hasattr(record, "patient_id")]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_every_box_comes_back_to_the_pixel(root, kind):
    write_annotations(root, kind)
    records = read_all(MsCxrSource(root))
    assert len(records) == 3
    for record in records:
        for index, region in enumerate(record.regions):
            assert region.box == painted_box(record.image, index)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_phrases_are_texts_of_the_source_and_categories_are_findings(root, kind):
    write_annotations(root, kind)
    record = read_all(MsCxrSource(root))[0]
    assert [region.finding for region in record.regions] == ["pleural effusion", "pleural effusion", "lung opacity"]
    assert record.regions[2].description == "patchy opacity in the right lower lobe"
    assert {region.text_origin for region in record.regions} == {"source"}
    assert record.findings == "Bilateral pleural effusions. Patchy opacity in the right lower lobe."
    assert (record.text_origin, record.modality, record.view) == ("source", "chest radiograph", None)
    assert all(region.laterality is None for region in record.regions)  # it stands in the phrase only


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_records_have_the_splits_of_the_release_and_the_patients_of_the_path(root, kind):
    write_annotations(root, kind)
    source = MsCxrSource(root)
    found = [(record.split, record.patient_id, record.image_id) for record in read_all(source)]
    assert found == [
        ("train", "mimic-cxr:p10000032", f"ms_cxr/{FIRST}"),
        ("validation", "mimic-cxr:p10000764", f"ms_cxr/{SECOND}"),
        ("test", "mimic-cxr:p10000898", f"ms_cxr/{THIRD}"),
    ]
    assert source.revision.startswith("1.1.0-")
    assert ABOUT.is_verified


def test_the_first_version_has_no_split_and_is_split_by_patient(root):
    write_csv(root, phrase_rows(), HEADER[:10], "MS_CXR_Local_Alignment_v1.0.0.csv")
    source = MsCxrSource(root)
    assert source.revision.startswith("1.0.0-")
    assert len(read_all(source)) == 3


def test_the_newest_version_is_read_and_csv_before_json(root):
    write_annotations(root, "json")
    write_csv(root, [], name="MS_CXR_Local_Alignment_v1.0.0.csv")
    assert MsCxrSource(root).revision.startswith("1.1.0-")
    write_csv(root, list(phrase_rows())[:1])
    assert len(read_all(MsCxrSource(root))) == 1


def test_an_image_of_the_json_file_without_boxes_has_a_record_without_regions(root):
    content = coco()
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 1]
    (root / JSON_NAME).write_text(json.dumps(content))
    record = next(record for record in read_all(MsCxrSource(root)) if record.image_id.endswith(SECOND))
    assert record.regions == ()
    assert record.caption == "Chest radiograph."


def test_the_images_may_lie_in_a_folder_of_their_own(root, tmp_path):
    images = tmp_path / "mimic-cxr-jpg"
    images.mkdir()
    (root / "files").rename(images / "files")
    write_annotations(root, "csv")
    with pytest.raises(ValueError, match="images=FOLDER"):
        MsCxrSource(root)
    assert len(read_all(MsCxrSource(root, images=str(images)))) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": "nan"}, "x is 'nan'; it must be a finite number"),
        ({"w": "-4"}, "width and height must be above 0"),
        ({"w": "400"}, "must lie within the image"),
        ({"category_name": "Nodule"}, "category is 'Nodule'"),
        ({"label_text": " "}, "label_text is ''"),
        ({"split": "dev"}, "split is 'dev'"),
        ({"path": "files/10000764.jpg"}, "it must be that of an image of MIMIC-CXR"),
        ({"image_width": "41"}, "is 40x60 pixels and its row says 41x60"),
        ({"dicom_id": "other"}, "they must name one image"),
    ],
)
def test_a_bad_csv_row_makes_its_image_bad_and_the_others_still_come(root, changed, said):
    rows = list(phrase_rows())
    rows[3] |= {name: str(value) for name, value in changed.items()}
    write_csv(root, rows)
    found = bad_items(MsCxrSource(root))
    assert list(found) == [changed.get("dicom_id", SECOND)]
    assert said in found[changed.get("dicom_id", SECOND)]
    assert found_patients(root) == ["mimic-cxr:p10000032", "mimic-cxr:p10000898"]


@pytest.mark.parametrize(
    ("part", "changed", "key", "said"),
    [
        ("annotations", {"bbox": [1, 2, 3]}, SECOND, "bbox is [1, 2, 3]"),
        ("annotations", {"bbox": [1, None, 3, 4]}, SECOND, "bbox is 'None'"),
        ("annotations", {"category_id": 77}, SECOND, "category is '77'"),
        ("images", {"width": "wide"}, SECOND, "width is 'wide'"),
        ("images", {"split": ["test"]}, SECOND, "split is ['test']"),
        ("images", {"path": "../x.jpg"}, SECOND, "it must be that of an image of MIMIC-CXR"),
    ],
)
def test_a_bad_json_entry_makes_its_image_bad_and_the_others_still_come(root, part, changed, key, said):
    content = coco()
    content[part][{"annotations": 3, "images": 1}[part]] |= changed
    (root / JSON_NAME).write_text(json.dumps(content))
    found = bad_items(MsCxrSource(root))
    assert list(found) == [key]
    assert found[key].startswith(f"{JSON_NAME}:{part}[")
    assert said in found[key]
    assert found_patients(root) == ["mimic-cxr:p10000032", "mimic-cxr:p10000898"]


def test_an_annotation_of_no_image_is_bad_by_its_number(root):
    content = coco()
    content["annotations"].append({"image_id": 99, "bbox": [1, 1, 2, 2], "category_id": 0, "label_text": "x"})
    (root / JSON_NAME).write_text(json.dumps(content))
    assert "image_id is 99" in bad_items(MsCxrSource(root))[f"{JSON_NAME}:annotations[5]"]
    assert len(found_patients(root)) == 3


def test_a_truncated_row_and_a_missing_image_are_bad_items(root):
    write_annotations(root, "csv")
    with (root / CSV_NAME).open("a") as file:
        file.write("Edema,half a row\n")
    (root / image_name(THIRD)).unlink()
    found = bad_items(MsCxrSource(root))
    assert "has 2 fields" in found[f"{CSV_NAME}:7"]
    assert "does not exist" in found[THIRD]
    assert found_patients(root) == ["mimic-cxr:p10000032", "mimic-cxr:p10000764"]


def test_a_wrong_root_or_annotation_file_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        MsCxrSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no MS_CXR_Local_Alignment"):
        MsCxrSource(root)
    (root / JSON_NAME).write_text("[]")
    with pytest.raises(ValueError, match="is no COCO file"):
        MsCxrSource(root)
    write_csv(root, [], HEADER[1:])
    with pytest.raises(ValueError, match="lacks category_name"):
        MsCxrSource(root)
