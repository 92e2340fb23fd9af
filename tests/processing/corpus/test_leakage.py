"""Shared images and patients are found between two corpora, and between a corpus and a folder of images."""

from __future__ import annotations

import io
import json
import os
import shutil

import numpy as np
import pytest
from built_corpora import build, noise, write_source
from PIL import Image

from regionmed_clip.processing.corpus.fingerprints import same_values
from regionmed_clip.processing.corpus.leakage import find_leaks


def leaks(corpus, against, **options):
    report = find_leaks(corpus, against, show_progress=False, **options)
    found = {}
    for overlap in report.overlaps:
        for kind, pairs in overlap.pairs.items():
            assert overlap.num_images[kind] == len(pairs)
            if pairs:
                found[overlap.split, overlap.other, kind] = [(pair.image, pair.other) for pair in pairs]
    return found, report


def bytes_of(corpus, image_id):
    return next(
        row["image"]["bytes"] for split in corpus.splits() for row in corpus.rows(split) if row["image_id"] == image_id
    )


def test_a_corpus_of_other_images_and_patients_shares_nothing(built_once, tmp_path):
    others = [noise(100 + k) for k in range(4)]
    other = build(tmp_path / "other", write_source(tmp_path / "other_chest", others))
    found, report = leaks(built_once, other.folder)
    assert found == {}
    assert report.num_shared == 0
    assert len(report.overlaps) == 3 * len(other.splits())
    assert list(report.lines())[-1].endswith("0 shared.")


def test_equal_bytes_patients_and_near_copies_are_told_apart(built_once, tmp_path):
    """In the other source image 0 is a copy of one in train, 1 a lossy copy of one in test, 2 has a known patient."""
    with Image.open(io.BytesIO(bytes_of(built_once, "chest/images/001.png"))) as image:
        equal = np.asarray(image)
    with Image.open(io.BytesIO(bytes_of(built_once, "chest/images/005.png"))) as image:
        near = np.asarray(image.resize((56, 44)).resize(image.size))
    root = write_source(
        tmp_path / "chest",
        [equal, near, noise(200), noise(201)],
        patient_id=["q0", "q1", "p2", "q3"],
        split=["test", "test", "test", "train"],
    )
    shutil.copy(root / "images/000.png", tmp_path / "same.png")
    (root / "images/000.png").write_bytes(bytes_of(built_once, "chest/images/001.png"))
    found, report = leaks(built_once, build(tmp_path / "other", root).folder)
    assert found == {
        ("train", "test", "exact"): [("chest/images/001.png", "chest/images/000.png")],
        ("test", "test", "near"): [("chest/images/005.png", "chest/images/001.png")],
        ("train", "test", "patient"): [("chest/images/002.png", "chest/images/002.png")],
    }
    assert report.num_shared == 3
    lines = list(report.lines())
    assert any(line.startswith("LEAK train / test: 1 images share equal bytes") for line in lines)
    assert json.loads(report.as_json())["num_shared"] == 3


def test_a_patient_of_another_source_is_another_patient(built_once, tmp_path):
    root = write_source(tmp_path / "brain", [noise(300), noise(301)], patient_id=["p0", "p1"])
    assert leaks(built_once, build(tmp_path / "other", root).folder)[0] == {}


def test_a_patient_of_one_population_is_known_in_another_source(tmp_path):
    roots = [
        write_source(tmp_path / name, [noise(310 + 2 * k), noise(311 + 2 * k)], patient_id=["mimic-cxr:p1", f"q{k}"])
        for k, name in enumerate(("phrases", "graphs"))
    ]
    first, second = (build(tmp_path / f"built_{root.name}", root) for root in roots)
    found, _ = leaks(first, second.folder)
    assert [pairs for (_, _, kind), pairs in found.items() if kind == "patient"] == [
        [("phrases/images/000.png", "graphs/images/000.png")]
    ]


def test_a_folder_of_images_is_searched_at_any_depth(built_once, tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    content = bytes_of(built_once, "chest/images/003.png")
    (tmp_path / "a/b/copy.PNG").write_bytes(content)
    with Image.open(io.BytesIO(content)) as image:
        image.save(tmp_path / "a/lossy.jpg", quality=85)
    Image.fromarray(noise(400)).save(tmp_path / "other.png")
    (tmp_path / "a/broken.jpg").write_bytes(b"no image")
    found, report = leaks(built_once, tmp_path)
    assert found == {("train", "images", "exact"): [("chest/images/003.png", "a/b/copy.PNG")]}
    assert report.unreadable == ["a/broken.jpg"]
    assert any("1 files of" in line and "a/broken.jpg" in line for line in report.lines())
    (tmp_path / "a/b/copy.PNG").unlink()
    assert leaks(built_once, tmp_path)[0] == {("train", "images", "near"): [("chest/images/003.png", "a/lossy.jpg")]}
    assert leaks(built_once, tmp_path, max_distance=0)[0] == {}


@pytest.mark.parametrize("distance", [-1, 257])
def test_a_distance_out_of_range_is_refused(distance, built_once, tmp_path):
    with pytest.raises(ValueError, match="it must be 0 to 256 bits"):
        find_leaks(built_once, tmp_path, max_distance=distance)


def test_a_file_name_that_is_no_unicode_can_be_told(built_once, tmp_path):
    row = next(built_once.rows("train"))
    with open(os.fsencode(tmp_path) + b"/bad\xff.png", "wb") as file:
        file.write(row["image"]["bytes"])
    report = find_leaks(built_once, tmp_path, show_progress=False)
    assert report.num_shared == 1
    assert "bad\\udcff.png" in report.as_json().encode().decode("unicode_escape")


def test_a_folder_without_images_is_refused(built_once, tmp_path):
    with pytest.raises(ValueError, match="neither a built corpus nor a folder"):
        find_leaks(built_once, tmp_path)


def test_equal_values_are_matched_and_the_empty_one_never_is():
    values, others = np.array([5, 0, 7, 9, 7], dtype=np.uint64), np.array([0, 7, 5, 7], dtype=np.uint64)
    assert list(same_values(values, others)) == [(0, 2), (2, 1), (4, 1)]
    assert list(same_values(values[:0], others)) == []
