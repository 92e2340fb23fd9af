"""Source `coco`: boxes and masks land on the painted pixels; a malformed annotation costs its own image only."""

from __future__ import annotations

import json

import numpy as np
import pytest
from corpus_fixtures import bad_items, paint, painted, painted_box, read_all

from regionmed_clip.processing.corpus.records import MaskRle
from regionmed_clip.processing.corpus.sources.coco import ABOUT, CocoFolder, open_sources

SIZES = {"a.png": (60, 40), "b.png": (30, 50), "c.png": (44, 44)}
BOXES = {
    "a.png": [(3, 4, 20, 9), (40, 20, 60, 40)],  # the second touches two borders
    "b.png": [(1, 2, 2, 40)],
    "c.png": [],
}


def write_coco(root, splits=(("train", ("a.png", "c.png")), ("val", ("b.png",))), folder="images"):
    """A COCO folder with one JSON file per split; every box is painted; gives the root back."""
    for split, names in splits:
        images, annotations = [], []
        for number, name in enumerate(names):
            width, height = SIZES[name]
            paint(root / folder.format(split=split) / name, SIZES[name], BOXES[name])
            images.append({"id": 10 + number, "file_name": name, "width": width, "height": height, "license": 1})
            for index, (x0, y0, x1, y1) in enumerate(BOXES[name]):
                box = [x0, y0, x1 - x0, y1 - y0]  # COCO: corner and size
                annotation = {"id": len(annotations), "image_id": 10 + number, "category_id": 1 + index, "bbox": box}
                annotations.append(annotation | {"area": box[2] * box[3], "iscrowd": 0, "segmentation": []})
        categories = [{"id": 1, "name": "RBC"}, {"id": 2, "name": "Lung_Nodule", "supercategory": "finding"}]
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def change(root, action, split="train"):
    """Lets `action` change the content of the split's JSON file."""
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    action(content)
    path.write_text(json.dumps(content))
    return root


def test_every_box_equals_the_painted_pixels(tmp_path):
    source = CocoFolder(write_coco(tmp_path / "set"))
    records = {record.image_id.rsplit("/", 1)[1]: record for record in read_all(source)}
    assert sorted(records) == sorted(SIZES)
    for name, record in records.items():
        assert (record.width, record.height) == SIZES[name]
        assert [region.box for region in record.regions] == [
            painted_box(record.image, index) for index in range(len(BOXES[name]))
        ]
        assert [region.finding for region in record.regions] == ["red blood cell", "lung nodule"][: len(BOXES[name])]
    assert not bad_items(source)


def test_what_every_file_lists_is_looked_for_but_for_crowds(tmp_path):
    root = write_coco(tmp_path / "set")
    assert CocoFolder(root).looked_for == {"red blood cell", "lung nodule"}
    change(root, lambda content: content["annotations"][0].update(iscrowd=1))
    assert CocoFolder(root).looked_for == {"lung nodule"}
    change(root, lambda content: content["categories"].pop(), split="val")
    assert CocoFolder(root).looked_for == frozenset()


def test_the_split_is_that_of_the_file(tmp_path):
    source = CocoFolder(write_coco(tmp_path / "set"))
    assert source.splits() == ("train", "validation")
    assert [record.image_id for record in source.records("train")] == ["set/images/a.png", "set/images/c.png"]
    assert source.num_records("validation") == 1
    assert next(source.records("train", 1)).caption == "Medical image."  # no box: nothing claimed


@pytest.mark.parametrize("folder", ["images/{split}", "{split}", "images", "."])
def test_images_are_found_in_the_usual_folders(tmp_path, folder):
    assert len(read_all(CocoFolder(write_coco(tmp_path, folder=folder)))) == 3


def test_options_name_other_files_and_folders(tmp_path):
    root = write_coco(tmp_path, folder="pictures/{split}")
    assert set(bad_items(CocoFolder(root))) == set(SIZES)
    source = CocoFolder(root, annotations="annotations/*_val.json", images="pictures")
    assert [record.image_id.rsplit("/", 1)[1] for record in read_all(source)] == ["b.png"]
    for options in ({"annotations": "../*.json"}, {"images": "/data"}):
        with pytest.raises(ValueError, match="leads out of the root"):
            CocoFolder(root, **options)


def test_a_file_beside_its_images_in_a_folder_per_split_is_read(tmp_path):
    write_coco(tmp_path, splits=(("train", ("a.png", "c.png")),), folder="valid")
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "valid/_annotations.coco.json")
    source = CocoFolder(tmp_path)
    assert source.splits() == ("validation",)
    assert len(read_all(source)) == 2


def segmentation_of(mask, form):
    """The mask of box 0 of a.png, or of two boxes, in one of COCO's forms."""
    if form == "polygons":
        return [
            [x0, y0, x1, y0, x1, y1, x0, y1]
            for x0, y0, x1, y1 in (BOXES["a.png"][:2] if mask.sum() > 200 else BOXES["a.png"][:1])
        ]
    rle = MaskRle.from_array(mask)
    counts = list(rle.counts)
    return {"size": list(rle.size), "counts": compress(counts) if form == "compressed" else counts}


def compress(counts):
    """The compressed text of counts: 5 bits a character, differences from the fourth on."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        is_last = False
        while not is_last:
            bits, value = value & 31, value >> 5
            is_last = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if is_last else 32))
    return text


@pytest.mark.parametrize("form", ["polygons", "uncompressed", "compressed"])
@pytest.mark.parametrize("num_boxes", [1, 2])
def test_a_segmentation_in_any_form_gives_the_painted_mask(tmp_path, form, num_boxes):
    boxes = BOXES["a.png"][:num_boxes]
    mask = painted(SIZES["a.png"], boxes) > 0

    def annotate(content):
        content["annotations"] = [
            {"id": 1, "image_id": 10, "category_id": 1, "segmentation": segmentation_of(mask, form), "iscrowd": 0}
        ]

    record = read_all(CocoFolder(change(write_coco(tmp_path), annotate)))[0]
    (region,) = record.regions
    np.testing.assert_array_equal(region.mask_rle.to_array(), mask)
    assert region.box == ((3, 4, 20, 9) if num_boxes == 1 else (3, 4, 60, 40))


def test_crowds_are_left_out_and_a_sliver_keeps_its_box(tmp_path):
    def annotate(content):
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1]["segmentation"] = [[50.1, 30, 50.2, 30, 50.2, 35]]

    record = read_all(CocoFolder(change(write_coco(tmp_path), annotate)))[0]
    assert [(region.finding, region.mask_rle) for region in record.regions] == [("lung nodule", None)]


def test_a_box_that_sticks_out_by_rounding_is_clipped(tmp_path):
    source = CocoFolder(
        change(write_coco(tmp_path), lambda content: content["annotations"][0].update(bbox=[-0.5, 0, 61, 9.25]))
    )
    assert read_all(source)[0].regions[0].box == (0.0, 0.0, 60.0, 9.25)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"bbox": [1, 2, 3]}, "four numbers"),
        ({"bbox": [1, 2, "3", 4]}, "four numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "finite"),
        ({"bbox": [1, 2, 3, 10**20]}, "within the image"),
        ({"bbox": [1, 2, 3, 10**400]}, "too large to convert"),
        ({"bbox": [20, 9, -17, -5]}, "above 0"),
        ({"bbox": [50, 4, 17, 5]}, "within the image"),
        ({"bbox": None}, "neither a bbox nor a mask"),
        ({"category_id": 7}, "category_id 7"),
        ({"category_id": [1]}, "category_id [1]"),
        ({"segmentation": [[1, 2, 3]]}, "polygon"),
        ({"segmentation": "3P1"}, "polygons in a list or run lengths"),
        ({"segmentation": {"size": [40, 60], "counts": [5]}}, "sum to 5"),
        ({"segmentation": {"size": [60, 40], "counts": [0, 2400]}}, "they must agree"),
        ({"segmentation": [[30, 20, 40, 20, 40, 30, 30, 30]]}, "pixels of its mask"),
    ],
)
def test_a_malformed_annotation_makes_its_image_bad_and_no_other(tmp_path, changes, part):
    source = CocoFolder(change(write_coco(tmp_path), lambda content: content["annotations"][0].update(changes)))
    bad = bad_items(source)
    assert list(bad) == ["images/a.png"]
    assert part in bad["images/a.png"]
    good = [item.image_id for split in source.splits() for item in source.read(split) if not hasattr(item, "reason")]
    assert len(good) == 2


@pytest.mark.parametrize(
    ("changes", "key", "part"),
    [
        ({"file_name": "missing.png"}, "missing.png", "is in none of images/train, train, images, annotations, ."),
        ({"file_name": "../a.png"}, "../a.png", "is in none of"),
        ({"file_name": "a" * 300}, "a" * 300, "is in none of"),
        ({"file_name": None}, "annotations/instances_train.json: images[0]", "file_name"),
        ({"width": 40, "height": 60}, "images/a.png", "60x40 pixels and its row says 40x60"),
        ({"width": None}, "images/a.png", "width None"),
        ({"file_name": "c.png", "width": 44, "height": 44}, "images/c.png", "listed 2 times"),
        ({"id": 11}, "images/a.png", "ids are unique"),
    ],
)
def test_a_malformed_image_entry_is_named(tmp_path, changes, key, part):
    source = CocoFolder(change(write_coco(tmp_path), lambda content: content["images"][0].update(changes)))
    assert part in bad_items(source)[key]
    assert source.num_records("validation") == 1


def test_annotations_of_no_image_are_reported_by_place(tmp_path):
    def annotate(content):
        content["annotations"] += [{"id": 8, "image_id": 99, "category_id": 1, "bbox": [1, 1, 2, 2]}, "text"]

    source = CocoFolder(change(write_coco(tmp_path), annotate))
    bad = bad_items(source)
    assert list(bad) == [f"annotations/instances_train.json: annotations[{number}]" for number in (2, 3)]
    assert len(read_all(source)) == 3


def test_an_image_in_two_splits_is_bad(tmp_path):
    source = CocoFolder(write_coco(tmp_path, splits=(("train", ("a.png", "c.png")), ("test", ("a.png",)))))
    assert "listed 2 times" in bad_items(source)["images/a.png"]
    assert [record.image_id.rsplit("/", 1)[1] for record in read_all(source)] == ["c.png"]


def test_a_truncated_image_is_a_bad_item(tmp_path):
    root = write_coco(tmp_path)
    path = root / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    assert "cannot be decoded" in bad_items(CocoFolder(root))["images/a.png"]


def test_a_wrong_root_or_file_is_refused_at_opening(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        open_sources(tmp_path / "absent")
    with pytest.raises(ValueError, match="has no file annotations/instances"):
        open_sources(tmp_path)
    root = write_coco(tmp_path)
    for action, part in (
        (lambda content: content.pop("categories"), "lacks one of the lists"),
        (lambda content: content["categories"].append({"id": 1, "name": "again"}), "has the category"),
    ):
        before = (root / "annotations/instances_train.json").read_text()
        with pytest.raises(ValueError, match=part):
            CocoFolder(change(root, action))
        (root / "annotations/instances_train.json").write_text(before)
    (root / "annotations/instances_train.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        CocoFolder(root)


def test_the_layout_is_documented():
    assert ABOUT.is_verified
    assert {"annotations", "images", "name", "modality", "license"} <= set(ABOUT.options)
