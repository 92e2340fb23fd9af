"""Source `nih_bbox`: the 984 boxes that radiologists drew on 880 images of NIH ChestX-ray14; other images are left out.

The root holds, as https://nihcc.app.box.com/v/ChestXray-NIHCC gives them,
- BBox_List_2017.csv, whose header "Image Index,Finding Label,Bbox [x,y,w,h],,," is nine fields, "Bbox [x" one of them,
- Data_Entry_2017.csv or Data_Entry_2017_v2020.csv (Image Index, Finding Labels, ..., Patient ID, ..., View Position),
- images/*.png, or images_001/images/*.png to images_012/images/*.png,
- train_val_list.txt and test_list.txt, if there: NIH's split by patient; a hash of the patient draws validation.

The CSV files are read so by `NIH_Dataset` of
https://github.com/mlmed/torchxrayvision/blob/891eae4ce2c99e869072f02e6281eed3cc71cf51/torchxrayvision/datasets.py
which also says that boxes are in pixels of the 1024 x 1024 PNG files, whatever the size of a copy. The header of
Data_Entry_2017_v2020.csv stands at the head of
https://huggingface.co/datasets/alkzar90/NIH-Chest-X-ray-dataset/raw/d444bf39439f4fbfac6922e2472b1bf2554309e7/data/Data_Entry_2017_v2020.csv

"Finding Labels" were mined from the reports; those without a box enter the impression only. No image counts as normal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.captions import write_impression
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.source_files import (
    fit_box,
    hash_of_files,
    open_image_file,
    parse_number,
    path_inside,
    read_csv_rows,
)
from regionmed_clip.processing.corpus.splits import split_by_hash

BOXES_NAME = "BBox_List_2017.csv"
ENTRIES_NAMES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
SPLIT_OF_LIST = {"train_val_list.txt": "train", "test_list.txt": "test"}
ABOUT = SourceAbout(
    name="nih_bbox",
    title="NIH ChestX-ray14 (ChestX-ray8), images with boxes",
    license="NIH Clinical Center: unrestricted use with acknowledgement",
    access="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    layout=(
        f"{BOXES_NAME}, {' or '.join(ENTRIES_NAMES)}, images/*.png or images_001/images/*.png ..., and, if there, "
        f"{' and '.join(SPLIT_OF_LIST)}"
    ),
    layout_url=(
        "https://github.com/mlmed/torchxrayvision/blob/891eae4ce2c99e869072f02e6281eed3cc71cf51/"
        "torchxrayvision/datasets.py"
    ),
    options={},
)
BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")
BOX_FRAME_PX = 1024  # both sides of the images in which the boxes were drawn
FINDING_OF_LABEL = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "pulmonary fibrosis",
    "Hernia": "hernia",
    "Infiltrate": "infiltration",  # so in the list of boxes
    "Infiltration": "infiltration",  # so in the data entry
    "Mass": "mass",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
NO_FINDING = "No Finding"
VIEWS = ("PA", "AP")


class NihBboxSource(IndexedSource):
    """One record per image with a box; see the head of this file."""

    about = ABOUT

    def check_layout(self) -> None:
        """Nothing; raises ValueError where the data entry, all images or one of the two split lists are missing."""
        self._entries_path()
        self.folders = [
            path for path in (self.root / "images", *sorted(self.root.glob("images_*/images"))) if path.is_dir()
        ]
        lists = [name for name in SPLIT_OF_LIST if (self.root / name).is_file()]
        if not self.folders or len(lists) == 1:
            raise ValueError(
                f"{self.root} has {len(self.folders)} folders of images and the split lists {lists}; it must have "
                f"images/ or images_001/images/ ..., and both or none of {', '.join(SPLIT_OF_LIST)}. Complete it or "
                "check the root."
            )
        self.has_splits = bool(lists)

    def rows(self) -> Iterator[Row | BadRow]:
        """A row per box, and per line of the data entry and of the split lists that names an image with a box."""
        boxed = set()  # 880 names in the whole release
        for line, fields, reason in read_csv_rows(
            self.root / BOXES_NAME, ("Image Index", "Finding Label", *BOX_COLUMNS)
        ):
            where = f"{BOXES_NAME}:{line}"
            if fields is None or not fields["Image Index"]:
                yield BadRow(where, reason or "has no Image Index; every row names its image. Correct it.")
                continue
            boxed.add(fields["Image Index"])
            yield _row_or_bad(fields, where, parse_box)
        entries = self._entries_path()
        for line, fields, _ in read_csv_rows(entries, ("Image Index", "Finding Labels", "Patient ID", "View Position")):
            if fields is not None and fields["Image Index"] in boxed:
                yield _row_or_bad(fields, f"{entries.name}:{line}", parse_entry)
        for name, split in SPLIT_OF_LIST.items() if self.has_splits else ():
            with (self.root / name).open(encoding="utf-8") as file:
                yield from (Row(image, {"split": split}) for image in map(str.strip, file) if image in boxed)

    def record(self, item: Item) -> StudyRecord:
        """The record of an image; `impression` also names the mined labels, which have no box."""
        image = open_image_file(self._find_image(item.key))
        if image.width != image.height:
            raise ValueError(
                f"{item.key} is {image.width}x{image.height} pixels; images of this release are square. Fetch it again."
            )
        # x, y, w, h in the frame of 1024 x 1024: x + w lies just outside; a smaller copy shrinks them with it
        scale = image.width / BOX_FRAME_PX
        regions = []
        for row in item.rows:
            if "box" in row:
                x, y, width, height = (value * scale for value in row["box"])
                box = fit_box((x, y, x + width, y + height), image.width, image.height)
                regions.append(RegionRecord(box, row["finding"]))
        entry = self._entry_of(item)
        record = self.study(
            item, image, modality="chest radiograph", anatomy="chest", view=entry["view"], regions=regions
        )
        whole = (0.0, 0.0, float(image.width), float(image.height))
        unboxed = (RegionRecord(whole, finding) for finding in entry["findings"])
        return replace(record, impression=write_impression([*regions, *unboxed]))

    def patient_of(self, item: Item) -> str | None:
        """NIH's number of the patient; see `patient_of_number`."""
        return self._entry_of(item)["patient"]

    def split_of(self, item: Item) -> str | None:
        """NIH's split, where its lists are there, with a tenth of the patients of train_val for validation."""
        if not self.has_splits:
            return None
        splits = {row["split"] for row in item.rows if "split" in row}
        if len(splits) != 1:
            raise ValueError(
                f"{item.key} is in {len(splits)} of {', '.join(SPLIT_OF_LIST)}; an image is in one. Correct the lists."
            )
        is_held_out = split_by_hash(self.name, self._entry_of(item)["patient"]) == "validation"
        return "validation" if splits == {"train"} and is_held_out else splits.pop()

    def find_revision(self) -> str:
        """The release and a hash of the annotation files."""
        lists = [self.root / name for name in SPLIT_OF_LIST if self.has_splits]
        return f"2017 {hash_of_files(self.root, [self.root / BOXES_NAME, self._entries_path(), *lists])}"

    def _entries_path(self) -> Path:
        """The data entry, the newer one where both are there."""
        for name in reversed(ENTRIES_NAMES):
            if (self.root / name).is_file():
                return self.root / name
        raise ValueError(
            f"{self.root} has neither {' nor '.join(ENTRIES_NAMES)}; its layout must be {ABOUT.layout}. Check the root."
        )

    def _entry_of(self, item: Item) -> Mapping[str, Any]:
        """What the data entry says of an image."""
        entries = [row for row in item.rows if "patient" in row]
        if len(entries) != 1:
            raise ValueError(
                f"{item.key} has {len(entries)} rows in {self._entries_path().name}; it must have one. Fetch the "
                "file again."
            )
        return entries[0]

    def _find_image(self, name: str) -> Path:
        """The file of an image, in whichever folder; the first folder's path where it is in none."""
        paths = [path_inside(folder, name) for folder in self.folders]
        return next((path for path in paths if path.is_file()), paths[0])


def parse_box(fields: Mapping[str, str]) -> dict[str, Any]:
    """The finding and its box (x, y, w, h) of a line of the list; ValueError for an unknown label or an empty box."""
    box = [parse_number(fields[name], name) for name in BOX_COLUMNS]
    if box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"the box is {box}; w and h must exceed 0. Correct or drop the row.")
    return {"finding": _finding_of(fields["Finding Label"]), "box": box}


def parse_entry(fields: Mapping[str, str]) -> dict[str, Any]:
    """Patient, view and findings of a line of the data entry; ValueError where one is of another kind."""
    patient, view = fields["Patient ID"], fields["View Position"]
    if not patient.isdecimal() or view not in VIEWS:
        raise ValueError(
            f"Patient ID is {patient!r} and View Position {view!r}; they must be a number and one of "
            f"{', '.join(VIEWS)}. Correct or drop the row."
        )
    labels = [label for label in fields["Finding Labels"].split("|") if label != NO_FINDING]
    return {"patient": patient_of_number(patient), "view": view, "findings": [_finding_of(label) for label in labels]}


def _finding_of(label: str) -> str:
    """The finding that a label names; ValueError for an unknown label."""
    if label not in FINDING_OF_LABEL:
        raise ValueError(
            f"the label is {label!r}; it must be one of {', '.join(FINDING_OF_LABEL)}. Correct or drop the row."
        )
    return FINDING_OF_LABEL[label]


def _row_or_bad(
    fields: Mapping[str, str], where: str, parse: Callable[[Mapping[str, str]], dict[str, Any]]
) -> Row | BadRow:
    """The parsed row of the image that `fields` names, or what is wrong with it."""
    try:
        return Row(fields["Image Index"], parse(fields))
    except ValueError as error:
        return BadRow(fields["Image Index"], f"{where}: {error}")


def patient_of_number(number: str) -> str:
    """The patient of NIH ChestX-ray14 with this number, leading zeros or not: "nih-cxr14:13", in every source."""
    return f"nih-cxr14:{int(number)}"


open_sources = NihBboxSource.open
