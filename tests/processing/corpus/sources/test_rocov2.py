"""Source `rocov2`: the caption of the source, modality by concept, the licence of the figure."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from corpus_fixtures import bad_items, paint, painted, read_all
from PIL import Image

from regionmed_clip.processing.corpus.sources.rocov2 import ABOUT, Rocov2Source, open_sources

MARK = (2, 3, 9, 8)  # painted in every image, to see that the pixels come through
SIZES = {
    "ROCOv2_2023_train_000001": (60, 40),
    "ROCOv2_2023_train_000002": (30, 50),
    "ROCOv2_2023_train_000003": (44, 20),
    "ROCOv2_2023_valid_000001": (20, 60),
    "ROCOv2_2023_test_000001": (33, 21),
}
CAPTIONS = {
    "train": [
        ("ROCOv2_2023_train_000001", "Head CT demonstrating left parotiditis."),
        ("ROCOv2_2023_train_000002", 'Chest X-ray, PA view, "clear" lungs.\nArrow: lead.'),
        ("ROCOv2_2023_train_000003", "Figure 2"),
    ],
    "valid": [("ROCOv2_2023_valid_000001", "FDG-PET/CT, axial.")],
    "test": [("ROCOv2_2023_test_000001", "Panoramic radiograph.")],
}
CONCEPTS = {
    "train": [
        ("ROCOv2_2023_train_000001", "C0040405"),
        ("ROCOv2_2023_train_000002", "C1306645;C0817096;C1996865"),
    ],  # the third has none, as 493 of the release
    "valid": [("ROCOv2_2023_valid_000001", "C0040405;C0032743")],
    "test": [("ROCOv2_2023_test_000001", "C1306645;C0037303;C0030797")],
}
LICENSES = [
    ("ROCOv2_2023_train_000001", "PMC1", "CC BY [Muacevic et al. (2021)]", "https://example.org/1"),
    ("ROCOv2_2023_train_000002", "PMC2", "CC BY-NC [Doe et al. (2019)]", "https://example.org/2"),
    ("ROCOv2_2023_valid_000001", "PMC3", "Doe et al. (2020)", "https://example.org/3"),
]
FIRST, SECOND = "ROCOv2_2023_train_000001", "ROCOv2_2023_train_000002"


def write_csv(path: Path, header, rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_rocov2(root: Path, captions=CAPTIONS, concepts=CONCEPTS, licenses=LICENSES, folder="{}_images") -> Path:
    """A ROCOv2 folder; PNG bytes called .jpg keep the greys exact."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid", "test"):
        write_csv(root / f"{name}_captions.csv", ("ID", "Caption"), captions[name])
        write_csv(root / f"{name}_concepts_manual.csv", ("ID", "CUIs"), concepts[name])
        write_csv(root / f"{name}_concepts.csv", ("ID", "CUIs"), [])
    if licenses is not None:
        write_csv(root / "license_information.csv", ("ID", "PMCID", "Attribution", "Link"), licenses)
    for key, size in SIZES.items():
        path = root / folder.format(key.split("_")[2]) / f"{key}.jpg"
        paint(path.with_suffix(".png"), size, [MARK]).rename(path)
    return root


def by_key(source):
    return {record.image_id.split("/")[1]: record for record in read_all(source)}


def test_a_figure_keeps_its_caption_split_and_pixels(tmp_path):
    source = Rocov2Source(write_rocov2(tmp_path))
    assert [source.num_records(split) for split in ("train", "validation", "test")] == [3, 1, 1]
    records = by_key(source)
    assert records[SECOND].caption == 'Chest X-ray, PA view, "clear" lungs.\nArrow: lead.'
    for key, record in records.items():
        assert (record.text_origin, record.findings, record.regions, record.patient_id) == ("source", "", (), None)
        assert (record.width, record.height) == SIZES[key]
        with Image.open(record.image) as image:
            assert np.array_equal(np.asarray(image), painted(SIZES[key], [MARK]))
    assert records[FIRST].source_revision.startswith("v2-")
    assert ABOUT.is_verified


def test_the_manual_concepts_give_modality_and_body_part(tmp_path):
    records = by_key(Rocov2Source(write_rocov2(tmp_path)))
    assert {key.removeprefix("ROCOv2_2023_"): (record.modality, record.anatomy) for key, record in records.items()} == {
        "train_000001": ("CT", None),
        "train_000002": ("radiograph", "chest"),
        "train_000003": ("radiology image", None),
        "valid_000001": ("PET/CT", None),
        "test_000001": ("radiograph", None),  # two body parts: neither is stated
    }


def test_a_figure_has_the_licence_that_its_attribution_names(tmp_path):
    records = by_key(Rocov2Source(write_rocov2(tmp_path)))
    assert records[FIRST].license == "CC BY"
    assert records[SECOND].license == "CC BY-NC"
    assert records["ROCOv2_2023_valid_000001"].license == "CC BY-NC-SA 4.0"  # none named: that of the data set
    assert records["ROCOv2_2023_test_000001"].license == "CC BY-NC-SA 4.0"  # no row


@pytest.mark.parametrize("folder", ["{}_images", "{0}_images/{0}", "{}"])
def test_images_are_found_however_the_zip_was_unpacked(tmp_path, folder):
    (source,) = open_sources(write_rocov2(tmp_path, licenses=None, folder=folder))
    assert len(read_all(source)) == 5
    assert {record.license for record in read_all(source)} == {"CC BY-NC-SA 4.0"}


def test_broken_rows_and_images_are_bad_items_and_the_others_come(tmp_path):
    captions = {
        **CAPTIONS,
        "train": [*CAPTIONS["train"], ("", "no ID"), ("ROCOv2_2023_train_000009",), (FIRST, "said again")],
        "valid": [("ROCOv2_2023_valid_000001", " ")],
    }
    concepts = {**CONCEPTS, "test": [*CONCEPTS["test"], ("ROCOv2_2023_test_000002", "C0040405")]}
    root = write_rocov2(tmp_path, captions, concepts)
    (root / f"train_images/{SECOND}.jpg").write_bytes(b"\x89PNG cut short")
    found = bad_items(Rocov2Source(root))
    parts = {
        "train_captions.csv:6": "empty ID",  # lines as in the file: one caption above has a line break
        "train_captions.csv:7": "has 1 fields and the header 2",
        FIRST: "2 rows of the captions",
        SECOND: "cannot be decoded",
        "ROCOv2_2023_valid_000001": "empty caption in valid_captions.csv",
        "ROCOv2_2023_test_000002": "0 rows of the captions",
    }
    assert found.keys() == parts.keys()
    for key, part in parts.items():
        assert part in found[key]
        assert key in found[key]
    source = Rocov2Source(root)
    good = [record.image_id for split in source.splits() for record in source.read(split) if hasattr(record, "caption")]
    assert good == ["rocov2/ROCOv2_2023_train_000003", "rocov2/ROCOv2_2023_test_000001"]


def test_an_image_in_two_splits_is_a_bad_item(tmp_path):
    captions = {**CAPTIONS, "test": [*CAPTIONS["test"], (FIRST, "Head CT.")]}
    assert list(bad_items(Rocov2Source(write_rocov2(tmp_path, captions)))) == [FIRST]


def test_a_name_that_leaves_the_folder_is_a_bad_item(tmp_path):
    captions = {**CAPTIONS, "test": [*CAPTIONS["test"], ("../secret", "Head CT.")]}
    assert "must lie within" in bad_items(Rocov2Source(write_rocov2(tmp_path, captions)))["../secret"]


def test_a_wrong_root_or_header_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train_captions\.csv does not exist"):
        Rocov2Source(tmp_path)
    root = write_rocov2(tmp_path / "rocov2")
    write_csv(root / "test_captions.csv", ("ID", "text"), [])
    with pytest.raises(ValueError, match="lacks Caption"):
        Rocov2Source(root)
    (root / "valid_images").rename(root / "pictures")
    with pytest.raises(ValueError, match="no folder valid_images or valid"):
        Rocov2Source(root)
