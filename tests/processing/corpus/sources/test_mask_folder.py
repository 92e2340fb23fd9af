"""Source `mask_folder`: masks and their tight boxes land on the painted pixels, in each of the four layouts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from corpus_fixtures import bad_items, paint, painted, painted_box, read_all
from PIL import Image

from regionmed_clip.processing.corpus.sources.mask_folder import ABOUT, LAYOUTS, MaskFolder, open_sources
from regionmed_clip.processing.corpus.sources.registry import open_sources_of, parse_source_spec


def write_mask(path, size, boxes=()):
    """A white-on-black mask of the boxes; JPEG masks come out grey at their borders, as Kvasir-SEG's do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((painted(size, boxes) > 0).astype(np.uint8) * 255).save(path)


def check_regions(record, size, groups):
    """Asserts that region k of the record is the painted boxes of group k, mask and tight box, to the pixel."""
    assert (record.width, record.height) == size
    assert len(record.regions) == len(groups)
    for region, boxes in zip(record.regions, groups, strict=True):
        mask = painted(size, boxes) > 0
        np.testing.assert_array_equal(region.mask_rle.to_array(), mask)
        x0, y0, x1, y1 = zip(*boxes)
        assert region.box == (min(x0), min(y0), max(x1), max(y1))


def last_name(record):
    return record.image_id.rsplit("/", 1)[1]


KVASIR = {"cju0": ((120, 80), [(8, 8, 40, 32), (64, 40, 120, 80)]), "cju1": ((64, 96), [(16, 24, 40, 56)])}


def write_kvasir(root, suffix="png", boxes=None):
    """A Kvasir-SEG folder, in lossless files where the test is about pixels; `boxes` is the JSON file's content."""
    for name, (size, painted_boxes) in KVASIR.items():
        paint(root / "images" / f"{name}.{suffix}", size, painted_boxes)
        write_mask(root / "masks" / f"{name}.{suffix}", size, painted_boxes)
    if boxes is not None:
        (root / "kavsir_bboxes.json").write_text(json.dumps(boxes))
    return root


def kvasir_entry(name, shift=0):
    (width, height), boxes = KVASIR[name]
    edges = [
        {"label": "polyp", "xmin": x0, "ymin": y0, "xmax": x1 - shift, "ymax": y1 - shift} for x0, y0, x1, y1 in boxes
    ]
    return {"height": height, "width": width, "bbox": edges}


def test_kvasir_gives_one_polyp_per_mask(tmp_path):
    source = MaskFolder(write_kvasir(tmp_path / "Kvasir-SEG"), layout="kvasir")
    records = sorted(read_all(source), key=last_name)
    assert [record.image_id for record in records] == ["Kvasir-SEG/images/cju0", "Kvasir-SEG/images/cju1"]
    for record in records:
        size, boxes = KVASIR[last_name(record)]
        check_regions(record, size, [boxes])
        assert [painted_box(record.image, k) for k in range(len(boxes))] == boxes
    assert records[0].caption == "Colonoscopy image with a polyp."
    assert (records[0].anatomy, records[0].license) == ("colon", "research and education only")


@pytest.mark.parametrize("shift", [0, 1])
def test_kvasir_boxes_part_the_polyps_of_a_mask_whether_their_far_edge_is_inside_or_not(tmp_path, shift):
    boxes = {name: kvasir_entry(name, shift) for name in KVASIR}
    for record in read_all(MaskFolder(write_kvasir(tmp_path, boxes=boxes), layout="kvasir")):
        size, painted_boxes = KVASIR[last_name(record)]
        check_regions(record, size, [[box] for box in painted_boxes])


def test_jpeg_masks_as_kvasir_has_them_lose_their_grey_borders(tmp_path):
    for record in read_all(MaskFolder(write_kvasir(tmp_path, suffix="jpg"), layout="kvasir")):
        size, boxes = KVASIR[last_name(record)]
        check_regions(record, size, [boxes])


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        (None, "has no entry in kavsir_bboxes.json"),
        ({"height": 80, "width": 120, "bbox": []}, "at least one box"),
        ({"height": 120, "width": 80, "bbox": [{}]}, "has size 80x120 and its image 120x80"),
        ({"height": 80, "width": 120, "bbox": [{"xmin": 1, "ymin": 1, "xmax": 2}]}, "ymax is 'None'"),
        ({"height": 80, "width": 120, "bbox": [{"xmin": 41, "ymin": 1, "xmax": 60, "ymax": 9}]}, "no pixel in it"),
        ({"height": 80, "width": 120, "bbox": [{"xmin": 9, "ymin": 9, "xmax": -9, "ymax": -9}]}, "no pixel in it"),
    ],
)
def test_a_malformed_kvasir_entry_makes_its_image_bad_and_no_other(tmp_path, entry, part):
    boxes = {"cju1": kvasir_entry("cju1")} | ({} if entry is None else {"cju0": entry})
    source = MaskFolder(write_kvasir(tmp_path, boxes=boxes), layout="kvasir")
    bad = bad_items(source)
    assert list(bad) == ["images/cju0"]
    assert part in bad["images/cju0"]


BUSI = {
    "benign": {"benign (1)": [[(3, 4, 20, 9)], [(30, 10, 60, 40)]], "benign (10)": [[(0, 0, 5, 5)]]},
    "malignant": {"malignant (1)": [[(1, 1, 59, 30), (2, 35, 6, 38)]]},
    "normal": {"normal (1)": [[]]},
}


def write_busi(root):
    for folder, images in BUSI.items():
        for name, groups in images.items():
            paint(root / folder / f"{name}.png", (60, 40), [box for boxes in groups for box in boxes])
            for number, boxes in enumerate(groups):
                write_mask(root / folder / f"{name}_mask{f'_{number}' if number else ''}.png", (60, 40), boxes)
    return root


def test_busi_gives_a_region_per_mask_file_and_normal_images(tmp_path):
    root = write_busi(tmp_path / "Dataset_BUSI_with_GT")
    (source,) = open_sources_of(parse_source_spec("mask_folder:layout=busi,name=busi", str(root)))
    records = {record.image_id: record for record in read_all(source)}
    assert sorted(records) == sorted(f"busi/{folder}/{name}" for folder in BUSI for name in BUSI[folder])
    for folder, images in BUSI.items():
        for name, groups in images.items():
            record = records[f"busi/{folder}/{name}"]
            check_regions(record, (60, 40), [] if folder == "normal" else groups)
            assert {region.finding for region in record.regions} <= {f"{folder} breast mass"}
    assert records["busi/normal/normal (1)"].caption == "Normal ultrasound of the breast without focal abnormality."
    assert records["busi/malignant/malignant (1)"].caption == "Ultrasound of the breast with a malignant breast mass."


def test_busi_masks_that_contradict_their_folder_are_bad(tmp_path):
    root = write_busi(tmp_path)
    write_mask(root / "normal" / "normal (1)_mask.png", (60, 40), [(1, 1, 9, 9)])
    write_mask(root / "malignant" / "malignant (1)_mask.png", (60, 40))
    bad = bad_items(MaskFolder(root, layout="busi"))
    assert sorted(bad) == ["malignant/malignant (1)", "normal/normal (1)"]
    assert "its mask is not empty" in bad["normal/normal (1)"]
    assert "shows a malignant breast mass" in bad["malignant/malignant (1)"]


def write_isic(root, phases=("Training", "Validation", "Test")):
    for number, phase in enumerate(phases):
        name, size = f"ISIC_000000{number}", (50 + number, 40)
        paint(root / f"ISIC2018_Task1-2_{phase}_Input" / f"{name}.png", size, [(5, 6, 30, 40)])
        folder = root / f"ISIC2018_Task1_{phase}_GroundTruth"
        write_mask(folder / f"{name}_segmentation.png", size, [(5, 6, 30, 40)])
        (folder / "LICENSE.txt").write_text("terms")
    return root


def test_isic_gives_skin_lesions_in_its_own_splits(tmp_path):
    source = MaskFolder(write_isic(tmp_path / "isic"), layout="isic", license="terms of ISIC")
    found = {split: [record.image_id for record in source.records(split)] for split in source.splits()}
    assert found == {
        "train": ["isic/ISIC2018_Task1-2_Training_Input/ISIC_0000000"],
        "validation": ["isic/ISIC2018_Task1-2_Validation_Input/ISIC_0000001"],
        "test": ["isic/ISIC2018_Task1-2_Test_Input/ISIC_0000002"],
    }
    record = next(source.records("test"))
    check_regions(record, (52, 40), [[(5, 6, 30, 40)]])
    assert (record.caption, record.license) == ("Dermoscopic image of the skin with a skin lesion.", "terms of ISIC")


def test_isic_may_lack_a_phase_but_not_half_of_one(tmp_path):
    root = write_isic(tmp_path, phases=("Training",))
    assert MaskFolder(root, layout="isic").splits() == ("train",)
    (root / "ISIC2018_Task1-2_Test_Input").mkdir()
    with pytest.raises(ValueError, match="lacks the folder ISIC2018_Task1_Test_GroundTruth"):
        MaskFolder(root, layout="isic")


PAIRS = {"train/a": ((60, 40), [(3, 4, 20, 9), (40, 20, 60, 40), (0, 39, 1, 40)]), "test/b": ((30, 50), [])}


def write_pairs(root, images="images", masks="masks", suffix=""):
    for name, (size, boxes) in PAIRS.items():
        paint(root / images / f"{name}.png", size, boxes)
        write_mask(root / masks / f"{name}{suffix}.png", size, boxes)
    return root


@pytest.mark.parametrize(("masks", "suffix"), [("masks", ""), ("masks", "_mask"), ("images", "_mask")])
def test_pairs_are_told_by_options_and_an_empty_mask_gives_no_region(tmp_path, masks, suffix):
    options = {"masks": masks} | ({"mask_suffix": suffix} if suffix else {})
    root = write_pairs(tmp_path, masks=masks, suffix=suffix)
    source = MaskFolder(root, layout="pairs", finding="Lung_nodule", modality="chest radiograph", **options)
    (first,), (second,) = source.records("train"), source.records("test")
    check_regions(first, *PAIRS["train/a"][:1], [PAIRS["train/a"][1]])
    assert first.caption == "Chest radiograph with a lung nodule."
    assert (second.regions, second.caption) == ((), "Chest radiograph.")
    assert not bad_items(source)


def test_components_split_masks_and_leave_specks_out(tmp_path):
    root = write_pairs(tmp_path)
    for options, groups in (
        ({"components": "true"}, [[(3, 4, 20, 9)], [(40, 20, 60, 40)]]),
        ({"components": "true", "min_area": "86"}, [[(40, 20, 60, 40)]]),
        ({"components": "true", "min_area": "1"}, [[box] for box in PAIRS["train/a"][1]]),
    ):
        source = MaskFolder(root, layout="pairs", finding="cyst", **options)
        check_regions(next(source.records("train")), PAIRS["train/a"][0], groups)


def test_bad_pairs_are_named_and_the_others_come(tmp_path):
    root = write_pairs(tmp_path, suffix="_m")
    for name in ("c", "d", "e"):
        paint(root / "images" / "train" / f"{name}.png", (20, 30), [(1, 1, 9, 9)])
    write_mask(root / "masks" / "train" / "d_m.png", (30, 20), [(1, 1, 9, 9)])  # turned
    (root / "masks" / "train" / "e_m.png").write_bytes(b"no image")
    write_mask(root / "masks" / "train" / "f_m.png", (20, 30), [(1, 1, 9, 9)])
    write_mask(root / "masks" / "train" / "g.png", (20, 30), [(1, 1, 9, 9)])
    paint(root / "images" / "test" / "b.tif", (30, 50))
    source = MaskFolder(root, layout="pairs", finding="cyst", mask_suffix="_m")
    bad = bad_items(source)
    for key, part in (
        ("images/train/c", "has no mask in masks"),
        ("images/train/d", "30x20 pixels and its image 20x30"),
        ("images/train/e", "cannot be decoded"),
        ("images/train/f", "has no image of this name"),
        ("masks/train/g.png", "does not end in _m"),
        ("images/test/b", "has 2 files"),
    ):
        assert part in bad.pop(key)
    assert not bad
    assert last_name(next(source.records("train"))) == "a"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "layout=None; it must be one of kvasir, busi, isic, pairs"),
        ({"layout": "coco"}, "layout=coco"),
        ({"layout": "kvasir", "finding": "cyst"}, "options finding are for layout=pairs"),
        ({"layout": "pairs"}, "needs the option finding"),
        ({"layout": "pairs", "finding": "cyst", "masks": "images"}, "side by side"),
        ({"layout": "pairs", "finding": "cyst", "images": "."}, "side by side"),
        ({"layout": "pairs", "finding": "cyst", "masks": "../masks"}, "side by side"),
        ({"layout": "kvasir", "components": "yes"}, "components=yes"),
        ({"layout": "kvasir", "min_area": "5"}, "needs components=true"),
        ({"layout": "kvasir", "components": "true", "min_area": "0.5"}, "min_area=0.5"),
        ({"layout": "busi"}, "holds none of the folders benign, malignant, normal"),
    ],
)
def test_wrong_options_or_roots_are_refused(tmp_path, options, part):
    with pytest.raises(ValueError) as error:
        open_sources(write_kvasir(tmp_path), **options)
    assert part in str(error.value)


def test_a_broken_file_of_kvasir_boxes_or_an_absent_root_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no JSON object"):
        MaskFolder(write_kvasir(tmp_path, boxes=[1]), layout="kvasir")
    with pytest.raises(ValueError, match="is no folder"):
        open_sources(tmp_path / "absent", layout="kvasir")


def test_the_revision_follows_masks_and_how_they_are_split(tmp_path):
    root = write_kvasir(tmp_path)
    revision = MaskFolder(root, layout="kvasir").revision
    assert MaskFolder(root, layout="kvasir", components="true").revision != revision
    assert MaskFolder(root, layout="pairs", finding="polyp").revision != revision
    write_mask(root / "masks" / "cju1.png", KVASIR["cju1"][0], [(0, 0, 9, 9)])
    assert MaskFolder(root, layout="kvasir").revision != revision


def test_every_layout_is_described():
    assert ABOUT.is_verified
    assert all(layout in ABOUT.options["layout"] for layout in LAYOUTS)
