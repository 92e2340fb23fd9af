"""Source `jsonl`: a folder with annotations.jsonl, images/ and, optionally, masks/ and SOURCE.md.

A row: {"image", "width", "height", "boxes_xyxy" (pixels, half-open), "labels", "caption", "qa", "patient_id",
"mask"?, "split"?, "modality"?, "meta"?}. Texts are by template from the labels unless a row brings its own caption; a
row without labels says what it shows and never that it is normal. Where a box lies is not put into words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from regionmed_clip.processing.corpus.records import MaskRle, RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import Source, SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.jsonl_fields import (
    parse_row,
    read_boxes,
    read_caption,
    read_findings,
    read_license,
    read_modality,
    read_patient_id,
    read_questions,
    read_side,
    read_split,
)
from regionmed_clip.processing.corpus.sources.source_files import open_image_file, path_inside
from regionmed_clip.processing.corpus.splits import SplitsInOrder

ANNOTATIONS_NAME, ABOUT_FILE = "annotations.jsonl", "SOURCE.md"
ANATOMY_OF_ORGAN = {"abd": "abdomen"}  # meta.image_organ of VQA-RAD; other organs in lower case
MIXED_MODALITY, UNKNOWN_MODALITY = "radiology image", "medical image"

ABOUT = SourceAbout(
    name="jsonl",
    title="source folders in this project's own format",
    license="as the SOURCE.md of each folder says",
    access="written by whoever converts a data set; docs/data_contract.md describes a row",
    layout="annotations.jsonl, images/ and, where there are any, masks/ and SOURCE.md; or several such folders",
    layout_url="docs/data_contract.md",
    options={"masks": "false leaves the mask files out (default: true)"},
)


class JsonlSource(IndexedSource):
    """Records of one jsonl folder; rows are indexed at opening, read and checked when asked for.

    Args:
        folder: the source folder; its name becomes the name of the source.
        with_masks: also read the mask files into `RegionRecord.mask_rle`.
        is_strict: refuse the folder for a line that is no row, two lines with one image, an unknown split; else such
            lines are `bad_items`.
        index_folder: where the index of the rows is kept, or is found again; None: a temporary file.

    Attributes:
        notes: what SOURCE.md says (attribution, citation, what was changed), without its headings; "" without one.

    Raises:
        ValueError: no annotations.jsonl or no row in it; what `is_strict` refuses. `records` raises it for a bad row.
            Messages name file and line, value, rule and way out.
    """

    about: ClassVar[SourceAbout] = ABOUT

    def __init__(
        self,
        folder: str | Path,
        *,
        with_masks: bool = False,
        is_strict: bool = True,
        index_folder: Path | None = None,
    ) -> None:
        self.path = Path(folder).resolve() / ANNOTATIONS_NAME
        self.with_masks = with_masks
        self.check_layout()
        self._hash = _hash_of_file(self.path)
        place = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]
        index_path = None if index_folder is None else index_folder / f"jsonl-{place}-{self._hash}.sqlite"
        about_path = self.path.with_name(ABOUT_FILE)
        about = about_path.read_text(encoding="utf-8") if about_path.is_file() else ""
        self._license, self._modality = read_license(about), read_modality(about)
        self.notes = "\n".join(line for line in about.splitlines() if not line.startswith("#")).strip()
        self._splits = SplitsInOrder(self.name)  # needed while the index is written
        self._labels: set[str] = set()  # of all rows, while the index is written
        super().__init__(folder, index_path=index_path)
        self._splits = SplitsInOrder(self.name)
        first_bad = next(self.bad_items(), None)
        if is_strict and first_bad is not None:
            raise ValueError(first_bad.reason)
        if first_bad is None and not self.splits():
            raise ValueError(
                f"{self.path} holds no row; a source needs at least one image. Add rows or drop the folder."
            )

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.parent.name

    @property
    def license(self) -> str:
        """The licence that SOURCE.md names, or "unknown"."""
        return self._license

    def check_layout(self) -> None:
        """Nothing; raises ValueError where the folder has no annotations.jsonl."""
        if not self.path.is_file():
            raise ValueError(
                f"{self.path.parent} has no {ANNOTATIONS_NAME}; a jsonl source is a folder with that file and images/. "
                "Name a source folder, or a folder of source folders."
            )

    def find_revision(self) -> str:
        """The first 12 hex digits of the sha256 of annotations.jsonl."""
        return self._hash

    def find_looked_for(self) -> Iterable[str]:
        """The findings of all labels in the file: what one image is labelled with is looked for in each."""
        return self._labels

    def rows(self) -> Iterator[Row | BadRow]:
        """Where each row stands in the file, with its own split and its patient."""
        offset = 0
        with self.path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield self._index_row(raw, line, offset)
                offset += len(raw)

    def _index_row(self, raw: bytes, line: int, offset: int) -> Row | BadRow:
        """What the index holds of one line."""
        key = f"{ANNOTATIONS_NAME}:{line}"
        try:
            row = parse_row(raw)
            key = row["image"]
            split, patient_id = read_split(row), read_patient_id(row)
        except ValueError as error:
            return BadRow(key, f"{self.path}:{line}: {error}")
        number = self._splits.add(split, patient_id)
        self._labels.update(read_findings(row))
        extent = {"line": line, "offset": offset, "length": len(raw)}
        return Row(key, {"number": number, "patient_id": patient_id, **extent})

    def _place(self, item: Item) -> tuple[str, str | None]:
        """Split and patient of an item; ValueError for a second row with its image, which could straddle two splits."""
        first, *others = item.rows
        if others:
            raise ValueError(
                f"{self.path}:{others[0]['line']}: {item.key!r} is already in line {first['line']}; an image has one "
                "row. Merge the rows."
            )
        return self._splits.split_of(first["number"]), first["patient_id"]

    def record(self, item: Item) -> StudyRecord:
        """The checked record of a row; ValueError names file and line."""
        (extent,) = item.rows
        with self.path.open("rb") as file:
            file.seek(extent["offset"])
            raw = file.read(extent["length"])
        try:
            record = self._record(parse_row(raw), item)
            record.check()
        except ValueError as error:
            raise ValueError(f"{self.path}:{extent['line']}: {error}") from error
        return record

    def _record(self, row: dict[str, Any], item: Item) -> StudyRecord:
        """The record of a row, before its own check."""
        image = open_image_file(self._inside(row["image"]), (read_side(row, "width"), read_side(row, "height")))
        modality, anatomy = self._modality_of(row)
        return self.study(
            item,
            image,
            modality=modality,
            anatomy=anatomy,
            regions=self._regions(row),
            qa=read_questions(row),
            caption=read_caption(row),
        )

    def _modality_of(self, row: dict[str, Any]) -> tuple[str, str | None]:
        """Modality and anatomy of a row: its own; an organ per row means that a source mixes modalities."""
        modality = row.get("modality")
        if modality is not None and not isinstance(modality, str):
            raise ValueError(f"{row['image']}: modality is {modality!r}; it must be a text or null. Correct it.")
        if modality:
            return modality, None
        meta = row.get("meta") or {}
        if not isinstance(meta, dict):
            raise ValueError(f"{row['image']}: meta is {meta!r}; it must be an object or null. Correct it.")
        organ = str(meta.get("image_organ") or "").lower()
        if organ:
            return MIXED_MODALITY, ANATOMY_OF_ORGAN.get(organ, organ)
        return self._modality or UNKNOWN_MODALITY, None

    def _regions(self, row: dict[str, Any]) -> list[RegionRecord]:
        """The regions of a row, their texts still to be written."""
        regions = [RegionRecord(box, finding) for box, finding in read_boxes(row)]
        if self.with_masks and regions and row.get("mask") is not None:
            masks = self._masks(row, len(regions))
            regions = [replace(region, mask_rle=mask) for region, mask in zip(regions, masks, strict=True)]
        return regions

    def _masks(self, row: dict[str, Any], num_regions: int) -> list[MaskRle]:
        """One mask per region from the row's mask file, in which value k marks region k - 1."""
        path = self._inside(row["mask"])
        try:
            with Image.open(path) as image:
                values = np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be decoded ({error}); a mask is a whole PNG. Fetch it again.") from error
        if values.shape != (row["height"], row["width"]):
            raise ValueError(
                f"{path} has shape {values.shape}; a mask must be (height, width) = {(row['height'], row['width'])} "
                "like its image. Write it again as a single-channel PNG."
            )
        masks = MaskRle.from_labels(values)
        missing = [label for label in range(1, num_regions + 1) if label not in masks]
        if missing:
            raise ValueError(
                f"{path} lacks the values {missing[:5]}; value k marks box k - 1, so 1 to {num_regions} must occur. "
                "Write the mask again (16 bits above 255 regions)."
            )
        return [masks[label] for label in range(1, num_regions + 1)]

    def _inside(self, name: Any) -> Path:
        """The path of a file of this source; ValueError if it is missing or lies outside the folder."""
        if not isinstance(name, str) or "\0" in name:
            raise ValueError(f"{name!r} is no path; a file of a row is named by a text. Correct the row.")
        path = path_inside(self.root, name)
        if not path.is_file():
            raise ValueError(
                f"{name!r} does not exist; every row needs its file under {self.root}. Restore it or drop the row."
            )
        return path


def open_sources(root: str | Path, *, index_folder: Path | None = None, masks: str = "true") -> list[Source]:
    """The sources at `root` for building a corpus: bad rows are items, masks are read unless `masks` is "false"."""
    if masks not in ("true", "false"):
        raise ValueError(f"Source jsonl: masks is {masks!r}; it must be true or false. Correct the option.")
    return list(open_jsonl(root, with_masks=masks == "true", is_strict=False, index_folder=index_folder))


def open_jsonl(
    folder: str | Path, *, with_masks: bool = False, is_strict: bool = True, index_folder: Path | None = None
) -> list[JsonlSource]:
    """The sources of `folder`: itself if it holds annotations.jsonl, else its sub-folders that do, sorted by name."""
    folder = Path(folder)
    if (folder / ANNOTATIONS_NAME).is_file():
        found = [folder]
    else:
        found = sorted(path.parent for path in folder.glob(f"*/{ANNOTATIONS_NAME}"))
    if not found:
        raise ValueError(
            f"{str(folder)!r} holds no {ANNOTATIONS_NAME}, nor does a folder in it; jsonl:FOLDER takes a source folder "
            "or a folder of source folders. Check the path (it is relative to the working directory)."
        )
    options = {"with_masks": with_masks, "is_strict": is_strict, "index_folder": index_folder}
    return [JsonlSource(path, **options) for path in found]


def _hash_of_file(path: Path) -> str:
    """The first 12 hex digits of the sha256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
