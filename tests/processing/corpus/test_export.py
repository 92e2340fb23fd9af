"""Exports hold every image and box to the pixel, are read back by their own formats, and are whole or absent."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from built_corpora import build, noise, rewrite, write_source
from PIL import Image

from regionmed_clip.processing.corpus.export import FORMATS, export_corpus
from regionmed_clip.processing.corpus.export_files import image_name
from regionmed_clip.processing.corpus.records import MaskRle
from regionmed_clip.processing.corpus.sources.registry import open_sources_of, parse_source_spec


def export(corpus, output, export_format, **options):
    return export_corpus(corpus, output, export_format, show_progress=False, **options)


def rows_of(corpus):
    return {row["image_id"]: row for split in corpus.splits() for row in corpus.rows(split)}


def records_of(source):
    return [record for split in source.splits() for record in source.records(split)]


def boxes_of(row):
    return [tuple(region["box"]) for region in row["regions"]]


def image_bytes(record):
    return record.image if isinstance(record.image, bytes) else Path(record.image).read_bytes()


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_read_back_as_the_same_records(built_once, tmp_path):
    export(built_once, tmp_path / "out", "folder")
    (source,) = open_sources_of(parse_source_spec("jsonl", str(tmp_path / "out")))
    records, rows = records_of(source), rows_of(built_once)
    assert (source.name, source.license) == ("chest", "CC BY 4.0")
    assert sorted(record.image_id for record in records) == sorted(rows)
    for record in records:
        row = rows[record.image_id]
        assert [region.box for region in record.regions] == boxes_of(row)
        assert [region.finding for region in record.regions] == [region["finding"] for region in row["regions"]]
        masks = [MaskRle(tuple(r["mask"]["size"]), tuple(r["mask"]["counts"])) for r in row["regions"]]
        assert [region.mask_rle for region in record.regions] == masks
        assert image_bytes(record) == row["image"]["bytes"]
        for name in ("split", "patient_id", "modality", "caption", "text_origin", "width", "height", "sha256"):
            assert getattr(record, name) == row[name]
        assert [(q.question, q.answer, q.kind) for q in record.qa] == [tuple(pair.values()) for pair in row["qa"]]


def test_a_folder_can_be_built_again_into_the_same_boxes(built_once, tmp_path):
    export(built_once, tmp_path / "out", "folder")
    again = rows_of(build(tmp_path / "again", tmp_path / "out"))
    assert {key: boxes_of(row) for key, row in again.items()} == {
        key: boxes_of(row) for key, row in rows_of(built_once).items()
    }


def test_overlapping_masks_denied_findings_and_windows_stay_in_meta(built, tmp_path):
    def edit(rows):
        row = next(row for row in rows if row["regions"])
        row["regions"] = [row["regions"][0], row["regions"][0], row["regions"][1] | {"is_negated": True}]
        row["window"] = [0.0, 200.0]

    notes = export(rewrite(built.folder, "validation", edit), tmp_path / "out", "folder", splits=["validation"])
    row = json.loads((tmp_path / "out/chest/annotations.jsonl").read_text())
    assert row["labels"] == ["nodule", "nodule"]
    assert "mask" not in row
    assert len(row["meta"]["masks"]) == 2
    assert [region["finding"] for region in row["meta"]["denied_regions"]] == ["effusion"]
    assert row["meta"]["window"] == [0.0, 200.0]
    assert [note.split(": ")[1][:2] for note in notes[:3]] == ["1 ", "1 ", "1 "]


def test_more_than_255_regions_take_a_mask_of_16_bits(tmp_path):
    boxes = [[2 * x, 2 * y, 2 * x + 1, 2 * y + 1] for y in range(16) for x in range(20)]
    root = write_source(
        tmp_path / "many", [noise(1), noise(2)], boxes_xyxy=[None, boxes], labels=[None, ["cyst"] * 320]
    )
    values = np.zeros((48, 60), dtype=np.uint16)
    for number, (x0, y0, _, _) in enumerate(boxes, start=1):
        values[y0, x0] = number
    Image.fromarray(values).save(root / "masks/001.png")
    corpus = build(tmp_path / "corpus", root)
    export(corpus, tmp_path / "out", "folder")
    with Image.open(tmp_path / "out/many/masks/001.png") as image:
        np.testing.assert_array_equal(np.asarray(image), values)


def test_coco_states_the_boxes_as_corner_and_size(built_once, tmp_path):
    export(built_once, tmp_path / "out", "coco")
    rows = rows_of(built_once)
    for split in built_once.splits():
        content = json.loads((tmp_path / f"out/annotations/instances_{split}.json").read_text())
        assert len(content["images"]) == built_once.num_images(split)
        name_of = {category["id"]: category["name"] for category in content["categories"]}
        assert sorted(name_of.values()) == ["effusion", "nodule"]
        assert content["licenses"] == [{"id": 1, "name": "CC BY 4.0", "url": ""}]
        for image in content["images"]:
            row = rows[image["image_id"]]
            assert (tmp_path / "out/images" / image["file_name"]).read_bytes() == row["image"]["bytes"]
            own = [item for item in content["annotations"] if item["image_id"] == image["id"]]
            assert [name_of[item["category_id"]] for item in own] == [r["finding"] for r in row["regions"]]
            for item, region in zip(own, row["regions"]):
                x, y, width, height = item["bbox"]
                assert [x, y, x + width, y + height] == region["box"]
                assert item["segmentation"] == region["mask"]
                # 3/4 of the box, the quarter rounded down: see built_corpora.masks_of
                assert item["area"] == width * height - ((width // 2) * (height - height // 2))


def test_coco_is_read_back_by_the_coco_source(built_once, tmp_path):
    export(built_once, tmp_path / "out", "coco")
    spec = parse_source_spec("coco:modality=chest radiograph,license=CC BY 4.0", str(tmp_path / "out"))
    (source,) = open_sources_of(spec)
    rows = {row["sha256"]: row for row in rows_of(built_once).values()}
    records = records_of(source)
    assert len(records) == len(rows)
    for record in records:
        row = rows[record.sha256]
        assert record.split == row["split"]
        assert [region.box for region in record.regions] == boxes_of(row)
        assert [list(region.mask_rle.counts) for region in record.regions] == [
            r["mask"]["counts"] for r in row["regions"]
        ]


def test_coco_leaves_denied_findings_out_and_says_so(built, tmp_path):
    def deny(rows):
        next(row for row in rows if row["regions"])["regions"][0]["is_negated"] = True

    notes = export(rewrite(built.folder, "validation", deny), tmp_path / "out", "coco", splits=["validation"])
    content = json.loads((tmp_path / "out/annotations/instances_validation.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["effusion"]
    assert notes[0] == "Left out: 1 regions that deny a finding."


def test_a_split_without_regions_is_valid_coco(built, tmp_path):
    export(
        rewrite(built.folder, "test", lambda rows: [row.update(regions=[]) for row in rows]), tmp_path / "out", "coco"
    )
    assert json.loads((tmp_path / "out/annotations/instances_test.json").read_text())["annotations"] == []


def samples_of(folder, split):
    samples = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
                key, _, suffix = member.name.partition(".")
                samples.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return samples


def test_webdataset_holds_every_field_in_the_order_of_the_corpus(built_once, tmp_path):
    export(built_once, tmp_path / "out", "webdataset")
    samples = samples_of(tmp_path / "out", "train")
    assert list(samples) == [f"train-{number:08d}" for number in range(5)]
    for sample, row in zip(samples.values(), built_once.rows("train")):
        assert sample["png"] == row["image"]["bytes"]
        assert json.loads(sample["json"]) == {name: value for name, value in row.items() if name != "image"}


def test_webdataset_begins_a_new_tar_before_one_grows_too_large(tmp_path):
    images = [np.random.default_rng(k).integers(0, 256, (600, 600), dtype=np.uint8) for k in range(5)]  # 0.36 MB each
    corpus = build(tmp_path / "corpus", write_source(tmp_path / "large", images, split=["test"] * 5))
    export(corpus, tmp_path / "out", "webdataset", tar_megabytes=1)
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == ["test-00000.tar", "test-00001.tar", "test-00002.tar"]
    assert all(path.stat().st_size <= 1_010_240 for path in paths)  # tarfile pads the end to 10,240 bytes
    assert len(samples_of(tmp_path / "out", "test")) == 5


@pytest.mark.parametrize("export_format", FORMATS)
def test_two_exports_have_equal_bytes(export_format, built_once, tmp_path):
    for name in ("first", "second"):
        export(built_once, tmp_path / name, export_format)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


@pytest.mark.parametrize("export_format", FORMATS)
def test_some_splits_alone_can_be_exported(export_format, built_once, tmp_path):
    notes = export(built_once, tmp_path / "out", export_format, splits=["test"])
    assert notes[-1].startswith("2 images of test written")
    assert not any("train" in name for name in files_of(tmp_path / "out"))


def test_a_split_named_twice_is_exported_once(built_once, tmp_path):
    export_corpus(built_once, tmp_path / "out", "coco", splits=("test", "test"), show_progress=False)
    content = json.loads((tmp_path / "out/annotations/instances_test.json").read_text())
    assert len(content["images"]) == 2


def test_a_folder_in_use_is_left_alone(built_once, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        export(built_once, tmp_path, "coco")
    assert list(files_of(tmp_path)) == ["notes.txt"]


def test_what_there_is_not_is_refused(built_once, tmp_path):
    with pytest.raises(ValueError, match="format is 'zip'"):
        export(built_once, tmp_path / "out", "zip")
    with pytest.raises(ValueError, match="no split 'dev'"):
        export(built_once, tmp_path / "out", "coco", splits=["dev"])
    with pytest.raises(ValueError, match="must be at least 1"):
        export(built_once, tmp_path / "out", "webdataset", tar_megabytes=0)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing_behind(built, tmp_path):
    path = built.shard_paths("test")[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="Parquet"):
        export(built, tmp_path / "place" / "out", "folder")
    assert list((tmp_path / "place").iterdir()) == []


def row_named(image_id, source="set", suffix=".png"):
    return {"image_id": image_id, "source": source, "image": {"path": f"x{suffix}", "bytes": b""}}


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        ("set/images/a.png", "a.png"),
        ("set/a/b.png", "a/b.png"),
        ("set/abc", "abc.png"),
        ("set/a.dcm", "a.dcm.png"),
        ("phantom-0-train-000001", "phantom-0-train-000001.png"),
    ],
)
def test_an_image_keeps_the_name_that_its_source_gave_it(image_id, name):
    assert image_name(row_named(image_id)) == name


@pytest.mark.parametrize("image_id", ["set/../../etc/passwd", "set//abs", "set/a b?.png", "set/" + "x" * 300, "set/.."])
def test_no_name_leaves_the_folder_or_breaks_a_file_system(image_id):
    parts = image_name(row_named(image_id)).split("/")
    assert all(part not in ("", ".", "..") and len(part) < 140 for part in parts)
    assert all(part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)


def test_two_images_that_would_share_a_name_get_two_files(built, tmp_path):
    def rename(rows):
        rows[0]["image_id"], rows[1]["image_id"] = "chest/same.png", "chest/images/same.png"

    export(rewrite(built.folder, "test", rename), tmp_path / "out", "folder", splits=["test"])
    names = sorted(path.name for path in (tmp_path / "out/chest/images").iterdir())
    assert len(names) == 2
    assert names[1] == "same.png"
    assert names[0].startswith("same-")
