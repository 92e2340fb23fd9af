"""Source `medtrinity`: boxes from file names, on the pixels of the original image; all other names are bad items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from corpus_fixtures import bad_items, paint, painted_box, read_all
from PIL import Image

from regionmed_clip.processing.corpus.sources.medtrinity import ABOUT, MedTrinitySource, open_sources

PREFIX = "_data5_langgao_MedBench_Data_od_dataset_DeepLesion_Images_png_17_Images_png_"
ORIGINALS = {  # path under the folder of images -> size, half-open boxes
    "001087_10_01/184.png": ((60, 40), [(0, 5, 20, 40), (25, 8, 37, 21)]),
    "001087_10_01/185.png": ((30, 50), [(10, 30, 30, 50)]),  # touches the right and the lower border
    "CQ500CT22 CQ500CT22/CT PLAIN THIN/CT000015.png": ((44, 44), [(3, 4, 9, 20)]),
}
NOT_READABLE = (  # names of the issue that is cited, without original and box
    "seg_train_558_a_2-right lung.nii-105.jpg",
    "BraTS-GoAT-01507_0000_y_output-slice119.jpg",
    "59983169626606300641130732593187736_dcqfmb.png",
    "8031efe0-1b5c-11ef-8929-000066532cad",
)


def mangle(path, box, index=None, prefix=PREFIX):
    """The name that MedTrinity gives a box of the original at `path`."""
    x0, y0, x1, y1 = box
    numbers = [*([] if index is None else [index]), x0, y0, x1 - x0, y1 - y0]
    name = f"{prefix}{path.removesuffix('.png').replace('/', '_')}"
    return f"{name}__{'_'.join(str(number) for number in numbers)}.jpg"


def entries():
    """One entry of metadata.jsonl per painted box."""
    return [
        {"file_name": mangle(path, box, index=0 if "CQ500" in path else None), "caption": f"Box {number} of {path}."}
        for path, (_, boxes) in ORIGINALS.items()
        for number, box in enumerate(boxes)
    ]


def write_medtrinity(root: Path, made=None, images="images") -> Path:
    """A folder with metadata.jsonl and the originals, every box painted."""
    root.mkdir(parents=True, exist_ok=True)
    lines = entries() if made is None else made
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (root / "metadata.jsonl").write_text(text)
    for path, (size, boxes) in ORIGINALS.items():
        paint(root / images / path, size, boxes)
    return root


def test_boxes_equal_the_painted_rectangles_of_the_original(tmp_path):
    (source,) = open_sources(write_medtrinity(tmp_path), modality="CT", license="CC0 1.0")
    records = {str(Path(record.image).relative_to(tmp_path / "images")): record for record in read_all(source)}
    assert records.keys() == ORIGINALS.keys()
    for path, record in records.items():
        size, boxes = ORIGINALS[path]
        assert (record.width, record.height, record.modality, record.license) == (*size, "CT", "CC0 1.0")
        assert [region.box for region in record.regions] == boxes
        for index, region in enumerate(record.regions):
            assert region.box == painted_box(record.image, index)
            assert (region.description, region.text_origin) == (f"Box {index} of {path}.", "source")
        assert (record.caption, record.text_origin) == (f"Box 0 of {path}.", "source")
    assert bad_items(source) == {}
    assert not ABOUT.is_verified


def test_a_name_of_the_cited_issue_is_read_to_its_fractions(tmp_path):
    name = f"{PREFIX}001087_10_01_184__8.3207_16.573_17.3433_16.83699999999999.jpg"
    (record,) = read_all(MedTrinitySource(write_medtrinity(tmp_path, [{"file_name": name, "caption": "A lesion."}])))
    assert record.regions[0].box == (8.3207, 16.573, 25.664, 33.41)


def test_names_without_original_and_box_are_bad_items(tmp_path):
    made = [*({"file_name": name, "caption": "A lesion."} for name in NOT_READABLE), *entries()]
    source = MedTrinitySource(write_medtrinity(tmp_path, made))
    found = bad_items(source)
    assert list(found) == [f"metadata.jsonl:{line} {name}" for line, name in enumerate(NOT_READABLE, start=1)]
    for name, reason in zip(NOT_READABLE, found.values()):
        assert name in reason
        assert "carries no original path and box" in reason
    assert len(read_all(source)) == len(ORIGINALS)


def test_malformed_lines_and_boxes_are_bad_items_and_the_others_come(tmp_path):
    inverted = mangle("001087_10_01/185.png", (9, 9, 4, 12))
    missing = mangle("001088_01_01/003.png", (1, 2, 3, 4))
    outside = mangle("001087_10_01/184.png", (50, 2, 90, 20))
    made = [
        entries()[3],
        '{"file_name": "cut',
        {"caption": "of what?"},
        "[1, 2]",
        {"file_name": inverted, "caption": "a"},
        {"file_name": missing, "caption": "b"},
        {"file_name": outside, "caption": "c"},
        {"file_name": mangle("002000_01_01/001.png", (1, 2, 3, 4)), "caption": None},
    ]
    source = MedTrinitySource(write_medtrinity(tmp_path, made))
    parts = {
        "metadata.jsonl:2": "no JSON",
        "metadata.jsonl:3": "no file_name or id",
        "metadata.jsonl:4": "no file_name or id",
        f"{PREFIX}001087_10_01_185": "x1 must exceed x0",
        f"{PREFIX}001088_01_01_003": "no image under",
        f"{PREFIX}001087_10_01_184": "must lie within",
        f"{PREFIX}002000_01_01_001": "caption is None",
    }
    found = bad_items(source)
    assert found.keys() == parts.keys()
    for key, part in parts.items():
        assert part in found[key]
    (good,) = [item for split in source.splits() for item in source.read(split) if hasattr(item, "caption")]
    assert good.regions[0].box == (3, 4, 9, 20)


def test_a_bare_file_name_is_not_taken_for_the_original(tmp_path):
    paint(tmp_path / "flat/184.png", (60, 40))  # of whichever patient
    source = MedTrinitySource(write_medtrinity(tmp_path, entries()[:1]), images="flat")
    (reason,) = bad_items(source).values()
    assert "two parts or more" in reason


def test_the_longer_of_two_matches_is_the_original_and_equal_ones_are_refused(tmp_path):
    root = write_medtrinity(tmp_path, entries()[:1])
    paint(root / "images/01/184.png", (60, 40))
    assert read_all(MedTrinitySource(root))[0].image.endswith("001087_10_01/184.png")
    paint(root / "images/001087/10_01/184.png", (60, 40))
    (reason,) = bad_items(MedTrinitySource(root)).values()
    assert "all fit" in reason


def test_the_patient_option_gives_patients_and_keeps_them_in_one_split(tmp_path):
    paths = [f"{patient:06d}_01_01/{index:03d}.png" for patient in range(12) for index in range(3)]
    root = write_medtrinity(tmp_path, [{"id": mangle(path, (1, 2, 3, 4)), "caption": "A box."} for path in paths])
    for path in paths:
        paint(root / "images" / path, (20, 30), [(1, 2, 3, 4)])
    for options in ({"patient": r"(\d{6})_\d+_\d+_\d+$"}, {}):
        records = read_all(MedTrinitySource(root, **options))
        splits_of_series: dict[str, set[str]] = {}
        for record in records:
            series = Path(record.image).parent.name
            splits_of_series.setdefault(series, set()).add(record.split)
            assert record.patient_id == (series[:6] if options else None)
        assert len(records) == 36
        assert all(len(splits) == 1 for splits in splits_of_series.values())
    assert len(bad_items(MedTrinitySource(root, patient="(nobody)"))) == 36


def test_the_window_holds_for_images_of_16_bits_only(tmp_path):
    root = write_medtrinity(tmp_path, entries()[1:3])
    Image.fromarray(np.full((50, 30), 33000, dtype=np.uint16)).save(root / "images/001087_10_01/185.png")
    source = MedTrinitySource(root, window="32593:32993")
    windows = {Path(record.image).name: record.window for record in read_all(source)}
    assert windows == {"184.png": None, "185.png": (32593.0, 32993.0)}


def test_an_option_that_changes_the_records_changes_the_revision(tmp_path):
    root = write_medtrinity(tmp_path)
    assert (
        MedTrinitySource(root).revision
        == MedTrinitySource(root).revision
        != MedTrinitySource(root, modality="CT").revision
    )


def test_a_wrong_root_or_option_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no metadata\.jsonl"):
        MedTrinitySource(tmp_path)
    root = write_medtrinity(tmp_path / "medtrinity", images="originals")
    with pytest.raises(ValueError, match="images is"):
        MedTrinitySource(root)
    for options, part in (
        ({"window": "5"}, "window"),
        ({"window": "5:4"}, "LOW below HIGH"),
        ({"patient": "("}, "no regular expression"),
        ({"patient": "x"}, "one group"),
    ):
        with pytest.raises(ValueError, match=part):
            MedTrinitySource(root, images="originals", **options)
