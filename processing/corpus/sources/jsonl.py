"""Source `jsonl`: a folder with annotations.jsonl, images/ and, optionally, masks/ and SOURCE.md.

A row: {"image", "width", "height", "boxes_xyxy" (pixels, half-open), "labels", "caption", "qa", "patient_id",
"mask"?, "split"?, "modality"?, "meta"?}. Texts are by template from the labels unless a row brings its own caption; a
row without labels says what it shows and never that it is normal. Where a box lies is not put into words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regionmed_clip.processing.corpus.captions import describe_region, write_caption, write_findings, write_impression
from regionmed_clip.processing.corpus.records import SPLITS, MaskRle, RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources.jsonl_fields import (
    fill_splits,
    parse_row,
    read_boxes,
    read_caption,
    read_license,
    read_modality,
    read_patient_id,
    read_questions,
    read_side,
    read_split,
    verify_image,
)

ANNOTATIONS_NAME = "annotations.jsonl"
ANATOMY_OF_ORGAN = {"abd": "abdomen"}  # meta.image_organ of VQA-RAD; other organs in lower case
MIXED_MODALITY, UNKNOWN_MODALITY = "radiology image", "medical image"


@dataclass(frozen=True, slots=True)
class _Line:
    """Where one row stands in the file: its number from 1 and its extent in bytes."""

    number: int
    offset: int
    length: int


class JsonlSource:
    """Records of one jsonl folder; rows are indexed at opening, read and checked when asked for.

    Args:
        folder: the source folder; its name becomes the name of the source.
        with_masks: also read the mask files into `RegionRecord.mask_rle` (slow where an image has many regions).

    Raises:
        ValueError: no annotations.jsonl or no row in it, a line that is no row, two lines with one image, an unknown
            split. `records` raises it for a bad row. Messages name file and line, value, rule and way out.
    """

    def __init__(self, folder: str | Path, *, with_masks: bool = False) -> None:
        self.folder = Path(folder).resolve()
        self.path = self.folder / ANNOTATIONS_NAME
        if not self.path.is_file():
            raise ValueError(
                f"{self.folder} has no {ANNOTATIONS_NAME}; a jsonl source is a folder with that file and images/. "
                "Name a source folder, or a folder of source folders."
            )
        about_path = self.folder / "SOURCE.md"
        about = about_path.read_text(encoding="utf-8") if about_path.is_file() else ""
        self.name = self.folder.name
        self.license = read_license(about)
        self.modality = read_modality(about)
        self.with_masks = with_masks
        self._lines: dict[str, list[_Line]] = {}  # by split
        self._sha256_of_line: dict[int, str] = {}  # of the images verified so far: a second pass costs no hashing
        self.revision = self._index_rows()

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one row, in the order train, validation, test."""
        return tuple(split for split in SPLITS if split in self._lines)

    def num_records(self, split: str) -> int:
        """Number of rows of `split`; ValueError for a split that this source lacks."""
        return len(self._lines_of(split))

    def records(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord]:
        """Checked records [start, stop) of `split` in file order, images as paths; ValueError names file and line."""
        with self.path.open("rb") as file:
            for line in self._lines_of(split)[start:stop]:
                file.seek(line.offset)
                row = json.loads(file.read(line.length))
                try:
                    record = self._record(row, line.number, split)
                    record.check()
                except ValueError as error:
                    raise ValueError(f"{self.path}:{line.number}: {error}") from error
                yield record

    def _lines_of(self, split: str) -> list[_Line]:
        if split not in self._lines:
            raise ValueError(
                f"{self.name} has no split {split!r}; it has {', '.join(self.splits())}. Ask for one of these."
            )
        return self._lines[split]

    def _index_rows(self) -> str:
        """The revision: the first 12 hex digits of the file's sha256; on the way it fills the line index by split."""
        digest = hashlib.sha256()
        lines: list[_Line] = []
        splits: list[str | None] = []
        patient_ids: list[str | None] = []
        number_of_image: dict[str, int] = {}
        offset = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                digest.update(raw)
                if raw.strip():
                    try:
                        row = parse_row(raw)
                        _note_image(number_of_image, row["image"], number)
                        splits.append(read_split(row))
                        patient_ids.append(read_patient_id(row))
                    except ValueError as error:
                        raise ValueError(f"{self.path}:{number}: {error}") from error
                    lines.append(_Line(number, offset, len(raw)))
                offset += len(raw)
        if not lines:
            raise ValueError(
                f"{self.path} holds no row; a source needs at least one image. Add rows or drop the folder."
            )
        for line, split in zip(lines, fill_splits(splits, patient_ids), strict=True):
            self._lines.setdefault(split, []).append(line)
        return digest.hexdigest()[:12]

    def _record(self, row: dict[str, Any], line_number: int, split: str) -> StudyRecord:
        """The record of a row, before its own check."""
        path = self._inside(row["image"])
        width, height = read_side(row, "width"), read_side(row, "height")
        if line_number not in self._sha256_of_line:
            self._sha256_of_line[line_number] = verify_image(path, width, height)
        regions = self._regions(row)
        modality, anatomy = self._modality_of(row)
        own_caption = read_caption(row)
        return StudyRecord(
            image_id=f"{self.name}/{row['image']}",
            image=str(path),
            width=width,
            height=height,
            modality=modality,
            anatomy=anatomy,
            view=None,
            caption=own_caption or write_caption(modality, None, regions, anatomy=anatomy),
            findings="" if own_caption else write_findings(regions),
            impression="" if own_caption else write_impression(regions),
            regions=regions,
            qa=read_questions(row),
            patient_id=read_patient_id(row),
            split=split,
            source=self.name,
            source_revision=self.revision,
            license=self.license,
            sha256=self._sha256_of_line[line_number],
            text_origin="source" if own_caption else "template",
        )

    def _modality_of(self, row: dict[str, Any]) -> tuple[str, str | None]:
        """Modality and anatomy of a row: its own; an organ per row means that a source mixes modalities."""
        if row.get("modality"):
            return str(row["modality"]), None
        meta = row.get("meta") or {}
        if not isinstance(meta, dict):
            raise ValueError(f"{row['image']}: meta is {meta!r}; it must be an object or null. Correct it.")
        organ = str(meta.get("image_organ") or "").lower()
        if organ:
            return MIXED_MODALITY, ANATOMY_OF_ORGAN.get(organ, organ)
        return self.modality or UNKNOWN_MODALITY, None

    def _regions(self, row: dict[str, Any]) -> tuple[RegionRecord, ...]:
        """The regions of a row; each text is the finding alone."""
        regions = [RegionRecord(box, finding) for box, finding in read_boxes(row)]
        regions = [replace(region, description=describe_region(region)) for region in regions]
        if self.with_masks and regions and row.get("mask") is not None:
            masks = self._masks(row, len(regions))
            regions = [replace(region, mask_rle=mask) for region, mask in zip(regions, masks, strict=True)]
        return tuple(regions)

    def _masks(self, row: dict[str, Any], num_regions: int) -> list[MaskRle]:
        """One mask per region from the row's mask file, in which value k marks region k - 1."""
        path = self._inside(row["mask"])
        try:
            with Image.open(path) as image:
                values = np.asarray(image)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be decoded ({error}); a mask is a whole PNG. Fetch it again.") from error
        if values.shape != (row["height"], row["width"]):
            raise ValueError(
                f"{path} has shape {values.shape}; a mask must be (height, width) = {(row['height'], row['width'])} "
                "like its image. Write it again as a single-channel PNG."
            )
        missing = sorted(set(range(1, num_regions + 1)) - set(np.unique(values).tolist()))
        if missing:
            raise ValueError(
                f"{path} lacks the values {missing[:5]}; value k marks box k - 1, so 1 to {num_regions} must occur. "
                "Write the mask again (16 bits above 255 regions)."
            )
        return [MaskRle.from_array(values == index + 1) for index in range(num_regions)]

    def _inside(self, name: str) -> Path:
        """The path of a file of this source; ValueError if it is missing or lies outside the folder."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(
                f"{name!r} leads to {path}; files of a source must lie within {self.folder}, links included. "
                "Copy the file into the folder."
            )
        if not path.is_file():
            raise ValueError(
                f"{name!r} does not exist; every row needs its file under {self.folder}. Restore it or drop the row."
            )
        return path


def open_jsonl(folder: str | Path, *, with_masks: bool = False) -> list[JsonlSource]:
    """The sources of `folder`: itself if it holds annotations.jsonl, else its sub-folders that do, sorted by name."""
    folder = Path(folder)
    if (folder / ANNOTATIONS_NAME).is_file():
        return [JsonlSource(folder, with_masks=with_masks)]
    found = sorted(path.parent for path in folder.glob(f"*/{ANNOTATIONS_NAME}"))
    if not found:
        raise ValueError(
            f"{str(folder)!r} holds no {ANNOTATIONS_NAME}, nor does a folder in it; jsonl:FOLDER takes a source folder "
            "or a folder of source folders. Check the path (it is relative to the working directory)."
        )
    return [JsonlSource(path, with_masks=with_masks) for path in found]


def _note_image(number_of_image: dict[str, int], image: str, number: int) -> None:
    """Nothing; remembers the line of an image and refuses a second line with it, which could straddle two splits."""
    first = number_of_image.setdefault(image, number)
    if first != number:
        raise ValueError(f"{image!r} is already in line {first}; an image has one row. Merge the rows.")
