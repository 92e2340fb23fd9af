"""What the sources for generic formats share: options, names, revisions and index files."""

from __future__ import annotations

import re

import pytest
from corpus_fixtures import bad_items, paint, read_all

from regionmed_clip.processing.corpus.sources.generic_folder import finding_of_label, split_of_words
from regionmed_clip.processing.corpus.sources.registry import open_sources_of, parse_source_spec
from regionmed_clip.processing.corpus.sources.yolo import YoloFolder, open_sources


def write_folder(root, names=("p1_a", "p1_b", "p2_a")):
    """A yolo folder without splits: one image per name, each with the same box."""
    for name in names:
        paint(root / "images" / f"{name}.png", (20, 10), [(5, 0, 15, 5)])
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text("0 0.5 0.25 0.5 0.5\n")
    (root / "classes.txt").write_text("RBC\n")
    return root


def test_options_name_what_the_format_leaves_unsaid(tmp_path):
    root = write_folder(tmp_path / "smears")
    spec = parse_source_spec(
        "yolo:name=blood,modality=microscopy image,anatomy=blood,license=CC0 1.0,patient=(p[0-9]+)_", str(root)
    )
    (source,) = open_sources_of(spec)
    records = {record.image_id: record for record in read_all(source)}
    assert sorted(records) == ["blood/images/p1_a", "blood/images/p1_b", "blood/images/p2_a"]
    record = records["blood/images/p1_a"]
    assert (record.source, record.license, record.modality, record.anatomy) == (
        "blood",
        "CC0 1.0",
        "microscopy image",
        "blood",
    )
    assert record.patient_id == "p1"
    assert record.split == records["blood/images/p1_b"].split
    assert record.caption == "Microscopy image of the blood with a red blood cell."


def test_without_options_the_folder_names_the_source_and_nothing_is_claimed(tmp_path):
    (source,) = open_sources(write_folder(tmp_path / "smears"))
    record = read_all(source)[0]
    assert (source.name, source.license, record.patient_id, record.anatomy) == ("smears", "unknown", None, None)
    assert record.caption == "Medical image with a red blood cell."


def test_an_image_without_patient_is_a_bad_item_when_patients_are_asked_for(tmp_path):
    source = YoloFolder(write_folder(tmp_path, names=("p1_a", "scan")), patient="(p[0-9]+)_")
    bad = bad_items(source)
    assert list(bad) == ["images/scan"]
    assert "finds no patient" in bad["images/scan"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"patient": "p[0-9]+"}, "has no group"),
        ({"patient": "(p"}, "no regular expression"),
        ({"name": " "}, "option name is empty"),
        ({"modality": ""}, "option modality is empty"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, options, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        YoloFolder(write_folder(tmp_path), **options)


def test_two_folders_of_one_format_keep_their_indexes_apart_and_find_them_again(tmp_path):
    first, second = write_folder(tmp_path / "a"), write_folder(tmp_path / "b", names=("p9_a",))
    index_folder = tmp_path / "indexes"
    index_folder.mkdir()
    (source,) = open_sources(first, index_folder=index_folder)
    (other,) = open_sources(second, index_folder=index_folder)
    assert len(read_all(source)) == 3
    assert len(read_all(other)) == 1
    files = sorted(path.name for path in index_folder.iterdir())
    (again,) = open_sources(first, index_folder=index_folder)
    assert again.revision == source.revision
    assert [record.image_id for record in read_all(again)] == [record.image_id for record in read_all(source)]
    assert sorted(path.name for path in index_folder.iterdir()) == files
    assert len(files) == 2  # an index and a revision each


def test_the_revision_follows_labels_and_the_options_that_change_records_but_not_the_place(tmp_path):
    root = write_folder(tmp_path / "a")
    revision = YoloFolder(root).revision
    assert re.fullmatch("[0-9a-f]{12}", revision)
    assert YoloFolder(write_folder(tmp_path / "b")).revision == revision
    assert YoloFolder(root, name="other").revision == revision
    assert YoloFolder(root, modality="microscopy image").revision != revision
    (root / "labels" / "p1_a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert YoloFolder(root).revision != revision


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("annotations/instances_val2017.json", "validation"),
        ("valid/_annotations.coco.json", "validation"),
        ("ISIC2018_Task1-2_Training_Input", "train"),
        ("images/test", "test"),
        ("trainval", "train"),
        ("contest/latest", None),
        ("train/val", None),
        ("images", None),
    ],
)
def test_a_split_is_a_word_of_its_own(text, split):
    assert split_of_words(text) == split


def test_labels_become_findings():
    assert finding_of_label("Lung_Opacity ") == "lung opacity"
    assert finding_of_label("WBC") == "white blood cell"
