"""Source `yolo`: a folder with images/ and labels/ in the layout of Ultralytics YOLO, detection or segmentation.

Layout, data.yaml and label lines after https://github.com/ultralytics/ultralytics, docs/en/datasets/detect/index.md
(the commit is in `ABOUT`), and, for polygons, https://docs.ultralytics.com/datasets/segment/

The label file of an image is its path with the last folder `images` exchanged for `labels`, so images/train/a.png and
train/images/a.png both work. A missing label file means an image without boxes, as the format has it. The split is what
data.yaml says under train, val and test (folders or lists of paths, read within the root whatever `path` says), else a
word of the image's folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from regionmed_clip.processing.corpus.records import MaskRle, RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.generic_folder import (
    GENERIC_ACCESS,
    GENERIC_LICENSE,
    GENERIC_OPTIONS,
    SPLIT_OF_WORD,
    GenericFolder,
    finding_of_label,
    one_of,
    one_split,
    split_of_words,
)
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.region_masks import tight_box
from regionmed_clip.processing.corpus.sources.source_files import (
    IMAGE_SUFFIXES,
    fit_box,
    list_images,
    open_image_file,
    parse_number,
    path_inside,
)
from regionmed_clip.processing.mask_codes import fill_polygons

CLASS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")  # the first that is there names the classes
IMAGES_FOLDER, LABELS_FOLDER = "images", "labels"
MAX_FRACTION = 1.01  # above it a value is in pixels, not in fractions
FRACTION_ERROR = 1e-6  # of a side: what six decimals of centre and size lose of an edge

ABOUT = SourceAbout(
    name="yolo",
    title="YOLO detection and segmentation, one text file per image",
    license=GENERIC_LICENSE,
    access=GENERIC_ACCESS,
    layout="images/{train,val,test}/, labels/{train,val,test}/*.txt and data.yaml or classes.txt with the class names",
    layout_url="https://github.com/ultralytics/ultralytics/blob/02121a52dd0a636899376093a514e43cc27a4435/"
    "docs/en/datasets/detect/index.md",
    options=GENERIC_OPTIONS
    | {
        "classes": "the file within the root that names the classes: YAML with names, or a text with one name per line "
        f"(default: the first of {', '.join(CLASS_FILES)})",
    },
)


class YoloFolder(GenericFolder):
    """Records of all images in folders named images.

    Args:
        root, index_path: as in IndexedSource.
        classes: see `ABOUT.options`.
        options: those of GenericFolder.
    """

    about = ABOUT

    def __init__(
        self, root: str | Path, *, index_path: Path | None = None, classes: str | None = None, **options: str
    ) -> None:
        self._class_files = CLASS_FILES if classes is None else (classes,)
        self._names: dict[int, str] = {}
        self._parts: dict[str, Any] = {}  # train, val and test of data.yaml
        super().__init__(root, index_path=index_path, **options)

    def check_layout(self) -> None:
        """Nothing; reads the class names; raises ValueError where these, the images or the labels are missing."""
        for name in (IMAGES_FOLDER, LABELS_FOLDER):
            if not any(path.is_dir() for pattern in (name, f"*/{name}") for path in self.root.glob(pattern)):
                raise ValueError(f"{self.root} has no folder {name}; a yolo root holds {ABOUT.layout}. Check the path.")
        self._names, self._parts = _read_class_file(self._class_file())

    def annotation_files(self) -> list[Path]:
        """The label files, the class file and the lists of paths that it names."""
        return [*self._label_files(), self._class_file(), *(path for path, _ in self._listed_files())]

    def rows(self) -> Iterator[Row | BadRow]:
        """One row per image, per label file and per path in a list, under the image's path without suffix."""
        for path in list_images(self.root):
            name = path.relative_to(self.root)
            if IMAGES_FOLDER in name.parts[:-1]:
                yield Row(name.with_suffix("").as_posix(), {"image": name.as_posix()})
        for path in self._label_files():
            name = path.relative_to(self.root)
            yield Row(_image_key(name), {"label": name.as_posix()})
        for path, split in self._listed_files():
            with path.open(encoding="utf-8-sig") as lines:
                for line in filter(None, map(str.strip, lines)):
                    yield Row(self._listed_key(path, line), {"list": split})

    def find_looked_for(self) -> Iterable[str]:
        """The findings of all classes that the class file names."""
        return map(finding_of_label, self._names.values())

    def split_of(self, item: Item) -> str | None:
        """The split of the list or folder of data.yaml that holds the image, else that of a word of its folders."""
        listed = one_split(item)
        if listed is not None:
            return listed
        for part, folders in self._parts.items():
            for folder in folders:
                if not folder.endswith(".txt") and PurePosixPath(item.key).is_relative_to(self._folder_of(folder)):
                    return SPLIT_OF_WORD[part]
        return split_of_words(PurePosixPath(item.key).parent.as_posix())

    def record(self, item: Item) -> StudyRecord:
        """The record of an image with one region per line of its label file."""
        missing = "has no image file of this name; every label file and listed path needs it. Restore it."
        image = open_image_file(path_inside(self.root, one_of(item, "image", missing)))
        regions: list[RegionRecord] = []
        if any("label" in row for row in item.rows):
            path = path_inside(self.root, one_of(item, "label", ""))
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is no UTF-8 text ({error}); write it again.") from error
            regions = [
                self._region(line.split(), image.width, image.height, f"{path.relative_to(self.root)}:{number}")
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
        return self.study(item, image, modality=self.modality, anatomy=self.anatomy, regions=regions)

    def _region(self, fields: list[str], width: int, height: int, where: str) -> RegionRecord:
        """The region of one label line: class and box in fractions, or class and polygon in fractions."""
        values = [parse_number(text, f"{where}: value {place}") for place, text in enumerate(fields)]
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise ValueError(
                f"{where} has {len(values)} values; a line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`. "
                "Drop confidences and key points."
            )
        if values[0] not in self._names:
            raise ValueError(
                f"{where} has class {fields[0]}; it must be one of the {len(self._names)} classes of "
                f"{self._class_file().name}. Correct the line or name the class."
            )
        if not all(-MAX_FRACTION + 1 <= value <= MAX_FRACTION for value in values[1:]):
            raise ValueError(
                f"{where} has the values {' '.join(fields[1:5])}; they must be fractions of the image from 0 to 1. "
                "Divide pixels by the width and height."
            )
        finding = finding_of_label(self._names[int(values[0])])
        if len(values) == 5:
            cx, cy, box_width, box_height = values[1:]
            # Fractions of the image as it is, 0 and 1 its outer edges: times the sides they are half-open pixel boxes.
            x0, x1 = (_pixel(edge, width) for edge in (cx - box_width / 2, cx + box_width / 2))
            y0, y1 = (_pixel(edge, height) for edge in (cy - box_height / 2, cy + box_height / 2))
            return RegionRecord(fit_box((x0, y0, x1, y1), width, height), finding)
        polygon = [_pixel(value, (width, height)[place % 2]) for place, value in enumerate(values[1:])]
        mask = fill_polygons([polygon], width, height, where)
        box = tight_box(mask)
        if box is None:  # a sliver between the centres of pixels: its own extent, and no mask
            sliver = (min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2]))
            return RegionRecord(fit_box(sliver, width, height), finding)
        return RegionRecord(box, finding, mask_rle=MaskRle.from_array(mask))

    def _class_file(self) -> Path:
        """The file that names the classes; ValueError where there is none."""
        for name in self._class_files:
            if path_inside(self.root, name).is_file():
                return self.root / name
        raise ValueError(
            f"{self.root} has no {' or '.join(self._class_files)}; the class names of the labels are needed. Write one "
            "name per line into classes.txt, or name the file by the option classes."
        )

    def _label_files(self) -> list[Path]:
        """The label files, sorted by path; classes.txt, which labelling tools put beside them, is none."""
        return sorted(
            path
            for path in self.root.rglob("*.txt")
            if LABELS_FOLDER in path.relative_to(self.root).parts[:-1] and path.name != "classes.txt"
        )

    def _listed_files(self) -> list[tuple[Path, str]]:
        """The lists of paths that data.yaml names and that are there, each with its split."""
        listed = [
            (self.root / self._folder_of(entry), SPLIT_OF_WORD[part])
            for part, entries in self._parts.items()
            for entry in entries
            if entry.endswith(".txt")
        ]
        return [(path, split) for path, split in listed if path.is_file()]

    def _folder_of(self, entry: str) -> PurePosixPath:
        """A path of data.yaml within the root: leading "./" and "../", which depend on `path`, are left out."""
        parts = [part for part in PurePosixPath(entry).parts if part not in ("/", "..")]
        if not (self.root / PurePosixPath(*parts)).exists() and parts and parts[0] == self.root.name:
            parts = parts[1:]
        return PurePosixPath(*parts)

    def _listed_key(self, list_path: Path, line: str) -> str:
        """The key of the image that a line of a list names, relative to the list's folder or to the root."""
        for folder in (list_path.parent, self.root):
            path = (folder / line).resolve()
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and path.is_relative_to(self.root):
                return path.relative_to(self.root).with_suffix("").as_posix()
        return line


def _read_class_file(path: Path) -> tuple[dict[int, str], dict[str, list[str]]]:
    """Class number -> name, and the entries of train, val and test (none in a text file).

    Raises:
        ValueError: the file is no UTF-8 text or no YAML, names no class, or describes key points.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = {"names": text.splitlines()} if path.suffix == ".txt" else yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it must be YAML, or a text of class names.") from error
    content = content if isinstance(content, dict) else {}
    if "kpt_shape" in content:
        raise ValueError(
            f"{path} has kpt_shape; key points are not read here. Export detection or segmentation labels."
        )
    names = content.get("names")
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not all(isinstance(key, int) for key in numbered):
        raise ValueError(f"{path} has names {str(names)[:60]}; it must be a list, or a number and a name per class.")
    kept = {number: str(name).strip() for number, name in numbered.items() if name is not None and str(name).strip()}
    if not kept:
        raise ValueError(f"{path} names no class; labels need at least one. Fill in the names.")
    parts: dict[str, list[str]] = {}
    for part in ("train", "val", "test"):
        entry = content.get(part) or []
        parts[part] = [entry] if isinstance(entry, str) else [str(folder) for folder in entry]
    return kept, parts


def _image_key(label: Path) -> str:
    """The key of the image of a label file: its path with the last folder `labels` as `images`, without suffix."""
    parts = list(label.with_suffix("").parts)
    place = max(place for place, part in enumerate(parts[:-1]) if part == LABELS_FOLDER)
    parts[place] = IMAGES_FOLDER
    return PurePosixPath(*parts).as_posix()


def _pixel(fraction: float, side: int) -> float:
    """`fraction` of a side in pixels, whole where it is so but for what the decimals of a label file lose."""
    value = fraction * side
    return float(round(value)) if abs(value - round(value)) <= FRACTION_ERROR * side else value


open_sources = YoloFolder.open
