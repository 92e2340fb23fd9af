"""Source `coco`: a folder with COCO object-detection JSON files and their images.

Layout, fields (`images`, `annotations` with `bbox` and `segmentation`, `categories`, `iscrowd`) and the frame of boxes
after https://raw.githubusercontent.com/cocodataset/cocodataset.github.io/master/dataset/format-data.htm

A JSON file is read as a whole, so indexing needs memory for the largest one; constant memory holds once the index is
written. A crowd (`iscrowd` 1: a group drawn as one) is no single finding and is left out. An image listed by a file
counts as annotated by it, boxes or not. The split is a word of the file's path ("instances_val2017.json",
"valid/_annotations.coco.json").
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from regionmed_clip.processing.corpus.records import MaskRle, RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.generic_folder import (
    GENERIC_ACCESS,
    GENERIC_LICENSE,
    GENERIC_OPTIONS,
    SPLIT_OF_WORD,
    GenericFolder,
    finding_of_label,
    split_of_words,
)
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.region_masks import tight_box
from regionmed_clip.processing.corpus.sources.source_files import (
    Box,
    fit_box,
    load_json,
    open_image_file,
    path_inside,
)
from regionmed_clip.processing.mask_codes import fill_polygons, mask_of_counts

ANNOTATION_PATTERNS = (  # the first that finds a file is taken
    "annotations/instances_*.json",
    "annotations/*.json",
    "*.json",
    "*/_annotations.coco.json",
)
IMAGES_FOLDER = "images"
MIN_MASK_SHARE_IN_BOX = 0.5  # of the pixels of a mask; below it mask and box are of two frames

ABOUT = SourceAbout(
    name="coco",
    title="COCO object detection and instance segmentation, JSON",
    license=GENERIC_LICENSE,
    access=GENERIC_ACCESS,
    layout="annotations/instances_SPLIT.json (or JSON files beside the images) and the images that they name",
    layout_url="https://raw.githubusercontent.com/cocodataset/cocodataset.github.io/master/dataset/format-data.htm",
    options=GENERIC_OPTIONS
    | {
        "annotations": "the JSON files, a pattern within the root (default: the first of "
        f"{', '.join(ANNOTATION_PATTERNS)} that finds any)",
        "images": "the folder of the images within the root, with or without a folder per split in it (default: looked "
        "for in images/, in a folder named as the split, beside the JSON file, and in the root)",
    },
)


class CocoFolder(GenericFolder):
    """Records of the images that the JSON files list.

    Args:
        root, index_path: as in IndexedSource.
        annotations, images: see `ABOUT.options`.
        options: those of GenericFolder.
    """

    about = ABOUT

    def __init__(
        self,
        root: str | Path,
        *,
        index_path: Path | None = None,
        annotations: str | None = None,
        images: str | None = None,
        **options: str,
    ) -> None:
        for option, value in (("annotations", annotations), ("images", images)):
            if value is not None and (PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts):
                raise ValueError(
                    f"coco: option {option}={value} leads out of the root; it is read within it. Give a relative path."
                )
        self._patterns = ANNOTATION_PATTERNS if annotations is None else (annotations,)
        self._images = images
        self._categories: set[str] | None = None  # findings that all JSON files list, while the index is written
        self._crowded: set[str] = set()  # those of crowds, which are left out
        super().__init__(root, index_path=index_path, **options)

    def check_layout(self) -> None:
        """Nothing; raises ValueError where no JSON file is found."""
        if not self.annotation_files():
            raise ValueError(
                f"{self.root} has no file {' or '.join(self._patterns)}; a coco root holds {ABOUT.layout}. "
                "Check the path, or name the files by the option annotations."
            )

    def annotation_files(self) -> list[Path]:
        """The JSON files, sorted; those of the first pattern that finds any."""
        for pattern in self._patterns:
            found = sorted(path for path in self.root.glob(pattern) if path.is_file())
            if found:
                return found
        return []

    def rows(self) -> Iterator[Row | BadRow]:
        """One row per image ("file", its size) and one per annotation, file by file."""
        for path in self.annotation_files():
            yield from self._rows_of(path)

    def find_looked_for(self) -> Iterable[str]:
        """The findings of the categories that all JSON files list, without those of crowds, which no record states."""
        return (self._categories or set()) - self._crowded

    def split_of(self, item: Item) -> str | None:
        """The split that the path of the item's JSON file names; ValueError where the item is listed twice."""
        return split_of_words(_listing(item)["file"])

    def record(self, item: Item) -> StudyRecord:
        """The record of an image; the regions are its annotations without crowds."""
        listing = _listing(item)
        if not listing["is_found"]:
            raise ValueError(
                f"{item.key!r} of {listing['file']} is in none of {', '.join(self._folders(listing['file']))}; every "
                "image needs its file. Restore it, or name the folder by the option images."
            )
        size = (_side(item, listing, "width"), _side(item, listing, "height"))
        image = open_image_file(path_inside(self.root, item.key), size)
        regions = tuple(_region(row, image.width, image.height) for row in item.rows if "is_found" not in row)
        return self.study(item, image, modality=self.modality, anatomy=self.anatomy, regions=regions)

    def _rows_of(self, path: Path) -> Iterator[Row | BadRow]:
        """The rows of one JSON file."""
        where = path.relative_to(self.root).as_posix()
        content = load_json(path)
        names = _category_names(content, where)
        findings = {finding_of_label(name) for name in names.values()}
        self._categories = findings if self._categories is None else self._categories & findings
        folders = self._folders(where)
        key_of_image: dict[Any, str] = {}
        for number, image in enumerate(content["images"]):
            if (
                not isinstance(image, dict)
                or not isinstance(image.get("file_name"), str)
                or not _is_id(image.get("id"))
            ):
                reason = f"is {str(image)[:80]}; an image has an id and a text file_name. Correct it."
                yield BadRow(f"{where}: images[{number}]", reason)
                continue
            found = self._find(folders, image["file_name"])
            key = found or image["file_name"]
            if image["id"] in key_of_image:
                reason = (
                    f"{where}: id {image['id']} is that of {key_of_image[image['id']]} and of {key}; ids are unique."
                )
                yield BadRow(key_of_image[image["id"]], reason)
                yield BadRow(key, reason)
                continue
            key_of_image[image["id"]] = key
            size = {side: image.get(side) for side in ("width", "height")}
            yield Row(key, {"file": where, "is_found": found is not None, **size})
        for number, annotation in enumerate(content["annotations"]):
            place = f"{where}: annotations[{number}]"
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            if not _is_id(image_id) or image_id not in key_of_image:
                reason = f"is {str(annotation)[:80]}; its image_id must be the id of an image in the file. Correct it."
                yield BadRow(place, reason)
                continue
            category = annotation.get("category_id")
            name = names.get(category) if _is_id(category) else None
            if annotation.get("iscrowd"):
                self._crowded.update(() if name is None else (finding_of_label(name),))
            else:
                kept = {field: annotation.get(field) for field in ("category_id", "bbox", "segmentation")}
                yield Row(key_of_image[image_id], {"place": place, "name": name, **kept})

    def _folders(self, where: str) -> list[str]:
        """The folders within the root in which images of the JSON file `where` are looked for, best first."""
        words = [word for word in _words(where) if any(word.startswith(split) for split in SPLIT_OF_WORD)]
        if self._images is not None:
            return [*(f"{self._images}/{word}" for word in words), self._images]
        beside = PurePosixPath(where).parent.as_posix()
        return list(dict.fromkeys([*(f"{IMAGES_FOLDER}/{word}" for word in words), *words, IMAGES_FOLDER, beside, "."]))

    def _find(self, folders: list[str], file_name: str) -> str | None:
        """The path within the root of the first `folder/file_name` that exists; None where none does."""
        if PurePosixPath(file_name).is_absolute() or ".." in PurePosixPath(file_name).parts:
            return None
        for folder in folders:
            path = PurePosixPath(folder, file_name)
            if os.path.isfile(self.root / path):  # False, not OSError, for a name that is too long
                return path.as_posix()
        return None


def _words(where: str) -> list[str]:
    """The words of a path that may name a folder of images: "annotations/instances_val2017.json" has "val2017"."""
    path = PurePosixPath(where)
    return [word for part in (*path.parent.parts, path.stem) for word in part.split("_")]


def _category_names(content: Any, where: str) -> dict[Any, str]:
    """Category id -> name; ValueError where the file lacks one of its three lists or a category has no name."""
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise ValueError(
            f"{where} lacks one of the lists {', '.join(lists)}; a COCO detection file has all three. Name the right "
            "files by the option annotations."
        )
    names: dict[Any, str] = {}
    for category in content["categories"]:
        name = category.get("name") if isinstance(category, dict) else None
        if not isinstance(name, str) or not name.strip() or not _is_id(category.get("id")) or category["id"] in names:
            raise ValueError(
                f"{where} has the category {str(category)[:80]}; a category has its own id and a name. Correct it."
            )
        names[category["id"]] = name
    return names


def _is_id(value: object) -> bool:
    """True for what may identify an image or a category: a whole number or a text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def _listing(item: Item) -> dict[str, Any]:
    """The row of the image itself; ValueError where the image is listed more than once."""
    listings = [row for row in item.rows if "is_found" in row]
    if len(listings) != 1:
        raise ValueError(
            f"{item.key} is listed {len(listings)} times, in {', '.join(row['file'] for row in listings[:3])}; an "
            "image has one entry, or it may stand in two splits. Merge the entries."
        )
    return listings[0]


def _side(item: Item, listing: dict[str, Any], name: str) -> int:
    """The width or height that the file states for an image."""
    value = listing[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{listing['file']}: {item.key} has {name} {value!r}; it must be a whole number of pixels. Correct it."
        )
    return value


def _region(row: dict[str, Any], width: int, height: int) -> RegionRecord:
    """The region of one annotation: its bbox, else the tight box of its mask."""
    where = row["place"]
    if row["name"] is None:
        raise ValueError(
            f"{where} has category_id {row['category_id']!r}; it must be the id of a category of the file. Correct it."
        )
    mask = _mask(row["segmentation"], width, height, where)
    box = _box(row["bbox"], width, height, where) if row["bbox"] else (None if mask is None else tight_box(mask))
    if box is None:
        raise ValueError(f"{where} has neither a bbox nor a mask with pixels; a region needs one. Drop the annotation.")
    if mask is not None:
        inside = mask[max(int(box[1]), 0) : int(np.ceil(box[3])), max(int(box[0]), 0) : int(np.ceil(box[2]))]
        if inside.sum() < MIN_MASK_SHARE_IN_BOX * mask.sum():
            raise ValueError(
                f"{where} has bbox {row['bbox']}, and only {inside.sum()} of the {mask.sum()} pixels of its mask lie "
                "in it; they must be of one object. Check the frames of both."
            )
    rle = MaskRle.from_array(mask) if mask is not None and mask.any() else None
    return RegionRecord(box, finding_of_label(row["name"]), mask_rle=rle)


def _box(bbox: Any, width: int, height: int, where: str) -> Box:
    """(x0, y0, x1, y1), half-open, of a COCO bbox [x, y, width, height]: 0-based pixels, x + width the outer edge."""
    is_box = isinstance(bbox, list) and len(bbox) == 4
    if not is_box or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in bbox):
        raise ValueError(f"{where} has bbox {bbox!r}; it must be four numbers [x, y, width, height]. Correct it.")
    x, y, box_width, box_height = (float(value) for value in bbox)
    if not (np.isfinite((x, y, box_width, box_height)).all() and box_width > 0 and box_height > 0):
        raise ValueError(
            f"{where} has bbox {bbox}; all values must be finite, width and height above 0. Correct it, or convert "
            "corners to [x, y, width, height]."
        )
    return fit_box((x, y, x + box_width, y + box_height), width, height)


def _mask(segmentation: Any, width: int, height: int, where: str) -> np.ndarray | None:
    """The (H, W) mask of a segmentation in any of COCO's three forms; None where there is none."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return fill_polygons(segmentation, width, height, where)
    if not isinstance(segmentation, dict):
        raise ValueError(
            f"{where} has segmentation {str(segmentation)[:60]}; it must be polygons in a list or run lengths. "
            "Correct it."
        )
    mask = mask_of_counts(segmentation.get("counts"), segmentation.get("size"), where)
    if mask.shape != (height, width):
        raise ValueError(
            f"{where} has run lengths of size {segmentation.get('size')} and its image is {[height, width]} (height, "
            "width); they must agree. Check that the annotation belongs to this image."
        )
    return mask


open_sources = CocoFolder.open
