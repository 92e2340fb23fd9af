"""Source `deeplesion`: DeepLesion, 32,120 axial CT slices with 32,735 lesions boxed from radiologists' bookmarks.

The root holds DL_info.csv and Images_png/<patient>_<study>_<series>/<slice>.png, as the release unpacks. Header,
1-based coordinates, the offset of 32768 and the numbers of the splits are those of the release's own loader:
https://github.com/rsummers11/CADLab/blob/1e9859555cbe06b584d225bc119585cb3333757a/MULAN_universal_lesion_analysis/maskrcnn/data/datasets/DeepLesion.py
https://github.com/rsummers11/CADLab/blob/2905104f1bff9a40c569327019d3b470aef2ac79/LesaNet/load_ct_img.py
and the names of the lesion types are those of
https://github.com/tensorflow/datasets/blob/0438e3f0e29ccd28826b82b42760b320b0e37941/tensorflow_datasets/image/deeplesion.py

The 16-bit PNG files enter as they are; the record's window is the DICOM window of the slice in stored values. Only the
annotated slices are read. A region says "lesion", and where, as coarsely as the type says; types are given for the
validation and test splits alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.source_fields import as_box, get_agreed
from regionmed_clip.processing.corpus.sources.source_files import (
    fit_box,
    hash_of_files,
    open_image_file,
    parse_number,
    path_inside,
    read_csv_rows,
)

ABOUT = SourceAbout(
    name="deeplesion",
    title="DeepLesion (NIH Clinical Center, 2018)",
    license="NIH Clinical Center terms of DeepLesion",
    access="free download at https://nihcc.app.box.com/v/DeepLesion",
    layout="DL_info.csv and Images_png/<patient>_<study>_<series>/<slice>.png (16 bits)",
    layout_url=(
        "https://github.com/rsummers11/CADLab/blob/1e9859555cbe06b584d225bc119585cb3333757a/"
        "MULAN_universal_lesion_analysis/maskrcnn/data/datasets/DeepLesion.py"
    ),
    options={"noisy": "drop (default, as the release's own loader does) or keep lesions marked as possibly noisy"},
)
ANNOTATIONS_NAME, IMAGES_NAME = "DL_info.csv", "Images_png"
COLUMNS = (
    "File_name",
    "Patient_index",
    "Bounding_boxes",
    "Coarse_lesion_type",
    "Possibly_noisy",
    "Image_size",
    "DICOM_windows",
    "Train_Val_Test",
)
STORED_OF_HU = 32768  # stored value = Hounsfield unit + 32768
SPLIT_OF_NUMBER = {"1": "train", "2": "validation", "3": "test"}
ANATOMY_OF_TYPE = {
    "1": "bone",
    "2": "abdomen",
    "3": "mediastinum",
    "4": "liver",
    "5": "lung",
    "6": "kidney",
    "7": "soft tissue",
    "8": "pelvis",
    "-1": None,  # not annotated
}

_FILE_NAME = re.compile(r"(?P<series>\d+_\d+_\d+)_(?P<slice>\d+\.png)")
_16_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class DeepLesionSource(IndexedSource):
    """Records of the key slices of DeepLesion, one for each image.

    Args:
        root: the folder with DL_info.csv and Images_png/.
        index_path: see IndexedSource.
        noisy: "drop" leaves out lesions marked as possibly noisy (and images with no other), "keep" takes them.
    """

    about = ABOUT

    def __init__(self, root: str | Path, *, index_path: Path | None = None, noisy: str = "drop") -> None:
        if noisy not in ("drop", "keep"):
            raise ValueError(f"deeplesion: option noisy is {noisy!r}; it must be drop or keep. Correct it.")
        self._noisy = noisy
        super().__init__(root, index_path=index_path)

    def check_layout(self) -> None:
        """Nothing; raises ValueError where the folder of the images is missing (the CSV file is read at once)."""
        if not (self.root / IMAGES_NAME).is_dir():
            raise ValueError(
                f"{self.root} has no folder {IMAGES_NAME}; the root of deeplesion holds {ABOUT.layout}. "
                "Unpack the images there."
            )

    def rows(self) -> Iterator[Row | BadRow]:
        """A row for every lesion, keyed by its File_name."""
        path = self.root / ANNOTATIONS_NAME
        for line, fields, broken in read_csv_rows(path, COLUMNS):
            where = f"{ANNOTATIONS_NAME}:{line}"
            if fields is None:
                yield BadRow(where, f"{where} {broken}")
                continue
            try:
                if self._noisy == "keep" or not _is_noisy(fields):
                    yield Row(fields["File_name"], _parse_lesion(fields))
            except ValueError as error:
                yield BadRow(fields["File_name"] or where, f"{where}: {error}")

    def split_of(self, item: Item) -> str | None:
        """The split of the release, which keeps patients apart."""
        return get_agreed(item, "split")

    def patient_of(self, item: Item) -> str | None:
        """Patient_index, the release's own pseudonym."""
        return get_agreed(item, "patient")

    def record(self, item: Item) -> StudyRecord:
        """The record of a key slice with all its lesions."""
        width, height = get_agreed(item, "size")
        path = path_inside(self.root, f"{IMAGES_NAME}/{item.rows[0]['image']}")
        file = open_image_file(path, (width, height))
        _check_is_16_bit(path)
        low, high = get_agreed(item, "window_hu")
        image = replace(file, window=(low + STORED_OF_HU, high + STORED_OF_HU))
        regions = [
            RegionRecord(fit_box(as_box(row["box"]), width, height), "lesion", anatomy=row["anatomy"])
            for row in item.rows
        ]
        return self.study(item, image, modality="CT", view="axial", regions=regions)

    def find_revision(self) -> str:
        """A hash of DL_info.csv and what is done with noisy lesions."""
        return f"{hash_of_files(self.root, [self.root / ANNOTATIONS_NAME])}-noisy-{self._noisy}"


open_sources = DeepLesionSource.open


def _parse_lesion(fields: dict[str, str]) -> dict[str, Any]:
    """What the index keeps of a row: image, patient, split, size, window in HU, box in pixels and anatomy."""
    name = _FILE_NAME.fullmatch(fields["File_name"])
    if name is None:
        raise ValueError(
            f"File_name is {fields['File_name']!r}; it must be <patient>_<study>_<series>_<slice>.png, all digits. "
            "Correct or drop the row."
        )
    x0, y0, x1, y1 = _parse_numbers(fields, "Bounding_boxes", 4)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"Bounding_boxes is {fields['Bounding_boxes']!r}; it must be x0, y0, x1, y1 with x1 above x0 and y1 above "
            "y0. Correct or drop the row."
        )
    width, height = _parse_numbers(fields, "Image_size", 2)
    return {
        "image": f"{name['series']}/{name['slice']}",
        "patient": fields["Patient_index"],
        "split": _look_up(fields, "Train_Val_Test", SPLIT_OF_NUMBER),
        "size": [int(width), int(height)],
        "window_hu": _parse_numbers(fields, "DICOM_windows", 2),
        # Pixels count from 1 and both ends belong to the box; ours count from 0 and x1, y1 lie just outside.
        "box": [x0 - 1, y0 - 1, x1, y1],
        "anatomy": _look_up(fields, "Coarse_lesion_type", ANATOMY_OF_TYPE),
    }


def _parse_numbers(fields: dict[str, str], name: str, count: int) -> list[float]:
    """The `count` numbers of a field such as "226.169, 90.0204, 241.252, 111.977"."""
    parts = fields[name].split(",")
    if len(parts) != count:
        raise ValueError(
            f"{name} is {fields[name]!r}; it must be {count} numbers with commas. Correct or drop the row."
        )
    return [parse_number(part, name) for part in parts]


def _look_up(fields: dict[str, str], name: str, meanings: dict[str, Any]) -> Any:
    """What the code in a field means; ValueError for a code that has no meaning."""
    if fields[name] not in meanings:
        raise ValueError(
            f"{name} is {fields[name]!r}; it must be one of {', '.join(meanings)}. Correct or drop the row."
        )
    return meanings[fields[name]]


def _is_noisy(fields: dict[str, str]) -> bool:
    """Whether the release marks the lesion as possibly noisy."""
    return _look_up(fields, "Possibly_noisy", {"0": False, "1": True})


def _check_is_16_bit(path: Path) -> None:
    """Nothing; raises ValueError for an image whose stored values cannot be HU + 32768."""
    with Image.open(path) as image:
        if image.mode not in _16_BIT_MODES:
            raise ValueError(
                f"{path} has mode {image.mode}; DeepLesion's PNG files hold 16-bit values, HU + {STORED_OF_HU}. "
                "Use the release's own files: a converted image has lost its window."
            )
