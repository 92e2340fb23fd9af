"""Source `yolo`: fractions land on the painted pixels; splits come from data.yaml or folders; bad lines are named."""

from __future__ import annotations

import pytest
import yaml
from corpus_fixtures import bad_items, paint, painted, painted_box, read_all

from regionmed_clip.processing.corpus.sources.yolo import ABOUT, YoloFolder, open_sources

SIZES = {"train/a": (613, 401), "train/c": (44, 44), "val/b": (97, 530), "test/d": (20, 30)}  # thirds do not end
BOXES = {
    "train/a": [(3, 4, 200, 9), (400, 200, 613, 401)],  # the second touches two borders
    "train/c": [],  # and has no label file
    "val/b": [(1, 2, 2, 401)],
    "test/d": [(0, 0, 20, 30)],
}
NAMES = {0: "RBC", 3: "lung_nodule"}
CLASSES = (3, 0)  # of box 0 and 1


def line_of(box, size, number, form="box"):
    """The label line of a half-open pixel box in six decimals, as exporters write it."""
    (x0, y0, x1, y1), (width, height) = box, size
    values = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    if form == "polygon":
        values = tuple(value for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1)) for value in (x / width, y / height))
    return " ".join([str(CLASSES[number]), *(f"{value:.6f}" for value in values)])


def write_yolo(root, layout="{kind}/{split}/{name}", form="box", data=None):
    """A YOLO folder with every box painted; gives the root back."""
    for key, size in SIZES.items():
        split, name = key.split("/")
        paint(root / layout.format(kind="images", split=split, name=f"{name}.png"), size, BOXES[key])
        path = root / layout.format(kind="labels", split=split, name=f"{name}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [line_of(box, size, number, form) for number, box in enumerate(BOXES[key])]
        if lines:
            path.write_text("\n".join(lines) + "\n")
    content = {"path": "../datasets/set", "train": "images/train", "val": "images/val", "nc": 4, "names": NAMES}
    (root / "data.yaml").write_text(yaml.safe_dump(content if data is None else data))
    return root


@pytest.mark.parametrize("layout", ["{kind}/{split}/{name}", "{split}/{kind}/{name}"])
@pytest.mark.parametrize("form", ["box", "polygon"])
def test_every_box_equals_the_painted_pixels(tmp_path, layout, form):
    source = YoloFolder(write_yolo(tmp_path / "set", layout, form))
    assert {split: source.num_records(split) for split in source.splits()} == {"train": 2, "validation": 1, "test": 1}
    assert source.looked_for == {"lung nodule", "red blood cell"}
    for record in read_all(source):
        key = next(key for key in SIZES if record.image_id.endswith(f"/{key[-1]}"))
        assert (record.width, record.height) == SIZES[key]
        assert [region.box for region in record.regions] == [
            painted_box(record.image, index) for index in range(len(BOXES[key]))
        ]
        assert [region.finding for region in record.regions] == ["lung nodule", "red blood cell"][: len(BOXES[key])]
        for index, region in enumerate(record.regions):
            mask = painted(SIZES[key], BOXES[key]) == 100 + 10 * index
            assert (region.mask_rle is None) == (form == "box")
            assert form == "box" or (region.mask_rle.to_array() == mask).all()


def test_a_missing_or_empty_label_file_means_an_image_without_boxes(tmp_path):
    root = write_yolo(tmp_path)
    (root / "labels" / "test" / "d.txt").write_text("\n")
    records = {record.image_id.rsplit("/", 1)[1]: record for record in read_all(YoloFolder(root))}
    assert (records["c"].regions, records["d"].regions) == ((), ())
    assert records["c"].caption == "Medical image."  # no claim of normality


def test_a_sliver_without_a_pixel_keeps_its_extent(tmp_path):
    root = write_yolo(tmp_path)
    (root / "labels" / "train" / "c.txt").write_text("0 0.25 0.25 0.255 0.25 0.255 0.75\n")  # 11 to 11.22 pixels of 44
    record = next(record for record in read_all(YoloFolder(root)) if record.image_id.endswith("/c"))
    assert record.regions[0].mask_rle is None
    assert record.regions[0].box == pytest.approx((11, 11, 11.22, 33))


def test_an_edge_between_pixels_stays_there(tmp_path):
    root = write_yolo(tmp_path)
    (root / "labels" / "train" / "c.txt").write_text("0 0.5 0.5 0.284091 0.284091\n")  # 12.5 pixels of 44
    record = next(record for record in read_all(YoloFolder(root)) if record.image_id.endswith("/c"))
    assert record.regions[0].box == pytest.approx((15.75, 15.75, 28.25, 28.25), abs=1e-4)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"train": "images/train", "val": ["images/val", "images/test"]}, {"train": 2, "validation": 2}),
        ({"train": "../images/val", "val": "./images/train/", "test": ""}, {"train": 1, "validation": 2, "test": 1}),
        ({"train": "set/images/test", "val": None}, {"train": 3, "validation": 1}),
    ],
)
def test_the_folders_of_the_yaml_decide_before_the_words_of_folders(tmp_path, data, expected):
    source = YoloFolder(write_yolo(tmp_path / "set", data=data | {"names": ["a", "b", "c", "d"]}))
    assert {split: source.num_records(split) for split in source.splits()} == expected


def test_lists_of_paths_decide_and_name_missing_images(tmp_path):
    data = {"train": "train.txt", "val": "lists/val.txt", "names": ["a", "b", "c", "d"]}
    root = write_yolo(tmp_path, data=data)
    (root / "train.txt").write_text("./images/val/b.png\nimages/test/d.png\nimages/gone.png\n")
    (root / "lists").mkdir()
    (root / "lists" / "val.txt").write_text("images/train/a.png\n../images/train/c.png\n")
    source = YoloFolder(root)
    assert {split: source.num_records(split) for split in source.splits()} == {"train": 3, "validation": 2}
    assert list(bad_items(source)) == ["images/gone.png"]
    (root / "train.txt").write_text("images/train/a.png\n")
    assert "the splits train, validation" in bad_items(YoloFolder(root))["images/train/a"]


def test_classes_may_be_a_text_file(tmp_path):
    root = write_yolo(tmp_path)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("platelets\nunused\nunused too\nCyst\n")
    (root / "labels" / "classes.txt").write_text("a tool puts it here\n")
    findings = {region.finding for record in read_all(YoloFolder(root)) for region in record.regions}
    assert findings == {"platelet", "cyst"}
    (root / "classes.txt").rename(root / "names.txt")
    with pytest.raises(ValueError, match="option classes"):
        YoloFolder(root)
    assert len(read_all(YoloFolder(root, classes="names.txt"))) == 4


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("3 0.5 0.5 0.1", "has 4 values"),
        ("3 0.5 0.5 0.1 0.1 0.9", "has 6 values"),
        ("3 0.5 nan 0.1 0.1", "value 2 is 'nan'"),
        ("3 0.5 x 0.1 0.1", "value 2 is 'x'"),
        ("1 0.5 0.5 0.1 0.1", "class 1"),
        ("3.5 0.5 0.5 0.1 0.1", "class 3.5"),
        ("3 306 200 20 20", "fractions"),
        ("3 0.5 0.5 0.1 -0.1", "fractions"),
        ("3 0.5 0.5 0 0.1", "x1 must exceed x0"),
        ("3 0.9 0.5 0.4 0.1", "within the image"),
        ("3 0.5 0.5 0.6 0.5 0.7 0.5", "y1 must exceed y0"),
    ],
)
def test_a_malformed_line_makes_its_image_bad_and_no_other(tmp_path, line, part):
    root = write_yolo(tmp_path)
    with (root / "labels" / "train" / "a.txt").open("a") as file:
        file.write(line)
    source = YoloFolder(root)
    bad = bad_items(source)
    assert list(bad) == ["images/train/a"]
    assert part in bad["images/train/a"]
    assert "labels/train/a.txt:3" in bad["images/train/a"] or "region 2" in bad["images/train/a"]
    assert len(list(source.records("validation"))) == 1


def test_other_bad_files_are_named(tmp_path):
    root = write_yolo(tmp_path)
    (root / "labels" / "val" / "b.txt").write_bytes(b"0 0.5 \xff\n")
    (root / "labels" / "train" / "nothing.txt").write_text("3 0.5 0.5 0.1 0.1\n")
    image = root / "images" / "test" / "d.png"
    image.write_bytes(image.read_bytes()[:50])
    bad = bad_items(YoloFolder(root))
    assert sorted(bad) == ["images/test/d", "images/train/nothing", "images/val/b"]
    assert "no UTF-8" in bad["images/val/b"]
    assert "no image file" in bad["images/train/nothing"]
    assert "cannot be decoded" in bad["images/test/d"]


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"names": ["a"], "kpt_shape": [17, 3]}, "key points"),
        ({"nc": 4}, "has names None"),
        ({"names": {"a": 0}}, "has names"),
        ({"names": []}, "names no class"),
        ([1, 2], "has names None"),
    ],
)
def test_a_wrong_data_yaml_is_refused_at_opening(tmp_path, data, part):
    with pytest.raises(ValueError, match=part):
        YoloFolder(write_yolo(tmp_path, data=data))


def test_a_yaml_that_makes_objects_is_refused(tmp_path):
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text("names: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="cannot be read"):
        YoloFolder(root)


def test_a_wrong_root_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        open_sources(tmp_path / "absent")
    with pytest.raises(ValueError, match="has no folder images"):
        open_sources(tmp_path)
    paint(tmp_path / "images" / "a.png", (9, 9))
    with pytest.raises(ValueError, match="has no folder labels"):
        open_sources(tmp_path)
    assert ABOUT.is_verified
