"""Source `rocov2`: ROCOv2 radiology, 79,789 figures of open-access articles with their captions and UMLS concepts.

Layout as documented by public pages and loaders:
- the files of the Zenodo record:
  https://github.com/openmedlab/Awesome-Medical-Dataset/blob/53ed534647507d2f4df8cb08e6b1352ea908362b/resources/ROCOV2.md
- columns "ID", "Caption" and "CUIs" (joined by ";"), images SPLIT/ID.jpg:
  https://github.com/Munteanu-Matei/rocov2-medical-vlm/blob/47b302859de063c96d05a217c6414c1520bafed3/qwen3vl_roco_finetune_cui.py
- what the concepts mean, columns "CUI" and "Canonical name":
  https://github.com/sctg-development/ROCOv2-radiology/blob/5e93de596d561ac6dcc496acc17e8efc99f945e2/source_dataset/cui_mapping.csv
license_information.csv with "ID", "PMCID", "Attribution" ("CC BY [...]"), "Link" is read as a stored public loader
reads it; no address of it can be given here, so a licence is taken from it only where Attribution names one.

The caption is the source's. The manual concepts give the modality and, of radiographs, the body part; the automatic
ones, and the manual ones of direction, are not read. There are no boxes and no patient ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from regionmed_clip.processing.corpus.records import StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.jsonl import MIXED_MODALITY
from regionmed_clip.processing.corpus.sources.source_files import (
    hash_of_files,
    open_image_file,
    path_inside,
    read_csv_rows,
)

ABOUT = SourceAbout(
    name="rocov2",
    title="ROCOv2 radiology",
    license="CC BY-NC-SA 4.0",
    access="https://zenodo.org/records/10821435 (unpack the three zip files)",
    layout="{train,valid,test}_captions.csv, *_concepts_manual.csv, the images in *_images/ (or train/, valid/, test/) "
    "and, optionally, license_information.csv",
    layout_url="https://github.com/openmedlab/Awesome-Medical-Dataset/blob/53ed534647507d2f4df8cb08e6b1352ea908362b/"
    "resources/ROCOV2.md",
    options={},
)
SPLIT_OF_FILE = {"train": "train", "valid": "validation", "test": "test"}
LICENSE_FILE = "license_information.csv"
MODALITY_OF_CUI = {  # in the order in which a text names several ("PET/CT")
    "C0032743": "PET",  # Positron-Emission Tomography
    "C0040405": "CT",  # X-Ray Computed Tomography
    "C0024485": "MRI",  # Magnetic Resonance Imaging
    "C0041618": "ultrasound",  # Ultrasonography
    "C0002978": "angiogram",
    "C1306645": "radiograph",  # Plain x-ray
}
ANATOMY_OF_CUI = {
    "C0817096": "chest",
    "C0000726": "abdomen",
    "C0030797": "pelvis",
    "C0037303": "skull",  # Bone structure of cranium
    "C0037949": "spine",  # Vertebral column
    "C1140618": "upper extremity",
    "C0023216": "lower extremity",
    "C0006141": "breast",
}
_LICENSE = re.compile(r"\bCC[ -]BY(?:-[A-Z]{2})*\b(?: \d\.\d)?")


class Rocov2Source(IndexedSource):
    """The figures of a ROCOv2 folder with their captions and, where the licence file is there, their own licences.

    Raises:
        ValueError: a captions or concepts file or an image folder is missing, or a file lacks its columns.
    """

    about = ABOUT

    def check_layout(self) -> None:
        """Nothing; raises ValueError where a file or folder of one of the three splits is missing."""
        for name in SPLIT_OF_FILE:
            for path in (self.root / f"{name}_captions.csv", self.root / f"{name}_concepts_manual.csv"):
                if not path.is_file():
                    raise ValueError(
                        f"{path} does not exist; a ROCOv2 folder holds {ABOUT.layout}. Check the root, or get the "
                        f"data: {ABOUT.access}"
                    )
            self._image_folder(name)

    def rows(self) -> Iterator[Row | BadRow]:
        """A caption row, a concepts row and a licence row of every image; the index joins them."""
        for name in SPLIT_OF_FILE:
            yield from self._read(f"{name}_captions.csv", ("Caption",), file=name)
        for name in SPLIT_OF_FILE:
            yield from self._read(f"{name}_concepts_manual.csv", ("CUIs",))
        if (self.root / LICENSE_FILE).is_file():
            yield from self._read(LICENSE_FILE, ("Attribution",))

    def record(self, item: Item) -> StudyRecord:
        """The record of a figure; ValueError for an unreadable image or an empty caption."""
        name = _one(item, "file")
        caption = _one(item, "Caption")
        if not caption:
            raise ValueError(f"{item.key} has an empty caption in {name}_captions.csv; fill it or drop the row.")
        concepts = [cui.strip() for cui in _all(item, "CUIs", ";")]
        image = open_image_file(path_inside(self._image_folder(name), f"{item.key}.jpg"))
        modality, anatomy = _modality(concepts), _anatomy(concepts)
        record = self.study(item, image, modality=modality, anatomy=anatomy, caption=caption)
        return replace(record, license=_license(_all(item, "Attribution")) or self.license)

    def split_of(self, item: Item) -> str:
        """The split whose captions file names the figure; ValueError where none or several do."""
        return SPLIT_OF_FILE[_one(item, "file")]

    def find_revision(self) -> str:
        """ "v2-" and the hash of all CSV files that are read."""
        names = [f"{name}_{kind}.csv" for name in SPLIT_OF_FILE for kind in ("captions", "concepts_manual")]
        paths = [self.root / name for name in (*names, LICENSE_FILE)]
        return f"v2-{hash_of_files(self.root, [path for path in paths if path.is_file()])}"

    def _read(self, file_name: str, columns: Sequence[str], **fields: str) -> Iterator[Row | BadRow]:
        """The rows of a CSV file by their ID, with `columns` and `fields`."""
        for line, row, reason in read_csv_rows(self.root / file_name, ("ID", *columns)):
            place = f"{file_name}:{line}"
            if row is None:
                yield BadRow(place, f"{place} {reason}")
            elif not row["ID"]:
                yield BadRow(place, f"{place} has an empty ID; it names the image file. Fill it.")
            else:
                yield Row(row["ID"], {**{name: row[name] for name in columns}, **fields})

    def _image_folder(self, name: str) -> Path:
        """The folder of a split's images, as the zip file is unpacked; ValueError where there is none."""
        for folder in (f"{name}_images/{name}", f"{name}_images", name):
            if (self.root / folder).is_dir():
                return self.root / folder
        raise ValueError(f"{self.root} has no folder {name}_images or {name}; unpack {name}_images.zip there.")


open_sources = Rocov2Source.open


def _all(item: Item, column: str, separator: str | None = None) -> list[str]:
    """The values of `column` in the rows of a figure, cut at `separator`."""
    values = [row[column] for row in item.rows if column in row]
    return values if separator is None else [part for value in values for part in value.split(separator)]


def _one(item: Item, column: str) -> str:
    """The value of `column`, which just one row of a figure has; ValueError where none or several do."""
    values = _all(item, column)
    if len(values) != 1:
        raise ValueError(
            f"{item.key} is in {len(values)} rows of the captions files; an image has one caption and one split. "
            "Drop the others, or its concepts and licence rows."
        )
    return values[0]


def _modality(concepts: Sequence[str]) -> str:
    """The modality, or several joined by "/", that the concepts name; a general word where they name none."""
    return "/".join(name for cui, name in MODALITY_OF_CUI.items() if cui in concepts) or MIXED_MODALITY


def _anatomy(concepts: Sequence[str]) -> str | None:
    """The body part, where the concepts name just one."""
    named = [name for cui, name in ANATOMY_OF_CUI.items() if cui in concepts]
    return named[0] if len(named) == 1 else None


def _license(attributions: Sequence[str]) -> str | None:
    """The short name of the licence that an attribution names ("CC BY", "CC BY-NC"), or None."""
    found = _LICENSE.search(attributions[0]) if len(attributions) == 1 else None
    return found.group().replace("CC-BY", "CC BY") if found else None
