"""Source `medtrinity`: MedTrinity-25M where a file name carries the original image and the box; pixels of the original.

The layout is UNVERIFIED: no document that explains the names was found. Their form is seen in names, here shortened,
that https://github.com/UCSC-VLAA/MedTrinity-25M/issues/33 lists:
    _data5_..._DeepLesion_Images_png_17_Images_png_001087_10_01_184__98.3207_236.573_17.3433_16.83699999999999.jpg
    _data2_..._bhx-brain-bounding-box_CQ500-CT-22_..._CT PLAIN THIN_CT000015__0_135_228_61_55.jpg
that is: the path of the original image with "/" written as "_" and without suffix, "__", at times a number, then four
numbers. They are read as x_y_width_height in pixels of the original: the last two have the digits of differences of
DeepLesion's corners (which count from 1, so boxes of DeepLesion may lie one pixel too far right and down).
metadata.jsonl is read as the Hub's image folders have it: "file_name" (or "id") and "caption".

MedTrinity's own images have the box drawn into the pixels, so they are never read: a record takes the original from the
folder `images`, whose files must end the path in the name by two parts at least ("001087_10_01/184.png"). Names without
box are bad items. The captions are MedTrinity's, written by a language model.
"""

from __future__ import annotations

import hashlib
import json
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
from regionmed_clip.processing.corpus.sources.jsonl import UNKNOWN_MODALITY
from regionmed_clip.processing.corpus.sources.jsonl_fields import UNKNOWN_LICENSE
from regionmed_clip.processing.corpus.sources.source_files import (
    IMAGE_SUFFIXES,
    ImageFile,
    fit_box,
    hash_of_files,
    open_image_file,
    parse_number,
    path_inside,
)
from regionmed_clip.processing.corpus.splits import split_by_hash

ABOUT = SourceAbout(
    name="medtrinity",
    title="MedTrinity-25M, items whose names carry a box",
    license=UNKNOWN_LICENSE,
    access="https://huggingface.co/datasets/UCSC-VLAA/MedTrinity-25M (gated), and the original images from their own "
    "source, whose licence holds for them",
    layout="metadata.jsonl with file_name (or id) and caption, and a folder of the ORIGINAL images of one source",
    layout_url=None,
    options={
        "images": "folder of the original images, absolute or within the root (default: images)",
        "modality": f"what the originals are, such as CT (default: {UNKNOWN_MODALITY})",
        "license": f"licence of originals and captions as you know it (default: {UNKNOWN_LICENSE})",
        "window": "LOW:HIGH in stored values, how originals of more than 8 bits are shown (default: their whole range)",
        "patient": "a regular expression without comma whose one group, searched in an image's key, is the patient, "
        "e.g. ([0-9]{6})_[0-9]+_[0-9]+_[0-9]+$ for DeepLesion (default: none; images are then split by their key up to "
        "its last underscore)",
    },
)
METADATA_NAME = "metadata.jsonl"
FINDING = "region of interest"  # the names do not say what a box shows, the caption does
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_NAME = re.compile(rf"(?P<path>.+)__(?:\d+_)?(?P<box>{_NUMBER}(?:_{_NUMBER}){{3}})\.(?:jpg|jpeg|png)", re.IGNORECASE)


class MedTrinitySource(IndexedSource):
    """The original images of one source with the boxes and captions of MedTrinity-25M.

    Args:
        root: the folder of metadata.jsonl.
        index_path: see IndexedSource.
        images, modality, license, window, patient: see ABOUT.options.

    Raises:
        ValueError: metadata.jsonl or the folder of images is missing, or an option cannot be read.
    """

    about = ABOUT

    def __init__(
        self,
        root: str | Path,
        *,
        index_path: Path | None = None,
        images: str = "images",
        modality: str = UNKNOWN_MODALITY,
        license: str = UNKNOWN_LICENSE,
        window: str | None = None,
        patient: str | None = None,
    ) -> None:
        self.images = (Path(root) / images).resolve()
        self.modality = modality
        self._license = license
        self.window = None if window is None else _parse_window(window)
        self.patient_pattern = None if patient is None else _parse_pattern(patient)
        super().__init__(root, index_path=index_path)

    @property
    def license(self) -> str:
        """Licence of the source as the option tells it."""
        return self._license

    def check_layout(self) -> None:
        """Nothing; raises ValueError where metadata.jsonl or the folder of the original images is missing."""
        if not (self.root / METADATA_NAME).is_file():
            raise ValueError(
                f"{self.root} has no {METADATA_NAME}; the root holds {ABOUT.layout}. Check the root, or get the data: "
                f"{ABOUT.access}"
            )
        if not self.images.is_dir():
            raise ValueError(
                f"medtrinity: images is {str(self.images)!r}, no folder; it holds the original images, since "
                "MedTrinity's have boxes drawn into them. Give images=FOLDER."
            )

    def rows(self) -> Iterator[Row | BadRow]:
        """Every box with its caption and the original's path as the name has it; all other names as bad rows."""
        with (self.root / METADATA_NAME).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _read_line(f"{METADATA_NAME}:{number}", line)

    def record(self, item: Item) -> StudyRecord:
        """The record of an original image with all its boxes; ValueError where it is not among the images."""
        relative = _find_original(self.images, item.key)
        if relative is None:
            raise ValueError(
                f"{item.key}: no image under {self.images} ends this path by two parts or more, such as "
                "001087_10_01/184.png; the original image is needed. Add it, or name the folder above as images."
            )
        image = self._open(path_inside(self.images, str(relative)))
        regions = [
            RegionRecord(
                fit_box(_corners(row["box"]), image.width, image.height),
                FINDING,
                description=row["caption"],
                text_origin="source",
            )
            for row in item.rows
        ]
        return self.study(item, image, modality=self.modality, regions=regions, caption=item.rows[0]["caption"])

    def patient_of(self, item: Item) -> str | None:
        """What the option `patient` finds in the path; ValueError where it finds nothing."""
        if self.patient_pattern is None:
            return None
        found = self.patient_pattern.search(item.key)
        if found is None or not found.group(1):
            raise ValueError(
                f"{item.key}: patient={self.patient_pattern.pattern!r} finds nothing in it; every image needs its "
                "patient, or its split is unknown. Correct the option."
            )
        return found.group(1)

    def split_of(self, item: Item) -> str | None:
        """By the path up to its last underscore, so that slices of a series stay together; None: by the patient."""
        return None if self.patient_pattern else split_by_hash(self.name, item.key.rpartition("_")[0])

    def find_revision(self) -> str:
        """ "25M-" and a hash of metadata.jsonl and of the options that change the records."""
        names = hash_of_files(self.root, [self.root / METADATA_NAME])
        patient = self.patient_pattern and self.patient_pattern.pattern
        options = json.dumps([self.modality, self.license, self.window, patient])
        return f"25M-{hashlib.sha256(f'{names} {options}'.encode()).hexdigest()[:12]}"

    def _open(self, path: Path) -> ImageFile:
        """The image at `path`, with the window of the option where it has more than 8 bits."""
        image = open_image_file(path)
        if self.window is None:
            return image
        with Image.open(path) as file:
            return replace(image, window=self.window) if file.mode.startswith("I") else image


open_sources = MedTrinitySource.open


def _read_line(place: str, line: bytes) -> Row | BadRow:
    """The box of a line of metadata.jsonl under the path of its original, or why it gives none."""
    try:
        entry = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both
        return BadRow(place, f"{place} is no JSON ({error}); a line holds one object. Fetch the file again.")
    name: Any = (entry.get("file_name") or entry.get("id")) if isinstance(entry, dict) else None
    if not isinstance(name, str):
        return BadRow(place, f"{place} has no file_name or id that is a text; it names the image. Correct it.")
    found = _NAME.fullmatch(name.rpartition("/")[2])
    if found is None:
        return BadRow(
            f"{place} {name}",
            f"{place}: {name!r} carries no original path and box (PATH__X_Y_WIDTH_HEIGHT.jpg); only such items can be "
            "read, since MedTrinity's pixels have the box drawn into them. Leave it out.",
        )
    caption = entry.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        return BadRow(found["path"], f"{place}: caption is {caption!r}; every item has a text. Correct it.")
    return Row(found["path"], {"box": found["box"], "caption": caption.strip()})


def _corners(text: str) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1), half-open, of "x_y_width_height" in pixels of the original image."""
    x, y, width, height = (parse_number(part, "a number of the box in the name") for part in text.split("_"))
    return x, y, round(x + width, 4), round(y + height, 4)  # the names have up to 4 decimals before the subtraction


def _find_original(folder: Path, mangled: str) -> Path | None:
    """The path within `folder` of the image that `mangled` ("a_b_c" for "a/b/c.png") names by most of its parts.

    Raises:
        ValueError: several images fit equally well.
    """
    words = mangled.split("_")
    for start in range(len(words) - 1):
        found = sorted(_matches(folder, words[start:], Path()))
        if len(found) > 1:
            raise ValueError(
                f"{mangled}: the images {', '.join(str(path) for path in found)} of {folder} all fit; one must. "
                "Name a folder above as images, or remove the copies."
            )
        if found:
            return found[0]
    return None


def _matches(folder: Path, words: list[str], inside: Path) -> Iterator[Path]:
    """Paths within `folder`, below `inside`, whose parts joined by underscores are `words`, the suffix aside."""
    if inside.parts:  # a bare file name such as "184" would fit the images of many patients
        last = inside / "_".join(words)
        paths = (last.with_name(f"{last.name}{suffix}") for suffix in IMAGE_SUFFIXES)
        yield from (path for path in paths if (folder / path).is_file())
    for stop in range(1, len(words)):
        part = "_".join(words[:stop])
        if part not in ("", ".", "..") and (folder / inside / part).is_dir():
            yield from _matches(folder, words[stop:], inside / part)


def _parse_window(text: str) -> tuple[float, float]:
    """(low, high) of "LOW:HIGH"; ValueError where it is no rising pair of numbers."""
    low, _, high = text.partition(":")
    window = parse_number(low, "window"), parse_number(high, "window")
    if window[0] >= window[1]:
        raise ValueError(f"medtrinity: window is {text!r}; it must be LOW:HIGH with LOW below HIGH. Correct it.")
    return window


def _parse_pattern(text: str) -> re.Pattern[str]:
    """The regular expression in `text`; ValueError where it is none with just one group."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"medtrinity: patient is {text!r}, no regular expression ({error}). Correct it.") from error
    if pattern.groups != 1:
        raise ValueError(f"medtrinity: patient is {text!r}; it must have one group. Put the patient in parentheses.")
    return pattern
