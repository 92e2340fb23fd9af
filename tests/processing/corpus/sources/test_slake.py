"""Source `slake`: boxes land on the painted pixels; one record per image, with the questions of its split only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpus_fixtures import bad_items, paint, painted_box, read_all

from regionmed_clip.processing.corpus.records import QARecord
from regionmed_clip.processing.corpus.sources.slake import ABOUT, SlakeSource, open_sources

SIZES = {"xmlab0": (60, 40), "xmlab1": (30, 50), "xmlab2": (44, 44), "xmlab3": (20, 30)}
BOXES = {  # half-open corners in pixels of source.jpg
    "xmlab0": {"Left Lung": (0, 5, 20, 40), "Liver": (25, 8, 37, 21)},
    "xmlab1": {"Brain_Edema": (10, 30, 30, 50)},  # touches the right and the lower border
    "xmlab2": {},
    "xmlab3": {"Heart": (1, 2, 4, 6)},
}


def question(name, text, answer, lang="en", **changes):
    entry = {
        "img_id": int(name.removeprefix("xmlab")),
        "img_name": f"{name}/source.jpg",
        "question": text,
        "answer": answer,
        "q_lang": lang,
        "location": "Chest_lung",
        "modality": "X-Ray",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": 9,
    }
    return {**entry, **changes}


SPLITS = {
    "train": [
        question("xmlab0", "Is this a CT?", "No", answer_type="CLOSED"),
        question("xmlab1", "What organ is it?", "Brain", location="Brain_Tissue", modality="MRI"),
        question("xmlab0", "这是什么器官", "肺", lang="zh"),
        question("xmlab0", "Is this a CT?", "No", answer_type="CLOSED"),  # said twice
    ],
    "validate": [question("xmlab2", "这是什么", "肝", lang="zh", location="Abdomen", modality="CT")],
    "test": [question("xmlab3", "How many hearts?", 1, location="")],
}


def write_slake(root: Path, splits=SPLITS, validation="validate") -> Path:
    """A SLAKE folder with every box painted; the PNG bytes are called .jpg so that the greys stay exact."""
    for name, entries in splits.items():
        path = root / f"{validation if name == 'validate' else name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    for name, size in SIZES.items():
        folder = root / "imgs" / name
        paint(folder / "source.png", size, list(BOXES[name].values())).rename(folder / "source.jpg")
        entries = [{label: [x0, y0, x1 - x0, y1 - y0]} for label, (x0, y0, x1, y1) in BOXES[name].items()]
        (folder / "detection.json").write_text(json.dumps(entries))
    return root


def by_name(source):
    return {record.image_id.split("/")[1]: record for record in read_all(source)}


def test_boxes_equal_the_painted_rectangles(tmp_path):
    records = by_name(SlakeSource(write_slake(tmp_path)))
    assert {name: len(record.regions) for name, record in records.items()} == {
        "xmlab0": 2,
        "xmlab1": 1,
        "xmlab2": 0,
        "xmlab3": 1,
    }
    for name, record in records.items():
        assert (record.width, record.height) == SIZES[name]
        for index, region in enumerate(record.regions):
            assert region.box == painted_box(record.image, index)


def test_names_of_boxes_become_finding_and_side(tmp_path):
    records = by_name(SlakeSource(write_slake(tmp_path)))
    lung, liver = records["xmlab0"].regions
    assert (lung.finding, lung.laterality, lung.description) == ("lung", "left", "left lung")
    assert (liver.finding, liver.laterality, liver.place) == ("liver", None, None)
    assert records["xmlab1"].regions[0].finding == "brain edema"


def test_a_record_states_modality_body_part_split_and_licence(tmp_path):
    source = SlakeSource(write_slake(tmp_path))
    records = by_name(source)
    stated = {name: (record.modality, record.anatomy, record.split) for name, record in records.items()}
    assert stated == {
        "xmlab0": ("radiograph", "chest", "train"),
        "xmlab1": ("MRI", "brain", "train"),
        "xmlab2": ("CT", "abdomen", "validation"),
        "xmlab3": ("radiograph", None, "test"),
    }
    assert source.splits() == ("train", "validation", "test")
    assert {record.license for record in records.values()} == {"CC BY 4.0"}
    assert records["xmlab0"].source_revision.startswith("1.0-en-")
    assert ABOUT.is_verified


@pytest.mark.parametrize(
    ("lang", "questions"),
    [
        ("en", [QARecord("Is this a CT?", "No", "closed-organ")]),
        ("zh", [QARecord("这是什么器官", "肺", "open-organ")]),
        ("all", [QARecord("Is this a CT?", "No", "closed-organ"), QARecord("这是什么器官", "肺", "open-organ")]),
    ],
)
def test_questions_come_in_the_language_asked_for(tmp_path, lang, questions):
    (source,) = open_sources(write_slake(tmp_path), lang=lang)
    records = by_name(source)
    assert list(records["xmlab0"].qa) == questions
    assert len(records) == 4  # an image without a question in the language stays
    assert records["xmlab0"].modality == "radiograph"


def test_an_image_of_two_splits_goes_to_the_stricter_with_its_questions_alone(tmp_path):
    shared = question("xmlab0", "Which organ?", "Lung")
    source = SlakeSource(write_slake(tmp_path, {**SPLITS, "test": [*SPLITS["test"], shared]}))
    record = by_name(source)["xmlab0"]
    assert record.split == "test"
    assert record.qa == (QARecord("Which organ?", "Lung", "open-organ"),)


def test_the_hub_name_of_the_validation_file_is_read_too(tmp_path):
    assert SlakeSource(write_slake(tmp_path, validation="validation")).num_records("validation") == 1


def break_folder(root: Path) -> dict[str, str]:
    """One fault per image; the key of each bad item -> what its reason must say."""
    (root / "imgs/xmlab0/detection.json").write_text('[{"Heart": [1, 2, NaN, 4]}]')
    (root / "imgs/xmlab1/detection.json").write_text('[{"Liver": [9, 9, -4, 4]}]')
    (root / "imgs/xmlab2/source.jpg").unlink()
    return {
        "xmlab0/source.jpg": "finite",
        "xmlab1/source.jpg": "x1 must exceed x0",
        "xmlab2/source.jpg": "does not exist",
    }


def test_a_broken_image_or_box_is_a_bad_item_and_the_others_come(tmp_path):
    source = SlakeSource(write_slake(tmp_path))
    expected = break_folder(tmp_path)
    found = bad_items(source)
    assert found.keys() == expected.keys()
    for key, part in expected.items():
        assert part in found[key]
        assert key.split("/")[0] in found[key]
    assert [record.image_id for record in source.read("test")] == ["slake/xmlab3/source.jpg"]


@pytest.mark.parametrize(
    ("boxes", "part"),
    [
        ('[{"Heart": [1, 2, 3]}]', "Heart is [1, 2, 3]"),
        ('[["Heart", 1]]', "detection.json:1"),
        ('{"Heart": [1, 2, 3, 4]}', "must be a list"),
        ('[{"Heart": [1, 2, 30, 4]}]', "must lie within"),
        ('[{"Heart": [1, 2,', "no JSON"),
    ],
)
def test_a_malformed_box_file_says_what_is_wrong(tmp_path, boxes, part):
    source = SlakeSource(write_slake(tmp_path))
    (tmp_path / "imgs/xmlab3/detection.json").write_text(boxes)
    assert part in bad_items(source)["xmlab3/source.jpg"]


def test_a_broken_question_is_reported_and_its_image_stays(tmp_path):
    entries = [
        question("xmlab0", "", "No"),
        question("xmlab0", "Is it?", "No", answer_type="MAYBE"),
        question("xmlab0", "Where?", float("nan")),
        {"question": "Of what?", "answer": "x"},
        question("xmlab1", "Which?", "Brain", modality="PET"),
    ]
    source = SlakeSource(write_slake(tmp_path, {**SPLITS, "train": entries}))
    found = bad_items(source)
    assert found.keys() == {"train.json:1", "train.json:2", "train.json:3", "train.json:4", "xmlab1/source.jpg"}
    assert "question is ''" in found["train.json:1"]
    assert "answer_type is 'MAYBE'" in found["train.json:2"]
    assert "xmlab0" in found["train.json:3"]
    assert "names no image" in found["train.json:4"]
    assert "modality is 'PET'" in found["xmlab1/source.jpg"]
    record = next(item for item in source.read("train") if not hasattr(item, "reason"))
    assert record.image_id == "slake/xmlab0/source.jpg"
    assert record.qa == ()


def test_a_wrong_root_or_option_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        SlakeSource(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"train\.json"):
        SlakeSource(tmp_path)
    root = write_slake(tmp_path / "slake")
    with pytest.raises(ValueError, match="lang is 'de'"):
        SlakeSource(root, lang="de")
    (root / "test.json").write_text('[{"image": "a"}]')
    with pytest.raises(ValueError, match="must be a list of objects with img_name"):
        SlakeSource(root)


def test_a_name_that_leaves_the_folder_is_a_bad_item(tmp_path):
    entries = [*SPLITS["train"], question("xmlab0", "Where?", "There", img_name="../../secret.jpg")]
    source = SlakeSource(write_slake(tmp_path, {**SPLITS, "train": entries}))
    assert "must lie within" in bad_items(source)["../../secret.jpg"]
