"""Source `vqa_rad`: an image with a test question is test and keeps only those; both layouts are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from corpus_fixtures import bad_items, paint, painted, read_all
from PIL import Image

from regionmed_clip.processing.corpus.records import QARecord
from regionmed_clip.processing.corpus.sources.vqa_rad import ABOUT, VqaRadSource, open_sources

SIZES = {"synpic1.jpg": (60, 40), "synpic2.jpg": (30, 50), "synpic3.jpg": (44, 20), "synpic9.jpg": (20, 20)}
MARK = (2, 3, 9, 8)  # painted in every image, to see that the pixels come through


def question(name, text, answer, phrase="freeform", **changes):
    entry = {
        "qid": "0",
        "phrase_type": phrase,
        "qid_linked_id": "03f451ca-de62-4617-9679-e836026a7642",
        "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1dd0e",
        "image_name": name,
        "image_organ": "HEAD",
        "evaluation": "not evaluated",
        "question": text,
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": answer,
        "answer_type": "CLOSED",
    }
    return {**entry, **changes}


ENTRIES = [
    question("synpic1.jpg", "Is there an infarct?", "Yes"),
    question("synpic1.jpg", "Which lobe?", "Frontal", answer_type="OPEN "),
    question("synpic2.jpg", "Is the heart large?", "No", image_organ="CHEST"),  # dropped: the image is held out
    question("synpic2.jpg", "How many ribs?", 12, phrase="test_freeform", image_organ="CHEST", answer_type="OPEN"),
    question("synpic1.jpg", "Is there an infarct?", "Yes", phrase="para"),  # said twice
    question("synpic3.jpg", "Is the liver seen?", "Yes", phrase="test_para", image_organ="ABD"),
]


def write_images(folder: Path) -> None:
    """The images, all painted in the same place; PNG bytes called .jpg keep the greys exact."""
    for name, size in SIZES.items():
        path = folder / name
        paint(path.with_suffix(".png"), size, [MARK]).rename(path)


def write_public(root: Path, entries=ENTRIES) -> Path:
    """A folder in the layout of the OSF release; synpic9.jpg has no question, as one image of the release."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(entries))
    write_images(root / "VQA_RAD Image Folder")
    return root


def write_mirror(root: Path) -> Path:
    """The same questions as trainset.json and testset.json, phrase types without "test"."""
    sets = {"trainset.json": [], "testset.json": []}
    for number, entry in enumerate(ENTRIES, start=1):
        phrase = entry["phrase_type"]
        kept = {name: entry[name] for name in ("image_name", "image_organ", "answer", "answer_type", "question_type")}
        kept |= {"qid": number, "question": entry["question"], "phrase_type": phrase.removeprefix("test_")}
        sets["testset.json" if "test" in phrase else "trainset.json"].append(kept)
    write_images(root / "images")
    for name, entries in sets.items():
        (root / name).write_text(json.dumps(entries))
    return root


@pytest.mark.parametrize("write", [write_public, write_mirror])
def test_an_image_with_a_test_question_is_test_and_keeps_only_those(tmp_path, write):
    (source,) = open_sources(write(tmp_path))
    assert source.splits() == ("train", "test")
    (train,) = source.records("train")
    first, second = source.records("test")
    assert train.image_id == "vqa_rad/synpic1.jpg"
    assert train.qa == (
        QARecord("Is there an infarct?", "Yes", "closed-presence"),
        QARecord("Which lobe?", "Frontal", "open-presence"),
    )
    assert first.qa == (QARecord("How many ribs?", "12", "open-presence"),)
    assert second.qa == (QARecord("Is the liver seen?", "Yes", "closed-presence"),)
    assert bad_items(source) == {}


def test_a_record_has_the_pixels_the_organ_and_no_boxes(tmp_path):
    source = VqaRadSource(write_public(tmp_path))
    records = read_all(source)
    assert [record.anatomy for record in records] == ["head", "chest", "abdomen"]
    for record in records:
        assert (record.regions, record.patient_id, record.license) == ((), None, "CC0 1.0")
        assert record.source_revision.startswith("osf-")
        with Image.open(record.image) as image:
            assert np.array_equal(np.asarray(image), painted((record.width, record.height), [MARK]))
    assert records[0].caption == "Radiology image of the head."
    assert ABOUT.is_verified


def test_only_what_the_record_needs_is_read_of_a_case(tmp_path):
    record = read_all(VqaRadSource(write_public(tmp_path)))[0]
    assert "medpix" not in repr(record)


def test_a_broken_question_is_reported_and_its_image_stays_in_its_split(tmp_path):
    entries = [
        *ENTRIES,
        question("synpic9.jpg", "Is it?", "", phrase="test_freeform"),
        question("synpic9.jpg", "Is it grey?", "Yes"),
        question("", "Of what?", "Yes"),
        "no object",
        question("synpic1.jpg", "Is it?", "Yes", answer_type="EITHER"),
    ]
    source = VqaRadSource(write_public(tmp_path, entries))
    found = bad_items(source)
    places = [f"VQA_RAD Dataset Public.json:{number}" for number in (7, 9, 10, 11)]
    assert list(found) == places
    assert "synpic9.jpg" in found[places[0]]
    assert "answer is ''" in found[places[0]]
    assert "names no image" in found[places[1]]
    assert "names no image" in found[places[2]]
    assert "answer_type is 'EITHER'" in found[places[3]]
    held_out = list(source.records("test"))[-1]  # a test question, though broken, keeps the image out of training
    assert (held_out.image_id, held_out.qa) == ("vqa_rad/synpic9.jpg", ())


def test_broken_images_and_unknown_splits_or_organs_are_bad_items(tmp_path):
    entries = [
        *ENTRIES,
        question("synpic9.jpg", "Is it?", "Yes", image_organ="FOOT"),
        question("synpic8.jpg", "Is it?", "Yes"),
        question("synpic3.jpg", "Is it?", "Yes", phrase=None),
        question("../synpic1.jpg", "Is it?", "Yes"),
    ]
    root = write_public(tmp_path, entries)
    whole = (root / "VQA_RAD Image Folder/synpic2.jpg").read_bytes()
    (root / "VQA_RAD Image Folder/synpic2.jpg").write_bytes(whole[: len(whole) // 2])
    found = bad_items(VqaRadSource(root))
    assert found.keys() == {"synpic9.jpg", "synpic8.jpg", "synpic3.jpg", "synpic2.jpg", "../synpic1.jpg"}
    assert "image_organ is 'foot'" in found["synpic9.jpg"]
    assert "does not exist" in found["synpic8.jpg"]
    assert "phrase_type is None" in found["synpic3.jpg"]
    assert "cannot be decoded" in found["synpic2.jpg"]
    assert "must lie within" in found["../synpic1.jpg"]


def test_a_wrong_root_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trainset\.json and testset\.json"):
        VqaRadSource(tmp_path)
    root = write_mirror(tmp_path / "mirror")
    (root / "testset.json").write_text('{"questions": []}')
    with pytest.raises(ValueError, match="must be a list of objects with image_name"):
        VqaRadSource(root)
    (root / "images").rename(root / "pictures")
    with pytest.raises(ValueError, match="no folder VQA_RAD Image Folder or images"):
        VqaRadSource(root)
