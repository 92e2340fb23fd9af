"""Tests of the source `chest_imagenome` on a miniature silver data set with the release's columns and JSON fields."""

from __future__ import annotations

import csv
import json

import pytest
from corpus_fixtures import bad_items, paint, painted_box, read_all

from regionmed_clip.processing.corpus.sources.chest_imagenome import ABOUT, ChestImagenomeSource
from regionmed_clip.processing.corpus.sources.scene_graphs import locate, name_finding

HEADER = ("", "subject_id", "study_id", "dicom_id", "path", "ViewPosition")  # the index has no name
FIRST, SECOND, THIRD, GOLD = (f"d7bef063-28053f7a-f27dae40-4035348b-21a36d3{n}" for n in range(4))
IMAGES = {  # dicom_id -> subject, split file, size (width, height), view, {bbox_name: box in pixels}
    FIRST: (
        "10000032",
        "train",
        (70, 50),
        "PA",
        {"right lung": (2, 3, 30, 44), "left lung": (36, 3, 70, 50), "cardiac silhouette": (31, 20, 35, 40)},
    ),
    SECOND: ("10000764", "valid", (40, 60), "AP", {"right apical zone": (0, 0, 12, 20)}),
    THIRD: ("10000898", "test", (30, 30), "PA", {}),
    GOLD: ("10000935", "train", (30, 20), "AP", {"spine": (12, 0, 18, 20)}),
}


def image_name(dicom_id, suffix=".jpg"):
    subject = IMAGES[dicom_id][0]
    return f"files/p{subject[:2]}/p{subject}/s50414267/{dicom_id}{suffix}"


def said(name, *sentences):
    """An entry of `attributes`: for each sentence (phrase, labels, severity cues), parallel lists."""
    return {
        "bbox_name": name,
        "name": name.capitalize(),
        name: True,
        "phrases": [phrase for phrase, _, _ in sentences],
        "phrase_IDs": [f"50414267|{10 - number}" for number in range(len(sentences))],
        "attributes": [labels for _, labels, _ in sentences],
        "severity_cues": [cues for _, _, cues in sentences],
        "texture_cues": [[] for _ in sentences],
    }


ATTRIBUTES = {
    FIRST: [
        said(
            "right lung",
            ("No pneumothorax.", ["anatomicalfinding|no|pneumothorax"], []),
            (
                "Mild atelectasis of the\n right lung.",
                ["anatomicalfinding|yes|linear/patchy atelectasis", "nlp|yes|abnormal"],
                ["severity|yes|mild"],
            ),
        ),
        said("left lung", ("The left lung is clear.", ["anatomicalfinding|no|lung opacity", "nlp|yes|normal"], [])),
        said("left breast", ("The left breast is absent.", ["anatomicalfinding|yes|surgical change"], [])),  # no box
    ],
    SECOND: [said("right apical zone", ("There is a pneumothorax.", ["anatomicalfinding|yes|pneumothorax"], []))],
    THIRD: [],
    GOLD: [said("spine", ("Scoliosis.", ["anatomicalfinding|yes|scoliosis"], []))],
}


def graph_of(dicom_id):
    """The scene graph: boxes in the 224 x 224 frame, which must not be read, and in pixels."""
    subject, _, (width, height), view, boxes = IMAGES[dicom_id]
    objects = []
    for name, (x0, y0, x1, y1) in boxes.items():
        small = {"x1": x0 * 224 // width, "y1": y0 * 224 // height, "x2": x1 * 224 // width, "y2": y1 * 224 // height}
        large = {"original_x1": x0, "original_y1": y0, "original_x2": x1, "original_y2": y1}
        objects.append({"object_id": f"{dicom_id}_{name}", "bbox_name": name, **small, **large})
    about = {"image_id": dicom_id, "viewpoint": view, "patient_id": int(subject), "study_id": 50414267}
    return {**about, "objects": objects, "attributes": ATTRIBUTES[dicom_id], "relationships": []}


def write_graph(root, dicom_id, graph):
    folder = root / "silver_dataset" / "scene_graph"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{dicom_id}_SceneGraph.json").write_text(json.dumps(graph))


def write_split(root, name, rows, header=HEADER):
    folder = root / "silver_dataset" / "splits"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def image_row(number, dicom_id):
    subject, _, _, view, _ = IMAGES[dicom_id]
    return [number, subject, "50414267", dicom_id, image_name(dicom_id, ".dcm"), view]


@pytest.fixture
def root(tmp_path):
    """The data set beside files/ of MIMIC-CXR-JPG (PNG content under JPEG names, so that boxes can be found again)."""
    for dicom_id, (_, _, size, _, boxes) in IMAGES.items():
        path = tmp_path / image_name(dicom_id)
        paint(path.with_suffix(".png"), size, list(boxes.values())).rename(path)
        write_graph(tmp_path, dicom_id, graph_of(dicom_id))
    for split in ("train", "valid", "test"):
        names = [dicom_id for dicom_id, image in IMAGES.items() if image[1] == split]
        write_split(tmp_path, split, [image_row(number, dicom_id) for number, dicom_id in enumerate(names)])
    write_split(tmp_path, "images_to_avoid", [image_row(0, GOLD)[1:]], HEADER[1:])
    return tmp_path


def by_id(root):
    records = read_all(ChestImagenomeSource(root))
    return {record.image_id.removeprefix("chest_imagenome/"): record for record in records}


def good_ids(root):
    source = ChestImagenomeSource(root)
    records = [item for split in source.splits() for item in source.read(split) if hasattr(item, "regions")]
    return sorted(record.image_id.removeprefix("chest_imagenome/") for record in records)


def test_every_box_comes_back_to_the_pixel(root):
    records, anatomies = by_id(root), {"lung": {"right": 0, "left": 1}}
    for region in records[FIRST].regions:
        assert region.box == painted_box(records[FIRST].image, anatomies[region.anatomy][region.laterality])
    assert records[SECOND].regions[0].box == painted_box(records[SECOND].image, 0)
    assert records[GOLD].regions[0].box == painted_box(records[GOLD].image, 0)


def test_findings_are_regions_and_denied_ones_are_negated(root):
    regions = by_id(root)[FIRST].regions
    assert [(r.finding, r.is_negated, r.severity, r.laterality) for r in regions] == [
        ("linear or patchy atelectasis", False, "mild", "right"),
        ("pneumothorax", True, None, "right"),
        ("lung opacity", True, None, "left"),
        ("abnormality", True, None, "left"),  # called normal, and no finding there
    ]
    assert regions[0].description == "mild linear or patchy atelectasis in the right lung"
    assert regions[3].description == "no abnormality in the left lung"


def test_denied_findings_may_be_dropped(root):
    kept, dropped = ChestImagenomeSource(root), ChestImagenomeSource(root, negated="drop")
    assert [len(record.regions) for record in read_all(dropped)] == [1, 1, 1, 0]
    assert kept.revision != dropped.revision


def test_the_sentences_are_the_findings_in_the_order_of_the_report(root):
    record = by_id(root)[FIRST]
    assert record.findings == (  # phrase 9 before 10; those of equal number as they come; that without a box too
        "Mild atelectasis of the right lung. No pneumothorax. The left lung is clear. The left breast is absent."
    )
    assert (record.text_origin, record.view, record.modality) == ("source", "PA", "chest radiograph")


def test_an_image_without_boxes_has_a_record_that_claims_nothing(root):
    record = by_id(root)[THIRD]
    assert (record.regions, record.caption) == ((), "PA chest radiograph.")


def test_records_have_the_splits_and_patients_of_the_release_and_gold_is_test(root):
    records = by_id(root)
    assert {key: (record.split, record.patient_id) for key, record in records.items()} == {
        FIRST: ("train", "mimic-cxr:p10000032"),
        SECOND: ("validation", "mimic-cxr:p10000764"),
        THIRD: ("test", "mimic-cxr:p10000898"),
        GOLD: ("test", "mimic-cxr:p10000935"),
    }
    assert ABOUT.is_verified


def test_a_severity_beside_two_findings_belongs_to_neither(root):
    graph = graph_of(SECOND)
    labels = ["anatomicalfinding|yes|pneumothorax", "anatomicalfinding|yes|atelectasis"]
    graph["attributes"] = [said("right apical zone", ("Moderate both.", labels, ["severity|yes|moderate"]))]
    write_graph(root, SECOND, graph)
    assert [region.severity for region in by_id(root)[SECOND].regions] == [None, None]


def test_a_finding_stated_and_denied_of_one_anatomy_is_left_out(root):
    graph = graph_of(SECOND)
    graph["attributes"] = [
        said(
            "right apical zone",
            ("There was no pneumothorax.", ["anatomicalfinding|no|pneumothorax"], []),
            ("Now it is.", ["anatomicalfinding|yes|pneumothorax", "disease|yes|copd/emphysema"], []),
        )
    ]
    write_graph(root, SECOND, graph)
    assert [region.finding for region in by_id(root)[SECOND].regions] == ["copd or emphysema"]


def test_an_anatomy_called_abnormal_without_a_finding_shows_an_abnormality(root):
    graph = graph_of(SECOND)
    graph["attributes"] = [said("right apical zone", ("Odd.", ["nlp|yes|abnormal", "nlp|yes|normal"], []))]
    write_graph(root, SECOND, graph)
    (region,) = by_id(root)[SECOND].regions
    assert (region.finding, region.is_negated) == ("abnormality", False)
    assert region.description == "abnormality in the right apical zone of the lung"


@pytest.mark.parametrize(
    ("corners", "box"),
    [((-8, -2, 50, 70), (0, 0, 40, 60)), ((5, 5, 5, 9), None), ((41, 5, 50, 9), None), ((-9, 5, -2, 9), None)],
)
def test_a_box_that_sticks_out_is_clipped_and_one_without_area_inside_left_out(root, corners, box):
    graph = graph_of(SECOND)
    graph["objects"][0] |= dict(zip(("original_x1", "original_y1", "original_x2", "original_y2"), corners))
    write_graph(root, SECOND, graph)
    record = by_id(root)[SECOND]
    assert [region.box for region in record.regions] == ([] if box is None else [box])
    assert record.findings == "There is a pneumothorax."


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("right mid lung zone", ("lung", "right", "middle zone")),
        ("left upper lung zone", ("lung", "left", "upper zone")),
        ("left hilar structures", ("hilum", "left", None)),
        ("right costophrenic angle", ("costophrenic angle", "right", None)),
        ("right atrium", ("right atrium", None, None)),
        ("svc", ("superior vena cava", None, None)),
        ("left upper abdomen", ("upper abdomen", "left", None)),
        ("cardiac silhouette", ("cardiac silhouette", None, None)),
    ],
)
def test_a_box_name_says_anatomy_side_and_place(name, meaning):
    assert locate(name) == meaning


def test_labels_become_plain_english():
    assert name_finding("mass/nodule (not otherwise specified)") == "mass or nodule"
    assert name_finding("increased reticular markings/ild pattern") == "increased reticular markings or ild pattern"


def inverted(graph):
    graph["objects"][0]["original_x2"] = -1


def not_a_number(graph):
    graph["objects"][0]["original_y1"] = float("nan")


def without_corner(graph):
    del graph["objects"][0]["original_x1"]


def of_another_image(graph):
    graph["image_id"] = FIRST


def with_odd_label(graph):
    graph["attributes"][0]["attributes"] = [["anatomicalfinding|maybe|pneumothorax"]]


def with_flat_labels(graph):
    graph["attributes"][0]["attributes"] = ["anatomicalfinding|yes|pneumothorax"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (inverted, "object 'right apical zone' has corners"),
        (not_a_number, "original_y1 is 'nan'"),
        (without_corner, "original_x1 is None"),
        (of_another_image, "it must be that of its file name"),
        (with_odd_label, "it must be KIND|yes|NAME"),
        (with_flat_labels, "it must be a list of list"),
    ],
)
def test_a_bad_scene_graph_makes_its_image_bad_and_the_others_still_come(root, spoil, reason):
    graph = graph_of(SECOND)
    graph["attributes"] = json.loads(json.dumps(graph["attributes"]))  # the shared entries stay as they are
    spoil(graph)
    write_graph(root, SECOND, graph)
    found = bad_items(ChestImagenomeSource(root))
    assert list(found) == [SECOND]
    assert reason in found[SECOND]
    assert good_ids(root) == [FIRST, THIRD, GOLD]


def test_missing_files_and_truncated_rows_are_bad_items(root):
    graphs = root / "silver_dataset" / "scene_graph"
    (graphs / f"{FIRST}_SceneGraph.json").unlink()
    (graphs / f"{SECOND}_SceneGraph.json").write_text('{"image_id": "')
    (root / image_name(THIRD)).unlink()
    with (root / "silver_dataset" / "splits" / "test.csv").open("a") as file:
        file.write("7,10000032\n8,10000032,1,x,files/p10/p10000764/s1/x.dcm,PA\n")
    found = bad_items(ChestImagenomeSource(root))
    assert "does not exist" in found[FIRST]
    assert "is no JSON" in found[SECOND]
    assert "does not exist" in found[THIRD]
    assert "has 2 fields" in found["test.csv:3"]
    assert found["x"].startswith("test.csv:4: subject_id is '10000032'")
    assert good_ids(root) == [GOLD]


def test_an_image_in_two_splits_is_bad(root):
    write_split(root, "test", [image_row(0, FIRST), image_row(1, THIRD)])
    assert "its rows have split" in bad_items(ChestImagenomeSource(root))[FIRST]


def test_a_wrong_root_layout_or_option_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        ChestImagenomeSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="negated is 'some'"):
        ChestImagenomeSource(root, negated="some")
    with pytest.raises(ValueError, match="has no folder files/"):
        ChestImagenomeSource(root, images=str(tmp_path / "silver_dataset"))
    write_split(root, "valid", [], HEADER[:-1])
    with pytest.raises(ValueError, match="lacks ViewPosition"):
        ChestImagenomeSource(root)
    (root / "silver_dataset" / "splits" / "valid.csv").unlink()
    with pytest.raises(ValueError, match=r"lacks valid\.csv"):
        ChestImagenomeSource(root)
