"""Tests of the source `deeplesion` on a miniature folder with the header of the release."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from corpus_fixtures import bad_items, painted, painted_box, read_all
from PIL import Image

from regionmed_clip.processing.corpus.sources.deeplesion import ABOUT, DeepLesionSource, open_sources

HEADER = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
).split(",")
SLICES = {  # File_name -> size (width, height), boxes in our frame, split number
    "000001_01_01_109.png": ((60, 40), [(5, 6, 15, 16), (50, 30, 60, 40)], 1),  # the second touches the border
    "000002_03_02_007.png": ((40, 50), [(0, 0, 3, 9)], 2),
    "000004_01_02_011.png": ((32, 32), [(8, 9, 20, 30)], 3),
}


def lesion(name, size, box, split, **changed):
    """A row of DL_info.csv; boxes of the release count pixels from 1 and include both ends."""
    x0, y0, x1, y1 = box
    patient, study, series, key_slice = name.removesuffix(".png").split("_")
    row = {
        "File_name": name,
        "Patient_index": str(int(patient)),
        "Study_index": str(int(study)),
        "Series_ID": str(int(series)),
        "Key_slice_index": str(int(key_slice)),
        "Measurement_coordinates": "233.537, 95.0204, 234.057, 106.977, 231.169, 101.605, 236.252, 101.143",
        "Bounding_boxes": f"{x0 + 1}, {y0 + 1}, {x1}, {y1}",
        "Lesion_diameters_Pixel_": "11.9677, 5.10387",
        "Normalized_lesion_location": "0.44666, 0.283794, 0.434454",
        "Coarse_lesion_type": "5",
        "Possibly_noisy": "0",
        "Slice_range": "103, 115",
        "Spacing_mm_px_": "0.488281, 0.488281, 5",
        "Image_size": f"{size[0]}, {size[1]}",
        "DICOM_windows": "-1350, 150",
        "Patient_gender": "F",
        "Patient_age": "NaN",
        "Train_Val_Test": str(split),
    }
    return row | changed


def write_slice(root, name, size, boxes):
    """The 16-bit PNG of a slice whose painted greys are Hounsfield units, stored with the offset."""
    folder, _, number = name.rpartition("_")
    path = root / "Images_png" / folder / number
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((painted(size, boxes).astype(np.int32) + 32768).astype(np.uint16)).save(path)


def write_table(root, rows, header=HEADER):
    with (root / "DL_info.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def root(tmp_path):
    rows = []
    for name, (size, boxes, split) in SLICES.items():
        write_slice(tmp_path, name, size, boxes)
        rows += [lesion(name, size, box, split) for box in boxes]
    write_table(tmp_path, rows)
    return tmp_path


def add_rows(root, *rows):
    with (root / "DL_info.csv").open("a", newline="") as file:
        csv.DictWriter(file, HEADER).writerows(rows)


def good_records(root):
    source = DeepLesionSource(root)
    return [item for split in source.splits() for item in source.read(split) if hasattr(item, "regions")]


def test_every_box_comes_back_to_the_pixel(root):
    for record in read_all(DeepLesionSource(root)):
        hounsfield = np.asarray(Image.open(record.image)).astype(int) - 32768
        for index, region in enumerate(record.regions):
            assert region.box == painted_box(hounsfield, index)


def test_a_box_between_pixels_keeps_its_fractions(root):
    write_slice(root, "000009_01_01_109.png", (512, 512), [])
    row = lesion("000009_01_01_109.png", (512, 512), (0, 0, 9, 9), 1)
    add_rows(root, row | {"Bounding_boxes": "226.169, 90.0204, 241.252, 111.977"})
    record = next(r for r in read_all(DeepLesionSource(root)) if r.image_id.endswith("000009_01_01_109.png"))
    assert record.regions[0].box == pytest.approx((225.169, 89.0204, 241.252, 111.977))


def test_the_16_bit_file_stays_and_its_window_is_in_stored_values(root):
    record = read_all(DeepLesionSource(root))[0]
    assert record.image == str((root / "Images_png" / "000001_01_01" / "109.png").resolve())
    assert np.asarray(Image.open(record.image)).dtype == np.uint16
    assert record.window == (32768 - 1350, 32768 + 150)


def test_records_have_the_splits_and_patients_of_the_release(root):
    source = DeepLesionSource(root)
    assert source.splits() == ("train", "validation", "test")
    assert [(r.split, r.patient_id) for r in read_all(source)] == [("train", "1"), ("validation", "2"), ("test", "4")]
    assert source.license == ABOUT.license
    assert ABOUT.is_verified


def test_the_rows_of_a_slice_are_the_regions_of_one_record(root):
    records = read_all(DeepLesionSource(root))
    assert [len(record.regions) for record in records] == [2, 1, 1]
    assert records[0].regions[0].description == "lesion in the lung"
    assert records[0].caption == "Axial CT with two lesions in the lung."


@pytest.mark.parametrize(("code", "anatomy"), [("1", "bone"), ("4", "liver"), ("7", "soft tissue"), ("-1", None)])
def test_a_lesion_type_is_an_anatomy(root, code, anatomy):
    write_table(root, [lesion("000004_01_02_011.png", (32, 32), (8, 9, 20, 30), 3, Coarse_lesion_type=code)])
    (record,) = read_all(DeepLesionSource(root))
    assert (record.regions[0].finding, record.regions[0].anatomy) == ("lesion", anatomy)


def test_noisy_lesions_are_dropped_unless_kept(root):
    write_slice(root, "000005_01_01_001.png", (20, 20), [])
    size, _boxes, split = SLICES["000001_01_01_109.png"]
    add_rows(
        root,
        lesion("000001_01_01_109.png", size, (20, 20, 25, 25), split, Possibly_noisy="1"),
        lesion("000005_01_01_001.png", (20, 20), (1, 1, 5, 5), 1, Possibly_noisy="1"),
    )
    dropped, kept = DeepLesionSource(root), DeepLesionSource(root, noisy="keep")
    assert [len(record.regions) for record in read_all(dropped)] == [2, 1, 1]
    assert [len(record.regions) for record in read_all(kept)] == [3, 1, 1, 1]
    assert dropped.revision != kept.revision


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"Bounding_boxes": "5, 5, nan, 9"}, "Bounding_boxes is ' nan'; it must be a finite number"),
        ({"Bounding_boxes": "9, 5, 3, 9"}, "x1 above x0"),
        ({"Bounding_boxes": "5, 5, 9"}, "must be 4 numbers"),
        ({"Bounding_boxes": "5, 5, 900, 9"}, "must lie within the image of 32x32"),
        ({"Coarse_lesion_type": "9"}, "Coarse_lesion_type is '9'"),
        ({"Train_Val_Test": "0"}, "Train_Val_Test is '0'"),
        ({"Possibly_noisy": "maybe"}, "Possibly_noisy is 'maybe'"),
        ({"DICOM_windows": "275, -175"}, "low below high"),
        ({"Image_size": "64, 64"}, "is 32x32 pixels and its row says 64x64"),
    ],
)
def test_a_bad_row_makes_its_slice_bad_and_the_others_still_come(root, changed, said):
    name = "000007_01_01_001.png"
    write_slice(root, name, (32, 32), [])
    add_rows(root, lesion(name, (32, 32), (5, 5, 9, 9), 1, **changed))
    found = bad_items(DeepLesionSource(root))
    assert list(found) == [name]
    assert said in found[name]
    assert len(good_records(root)) == 3


def test_rows_of_one_slice_that_disagree_make_it_bad(root):
    size, boxes, _ = SLICES["000004_01_02_011.png"]
    add_rows(root, lesion("000004_01_02_011.png", size, boxes[0], 3, DICOM_windows="0, 80"))
    assert "its rows have window_hu" in bad_items(DeepLesionSource(root))["000004_01_02_011.png"]


def test_a_truncated_row_and_an_odd_name_are_bad_by_line_and_name(root):
    with (root / "DL_info.csv").open("a") as file:
        file.write("000001_01_01_109.png,1,1\n")
    add_rows(root, lesion("1_2_3_4.png", (9, 9), (1, 1, 2, 2), 1, File_name="slice.png"))
    found = bad_items(DeepLesionSource(root))
    assert "has 3 fields" in found["DL_info.csv:6"]
    assert found["slice.png"].startswith("DL_info.csv:7: File_name is 'slice.png'")


def test_a_missing_and_an_8_bit_image_are_bad_items(root):
    (root / "Images_png" / "000002_03_02" / "007.png").unlink()
    Image.new("L", (32, 32)).save(root / "Images_png" / "000004_01_02" / "011.png")
    found = bad_items(DeepLesionSource(root))
    assert "007.png does not exist" in found["000002_03_02_007.png"]
    assert "16-bit values" in found["000004_01_02_011.png"]
    assert len(good_records(root)) == 1


def test_a_wrong_root_header_or_option_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        DeepLesionSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="noisy is 'some'"):
        DeepLesionSource(root, noisy="some")
    write_table(root, [], [name for name in HEADER if name != "DICOM_windows"])
    with pytest.raises(ValueError, match="lacks DICOM_windows"):
        DeepLesionSource(root)
    (root / "DL_info.csv").unlink()
    with pytest.raises(ValueError, match=r"DL_info\.csv does not exist"):
        DeepLesionSource(root)


def test_a_root_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder Images_png"):
        DeepLesionSource(tmp_path)


def test_an_index_on_disk_gives_the_same_records(root, tmp_path):
    (first,) = open_sources(root, index_folder=tmp_path)
    (again,) = open_sources(str(root), index_folder=tmp_path)
    assert len(list(tmp_path.glob("deeplesion-*.sqlite"))) == 1
    assert read_all(again) == read_all(first)


def test_other_options_mean_another_index_and_another_revision(root, tmp_path):
    (dropped,) = open_sources(root, index_folder=tmp_path)
    (kept,) = open_sources(root, index_folder=tmp_path, noisy="keep")
    assert len(list(tmp_path.glob("deeplesion-*.sqlite"))) == 2
    assert dropped.revision != kept.revision
