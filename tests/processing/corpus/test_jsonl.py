"""Source `jsonl`: rows become checked records; a bad row is refused by file and line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.processing.corpus.sources.jsonl import JsonlSource, open_jsonl
from regionmed_clip.processing.corpus.sources.jsonl_fields import normalize_label, read_license, read_modality
from regionmed_clip.processing.corpus.splits import SplitsInOrder, contiguous_blocks, split_by_hash

ABOUT = """# Demo
- Licence: dataset CC BY 4.0 (README). Code is MIT.
- Modality: brain MRI slices (mostly T1), 40x30
"""


def row(name="0.png", **changes):
    made = {
        "image": f"images/{name}",
        "width": 40,
        "height": 30,
        "boxes_xyxy": [[0, 0, 40, 30], [5, 6, 15, 16]],
        "labels": ["RBC", "Platelets"],
        "caption": None,
        "qa": None,
        "patient_id": None,
    }
    return {**made, **changes}


def write_source(folder, rows, about=ABOUT):
    """A source folder with one grey image per row; gives the folder back."""
    (folder / "images").mkdir(parents=True)
    (folder / "SOURCE.md").write_text(about)
    (folder / "annotations.jsonl").write_text("".join(json.dumps(made) + "\n" for made in rows))
    for value, made in enumerate(rows):
        Image.new("L", (40, 30), color=value).save(folder / made["image"])
    return folder


def read_all(folder, **options):
    source = JsonlSource(folder, **options)
    return [record for split in source.splits() for record in source.records(split)]


def assert_refused(folder, line, *parts):
    """Asserts that reading stops with a ValueError that names the file, the line and `parts`."""
    with pytest.raises(ValueError) as error:
        read_all(folder)
    message = str(error.value)
    assert f"annotations.jsonl:{line}: " in message
    for part in parts:
        assert part in message


def test_a_row_becomes_a_record(tmp_path):
    folder = write_source(tmp_path / "demo", [row(patient_id=7, split="val"), row("1.png", split="train")])
    train, record = read_all(folder)
    record.check()
    assert train.split == "train"
    assert record.image_id == "demo/images/0.png"
    assert record.image == str(folder / "images/0.png")
    assert record.sha256 == hashlib.sha256((folder / "images/0.png").read_bytes()).hexdigest()
    assert (record.width, record.height, record.split, record.patient_id) == (40, 30, "validation", "7")
    assert (record.source, record.license, record.modality) == ("demo", "CC BY 4.0", "brain MRI slice")
    assert record.source_revision == hashlib.sha256((folder / "annotations.jsonl").read_bytes()).hexdigest()[:12]
    assert [region.finding for region in record.regions] == ["red blood cell", "platelet"]
    assert [region.description for region in record.regions] == ["red blood cell", "platelet"]
    assert record.regions[1].box == (5.0, 6.0, 15.0, 16.0)
    assert record.regions[1].place is None  # where a box lies is not put into words
    assert record.caption == "Brain MRI slice with a platelet and a red blood cell."
    assert record.text_origin == "template"


def test_a_row_without_labels_claims_nothing(tmp_path):
    bare = {"boxes_xyxy": [], "labels": []}
    rows = [row(**bare), row("1.png", **bare, meta={"image_organ": "ABD"}), row("2.png", **bare, modality="chest CT")]
    captions = [record.caption for record in read_all(write_source(tmp_path / "demo", rows))]
    assert captions == ["Brain MRI slice.", "Radiology image of the abdomen.", "Chest CT."]


def test_a_caption_of_the_row_is_kept_and_marked(tmp_path):
    (record,) = read_all(write_source(tmp_path / "demo", [row(caption="A smear.")]))
    assert (record.caption, record.findings, record.impression) == ("A smear.", "", "")
    assert record.text_origin == "source"
    assert record.regions[0].text_origin == "template"


def test_questions_keep_their_kind(tmp_path):
    pairs = [
        {"q": "Is it?", "a": "Yes", "answer_type": "CLOSED"},
        {"q": "Where?", "a": "left"},
        {"q": "So?", "a": "No"},
        {"q": "How?", "a": "well", "answer_type": "OPEN ", "question_type": "ATRIB, PRES"},
    ]
    (record,) = read_all(write_source(tmp_path / "demo", [row(qa=pairs)]))
    assert [(pair.question, pair.answer, pair.kind) for pair in record.qa] == [
        ("Is it?", "Yes", "closed"),
        ("Where?", "left", "open"),
        ("So?", "No", "closed"),
        ("How?", "well", "open-attribute"),
    ]


def test_without_source_notes_nothing_is_made_up(tmp_path):
    (record,) = read_all(write_source(tmp_path / "demo", [row()], about=""))
    assert (record.license, record.modality) == ("unknown", "medical image")


@pytest.mark.parametrize(
    ("line", "license_name"),
    [
        ('MIT ("BCCD is under MIT licence")', "MIT"),
        ("the data set is CC0 1.0 (dataset card)", "CC0 1.0"),
        ("CC BY-NC-SA 4.0, see LICENSE", "CC BY-NC-SA 4.0"),
        ("by agreement; ask the authors", "by agreement"),
    ],
)
def test_the_licence_is_read_in_its_short_form(line, license_name):
    assert read_license(f"- Licence: {line}") == license_name


@pytest.mark.parametrize(
    ("line", "modality"),
    [
        ("light microscopy, stained smear, 640x480", "light microscopy"),
        ("colour fundus photography, 4288x2848", "colour fundus photograph"),
        ("B-mode ultrasound (Mindray); neck", "B-mode ultrasound"),
    ],
)
def test_the_modality_is_read_in_its_short_form(line, modality):
    assert read_modality(f"# Name\n- Modality: {line}\n") == modality


def test_labels_are_written_out():
    labels = ["RBC", "WBC", "Platelets", "hard exudates (EX)", "Pituitary  Tumor"]
    assert [normalize_label(label) for label in labels] == [
        *("red blood cell", "white blood cell", "platelet", "hard exudate", "pituitary tumor")
    ]


def test_a_source_without_held_out_rows_is_split_in_file_order(tmp_path):
    folder = write_source(tmp_path / "demo", [row(f"{index}.png", split="train") for index in range(10)])
    source = JsonlSource(folder)
    assert source.splits() == ("train", "test")
    assert [record.image_id[-5] for record in source.records("train")] == list("0123456")
    assert [record.image_id[-5] for record in source.records("test")] == list("789")


def test_rows_without_split_train_where_others_are_held_out(tmp_path):
    rows = [row(), row("1.png", split="test"), row("2.png", split=None)]
    source = JsonlSource(write_source(tmp_path / "demo", rows))
    assert (source.num_records("train"), source.num_records("test")) == (2, 1)
    with pytest.raises(ValueError, match="demo has no split 'validation'; it has train, test"):
        source.num_records("validation")


@given(st.lists(st.none() | st.sampled_from("abcdefgh"), min_size=1, max_size=30))
def test_rows_with_a_patient_go_by_its_hash_and_others_by_their_place(patient_ids):
    rule = SplitsInOrder("demo")
    rows = [rule.add("train", patient_id) for patient_id in patient_ids]
    num_train = len(patient_ids) * 70 // 100
    for row, patient_id in zip(rows, patient_ids):
        by_place = "train" if row < num_train else "test"
        assert rule.split_of(row) == (by_place if patient_id is None else split_by_hash("demo", patient_id))


@given(st.integers(0, 200), st.integers(1, 20))
def test_blocks_cover_every_position_once_in_order(num_items, num_blocks):
    blocks = contiguous_blocks(num_items, num_blocks)
    assert [index for start, stop in blocks for index in range(start, stop)] == list(range(num_items))
    sizes = [stop - start for start, stop in blocks]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(blocks) == min(num_items, num_blocks)


def test_records_can_be_read_from_the_middle(tmp_path):
    source = JsonlSource(write_source(tmp_path / "demo", [row(f"{index}.png") for index in range(10)]))
    everything = list(source.records("train"))
    assert list(source.records("train", 2, 5)) == everything[2:5]
    assert list(source.records("train", 5)) == everything[5:]


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_masks_are_read_only_when_asked_for(tmp_path, mode):
    folder = write_source(tmp_path / "demo", [row(mask="mask.png")])
    values = np.zeros((30, 40), dtype=np.uint8 if mode == "L" else np.uint16)
    values[20:, 30:] = 1
    values[6:16, 5:15] = 2
    Image.fromarray(values).save(folder / "mask.png")
    assert all(region.mask_rle is None for region in read_all(folder)[0].regions)
    first, second = read_all(folder, with_masks=True)[0].regions
    np.testing.assert_array_equal(first.mask_rle.to_array(), values == 1)
    np.testing.assert_array_equal(second.mask_rle.to_array(), values == 2)


def test_a_mask_that_lacks_a_region_is_refused(tmp_path):
    folder = write_source(tmp_path / "demo", [row(mask="mask.png")])
    Image.new("L", (40, 30), color=1).save(folder / "mask.png")
    with pytest.raises(ValueError, match=r"annotations.jsonl:1: .*mask.png lacks the values \[2\]"):
        read_all(folder, with_masks=True)


@pytest.mark.parametrize(
    ("box", "rule"),
    [
        ([15, 6, 5, 16], "x1 must exceed x0"),
        ([5, float("nan"), 15, 16], "all four values must be finite"),
        ([5, 6, 41, 16], "within the image of 40x30 pixels"),
        ([5, 6, 15], "a box is four numbers"),
        ([5, 6, 15, "16"], "a box is four numbers"),
        ([5, 6, 15, True], "a box is four numbers"),
    ],
)
def test_a_bad_box_is_refused(tmp_path, box, rule):
    folder = write_source(tmp_path / "demo", [row(), row("1.png", boxes_xyxy=[box], labels=["nerve"])])
    assert_refused(folder, 2, "images/1.png: region 0", "'nerve'", rule)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"labels": ["RBC"]}, ("2 entries", "1 entries", "one label")),
        ({"labels": ["RBC", None]}, ("label 1 is None",)),
        ({"labels": ["RBC", " "]}, ("empty finding",)),
        ({"width": 30, "height": 40}, ("is 40x30 pixels and its row says 30x40", "or the boxes are off")),
        ({"width": "40"}, ("width is '40'", "whole number")),
        ({"split": "holdout"}, ("split is 'holdout'", "train, val")),
        ({"patient_id": [1]}, ("patient_id is [1]",)),
        ({"modality": {"a": 1}}, ("modality is {'a': 1}", "a text or null")),
        ({"caption": " "}, ("caption is ' '",)),
        ({"qa": [{"q": "Is it?"}]}, ("question 0",)),
        (
            {"qa": [{"q": "Is it?", "a": "no", "answer_type": "YESNO"}]},
            ("0 has answer_type 'YESNO'", "closed"),
        ),
        ({"meta": "CHEST"}, ("meta is 'CHEST'",)),
    ],
)
def test_a_bad_field_is_refused(tmp_path, changes, parts):
    assert_refused(write_source(tmp_path / "demo", [row(), row("1.png", **changes)]), 2, *parts)


@pytest.mark.parametrize("text", ["{", "[1]", '{"width": 3}', '"text"', "\x00"])
def test_a_line_that_is_no_row_is_refused_at_opening(tmp_path, text):
    folder = write_source(tmp_path / "demo", [row()])
    with (folder / "annotations.jsonl").open("a") as file:
        file.write("\n" + text + "\n")
    assert_refused(folder, 3, "a line holds one JSON object" if text in ("{", "\x00") else "a row is a JSON object")


def test_two_rows_with_one_image_are_refused(tmp_path):
    assert_refused(write_source(tmp_path / "demo", [row(), row()]), 2, "already in line 1", "Merge the rows")


def test_a_missing_image_is_refused(tmp_path):
    folder = write_source(tmp_path / "demo", [row()])
    (folder / "images/0.png").unlink()
    assert_refused(folder, 1, "'images/0.png' does not exist", "drop the row")


def test_a_path_out_of_the_folder_is_refused(tmp_path):
    folder = write_source(tmp_path / "demo", [row()])
    Image.new("L", (40, 30)).save(tmp_path / "secret.png")
    (folder / "annotations.jsonl").write_text(json.dumps(row(image="../secret.png")))
    assert_refused(folder, 1, "'../secret.png' leads to", "must lie within")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = write_source(tmp_path / "demo", [row()])
    (folder / "images/0.png").rename(tmp_path / "secret.png")
    (folder / "images/0.png").symlink_to(tmp_path / "secret.png")
    assert_refused(folder, 1, "secret.png", "links included")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_refused_before_anyone_decodes_it(tmp_path, suffix):
    folder = write_source(tmp_path / "demo", [row(f"0.{suffix}", boxes_xyxy=[], labels=[])])
    path = folder / f"images/0.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    assert_refused(folder, 1, f"0.{suffix} cannot be decoded", "must be whole")


def test_a_jpeg_with_bytes_after_its_end_is_still_whole(tmp_path):
    folder = write_source(tmp_path / "demo", [row("0.jpg")])
    path = folder / "images/0.jpg"
    path.write_bytes(path.read_bytes() + b"\0" * 500)
    assert len(read_all(folder)) == 1


def test_a_turned_photograph_has_the_size_in_which_it_is_shown(tmp_path):
    folder = write_source(tmp_path / "demo", [row("0.jpg", width=30, height=40, boxes_xyxy=[], labels=[])])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("L", (40, 30)).save(folder / "images/0.jpg", exif=exif)
    assert read_all(folder)[0].width == 30


def test_a_folder_of_sources_is_read_by_name(tmp_path):
    write_source(tmp_path / "b", [row()])
    write_source(tmp_path / "a", [row()])
    (tmp_path / "notes").mkdir()
    assert [source.name for source in open_jsonl(tmp_path)] == ["a", "b"]
    assert [source.name for source in open_jsonl(tmp_path / "b")] == ["b"]


def test_a_folder_without_sources_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no annotations.jsonl, nor does a folder in it"):
        open_jsonl(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no row"):
        open_jsonl(write_source(tmp_path / "demo", []))


# source: images by split, boxes, question-answer pairs; the totals are those of the README of the real data
REAL_COUNTS = {
    "bccd": ({"train": 205, "validation": 87, "test": 72}, 4886, 0),
    "brisc_brain_mri": ({"train": 15, "test": 7}, 31, 0),
    "ct_ich": ({"train": 25, "test": 11}, 43, 0),
    "idrid_fundus": ({"train": 14, "test": 6}, 3465, 0),
    "usgra_ultrasound": ({"train": 204, "test": 40}, 614, 0),
    "vqa_rad_dev": ({"train": 77, "test": 34}, 0, 1152),
}


def test_the_real_sources_load_unchanged(real_data_folder):
    found = {}
    for source in open_jsonl(real_data_folder):
        records = [record for split in source.splits() for record in source.records(split)]
        num_boxes = sum(len(record.regions) for record in records)
        found[source.name] = (
            dict(Counter(record.split for record in records)),
            num_boxes,
            sum(len(record.qa) for record in records),
        )
        assert {record.text_origin for record in records} == {"template"}
        assert source.license in ("MIT", "CC BY 4.0", "CC0 1.0")
        assert not any("normal" in record.caption.lower() for record in records)
    assert found == REAL_COUNTS
