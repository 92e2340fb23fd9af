"""The six real sources beside the checkout, built and checked: nothing lost, every box to the pixel."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from regionmed_clip.processing.corpus.audit import check_corpus
from regionmed_clip.processing.corpus.build import build_corpus
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec

IMAGES = {  # the table of the folder's README
    "bccd": 364,
    "usgra_ultrasound": 244,
    "ct_ich": 36,
    "brisc_brain_mri": 22,
    "idrid_fundus": 20,
    "vqa_rad_dev": 111,
}
REGIONS = {"bccd": 4886, "usgra_ultrasound": 614, "ct_ich": 43, "brisc_brain_mri": 31, "idrid_fundus": 3465}
NUM_QUESTIONS = 1152


@pytest.fixture(scope="module")
def corpus(real_data_folder, tmp_path_factory):
    spec = parse_source_spec("jsonl", str(real_data_folder))
    return build_corpus([spec], tmp_path_factory.mktemp("real") / "corpus", num_processes=1, show_progress=False)


def dropped(corpus):
    lines = (corpus.folder / "duplicates.jsonl").read_text().splitlines()
    return [line["duplicate"] for line in map(json.loads, lines) if line["is_dropped"]]


def test_the_counts_are_those_of_the_table_but_for_the_listed_duplicates(corpus):
    gone = dropped(corpus)
    assert gone == ["usgra_ultrasound/images/0077.jpg"]  # equal to 0043.jpg; it has two regions
    assert (corpus.folder / "quarantine.jsonl").read_text() == ""
    expected = Counter(IMAGES) - Counter(image_id.partition("/")[0] for image_id in gone)
    sources = corpus.manifest["sources"]
    assert {source["name"]: source["num_images"] for source in sources} == expected
    assert {source["name"]: source["num_regions"] for source in sources if source["num_regions"]} == {
        **REGIONS,
        "usgra_ultrasound": 612,
    }
    assert sum(source["num_questions"] for source in sources) == NUM_QUESTIONS


def test_every_box_and_every_byte_is_that_of_the_source(corpus, real_data_folder):
    rows = {}
    for name in IMAGES:
        for line in (real_data_folder / name / "annotations.jsonl").read_text().splitlines():
            row = json.loads(line)
            rows[f"{name}/{row['image']}"] = row
    found = 0
    for split in corpus.splits():
        for example in corpus.rows(split, columns=["image", "image_id", "regions", "sha256"]):
            row = rows[example["image_id"]]
            assert [region["box"] for region in example["regions"]] == row["boxes_xyxy"]
            content = (real_data_folder / example["image_id"].partition("/")[0] / row["image"]).read_bytes()
            assert example["image"]["bytes"] == content
            assert example["sha256"] == hashlib.sha256(content).hexdigest()
            found += 1
    assert found == sum(IMAGES.values()) - 1


def test_neighbouring_slices_and_near_copies_are_in_one_split(corpus):
    split_of = {row["image_id"]: split for split in corpus.splits() for row in corpus.rows(split, columns=["image_id"])}
    pairs = [json.loads(line) for line in (corpus.folder / "duplicates.jsonl").read_text().splitlines()]
    near = [(pair["image"], pair["duplicate"]) for pair in pairs if pair["kind"] == "near"]
    assert near
    assert all(split_of[first] == split_of[second] for first, second in near)


def test_the_check_finds_no_error_and_warns_of_burnt_in_letters(corpus):
    report = check_corpus(corpus, num_processes=1, show_progress=False)
    assert report.num_errors == 0, list(report.lines())
    assert {finding.item.partition("/")[0] for finding in report.kept["burnt-in-text"]} == {"vqa_rad_dev"}
